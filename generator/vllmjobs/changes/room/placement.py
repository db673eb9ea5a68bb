"""A placement that failed: what was asked of the scheduler, what it answered, and the cluster's nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vllmjobs.changes.model import Updates
from vllmjobs.changes.room.fleet import Node, fenced, fitting, serving
from vllmjobs.text.json import Json

_ON_EVERY_NODE = ("system", "sysbatch")


@dataclass(frozen=True)
class FailedPlacement:
    """One group that cannot be placed."""

    name: str  # the job's name for `render --job`
    job: Json  # the job as `/v1/jobs/parse` gives it, canonicalized
    group: Json  # the group as it stands in `job`
    updates: Updates  # the scheduler's numbers for the group
    metrics: Mapping[str, Json]  # FailedTGAllocs of the plan: an AllocMetric for each group without room
    count_before: int | None  # instances before; None where the group was not there
    nodes: Sequence[Node] | None  # the nodes of the cluster; None where they may not be read

    @cached_property
    def metric(self) -> Json:
        """The scheduler's AllocMetric of this group."""
        return self.metrics[self.group["Name"]]

    @property
    def failed(self) -> int:
        """The number of allocations that have no room.

        Once one allocation of a group has found no room, the scheduler tries no other of it, and counts them
        as CoalescedFailures (scheduler/generic_sched.go computePlacements); so they all count as failed.
        """
        return (self.metric.get("CoalescedFailures") or 0) + 1

    @property
    def wanted(self) -> int:
        """The number of allocations that would be placed, those with room included."""
        updates = self.updates
        wanted = updates.canary + updates.place + updates.destructive_update + updates.migrate
        if self.job.get("Type") in _ON_EVERY_NODE:  # the scheduler counts only the nodes with room for it
            wanted += self.failed
        return max(wanted, self.failed)

    def key(self, of_balancer: str, of_models: str) -> str:
        """Return the environment's key for something: the balancer's or the models'."""
        return of_models if self.name == "vllm" else of_balancer

    @cached_property
    def serving(self) -> list[Node]:
        """The nodes of the job's node pool and datacenters."""
        return [fenced(self.job, self.group, node) for node in serving(self.job, self.nodes or ())]

    @cached_property
    def usable(self) -> list[Node]:
        """The serving nodes that meet the constraints which can be judged here."""
        return fitting(self.job, self.group, self.serving)

    def is_exact(self, ruled_out: int = 0) -> bool:
        """Tell whether the usable nodes are those that the scheduler looked at, less those it ruled out."""
        evaluated = (self.metric.get("NodesEvaluated") or 0) - ruled_out
        return evaluated == sum(not node.refuses for node in self.usable)
