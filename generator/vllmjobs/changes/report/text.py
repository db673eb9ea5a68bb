"""A report for a terminal."""

from collections.abc import Callable, Iterable, Iterator

from vllmjobs.changes.model import EnvironmentChange, Field, GroupChange, JobChange, Report, has_changed
from vllmjobs.changes.report import visible, words
from vllmjobs.changes.report.lines import path_diffs
from vllmjobs.environment.secrets import without_secrets

WIDEST = 24  # a longer name does not push what is said of the other groups away
# Parameters of "select graphic rendition", ECMA-48 8.3.117: bold, faint, red, green, yellow, cyan.
_COLORS = {
    "headline": "1", " ": "2", "-": "31", "error": "31", "+": "32", "~": "33", "warning": "33", "note": "36",
}  # fmt: skip
_PLAIN = {"→": "->", "…": "...", "×": "x"}

_Paint = Callable[[str, str], str]  # what it is, and the text


def as_text(report: Report, color: bool, encoding: str = "utf-8") -> str:
    """The report for a terminal, in ANSI colours if asked; `->` for `→` where its encoding lacks the sign."""
    paint = _colored if color else _as_it_is
    parts = [
        "".join(f"{line}\n" for line in part)
        for environment in words.told(report).environments
        for part in _parts(environment, paint)
    ]
    text = without_secrets("\n".join(parts))
    for sign, plain in _PLAIN.items():
        if not sign.encode(encoding, "ignore"):
            text = text.replace(sign, plain)
    return text


def _colored(kind: str, text: str) -> str:
    return f"\x1b[{_COLORS[kind]}m{text}\x1b[0m"


def _as_it_is(kind: str, text: str) -> str:
    return text


def _parts(environment: EnvironmentChange, paint: _Paint) -> Iterator[list[str]]:
    """A part for each job, and one for what `check` finds."""
    for job in environment.jobs:
        yield list(_job(job, environment, paint))
    if environment.findings:
        head = f"{visible.name(environment.name)}: check finds {words.tally(environment.findings)}"
        found = [
            "  " + paint(each.severity, words.prose(words.finding(each)))
            for each in words.findings(environment)
        ]
        yield [paint("headline", head), *found]


def _job(job: JobChange, environment: EnvironmentChange, paint: _Paint) -> Iterator[str]:
    where = words.place(job)
    head = f"{visible.name(environment.name)}: {visible.name(job.id)}{where and f' ({where})'}"
    head += words.what_becomes(job)
    yield paint("headline", head) + f" (against {visible.name(environment.against)})"
    yield from _fields(job.fields, "  ", paint)
    changed = [group for group in job.groups if words.is_changed(group)]
    width = min(WIDEST, max((len(visible.name(group.name)) for group in changed), default=0))
    for group in changed:
        yield from _group(group, width, paint)
    same = [visible.name(group.name) for group in job.groups if not words.is_changed(group)]
    if same and job.action != "none":
        yield f"  unchanged: {words.listed(same)}"
    for remark in words.remarks(job, words.TEXT):
        yield "  " + paint(remark.severity, f"{remark.severity}: {remark.text}")
    if job.plan and job.plan.run and has_changed(job):
        yield f"  to make this change: {visible.visible(job.plan.run)}"


def _group(group: GroupChange, width: int, paint: _Paint) -> Iterator[str]:
    yield f"  {visible.name(group.name):<{width}}  {words.does(group)}"
    if group.unplaced:
        said = words.unplaced(group.unplaced, group.name, words.TEXT)
        why = words.reasons(group.unplaced, words.TEXT)
        yield "    " + paint("error", f"{said}{why and f': {why}'}")
        if way_out := words.way_out(group.unplaced, words.TEXT):
            yield f"    way out: {way_out}"
    if held := words.group_gpus(group):
        yield f"    GPUs: {held}"
    if group.updates:
        yield f"    Nomad plans: {words.updates(group.updates)}"
    yield from _fields(group.fields, "    ", paint)


def _fields(fields: Iterable[Field], indent: str, paint: _Paint) -> Iterator[str]:
    for diff in path_diffs(tuple(fields)):
        for line in diff.lines:
            yield indent + paint(line.sign, f"{line.sign} {line.text}".rstrip())
