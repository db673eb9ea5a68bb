"""Sentences of a report, which the text and the markdown share."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from vllmjobs.changes.model import (
    Deployment,
    EnvironmentChange,
    Finding,
    GroupAction,
    GroupChange,
    JobChange,
    Preempted,
    Unplaced,
    Updates,
)
from vllmjobs.changes.report import quoting
from vllmjobs.changes.report.quoting import Escaping
from vllmjobs.changes.report.summary import summary
from vllmjobs.changes.room.sentences import reasons, ways_out
from vllmjobs.environment.problems import Mark, Problem, Severity
from vllmjobs.text.english import counted

_GRAVEST_FIRST: tuple[Severity, ...] = ("error", "warning", "note")


class Remark(NamedTuple):
    """A sentence beside the changes."""

    severity: Severity
    text: str


def describe(group: GroupChange) -> str:
    """Write what Nomad does with a group's instances: `destructive: 2 canaries first, then …`."""
    texts = [_described(group, action) for action in group.actions]
    if not texts and group.updates and group.updates.place:
        texts = [f"places {counted(group.updates.place, 'missing instance')}"]
    return "; ".join(texts) or "leaves the instances as they are"


def _described(group: GroupChange, action: GroupAction) -> str:
    before, after = group.count_before or 0, group.count_after or 0
    every = "the one instance" if after == 1 else f"all {after:,} instances"
    match action:
        case "new":
            return f"new: {counted(after, 'instance')}"
        case "gone":
            ends = ("keeps running", "keep running") if after else ("stops", "stop")
            return f"gone: {counted(before, 'instance')} {ends[before != 1]}"
        case "in-place":
            return f"in place: {every}{' at once' * (after != 1)}, no canary tries it"
        case "scale-up":
            return f"scale up {before:,} → {after:,}"
        case "scale-down":  # hashicorp/nomad#19643
            early = " at once, before any canary is tried" if group.canaries else ""
            return f"scale down {before:,} → {after:,}{early}"
    if not group.canaries:
        return f"destructive: {every}, no canary tries it first"
    rest = after - group.canaries
    then = f"the other {rest:,}" if rest > 0 else "all old ones stop" if before != 1 else "the old one stops"
    canaries = f"{group.canaries:,} {'canary' if group.canaries == 1 else 'canaries'}"
    return f"destructive: {canaries} first, then {then} after the promotion"


def what_becomes(job: JobChange) -> str:
    """Write what happens to a job: the second half of its headline."""
    if job.action == "new":
        return f" is new, with {counted(len(job.groups), 'group')}"
    if job.action == "gone":
        return f" is gone from here, with {counted(len(job.groups), 'group')}"
    if job.action == "changed":
        return f" changes: {summary([job])}"
    if any(group.is_changed for group in job.groups):
        return f" is unchanged: {summary([job])}"
    return ": no changes"


def place(job: JobChange) -> str:
    """Write a job's namespace and region, where they are not the usual ones."""
    texts = [f"namespace {quoting.name(job.namespace)}"] if job.namespace not in ("", "default") else []
    texts += [f"region {quoting.name(job.region)}"] if job.region not in ("", "global") else []
    return ", ".join(texts)


def unplaced_count(unplaced: Unplaced, group: str, escaping: Escaping) -> str:
    """Write `2 of 2 canaries of chat cannot be placed`."""
    noun = "canaries" if unplaced.canaries else "instances"
    if unplaced.wanted == 1:
        noun = "canary" if unplaced.canaries else "instance"
    return f"{unplaced.failed:,} of {unplaced.wanted:,} {noun} of {escaping.name(group)} cannot be placed"


def unplaced_why(unplaced: Unplaced, group: str, escaping: Escaping) -> tuple[str, str, str]:
    """Write how many cannot be placed, what stands in the way, and what a person may do, if that is known."""
    why = ", ".join(map(escaping.prose, reasons(unplaced)))
    way_out = ", or ".join(map(escaping.prose, ways_out(unplaced)))
    return unplaced_count(unplaced, group, escaping), why and f": {why}", way_out


def remarks(job: JobChange, escaping: Escaping) -> Iterator[Remark]:
    """Yield what else a person should know about a job, the gravest first."""
    if job.plan:
        if job.plan.deployment:
            yield Remark("warning", _deployment(job.plan.deployment, escaping))
        yield from (Remark("warning", _preempted(each, escaping)) for each in job.plan.preempted)
        yield from (Remark("warning", f"Nomad warns: {escaping.prose(each)}") for each in job.plan.warnings)
    yield from (Remark("note", escaping.prose(note)) for note in job.notes)


def _deployment(deployment: Deployment, escaping: Escaping) -> str:
    details = [deployment.status, deployment.description, *deployment.groups]
    text = "; ".join(escaping.prose(each) for each in details if each)
    name = f"deployment {escaping.name(deployment.id[:8])} of version {deployment.job_version}"
    return f"running this job cancels {name} ({text})"


def _preempted(preempted: Preempted, escaping: Escaping) -> str:
    is_elsewhere = preempted.namespace not in ("", "default")
    where = f" in namespace {escaping.name(preempted.namespace)}" if is_elsewhere else ""
    group = f"group {escaping.name(preempted.group)} of {escaping.name(preempted.job)}{where}"
    count = counted(preempted.count, "allocation")
    return f"to make room, Nomad stops {count} of {group} on {escaping.name(preempted.node)}"


def scheduler_numbers(updates: Updates) -> str:
    """Write the scheduler's numbers, in its own words: `2 canary, 4 ignore`."""
    numbers = msgspec.structs.asdict(updates)
    texts = [f"{count:,} {name.replace('_', ' ')}" for name, count in numbers.items() if count]
    return ", ".join(texts) or "nothing"


def sorted_findings(environment: EnvironmentChange) -> list[Finding]:
    """Return what `check` finds, errors first."""
    return sorted(environment.findings, key=lambda finding: _GRAVEST_FIRST.index(finding.severity))


def describe_finding(finding: Finding) -> str:
    """Write a finding as `check` does: place, severity, path, message, rule."""
    mark = Mark(finding.file, finding.line, finding.column)
    path = (finding.path,) if finding.path else ()
    return str(Problem(mark, path, finding.message, finding.rule, finding.severity))


def tally(findings: Iterable[Finding]) -> str:
    """Write `1 error, 2 warnings`."""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(counted(counts[kind], kind) for kind in _GRAVEST_FIRST if counts[kind])
