"""Totals of a report: groups by what becomes of them, and the GPUs that they hold before and after."""

from collections import Counter
from collections.abc import Iterable
from enum import IntEnum, auto
from typing import NamedTuple

from vllmjobs.changes.model import GroupAction, GroupChange, JobChange
from vllmjobs.text.english import counted


class Outcome(IntEnum):
    """The outcome of a change for a group, the gravest first."""

    GONE = auto()
    REPLACED_UNTRIED = auto()
    REPLACED = auto()
    UPDATED = auto()
    WAITING = auto()
    SCALED_DOWN = auto()
    SCALED_UP = auto()
    NEW = auto()
    UNTOUCHED = auto()
    UNCHANGED = auto()


_LABELS = {
    Outcome.GONE: "gone",
    Outcome.REPLACED_UNTRIED: "replaced (no canary first)",
    Outcome.REPLACED: "replaced (canaries first)",
    Outcome.UPDATED: "updated in place",
    Outcome.WAITING: "waiting for a place",
    Outcome.SCALED_DOWN: "scaled down",
    Outcome.SCALED_UP: "scaled up",
    Outcome.NEW: "new",
    Outcome.UNTOUCHED: "changed, with its instances left as they are",
    Outcome.UNCHANGED: "unchanged",
}
_OF_ACTIONS: dict[GroupAction, Outcome] = {
    "gone": Outcome.GONE,
    "in-place": Outcome.UPDATED,
    "scale-down": Outcome.SCALED_DOWN,
    "scale-up": Outcome.SCALED_UP,
    "new": Outcome.NEW,
}


def summary(jobs: Iterable[JobChange]) -> str:
    """Write `1 group replaced (canaries first), 1 scaled up, 2 unchanged`."""
    jobs = list(jobs)
    counts = Counter(_outcomes(group) for job in jobs for group in job.groups)
    unchanged = counts.pop((Outcome.UNCHANGED,), 0)
    values = sum(len(job.fields) for job in jobs if job.action == "changed")
    gravest_first = sorted(counts.items(), key=lambda item: item[0][0])
    texts = [f"{count:,} {_label(outcomes)}" for outcomes, count in gravest_first]
    texts += [f"{counted(values, 'value')} of the whole job"] if values else []
    texts += [f"{unchanged:,} {_label([Outcome.UNCHANGED])}"] if unchanged else []
    if texts and (counts or not values):
        number, _, label = texts[0].partition(" ")
        texts[0] = f"{number} {'group' if number == '1' else 'groups'} {label}"
    return ", ".join(texts) or "no groups"


def _outcomes(group: GroupChange) -> tuple[Outcome, ...]:
    """Return what becomes of a group: an outcome for each action, or one that stands for none."""
    if group.actions:
        replaced = Outcome.REPLACED if group.canaries else Outcome.REPLACED_UNTRIED
        return tuple(_OF_ACTIONS.get(action, replaced) for action in group.actions)
    if not group.is_changed:
        return (Outcome.UNCHANGED,)
    return (Outcome.WAITING if group.is_waiting else Outcome.UNTOUCHED,)


def _label(outcomes: Iterable[Outcome]) -> str:
    return " and ".join(_LABELS[outcome] for outcome in outcomes)


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
