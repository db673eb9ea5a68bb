"""A report as one comment on a pull request."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from vllmjobs.changes.model import EnvironmentChange, GroupChange, JobChange, Report, has_changed
from vllmjobs.changes.report import escape, visible, words
from vllmjobs.changes.report.fit import Cut, Detail, PathLines, Piece, cut, fit, size
from vllmjobs.changes.report.lines import path_diffs
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.secrets import without_secrets

# GitHub refuses a comment "(maximum is 65536 characters)". Measured, it takes 262,144 bytes of UTF-8
# (dead-claudia/github-limits#13, objectstack-ai/objectstack#18826), and 65,536 characters as the text of a
# pull request; GitLab takes 1,000,000 characters (docs.gitlab.com, administration/instance_limits). In bytes
# it is below all of these, and leaves room for a line of the pipeline's own.
LIMIT = 65_000
LEAST = 8_000  # what headline, note and the heads of all parts may take
_NOTE = 600
_SIGNS = {"+": "+", "-": "-", "~": "!", " ": " "}  # `!` is what highlighters of a diff know for a change


class _Row(NamedTuple):
    environment: EnvironmentChange
    job: JobChange
    group: GroupChange | None  # None for the job as a whole


def as_markdown(report: Report, limit: int = LIMIT) -> str:
    """The report as a comment of at most `limit` bytes of UTF-8.

    Its first line, `<!-- vllmjobs diff -->` or `<!-- vllmjobs plan prod -->`, tells it from other comments.
    What does not fit is left out with a note that says how much, the longest details first; what cannot be
    placed, and the rows of what is worst, last. Raises `UserError` for a limit below `LEAST`.
    """
    if limit < LEAST:
        raise UserError(f"a comment of {limit} bytes holds no report; allow {LEAST}")
    report = words.told(report)
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
    body = "".join([unplaced, table, remarks, findings, *shown.texts, runs, _note(report, shown)])
    return without_secrets(head + body.replace("<!-- vllmjobs", "<\\!-- vllmjobs")).rstrip("\n") + "\n"


def _marker(report: Report) -> str:
    """For each report of its own comment: a plan is of an environment, a diff of the project."""
    names = [environment.name for environment in report.environments] if report.command == "plan" else []
    said = " ".join(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:100] for name in names[:3])
    return f"<!-- vllmjobs {report.command}{said and f' {said}'} -->"


def _rows(report: Report) -> Iterator[_Row]:
    for environment in report.environments:
        for job in environment.jobs:
            yield _Row(environment, job, None)
            yield from (_Row(environment, job, group) for group in job.groups)


def _is_row(row: _Row) -> bool:
    if row.group:
        return words.is_changed(row.group)
    return bool(row.job.fields) or (
        row.job.action != "none" and not any(map(words.is_changed, row.job.groups))
    )


def _head(report: Report) -> str:
    """The worst thing first, with a sign for it; then all of it in numbers."""
    environments = report.environments
    jobs = [job for environment in environments for job in environment.jobs]
    whole = _subject([environment.name for environment in environments], "environment")
    failing = [row for row in _rows(report) if row.group and row.group.unplaced]
    findings = [finding for environment in environments for finding in environment.findings]
    errors = [finding for finding in findings if finding.severity == "error"]
    numbers = words.summary(jobs)
    if failing and failing[0].group and failing[0].group.unplaced:
        first = failing[0].group
        said = words.unplaced(failing[0].group.unplaced, first.name, escape.SCRIPT)
        more = f"; no room either for {words.counted(len(failing) - 1, 'more group')}" if failing[1:] else ""
        title = f"⛔ {escape.name(failing[0].environment.name)}: {said}{more}"
    elif errors:
        title = f"⛔ {whole}: check finds {words.tally(errors)}"
    elif any(map(has_changed, jobs)):
        title = f"{'⚠️' if _is_risky(report) else '🔵'} {whole}: {numbers}"
    elif _is_risky(report):
        title = f"⚠️ {whole}: no changes, but warnings"
    else:
        title = f"✅ {whole}: no changes"
    held = words.gpus([group for job in jobs for group in job.groups])
    against = _subject(sorted({environment.against for environment in environments}), "state")
    beside = [numbers] if "⛔" in title and any(map(has_changed, jobs)) else []
    beside += [f"GPUs {held}"] if any(held) else []
    return f"### {title}\n\n" + " · ".join([*beside, f"against {against}"]) + "\n"


def _subject(names: list[str], what: str) -> str:
    return escape.name(names[0]) if len(names) == 1 else words.counted(len(names), what)


def _is_risky(report: Report) -> bool:
    """Whether something asks for a second look: warnings of the cluster, what no canary tries, what goes.

    What `check` warns of is there before and after a change, so that it would be a sign of nothing.
    """
    jobs = [job for environment in report.environments for job in environment.jobs]
    groups = [group for job in jobs for group in job.groups]
    return (
        any(job.action == "gone" for job in jobs)
        or any(remark.severity == "warning" for job in jobs for remark in words.remarks(job, escape.SCRIPT))
        or any("gone" in group.actions or words.is_untried(group) for group in groups)
    )


def _rank(row: _Row) -> int:
    """How bad it is: 0 for the worst."""
    group = row.group
    if group is None:
        return 1
    if group.unplaced:
        return 0
    if "gone" in group.actions or words.is_untried(group):
        return 2
    return 3 if "destructive" in group.actions else 4


def _unplaced(rows: list[_Row]) -> Piece:
    entries = []
    for row in rows:
        if row.group and (found := row.group.unplaced):
            said = words.unplaced(found, row.group.name, escape.SCRIPT)
            why, way_out = words.reasons(found, escape.SCRIPT), words.way_out(found, escape.SCRIPT)
            end = f"**Way out:** {way_out}." if way_out else ""
            entries.append(f"- **{said}**{why and f': {why}'}. {end}".rstrip() + "\n")
    return Piece(entries, _list, "groups that cannot be placed")


def _list(entries: list[str]) -> str:
    return "".join(entries) + "\n"


def _table(report: Report, rows: list[_Row]) -> Piece:
    several = len(report.environments) > 1
    head = [
        "job",
        "group",
        "what Nomad does",
        "instances",
        "GPUs now → then",
        "extra GPUs while it rolls out",
    ]
    head = [*(["environment"] if several else []), *head]
    rule = "|" + "---|" * (len(head) - 3) + "--:|" * 3

    def table(entries: list[str]) -> str:
        return _cells(head) + rule + "\n" + "".join(entries) + "\n"

    entries = [
        _cells([*([escape.name(row.environment.name)] if several else []), *_row(row)]) for row in rows
    ]
    return Piece(entries, table, "rows", [_rank(row) for row in rows])


def _row(row: _Row) -> list[str]:
    where = words.place(row.job)
    job = escape.name(row.job.id) + (f" ({escape.prose(where)})" if where else "")
    group = row.group
    if group is None:
        is_changed = row.job.action == "changed"
        does = (
            f"{len(row.job.fields):,} of its values"
            if is_changed
            else words.what_becomes(row.job).strip(": ")
        )
        return [job, "the whole job", does, "", "", ""]
    held = words.gpus([group])
    name = escape.name(group.name)
    does = f"⛔ {words.does(group)}" if group.unplaced else words.does(group)
    instances = words.moved(group.count_before or 0, group.count_after or 0)
    counts = [words.moved(held.before, held.after), f"{held.extra:,}"] if any(held) else ["", ""]
    return [job, name, does, instances, *counts]


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _remarks(report: Report) -> Piece:
    signs = {"error": "⛔", "warning": "⚠️", "note": "ℹ️"}
    entries = [
        f"- {signs[remark.severity]} {escape.name(job.id)}: {remark.text}\n"
        for environment in report.environments
        for job in environment.jobs
        for remark in words.remarks(job, escape.SCRIPT)
    ]
    return Piece(entries, _list, "remarks")


def _runs(report: Report) -> Piece:
    jobs = [job for environment in report.environments for job in environment.jobs if has_changed(job)]
    entries = [visible.visible(job.plan.run) + "\n" for job in jobs if job.plan and job.plan.run]

    def fence(entries: list[str]) -> str:
        commands = [entry.rstrip("\n") for entry in entries]
        return "To make this very change, and no other:\n\n" + escape.fenced(commands, "sh") + "\n"

    return Piece(entries, fence, "commands")


def _findings(report: Report) -> Piece:
    found = [each for environment in report.environments for each in words.findings(environment)]
    has_errors = any(finding.severity == "error" for finding in found)

    def details(entries: list[str]) -> str:
        head = f"<details{' open' if has_errors else ''}><summary>check: {words.tally(found)}</summary>"
        return f"{head}\n\n{''.join(entries)}\n</details>\n\n"

    return Piece([f"- {escape.prose(words.finding(each))}\n" for each in found], details, "findings")


def _detail(row: _Row, several: bool) -> Detail:
    group = row.group
    parts = [
        PathLines([f"{_SIGNS[line.sign]} {line.text}".rstrip() for line in diff.lines], diff.fields)
        for diff in path_diffs(group.fields if group else row.job.fields)
    ]
    where = [row.environment.name, row.job.id] if several else [row.job.id]
    title = " / ".join(map(escape.in_html, [*where, *([group.name] if group else [])]))
    said = words.does(group) if group else words.counted(sum(part.values for part in parts), "value")
    numbers = f"Nomad plans: {words.updates(group.updates)}\n\n" if group and group.updates else ""

    def wrap(lines: list[str]) -> str:
        head = f"<details><summary>{title}: {said}</summary>\n\n{numbers}"
        return f"{head}{escape.fenced(lines, 'diff')}\n</details>\n\n"

    return Detail(_rank(row), parts, wrap)


def _note(report: Report, shown: Cut) -> str:
    if not shown.left_out and not shown.shortened:
        return ""
    values = words.counted(shown.left_out, "value")
    said = [f"{values} left out"] if shown.left_out else []
    said += [f"{words.counted(shown.shortened, 'value')} shortened"] if shown.shortened else []
    command = words.again(report)
    command = command if len(command) <= visible.NAME else f"vllmjobs {report.command}"
    return f"✂️ To fit into a comment, {' and '.join(said)}; all of it: {escape.name(command)}\n"
