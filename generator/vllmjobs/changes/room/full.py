"""Nodes on which too little is free.

The scheduler's texts are those of scheduler/feasible/rank.go in Nomad.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from vllmjobs.changes.model import Holder, Reason, Remedy, Setting
from vllmjobs.changes.room.fleet import Node
from vllmjobs.changes.room.gpu_request import requested
from vllmjobs.changes.room.placement import FailedPlacement
from vllmjobs.changes.room.shortage import Shortage

# An environment's word for it, which is also the key in `Node.free`, and its unit.
_UNITS = {"memory": "MiB", "cpu": "MHz", "disk": "MiB"}


def full(
    placement: FailedPlacement, nodes_by_text: Mapping[str, int], is_all: bool
) -> Iterator[Reason | Remedy]:
    """Yield why nodes are full, from DimensionExhausted, less what it says of GPUs.

    `is_all` tells that this is all that stands in the way.
    """
    for text, nodes in sorted(nodes_by_text.items(), key=lambda item: (-item[1], item[0])):
        if text in _UNITS:
            yield from _resource(placement, text, nodes, is_all)
        elif port := re.search(r"port collision (?P<label>\S+)=(?P<port>\d+)", text):
            yield from _port(placement, port["label"], int(port["port"]), nodes)
        elif text == "cores":
            yield Reason(kind="cores", nodes=nodes)
            yield Remedy(kind="lower", settings=(Setting(key="resources.cores"),))
        else:
            yield Reason(kind="full", nodes=nodes, text=text)


def _port(placement: FailedPlacement, label: str, port: int, nodes: int) -> Iterator[Reason | Remedy]:
    jobs = [node.ports[port] for node in placement.serving if port in node.ports]
    holders = tuple(
        Holder(job=job, count=jobs.count(job), own=job == placement.job["ID"]) for job in sorted(set(jobs))
    )
    yield Reason(kind="port", resource=label, port=port, nodes=nodes, holders=holders)
    key = placement.key("balancer.port", "ports.static")
    yield Remedy(kind="set", settings=(Setting(key=key),))


def _resource(
    placement: FailedPlacement, resource: str, count: int, is_all: bool
) -> Iterator[Reason | Remedy]:
    unit = _UNITS[resource]
    if resource == "disk":
        need = int((placement.group.get("EphemeralDisk") or {}).get("SizeMB") or 0)
    else:
        word = {"memory": "MemoryMB", "cpu": "CPU"}[resource]
        need = sum(int((task.get("Resources") or {}).get(word) or 0) for task in placement.group["Tasks"])
    key = placement.key(f"balancer.{resource}", f"resources.{resource}")
    nodes = [node for node in placement.usable if not node.refuses]
    free = [node.free[resource] for node in nodes if node.free is not None]
    most = max(free) if free and is_all and placement.is_exact() else None
    yield Reason(kind="resource", nodes=count, resource=resource, unit=unit, needed=need, most_free=most)
    size = 0 if most is None else _largest(placement, resource, need, nodes)
    yield Remedy(kind="lower", settings=(Setting(key=key, value=f"{size} {unit}" if size else None),))


def _largest(placement: FailedPlacement, resource: str, need: int, nodes: Sequence[Node]) -> int:
    """Return the most that each may ask for so that all are placed; 0 where there is no such amount."""
    request, wanted = requested(placement.group), placement.wanted
    limits = {node.id: Shortage(placement, request).slots(node) if request else wanted for node in nodes}
    free = {node.id: node.free[resource] for node in nodes if node.free is not None}
    sizes = {amount // share for amount in free.values() for share in range(1, wanted + 1)}
    enough = (
        size
        for size in sizes
        if 0 < size < need and sum(min(free[id] // size, limits[id]) for id in free) >= wanted
    )
    return max(enough, default=0)
