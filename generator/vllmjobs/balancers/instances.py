"""Instances of services as Consul has them, and which of them are canaries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CANARY = "canary"  # the tag in Consul by which canaries differ from stable instances


class ServiceInstance(NamedTuple):
    """An instance of a service, as Consul has it."""

    id: str
    node: str
    address: str
    port: int
    tags: tuple[str, ...]
    passing: bool  # all of its checks pass, and those of its node: Fabio's checksRequired = all


Registered = Mapping[str, Sequence[ServiceInstance]]  # the instances of each service, or group


def canaries_of(instances: Iterable[ServiceInstance]) -> list[ServiceInstance]:
    """Return the canaries to which a balancer can send requests: those that pass all of their checks."""
    return [instance for instance in instances if instance.passing and CANARY in instance.tags]


def why_no_canary(group: str, service: str, instances: Sequence[ServiceInstance]) -> str:
    """Say that a group has no canary among these instances of its service, and where to look."""
    others = f"; {len(instances)} other instances are" if instances else ""
    return (
        f"no canary of {group} is registered in Consul as {service} with all checks passing{others}; "
        f"see `consul watch -type=service -service={service}`"
    )
