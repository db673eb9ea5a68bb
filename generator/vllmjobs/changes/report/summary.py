"""Totals of a report: groups by what becomes of them, and the GPUs that they hold before and after."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from vllmjobs.changes.model import GroupChange, JobChange
from vllmjobs.text.english import counted

# The outcomes of a change for a group, the gravest first, and what a summary calls them.
_OUTCOMES = {
    "gone": "gone",
    "untried": "replaced (no canary first)",
    "destructive": "replaced (canaries first)",
    "in-place": "updated in place",
    "waiting": "waiting for a place",
    "scale-down": "scaled down",
    "scale-up": "scaled up",
    "new": "new",
    "untouched": "changed, with its instances left as they are",
    "unchanged": "unchanged",
}
_GRAVEST_FIRST = list(_OUTCOMES)


def summary(jobs: Iterable[JobChange]) -> str:
    """Write `1 group replaced (canaries first), 1 scaled up, 2 unchanged`."""
    jobs = list(jobs)
    counts = Counter(_outcomes(group) for job in jobs for group in job.groups)
    unchanged = counts.pop(("unchanged",), 0)
    values = sum(len(job.fields) for job in jobs if job.action == "changed")
    texts = []
    for outcomes, count in sorted(counts.items(), key=lambda item: _GRAVEST_FIRST.index(item[0][0])):
        texts.append(f"{count:,} {' and '.join(_OUTCOMES[outcome] for outcome in outcomes)}")
    texts += [f"{counted(values, 'value')} of the whole job"] if values else []
    texts += [f"{unchanged:,} unchanged"] if unchanged else []
    if texts and (counts or not values):
        number, _, label = texts[0].partition(" ")
        texts[0] = f"{number} {'group' if number == '1' else 'groups'} {label}"
    return ", ".join(texts) or "no groups"


def _outcomes(group: GroupChange) -> tuple[str, ...]:
    """Return what becomes of a group: an outcome for each action, or one that stands for none."""
    if group.actions:
        replaced = "destructive" if group.canaries else "untried"
        return tuple(replaced if action == "destructive" else action for action in group.actions)
    if not group.is_changed:
        return ("unchanged",)
    return ("waiting" if group.is_waiting else "untouched",)


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
