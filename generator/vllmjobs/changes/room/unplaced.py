"""Reasons why allocations cannot be placed, as values, from the scheduler's numbers and from the nodes.

The scheduler's numbers are an AllocMetric (nomad/structs/alloc.go), which counts nodes by texts: those of
scheduler/feasible/feasible.go for nodes that are filtered out, those of rank.go for nodes with no room left.
"""

from collections.abc import Iterator, Mapping

from vllmjobs.changes.model import Reason, Remedy, Setting, Unplaced
from vllmjobs.changes.room.gpu_request import requested
from vllmjobs.changes.room.placement import FailedPlacement
from vllmjobs.changes.room.ruled_out import Explanation, no_nodes, ruled_out
from vllmjobs.changes.room.shortage import Shortage, full

_OF_GPUS = ("missing devices", "devices: ")


def unplaced(placement: FailedPlacement) -> Unplaced:
    """Return how many allocations of a group have no room, why, and what a person may do."""
    explained = [*_explain(placement), *_fewer(placement)]
    return Unplaced(
        wanted=placement.wanted,
        failed=placement.failed,
        canaries=bool(placement.updates.canary),
        reasons=tuple(dict.fromkeys(each for each in explained if isinstance(each, Reason))),
        remedies=tuple(dict.fromkeys(each for each in explained if isinstance(each, Remedy))),
    )


def _explain(placement: FailedPlacement) -> list[Reason | Remedy]:
    """Return what stands in the way, and what may be done: GPUs first."""
    metric = placement.metric
    filtered, gpus_filtered = _apart(metric.get("ConstraintFiltered") or {})
    exhausted, gpus_exhausted = _apart(metric.get("DimensionExhausted") or {})
    is_gpus = bool(gpus_filtered or gpus_exhausted)
    explained: list[Reason | Remedy] = []
    if is_gpus:
        lacking, busy = sum(gpus_filtered.values()), sum(gpus_exhausted.values())
        explained += _gpus(placement, lacking, busy, ruled_out=sum(filtered.values()))
    if not metric.get("NodesEvaluated"):
        explained += no_nodes(placement)
    if quota := metric.get("QuotaExhausted"):
        explained += [Reason(kind="quota", text=", ".join(quota)), Remedy(kind="raise-quota")]
    explained += ruled_out(placement, filtered, is_gpus)
    explained += full(placement, exhausted, is_all=not explained and len(exhausted) == 1)
    if placement.nodes is None:
        explained.append(Reason(kind="nodes-unknown"))
    return explained


def _apart(nodes_by_text: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the texts that are not of GPUs, and those that are, each with its number of nodes."""
    gpus = {text: nodes for text, nodes in nodes_by_text.items() if text.startswith(_OF_GPUS)}
    return {text: nodes for text, nodes in nodes_by_text.items() if text not in gpus}, gpus


def _gpus(placement: FailedPlacement, lacking: int, busy: int, ruled_out: int) -> Explanation:
    """Yield why there are no GPUs; by the scheduler's numbers alone, where nodes may not be read."""
    request = requested(placement.group)
    if request is None:
        yield Reason(kind="device", nodes=lacking + ruled_out)
    elif placement.nodes is None:
        resource, needed = str(request), request.count
        if lacking:
            yield Reason(kind="gpus-missing", nodes=lacking, resource=resource, needed=needed)
        if busy:
            yield Reason(kind="gpus-taken", nodes=busy, resource=resource, needed=needed)
    else:
        yield from Shortage(placement, request, ruled_out).explain()


def _fewer(placement: FailedPlacement) -> Iterator[Remedy]:
    """Yield what makes do with the allocations for which there is room."""
    updates, group, wanted = placement.updates, placement.group, placement.wanted
    count, with_room = group.get("Count") or 0, wanted - placement.failed
    if updates.canary == wanted and with_room:
        is_blue_green = updates.canary == group.get("Count") and updates.canary > 1
        strategy = (Setting(key="rollout.strategy", value="canary"),) if is_blue_green else ()
        canaries = Setting(key="rollout.canaries", value=str(with_room))
        yield Remedy(kind="set", settings=(canaries, *strategy))
    elif updates.place == wanted and placement.job.get("Type") == "service":
        fewer, before = count - placement.failed, placement.count_before
        if fewer > 0 and (before in (None, count) or fewer > before):
            key = placement.key("balancer.count", "replicas")
            yield Remedy(kind="set", settings=(Setting(key=key, value=str(fewer)),))
