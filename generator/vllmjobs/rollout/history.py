"""What was released of a job: what `history` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vllmjobs.rollout.model import Entry, Outcome, Value, Verdict
from vllmjobs.text.json import Json


class Release(Value, frozen=True):
    """One version of a job: a row of `history`."""

    version: int
    at: str
    """When it was registered; UTC, ISO 8601."""
    by: str | None
    """None where `vllmjobs` did not register it, or could not record it."""
    outcome: Outcome | str | None
    """As recorded, else the status of its deployment."""
    reason: str
    now: str
    """The reason for a release outside of a maintenance window."""
    is_current: bool
    is_stable: bool
    """Whether it was once deployed with success: what can be rolled back to."""
    images: dict[str, str | None]
    """By group, as `models`."""
    models: dict[str, str | None]
    verdicts: dict[str, Verdict]


def history(
    versions: Sequence[Json],
    deployments: Sequence[Json],
    entries: Iterable[Entry],
    moment: Callable[[int], str],
) -> tuple[Release, ...]:
    """The versions that Nomad keeps, and older ones that were recorded; the newest first.

    `moment` writes nanoseconds since 1970 as ISO 8601. Records above the job's version are of one of that
    name that was purged, and left out.
    """
    if not versions:
        return ()
    current = max(one["Version"] for one in versions)
    kept = {one["Version"]: one for one in versions}
    recorded = {one.version: one for one in entries if one.version <= current}
    status = {one["JobVersion"]: one["Status"] for one in reversed(deployments)}  # the newest of each wins
    return tuple(
        _release(number, kept.get(number), recorded.get(number), status.get(number), current, moment)
        for number in sorted(kept | recorded, reverse=True)
    )


def _release(
    number: int,
    job: Json | None,
    entry: Entry | None,
    status: str | None,
    current: int,
    moment: Callable[[int], str],
) -> Release:
    return Release(
        version=number,
        at=moment(job["SubmitTime"]) if job else entry.at if entry else "",
        by=entry.by if entry else None,
        outcome=(entry.outcome if entry else None) or status,
        reason=entry.reason if entry else "",
        now=entry.now if entry else "",
        is_current=number == current,
        is_stable=bool(job and job.get("Stable")),
        images={group["Name"]: image(group) for group in groups(job)},
        models={group["Name"]: model(group) for group in groups(job)},
        verdicts=entry.verdicts if entry else {},
    )


def image(group: Json) -> str | None:
    """What a group's server is run from; None with a driver that has no images."""
    found: str | None = _config(group).get("image")
    return found


def model(group: Json) -> str | None:
    """The model of a group's server, as on the command line: `vllm serve MODEL`, or in --model."""
    arguments = [str(word) for word in _config(group).get("args") or ()]
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        if word.startswith("--model="):
            return word.partition("=")[2]
        if word == "--model":
            return following
    first = arguments[1:] if arguments[:1] == ["serve"] else arguments
    return first[0] if first and not first[0].startswith("-") else None


def _config(group: Json) -> Json:
    tasks = {task["Name"]: task for task in group.get("Tasks") or ()}
    found: Json = (tasks.get("vllm") or {}).get("Config") or {}
    return found


def groups(job: Json | None) -> list[Json]:
    """The task groups of a job as Nomad's API has it."""
    return list((job or {}).get("TaskGroups") or ())
