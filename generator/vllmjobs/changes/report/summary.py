"""Groups counted by what becomes of them: `1 group replaced (canaries first), 2 unchanged`."""

from collections import Counter
from collections.abc import Iterable
from enum import IntEnum, auto

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
        return tuple(_outcome(group, action) for action in group.actions)
    if not group.is_changed:
        return (Outcome.UNCHANGED,)
    return (Outcome.WAITING if group.is_waiting else Outcome.UNTOUCHED,)


def _outcome(group: GroupChange, action: GroupAction) -> Outcome:
    if action == "destructive":
        return Outcome.REPLACED if group.canaries else Outcome.REPLACED_UNTRIED
    return _OF_ACTIONS[action]


def _label(outcomes: Iterable[Outcome]) -> str:
    return " and ".join(_LABELS[outcome] for outcome in outcomes)
