"""Comparisons that Nomad would refuse, or that could never be true: of nodes, and of GPUs."""

import re

from vllmjobs.check.rule import Findings, of_environment, of_model
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.placement import Placement
from vllmjobs.environment.problems import Path

# Go's regular expressions (RE2) have neither; Nomad's scheduler answers with a 500.
NOT_IN_RE2 = re.compile(r"\(\?(=|!|<=|<!|>)|\\[1-9]|(?<!\\)[*+?}]\+")
VERSION = re.compile(r"(\s*(=|!=|>=|<=|>|<|~>)?\s*v?\d+(\.\d+)*[\w.+-]*\s*(,|$))+")
# What the nvidia device plugin reports with a unit, and the units of a kind that Nomad knows
# (plugins/shared/structs/units.go). A number without one, or with any other (`70Gi`), matches no GPU.
BYTES = r"([KMGTPE]iB|[kKMGTPE]B)"
UNITS = {
    "memory": BYTES,
    "bar1": BYTES,
    "pci_bandwidth": f"{BYTES}/s",
    "cores_clock": "[MG]Hz",
    "memory_clock": "[MG]Hz",
    "power": "(mW|W|kW|MW|GW)",
}
ATTRIBUTES = (*UNITS, "driver_version", "display_state", "persistence_mode")
EXAMPLES = {
    "pci_bandwidth": "32000 MB/s",
    "cores_clock": "1500 MHz",
    "memory_clock": "1500 MHz",
    "power": "300 W",
}
DEVICE_ATTRIBUTE = re.compile(r"\$\{device\.(attr\.(\w+)|ids|model|vendor|type)\}")
WITHOUT_VALUE = ("is_set", "is_not_set")


@of_environment("VJ321", "error")
def placement_is_possible(whole: Whole) -> Findings:
    """Constraints, affinities and spreads that Nomad refuses, or that can never be met."""
    environment = whole.environment
    yield from _placement(environment.nomad, ("nomad",))
    yield from _placement(environment.balancer.placement, ("balancer", "placement"))
    for name, model in environment.models.items():
        yield from _placement(model.placement, ("models", name, "placement"))


@of_model("VJ322", "error")
def gpus_can_match(subject: Subject) -> Findings:
    """Comparisons of GPUs that no GPU can meet, whichever the cluster has."""
    for kind in ("constraints", "affinities"):
        for index, comparison in enumerate(getattr(subject.model.gpus, kind)):
            path: Path = ("gpus", kind, index)
            yield from _comparison(comparison.operator, comparison.value, path)
            attribute = DEVICE_ATTRIBUTE.fullmatch(comparison.attribute)
            if not attribute:
                yield (
                    path,
                    f"{comparison.attribute!r} is no attribute of a GPU; write ${{device.attr.memory}}",
                )
                continue
            if subject.model.gpus.vendor == "nvidia" and attribute[2] and attribute[2] not in ATTRIBUTES:
                known = ", ".join(ATTRIBUTES)
                yield path, f"the nvidia plugin reports no {attribute[2]}; it reports {known}"
            unit = UNITS.get(attribute[2] or "")
            plain = comparison.operator not in (*WITHOUT_VALUE, "regexp")
            if unit and plain and not re.fullmatch(rf"\d+(\.\d+)? ?{unit}", comparison.value):
                example = EXAMPLES.get(attribute[2], "70 GiB")
                yield (
                    (*path, "value"),
                    f"{comparison.value!r} has no unit that Nomad knows, and would match no GPU; "
                    f"write {example}",
                )
    for index, affinity in enumerate(subject.model.gpus.affinities):
        yield from _weight(affinity.weight, ("gpus", "affinities", index))


def _placement(placement: Placement, at: Path) -> Findings:
    for index, constraint in enumerate(placement.constraints):
        path = (*at, "constraints", index)
        if not constraint.attribute and constraint.operator != "distinct_hosts":
            yield path, f"operator {constraint.operator} needs an attribute"
        elif re.fullmatch(r"(node|attr|meta)\.[\w.-]+", constraint.attribute):
            yield (
                (*path, "attribute"),
                f"{constraint.attribute} is compared as that very word; write ${{{constraint.attribute}}}",
            )
        yield from _comparison(constraint.operator, constraint.value, path)
    for index, affinity in enumerate(placement.affinities):
        path = (*at, "affinities", index)
        yield from _comparison(affinity.operator, affinity.value, path)
        yield from _weight(affinity.weight, path)
    for index, spread in enumerate(placement.spread):
        total = sum(spread.targets.values())
        if total > 100:
            yield (*at, "spread", index, "targets"), f"the percentages add up to {total}; 100 at most"


def _comparison(operator: str, value: str, at: Path) -> Findings:
    if operator in WITHOUT_VALUE:
        if value:
            yield (*at, "value"), f"operator {operator} takes no value"
    elif operator == "distinct_property":
        if value and not re.fullmatch("[1-9][0-9]{0,8}", value):
            yield (*at, "value"), f"must be how many allocations may share the property (got {value!r})"
    elif operator == "distinct_hosts":
        if value not in ("", "true", "false"):
            yield (*at, "value"), f"must be true or false (got {value!r})"
    elif not value:
        yield at, f"operator {operator} needs a value"
    elif operator in ("version", "semver") and not VERSION.fullmatch(value):
        yield (*at, "value"), f'must be a version constraint, such as ">= 550.54" (got {value!r})'
    elif operator == "regexp":
        yield from _regexp(value, (*at, "value"))


def _regexp(value: str, at: Path) -> Findings:
    if NOT_IN_RE2.search(value):
        yield at, "holds a lookaround, back-reference or possessive, which Nomad's RE2 does not know"
        return
    try:
        re.compile(value)
    except re.error as error:
        yield at, f"is no regular expression: {error}"


def _weight(weight: int, at: Path) -> Findings:
    if weight == 0:
        yield at, "weight 0 has no effect; Nomad refuses it"
