"""The screens of `status` and `history`, as text."""

from collections.abc import Iterator, Sequence

from vllmjobs.rollout.history import PastRelease
from vllmjobs.rollout.model import Number, Verdict
from vllmjobs.rollout.overview import GroupView, Overview, Part, Weight
from vllmjobs.text.english import columns, counted
from vllmjobs.text.visible import one_line


def status_text(overview: Overview) -> str:
    """Write the screen: whether all is well, the deployment, each group, and what to type next."""
    return "".join(f"{one_line(line)}\n" for line in _status(overview))


def history_text(releases: Sequence[PastRelease]) -> str:
    """Write a table, one row for each version; below it, the reasons."""
    rows = [("VERSION", "WHEN (UTC)", "BY", "OUTCOME", "VERDICT", "IMAGE", "MODEL", "")]
    rows += [
        (
            str(one.version),
            _second(one.at),
            one.by or "-",
            one.outcome or "-",
            _verdicts(one.verdicts),
            _each(one.images),
            _each(one.models),
            ", ".join(
                word for word, holds in (("current", one.is_current), ("stable", one.is_stable)) if holds
            ),
        )
        for one in releases
    ]
    notes = [f"version {one.version}: {one.reason}" for one in releases if one.reason]
    notes += [f"version {one.version} {note}" for one in releases for note in _gates(one)]
    return "\n".join([columns(rows), *(["".join(f"{one_line(note)}\n" for note in notes)] if notes else [])])


def _gates(release: PastRelease) -> Iterator[str]:
    if release.weakened:
        approved = [f"approved by {', '.join(release.approved)}"] if release.approved else []
        by = "; ".join([*approved, *([f"--now: {release.now}"] if release.now else [])])
        yield f"weakened the gates: {', '.join(release.weakened)}{f' ({by})' if by else ''}"
    elif release.now:
        yield f"was deployed outside of the maintenance windows: {release.now}"


def _status(overview: Overview) -> Iterator[str]:
    yield f"{overview.job}: {overview.summary}"
    if newest := overview.deployment:
        description = f": {newest.description}" if newest.description else ""
        yield ""
        yield f"deployment {newest.id[:8]} of version {newest.version}, {newest.status}{description}"
    if overview.weakened:
        yield ""
        yield f"version {overview.version} weakened the gates: {', '.join(overview.weakened)}"
    for group in overview.groups:
        yield ""
        yield from _group(group)
    if overview.next:
        yield ""
        yield "next:"
        width = max(len(command) for command, _ in overview.next)
        for command, effect in overview.next:
            yield f"  {command.ljust(width)}  {effect}"


def _group(group: GroupView) -> Iterator[str]:
    yield group.name
    rows = [
        (
            f"  version {part.version}",
            part.role,
            f"{part.healthy}/{part.desired} healthy",
            counted(part.gpus, "GPU"),
            counted(part.restarts, "restart"),
            part.image or "-",
            part.model or "-",
        )
        for part in group.parts
    ]
    yield from columns(rows).splitlines()
    for part in group.parts:
        if trouble := _trouble(part):
            yield f"  version {part.version}: {trouble}"
    if group.weight:
        yield f"  weight    {_weight(group.weight)}"
    if group.progress_by:
        yield f"  deadline  the next instance has to be healthy by {_second(group.progress_by)} UTC"
    if group.verdict:
        yield from _verdict(group.verdict, group.step)


def _trouble(part: Part) -> str:
    missing = part.desired - part.placed
    clauses = [f"{missing} without a node"] if missing > 0 else []
    if part.failed:
        clauses.append(f"{part.failed} failed")
    if part.why and part.healthy < part.desired:
        clauses.append(part.why)
    return "; ".join(clauses)


def _weight(weight: Weight) -> str:
    def share(value: float | None) -> str:
        return "unknown" if value is None else f"{value * 100:.3g} %"

    return f"{share(weight.given)} given, {share(weight.asked)} asked"


def _verdict(verdict: Verdict, step: int | None) -> Iterator[str]:
    at = f"step {step + 1}, " if step is not None else ""
    counts = (
        f"{counted(verdict.canary_requests, 'request')} to canaries, {verdict.stable_requests:,} to stable"
    )
    yield f"  verdict   {verdict.result}: {verdict.reason} ({at}{counts} instances)"
    rows = [("    METRIC", "CANARY", "STABLE", "LIMIT", "RESULT"), *map(_number, verdict.numbers)]
    if verdict.numbers:
        yield from columns(rows).splitlines()


def _number(number: Number) -> tuple[str, ...]:
    def amount(value: float | None) -> str:
        return "no data" if value is None else f"{value:.4g}"

    return (f"    {number.metric}", amount(number.canary), amount(number.stable), number.limit, number.result)


def _verdicts(verdicts: dict[str, Verdict]) -> str:
    results = {verdict.result for verdict in verdicts.values()}
    if len(results) == 1:
        return results.pop()
    return ", ".join(f"{name} {verdict.result}" for name, verdict in verdicts.items()) or "-"


def _second(at: str) -> str:
    """Write a time of ISO 8601 without the fraction and the zone."""
    return at.partition(".")[0].replace("T", " ").rstrip("Z")


def _each(values: dict[str, str | None]) -> str:
    """Write each value once, in the order of the groups."""
    return ", ".join(dict.fromkeys(value for value in values.values() if value)) or "-"
