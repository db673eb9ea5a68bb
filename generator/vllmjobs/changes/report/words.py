"""What a change does, in the sentences that the text and the markdown share."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from vllmjobs.changes.model import (
    Deployment,
    EnvironmentChange,
    Field,
    Finding,
    GroupChange,
    JobChange,
    Preempted,
    Report,
    Unplaced,
    Updates,
    is_waiting,
)
from vllmjobs.changes.report import visible
from vllmjobs.changes.room import sentences
from vllmjobs.environment.problems import Mark, Problem
from vllmjobs.environment.secrets import without_secrets

PROSE = 600  # characters of a sentence that somebody else wrote
LISTED = 12  # names in a row


class Script(NamedTuple):
    """How a medium writes what it did not say itself: names, and sentences of others."""

    name: Callable[[str], str]
    prose: Callable[[str], str]


def prose(text: str) -> str:
    """A sentence of somebody else's on one line; its beginning, if it is an essay."""
    shown = visible.visible(" ".join(text.split()))
    return shown if len(shown) <= PROSE else f"{shown[:PROSE]}…"


TEXT = Script(visible.name, prose)


class Remark(NamedTuple):
    """A sentence beside the changes."""

    severity: Literal["error", "warning", "note"]
    text: str


_LABELS = {
    "in-place": "updated in place",
    "scale-up": "scaled up",
    "scale-down": "scaled down",
    "new": "new",
    "gone": "gone",
}
_SAME = "unchanged"
_WORST_FIRST = (
    "gone", "replaced (no", "replaced", "updated", "waiting", "scaled down", "scaled up", "new", "",
)  # fmt: skip


def counted(count: int, what: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """`a, b and 3 more`."""
    found = list(names)
    rest = f" and {len(found) - LISTED:,} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + rest


def is_changed(group: GroupChange) -> bool:
    """Whether there is anything to say of a group."""
    return bool(group.actions or group.fields or is_waiting(group))


def is_untried(group: GroupChange) -> bool:
    """Whether running instances change, or go, without a canary before them."""
    is_less = "scale-down" in group.actions and ("destructive" in group.actions or not group.count_after)
    is_replaced = "destructive" in group.actions and not group.canaries
    return "in-place" in group.actions or is_replaced or is_less


def does(group: GroupChange) -> str:
    """What Nomad does with the instances: `destructive: 2 canaries first, then ...`."""
    said = [_SAID[action](group) for action in group.actions]
    if not said and group.updates and group.updates.place:
        said = [f"places {counted(group.updates.place, 'instance')}, missing so far"]
    return "; ".join(said) or "leaves the instances as they are"


def _destructive(group: GroupChange) -> str:
    before, after = group.count_before or 0, group.count_after or 0
    if not group.canaries:
        return f"destructive: {_all(after)}, no canary tries it first"
    rest = after - group.canaries
    then = f"the other {rest:,}" if rest > 0 else "all old ones stop" if before != 1 else "the old one stops"
    return (
        f"destructive: {group.canaries:,} {'canary' if group.canaries == 1 else 'canaries'} first, "
        f"then {then} after the promotion"
    )


def _gone(group: GroupChange) -> str:
    verb = "run on" if group.count_after else "stop"
    if group.count_before == 1:
        verb = "runs on" if group.count_after else "stops"
    return f"gone: {counted(group.count_before or 0, 'instance')} {verb}"


def _all(count: int) -> str:
    return "the one instance" if count == 1 else f"all {count:,} instances"


_SAID: dict[str, Callable[[GroupChange], str]] = {
    "new": lambda group: f"new: {counted(group.count_after or 0, 'instance')}",
    "gone": _gone,
    "destructive": _destructive,
    "in-place": lambda group: (
        f"in place: {_all(group.count_after or 0)}{' at once' * (group.count_after != 1)}, no canary tries it"
    ),
    "scale-up": lambda group: f"scale up {group.count_before or 0:,} → {group.count_after or 0:,}",
    "scale-down": lambda group: (  # hashicorp/nomad#19643
        f"scale down {group.count_before or 0:,} → {group.count_after or 0:,}"
        f"{' at once, before any canary is tried' * bool(group.canaries)}"
    ),
}


def moved(before: int, after: int) -> str:
    """`4`, or `4 → 6`."""
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


class Gpus(NamedTuple):
    """GPUs that groups hold: before, after, and in canaries beside these until the promotion."""

    before: int
    after: int
    extra: int

    def __str__(self) -> str:
        return moved(self.before, self.after) + self.balance

    @property
    def balance(self) -> str:
        """`, 4 more, 2 extra while it rolls out`; empty where the group keeps what it has."""
        more = self.after - self.before
        change = f", {abs(more):,} {'more' if more > 0 else 'fewer'}" if more else ""
        extra = f", {self.extra:,} extra while it rolls out" if self.extra else ""
        return change + extra


def gpus(groups: Iterable[GroupChange]) -> Gpus:
    """What the groups hold together; canaries run beside the instances that they are to replace."""
    found = list(groups)
    return Gpus(
        sum((group.count_before or 0) * (group.gpus_before or 0) for group in found),
        sum((group.count_after or 0) * (group.gpus_after or 0) for group in found),
        sum(group.canaries * (group.gpus_after or 0) for group in found),
    )


def group_gpus(group: GroupChange) -> str:
    """`8 (4 × 2), 4 extra while it rolls out`; empty where a group has none."""
    held = gpus([group])
    products = [
        f"{count:,} × {each:,}" if count and each else "0"
        for count, each in ((group.count_before, group.gpus_before), (group.count_after, group.gpus_after))
    ]
    product = " → ".join(dict.fromkeys(products))
    return f"{moved(held.before, held.after)} ({product}){held.balance}" if any(held) else ""


def summary(jobs: Iterable[JobChange]) -> str:
    """`1 group replaced (canaries first), 1 scaled up, 2 unchanged`."""
    found = list(jobs)
    counts = Counter(_label(group) for job in found for group in job.groups)
    same = counts.pop(_SAME, 0)
    said = [f"{counts[label]:,} {label}" for label in sorted(counts, key=_gravity)]
    fields = sum(len(job.fields) for job in found if job.action == "changed")
    said += [f"{counted(fields, 'value')} of the whole job"] if fields else []
    said += [f"{same:,} {_SAME}"] if same else []
    if said and not (fields and not counts):
        number, _, label = said[0].partition(" ")
        said[0] = f"{number} {'group' if number == '1' else 'groups'} {label}"
    return ", ".join(said) or "no groups"


def _gravity(label: str) -> int:
    return next(rank for rank, beginning in enumerate(_WORST_FIRST) if label.startswith(beginning))


def _label(group: GroupChange) -> str:
    replaced = f"replaced ({'canaries first' if group.canaries else 'no canary first'})"
    labels = [replaced if action == "destructive" else _LABELS[action] for action in group.actions]
    if not labels and is_changed(group):
        labels = [
            "waiting for a place" if is_waiting(group) else "changed, with its instances left as they are"
        ]
    return " and ".join(labels) or _SAME


def what_becomes(job: JobChange) -> str:
    """What happens to a job: the second half of its headline."""
    if job.action == "new":
        return f" is new, with {counted(len(job.groups), 'group')}"
    if job.action == "gone":
        return f" is gone from here, with {counted(len(job.groups), 'group')}"
    if job.action == "changed":
        return f" changes: {summary([job])}"
    return f" is unchanged: {summary([job])}" if any(map(is_changed, job.groups)) else ": no changes"


def place(job: JobChange) -> str:
    """Where a job is, if that is not where all are."""
    said = [f"namespace {visible.name(job.namespace)}"] if job.namespace not in ("", "default") else []
    said += [f"region {visible.name(job.region)}"] if job.region not in ("", "global") else []
    return ", ".join(said)


def unplaced(found: Unplaced, group: str, script: Script) -> str:
    """`2 of 2 canaries of chat cannot be placed`."""
    what = "canaries" if found.canaries else "instances"
    if found.wanted == 1:
        what = "canary" if found.canaries else "instance"
    return f"{found.failed:,} of {found.wanted:,} {what} of {script.name(group)} cannot be placed"


def reasons(found: Unplaced, script: Script) -> str:
    """Why, as clauses; empty where Nomad gave none."""
    return ", ".join(map(script.prose, sentences.reasons(found)))


def way_out(found: Unplaced, script: Script) -> str:
    """What a person may do, as clauses."""
    return ", or ".join(map(script.prose, sentences.ways_out(found)))


def remarks(job: JobChange, script: Script) -> Iterator[Remark]:
    """What else a person should know of a job, the gravest first."""
    if job.plan:
        if job.plan.deployment:
            yield Remark("warning", _deployment(job.plan.deployment, script))
        yield from (Remark("warning", _preempted(each, script)) for each in job.plan.preempted)
        yield from (Remark("warning", f"Nomad warns: {script.prose(each)}") for each in job.plan.warnings)
    yield from (Remark("note", script.prose(note)) for note in job.notes)


def _deployment(found: Deployment, script: Script) -> str:
    details = [found.status, found.description, *found.groups]
    said = "; ".join(script.prose(each) for each in details if each)
    return f"a run cancels deployment {script.name(found.id[:8])} of version {found.job_version} ({said})"


def _preempted(found: Preempted, script: Script) -> str:
    where = f" in namespace {script.name(found.namespace)}" if found.namespace not in ("", "default") else ""
    group = f"group {script.name(found.group)} of {script.name(found.job)}{where}"
    count = counted(found.count, "allocation")
    return f"to make room, Nomad stops {count} of {group} on {script.name(found.node)}"


def updates(found: Updates) -> str:
    """The scheduler's numbers, in its own words: `2 canary, 4 ignore`."""
    numbers = msgspec.structs.asdict(found)
    said = [f"{count:,} {what.replace('_', ' ')}" for what, count in numbers.items() if count]
    return ", ".join(said) or "nothing"


def findings(environment: EnvironmentChange) -> list[Finding]:
    """What `check` says, errors first."""
    grave = ("error", "warning", "note")
    return sorted(environment.findings, key=lambda finding: grave.index(finding.severity))


def finding(found: Finding) -> str:
    """As `check` writes it: place, severity, path, message, rule."""
    mark = Mark(found.file, found.line, found.column)
    path = (found.path,) if found.path else ()
    return str(Problem(mark, path, found.message, found.rule, found.severity))


def tally(found: Iterable[Finding]) -> str:
    """`1 error, 2 warnings`."""
    counts = Counter(each.severity for each in found)
    return ", ".join(counted(counts[kind], kind) for kind in ("error", "warning", "note") if counts[kind])


def again(report: Report) -> str:
    """The command that says all of it."""
    names = [environment.name for environment in report.environments]
    against = {environment.against for environment in report.environments}
    words = ["vllmjobs", report.command, *(names if len(names) <= 3 else [])]
    if report.command == "diff" and len(against) == 1:
        words += ["--against", against.pop()]
    return " ".join(map(shlex.quote, words))


def told(report: Report) -> Report:
    """The report as people are told of it: without tokens, and nothing stops of a job that nobody stops."""
    report = without_tokens(report)
    environments = []
    for environment in report.environments:
        jobs = (_running_on(job) if job.action == "gone" else job for job in environment.jobs)
        environments.append(msgspec.structs.replace(environment, jobs=tuple(jobs)))
    return msgspec.structs.replace(report, environments=tuple(environments))


def _running_on(job: JobChange) -> JobChange:
    groups = (
        msgspec.structs.replace(group, count_after=group.count_before, gpus_after=group.gpus_before)
        for group in job.groups
    )
    return msgspec.structs.replace(job, groups=tuple(groups))


def without_tokens(report: Report) -> Report:
    """The report, less what looks like a token in any of its texts.

    Before anything is cut or escaped: half a token is not known for one. A value that differs in nothing
    else is marked hidden, so that it does not look equal.
    """
    return msgspec.convert(_without(msgspec.to_builtins(report)), Report)


def _without(found: Any) -> Any:
    if isinstance(found, str):
        return without_secrets(found)
    if isinstance(found, list | tuple):
        return [_without(each) for each in found]
    if not isinstance(found, dict):
        return found
    cleaned = {key: _without(each) for key, each in found.items()}
    if found.keys() == set(Field.__struct_fields__):
        before, after = cleaned["before"], cleaned["after"]
        lost = (before, after) != (found["before"], found["after"])
        cleaned["hidden"] |= lost and before == after
    return cleaned
