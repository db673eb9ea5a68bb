"""A report for a terminal."""

from collections.abc import Callable, Iterable, Iterator

from vllmjobs.changes.hiding import for_people
from vllmjobs.changes.model import EnvironmentChange, Field, GroupChange, JobChange, Report
from vllmjobs.changes.report import quoting, sentences
from vllmjobs.changes.report.lines import path_diffs
from vllmjobs.changes.report.summary import describe_gpus
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.text.english import listed
from vllmjobs.text.visible import visible

WIDEST = 24  # a longer name does not push the texts of the other groups away
# Parameters of "select graphic rendition", ECMA-48 8.3.117: bold, faint, red, green, yellow, cyan.
_COLORS = {
    "headline": "1", " ": "2", "-": "31", "error": "31", "+": "32", "~": "33", "warning": "33", "note": "36",
}  # fmt: skip
_PLAIN = {"→": "->", "…": "...", "×": "x"}

_Paint = Callable[[str, str], str]  # what it is, and the text


def as_text(report: Report, color: bool, encoding: str = "utf-8") -> str:
    """Return the report for a terminal, with `->` for a `→` that its encoding lacks."""

    def paint(kind: str, text: str) -> str:
        return f"\x1b[{_COLORS[kind]}m{text}\x1b[0m" if color else text

    parts = [
        "".join(f"{line}\n" for line in part)
        for environment in for_people(report).environments
        for part in _parts(environment, paint)
    ]
    text = without_secrets("\n".join(parts))
    for sign, plain in _PLAIN.items():
        if not sign.encode(encoding, "ignore"):
            text = text.replace(sign, plain)
    return text


def _parts(environment: EnvironmentChange, paint: _Paint) -> Iterator[list[str]]:
    for job in environment.jobs:
        yield list(_job(job, environment, paint))
    if environment.findings:
        head = f"{quoting.name(environment.name)}: check finds {sentences.tally(environment.findings)}"
        findings = [
            "  " + paint(each.severity, quoting.prose(sentences.describe_finding(each)))
            for each in sentences.sorted_findings(environment)
        ]
        yield [paint("headline", head), *findings]


def _job(job: JobChange, environment: EnvironmentChange, paint: _Paint) -> Iterator[str]:
    where = sentences.place(job)
    head = f"{quoting.name(environment.name)}: {quoting.name(job.id)}{where and f' ({where})'}"
    head += sentences.what_becomes(job)
    yield paint("headline", head) + f" (against {quoting.name(environment.against)})"
    yield from _fields(job.fields, "  ", paint)
    changed = [group for group in job.groups if group.is_changed]
    width = min(WIDEST, max((len(quoting.name(group.name)) for group in changed), default=0))
    for group in changed:
        yield from _group(group, width, paint)
    unchanged = [quoting.name(group.name) for group in job.groups if not group.is_changed]
    if unchanged and job.action != "none":
        yield f"  unchanged: {listed(unchanged)}"
    for remark in sentences.remarks(job, quoting.FOR_TERMINALS):
        yield "  " + paint(remark.severity, f"{remark.severity}: {remark.text}")
    if job.plan and job.plan.run and job.has_changed:
        yield f"  to make this change: {visible(job.plan.run)}"


def _group(group: GroupChange, width: int, paint: _Paint) -> Iterator[str]:
    yield f"  {quoting.name(group.name):<{width}}  {sentences.describe(group)}"
    if group.unplaced:
        count, why, way_out = sentences.unplaced_why(group.unplaced, group.name, quoting.FOR_TERMINALS)
        yield "    " + paint("error", f"{count}{why}")
        if way_out:
            yield f"    way out: {way_out}"
    if gpus := describe_gpus(group):
        yield f"    GPUs: {gpus}"
    if group.updates:
        yield f"    Nomad plans: {sentences.scheduler_numbers(group.updates)}"
    yield from _fields(group.fields, "    ", paint)


def _fields(fields: Iterable[Field], indent: str, paint: _Paint) -> Iterator[str]:
    for diff in path_diffs(tuple(fields)):
        for line in diff.lines:
            yield indent + paint(line.sign, f"{line.sign} {line.text}".rstrip())
