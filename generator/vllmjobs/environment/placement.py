"""The choice of nodes and GPUs: constraints, affinities and spreads, as Nomad has them."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vllmjobs.environment.values import AffinityOperator, DeviceOperator, Operator, Text


def doc(description: str, *examples: object, **bounds: Any) -> Meta:
    """Return the annotation of a key: what it is for, examples of it, and the bounds that `Meta` knows."""
    return Meta(description=description, examples=list(examples) or None, **bounds)


# What the keys of a task say alike, whichever it is.
USER = "User that it runs as: 65534 in docker, nobody with exec, Nomad's own with raw_exec."
OWN_NODE_POOL = "Node pool; the namespace's default when not given, not the models'."
OWN_NODES = "The nodes that may run the job; those of `nomad` are the models'."


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A block of the file. Unknown keys are errors."""


class Constraint(Block, frozen=True):
    """A requirement that a node meets, or is not used."""

    attribute: Annotated[str, doc("The attribute to compare.", "${node.class}", "${attr.kernel.name}")] = ""
    operator: Annotated[Operator, doc("The comparison.")] = "="
    value: Annotated[str, doc("The value to compare with.")] = ""


class Affinity(Block, frozen=True, kw_only=True):
    """A preference among nodes."""

    attribute: Annotated[Text, doc("The attribute to compare.", "${node.datacenter}")]
    operator: Annotated[AffinityOperator, doc("The comparison.")] = "="
    value: Annotated[Text, doc("The value to compare with.")]
    weight: Annotated[int, doc("Weight, -100 (avoid) to 100 (prefer).", ge=-100, le=100)] = 50


class Spread(Block, frozen=True):
    """An attribute over which allocations are spread."""

    attribute: Annotated[Text, doc("The attribute to spread over.", "${node.datacenter}")]
    weight: Annotated[int, doc("Weight among several spreads.", ge=1, le=100)] = 50
    targets: Annotated[
        dict[Text, Annotated[int, Meta(ge=0, le=100)]],
        doc("Percent of allocations per value; the rest is spread evenly.", {"dc1": 70, "dc2": 30}),
    ] = {}


class Placement(Block, frozen=True):
    """The nodes on which a model may run, beside what the whole job says under `nomad`."""

    constraints: Annotated[list[Constraint], doc("Requirements, as Nomad's `constraint` blocks.")] = []
    affinities: Annotated[list[Affinity], doc("Preferences, as Nomad's `affinity` blocks.")] = []
    spread: Annotated[list[Spread], doc("Spreading, as Nomad's `spread` blocks.")] = []


class DeviceConstraint(Block, frozen=True):
    """A requirement on an attribute of the GPU."""

    attribute: Annotated[Text, doc("An attribute of the device.", "${device.attr.driver_version}")]
    operator: Annotated[DeviceOperator, doc("The comparison.")] = "="
    value: Annotated[str, doc("The value to compare with; amounts have a unit (`70 GiB`).")] = ""


class DeviceAffinity(Block, frozen=True, kw_only=True):
    """A preference among GPUs."""

    attribute: Annotated[Text, doc("An attribute of the device.", "${device.attr.memory}")]
    operator: Annotated[AffinityOperator, doc("The comparison.")] = "="
    value: Annotated[Text, doc("The value to compare with; amounts have a unit.")]
    weight: Annotated[int, doc("Weight, -100 (avoid) to 100 (prefer).", ge=-100, le=100)] = 50
