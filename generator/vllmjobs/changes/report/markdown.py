"""A report as one comment on a pull request."""

import re
from collections.abc import Iterator
from enum import IntEnum, auto
from typing import NamedTuple

from vllmjobs.changes.hiding import for_people
from vllmjobs.changes.model import EnvironmentChange, GroupChange, JobChange, Report
from vllmjobs.changes.report import escape, sentences
from vllmjobs.changes.report.fit import Cut, Detail, PathLines, Piece, cut, fit, size
from vllmjobs.changes.report.lines import path_diffs
from vllmjobs.changes.report.summary import from_to, gpu_totals, summary
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.text.english import counted
from vllmjobs.text.visible import visible

# GitHub refuses a comment "(maximum is 65536 characters)". Measured, it takes 262,144 bytes of UTF-8
# (dead-claudia/github-limits#13, objectstack-ai/objectstack#18826), and 65,536 characters as the text of a
# pull request; GitLab takes 1,000,000 characters (docs.gitlab.com, administration/instance_limits). In bytes
# it is below all of these, and leaves room for a line of the pipeline's own.
LIMIT = 65_000
LEAST = 8_000  # what headline, note and the heads of all parts may take
_NOTE = 600
_SIGNS = {"+": "+", "-": "-", "~": "!", " ": " "}  # `!` is what highlighters of a diff know for a change


class _Row(NamedTuple):
    """A row of the table."""

    environment: EnvironmentChange
    job: JobChange
    group: GroupChange | None  # the group; None for the job as a whole


class _Rank(IntEnum):
    """The rank of a row; the worst is kept longest."""

    UNPLACED = auto()
    WHOLE_JOB = auto()
    UNTRIED = auto()
    REPLACED = auto()
    OTHER = auto()


def as_markdown(report: Report, limit: int = LIMIT, again: str = "") -> str:
    """Return the report as a comment of at most `limit` bytes of UTF-8.

    Its first line, `<!-- vllmjobs diff -->` or `<!-- vllmjobs plan prod -->`, tells it from other comments.
    What does not fit is left out with a note that says how much, the longest details first; what cannot be
    placed, and the rows of what is worst, last. `again` is the command that prints all of it. Raises
    `UserError` for a limit below `LEAST`.
    """
    if limit < LEAST:
        raise UserError(f"a report does not fit into a comment of {limit} bytes; allow at least {LEAST}")
    report = for_people(report)
    marker = _marker(report)
    head = f"{marker}\n{_head(report)}\n"
    left = limit - size(head) - _NOTE
    rows = [row for row in _rows(report) if _is_row(row)]
    parts = []
    for piece in (_unplaced(rows), _table(report, rows), _remarks(report), _runs(report), _findings(report)):
        parts.append(fit(piece, left // 2))
        left -= size(parts[-1])
    several = len(report.environments) > 1
    details = [_detail(row, several) for row in rows if row.group is None or row.group.fields]
    shown = cut([detail for detail in details if detail.parts], left)
    unplaced, table, remarks, runs, findings = parts
    note = _note(shown, again or f"vllmjobs {report.command}")
    body = "".join([unplaced, table, remarks, findings, *shown.texts, runs, note])
    return without_secrets(head + body.replace("<!-- vllmjobs", "<\\!-- vllmjobs")).rstrip("\n") + "\n"


def _marker(report: Report) -> str:
    """Return the line that tells the comment from others: one for each plan, and one for all diffs."""
    names = [environment.name for environment in report.environments] if report.command == "plan" else []
    words = [re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:100] for name in names[:3]]
    return f"<!-- {' '.join(['vllmjobs', report.command, *words])} -->"


def _rows(report: Report) -> Iterator[_Row]:
    for environment in report.environments:
        for job in environment.jobs:
            yield _Row(environment, job, None)
            yield from (_Row(environment, job, group) for group in job.groups)


def _is_row(row: _Row) -> bool:
    if row.group:
        return row.group.is_changed
    job = row.job
    return bool(job.fields) or (job.action != "none" and not any(group.is_changed for group in job.groups))


def _head(report: Report) -> str:
    """Write the worst thing, with a sign for it; then all of it in numbers."""
    numbers, is_change = summary(report.jobs), any(job.has_changed for job in report.jobs)
    obstacle = _obstacle(report)
    totals = gpu_totals([group for job in report.jobs for group in job.groups])
    against = _subject(sorted({environment.against for environment in report.environments}), "state")
    beside = [numbers] if obstacle and is_change else []
    beside += [f"GPUs {totals}"] if any(totals) else []
    title = obstacle or _title(report, numbers if is_change else "")
    return f"### {title}\n\n" + " · ".join([*beside, f"against {against}"]) + "\n"


def _title(report: Report, numbers: str) -> str:
    """Write the headline where nothing stands in the way; `numbers` is empty where nothing changes."""
    environments, is_risky = _names(report), _is_risky(report)
    if numbers:
        return f"{'⚠️' if is_risky else '🔵'} {environments}: {numbers}"
    return f"⚠️ {environments}: no changes, but warnings" if is_risky else f"✅ {environments}: no changes"


def _obstacle(report: Report) -> str:
    """Write what keeps the change from being made: no room, or errors; empty where nothing does."""
    failing = [
        (row, row.group, row.group.unplaced) for row in _rows(report) if row.group and row.group.unplaced
    ]
    if failing:
        row, group, unplaced = failing[0]
        count = sentences.unplaced_count(unplaced, group.name, escape.FOR_MARKDOWN)
        more = f"; no room either for {counted(len(failing) - 1, 'more group')}" if failing[1:] else ""
        return f"⛔ {escape.name(row.environment.name)}: {count}{more}"
    findings = [finding for environment in report.environments for finding in environment.findings]
    if errors := [finding for finding in findings if finding.severity == "error"]:
        return f"⛔ {_names(report)}: check finds {sentences.tally(errors)}"
    return ""


def _names(report: Report) -> str:
    return _subject([environment.name for environment in report.environments], "environment")


def _subject(names: list[str], noun: str) -> str:
    return escape.name(names[0]) if len(names) == 1 else counted(len(names), noun)


def _is_risky(report: Report) -> bool:
    """Tell whether something asks for a second look: a warning of the cluster, or what no canary tries.

    Warnings of `check` do not count: they are there before and after a change.
    """
    remarks = [remark for job in report.jobs for remark in sentences.remarks(job, escape.FOR_MARKDOWN)]
    groups = [group for job in report.jobs for group in job.groups]
    return (
        any(job.action == "gone" for job in report.jobs)
        or any(remark.severity == "warning" for remark in remarks)
        or any("gone" in group.actions or group.is_untried for group in groups)
    )


def _rank(row: _Row) -> _Rank:
    group = row.group
    if group is None:
        return _Rank.WHOLE_JOB
    if group.unplaced:
        return _Rank.UNPLACED
    if "gone" in group.actions or group.is_untried:
        return _Rank.UNTRIED
    return _Rank.REPLACED if "destructive" in group.actions else _Rank.OTHER


def _unplaced(rows: list[_Row]) -> Piece:
    entries = []
    for row in rows:
        if row.group and (unplaced := row.group.unplaced):
            count, why, way_out = sentences.unplaced_why(unplaced, row.group.name, escape.FOR_MARKDOWN)
            end = f"**Way out:** {way_out}." if way_out else ""
            entries.append(f"- **{count}**{why}. {end}".rstrip() + "\n")
    return Piece(entries, _list, "groups that cannot be placed")


def _list(entries: list[str]) -> str:
    return "".join(entries) + "\n"


def _table(report: Report, rows: list[_Row]) -> Piece:
    several = len(report.environments) > 1
    head = [
        "job", "group", "what Nomad does", "instances", "GPUs now → then", "extra GPUs while it rolls out",
    ]  # fmt: skip
    head = [*(["environment"] if several else []), *head]
    rule = "|" + "---|" * (len(head) - 3) + "--:|" * 3

    def table(entries: list[str]) -> str:
        return _cells(head) + rule + "\n" + "".join(entries) + "\n"

    entries = [_cells(_row(row, several)) for row in rows]
    return Piece(entries, table, "rows", [_rank(row) for row in rows])


def _row(row: _Row, several: bool) -> list[str]:
    where = sentences.place(row.job)
    names = [escape.name(row.environment.name)] if several else []
    names.append(escape.name(row.job.id) + (f" ({escape.prose(where)})" if where else ""))
    group = row.group
    if group is None:
        values = f"{len(row.job.fields):,} of its values"
        text = values if row.job.action == "changed" else sentences.what_becomes(row.job).strip(": ")
        return [*names, "the whole job", text, "", "", ""]
    totals = gpu_totals([group])
    text = f"⛔ {sentences.describe(group)}" if group.unplaced else sentences.describe(group)
    instances = from_to(group.count_before or 0, group.count_after or 0)
    gpus = [from_to(totals.before, totals.after), f"{totals.extra:,}"] if any(totals) else ["", ""]
    return [*names, escape.name(group.name), text, instances, *gpus]


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _remarks(report: Report) -> Piece:
    signs = {"error": "⛔", "warning": "⚠️", "note": "ℹ️"}
    entries = [
        f"- {signs[remark.severity]} {escape.name(job.id)}: {remark.text}\n"
        for job in report.jobs
        for remark in sentences.remarks(job, escape.FOR_MARKDOWN)
    ]
    return Piece(entries, _list, "remarks")


def _runs(report: Report) -> Piece:
    plans = [job.plan for job in report.jobs if job.has_changed and job.plan]
    entries = [visible(plan.run) + "\n" for plan in plans if plan.run]

    def fence(entries: list[str]) -> str:
        commands = [entry.rstrip("\n") for entry in entries]
        return "To make exactly this change:\n\n" + escape.fenced(commands, "sh") + "\n"

    return Piece(entries, fence, "commands")


def _findings(report: Report) -> Piece:
    found = [each for environment in report.environments for each in sentences.sorted_findings(environment)]
    is_open = " open" if any(finding.severity == "error" for finding in found) else ""

    def details(entries: list[str]) -> str:
        head = f"<details{is_open}><summary>check: {sentences.tally(found)}</summary>"
        return f"{head}\n\n{''.join(entries)}\n</details>\n\n"

    entries = [f"- {escape.prose(sentences.describe_finding(finding))}\n" for finding in found]
    return Piece(entries, details, "findings")


def _detail(row: _Row, several: bool) -> Detail:
    group = row.group
    parts = [
        PathLines([f"{_SIGNS[line.sign]} {line.text}".rstrip() for line in diff.lines], diff.fields)
        for diff in path_diffs(group.fields if group else row.job.fields)
    ]
    where = [row.environment.name, row.job.id] if several else [row.job.id]
    title = " / ".join(map(escape.in_html, [*where, *([group.name] if group else [])]))
    text = sentences.describe(group) if group else counted(sum(part.values for part in parts), "value")
    updates = group.updates if group else None
    numbers = f"Nomad plans: {sentences.scheduler_numbers(updates)}\n\n" if updates else ""

    def wrap(lines: list[str]) -> str:
        head = f"<details><summary>{title}: {text}</summary>\n\n{numbers}"
        return f"{head}{escape.fenced(lines, 'diff')}\n</details>\n\n"

    return Detail(_rank(row), parts, wrap)


def _note(shown: Cut, again: str) -> str:
    """Write what was left out, and the command that prints all of it."""
    if not shown.left_out and not shown.shortened:
        return ""
    texts = [f"leaves out {counted(shown.left_out, 'value')}"] if shown.left_out else []
    texts += [f"shortens {counted(shown.shortened, 'value')}"] if shown.shortened else []
    command = visible(again)
    block = escape.fenced([command if size(command) < _NOTE - 200 else " ".join(command.split()[:2])], "sh")
    return f"✂️ To fit into a comment, this report {' and '.join(texts)}. To print all of it:\n\n{block}"
