"""Numbers of GPUs that groups hold: before a change, after it, and meanwhile."""

from collections.abc import Iterable
from typing import NamedTuple

from vllmjobs.changes.model import GroupChange


class GpuTotals(NamedTuple):
    """GPUs of groups: before, after, and in canaries, which run beside the old instances meanwhile."""

    before: int
    after: int
    extra: int

    def __str__(self) -> str:
        return from_to(self.before, self.after) + self.balance

    @property
    def balance(self) -> str:
        """The difference, as `, 4 more, 2 extra while it rolls out`; empty where there is none."""
        more = self.after - self.before
        change = f", {abs(more):,} {'more' if more > 0 else 'fewer'}" if more else ""
        extra = f", {self.extra:,} extra while it rolls out" if self.extra else ""
        return change + extra


def gpu_totals(groups: Iterable[GroupChange]) -> GpuTotals:
    """Return what the groups hold together."""
    groups = list(groups)
    return GpuTotals(
        sum((group.count_before or 0) * (group.gpus_before or 0) for group in groups),
        sum((group.count_after or 0) * (group.gpus_after or 0) for group in groups),
        sum(group.canaries * (group.gpus_after or 0) for group in groups),
    )


def describe_gpus(group: GroupChange) -> str:
    """Write `8 (4 × 2), 4 extra while it rolls out`; empty where a group has none."""
    totals = gpu_totals([group])
    products = [
        f"{count:,} × {gpus:,}" if count and gpus else "0"
        for count, gpus in ((group.count_before, group.gpus_before), (group.count_after, group.gpus_after))
    ]
    product = " → ".join(dict.fromkeys(products))
    return f"{from_to(totals.before, totals.after)} ({product}){totals.balance}" if any(totals) else ""


def from_to(before: int, after: int) -> str:
    """Write `4`, or `4 → 6`."""
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
