"""Instances of services as Consul has them, and which of them are canaries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CANARY = "canary"  # the tag in Consul by which canaries differ from stable instances

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP = "[0-9A-Fa-f]{1,4}"
_IPV6 = [  # whole, then with `::` after so many groups
    f"({_GROUP}:){{7}}{_GROUP}",
    f":(:{_GROUP}){{1,7}}",
    f"({_GROUP}:){{1,7}}:",
    *(f"({_GROUP}:){{1,{before}}}(:{_GROUP}){{1,{7 - before}}}" for before in range(1, 7)),
]
IP_PATTERN = "|".join([rf"({_OCTET}[.]){{3}}{_OCTET}", *_IPV6])
"""The IP addresses that nginx reads (ngx_inet_addr and ngx_inet6_addr in ngx_inet.c), for Python and Go.

It takes anything else for the name of a host, or ends on it.
"""
PORT_PATTERN = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
"""The ports, 1 to 65535, for Python and Go."""


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
