"""The past releases of a job, as `history` shows them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

from vllmjobs.rollout.model import Outcome, Record, Verdict
from vllmjobs.text.json import Json
from vllmjobs.text.value import Value


class PastRelease(Value, frozen=True):
    """The release of one version of a job: a row of `history`."""

    version: int
    at: str  # the time of its registration; UTC, ISO 8601
    by: str | None  # person or token; None where vllmjobs did not register it, or could not record it
    outcome: Outcome | str | None  # the recorded outcome, else the status of its deployment
    reason: str
    now: str  # the words of `--now`
    weakened: tuple[str, ...]  # the gates that it has weakened
    approved: tuple[str, ...]  # the people whose approval counted
    is_current: bool  # the job's version now
    is_stable: bool  # once deployed with success, so that it can be rolled back to
    images: dict[str, str | None]  # the image of the server, by group
    models: dict[str, str | None]  # the model of the server, by group
    verdicts: dict[str, Verdict]  # the last verdict, by group


def past_releases(
    versions: Sequence[Json],
    deployments: Sequence[Json],
    records: Iterable[Record],
    moment: Callable[[int], str],
) -> tuple[PastRelease, ...]:
    """Return the versions that Nomad keeps, and older ones that were recorded; the newest first.

    `moment` writes nanoseconds since 1970 as ISO 8601. Records of another life, or above the job's version,
    belong to a job of that name that was purged, and are left out.
    """
    if not versions:
        return ()
    current = max(one["Version"] for one in versions)
    kept = {one["Version"]: one for one in versions}
    lives = {0, *(one.get("CreateIndex", 0) for one in versions)}  # 0: of a vllmjobs that did not record it
    recorded = {one.version: one for one in records if one.version <= current and one.life in lives}
    status = {one["JobVersion"]: one["Status"] for one in reversed(deployments)}  # the newest of each wins
    releases = []
    for number in sorted(kept | recorded, reverse=True):
        job, record = kept.get(number), recorded.get(number, Record(version=number, at="", by=""))
        releases.append(
            PastRelease(
                version=number,
                at=moment(job.get("SubmitTime", 0)) if job else record.at,
                by=record.by if number in recorded else None,
                outcome=record.outcome or status.get(number),
                reason=record.reason,
                now=record.now,
                weakened=record.weakened,
                approved=record.approved,
                is_current=number == current,
                is_stable=bool(job and job.get("Stable")),
                images={group["Name"]: image(group) for group in task_groups(job)},
                models={group["Name"]: model(group) for group in task_groups(job)},
                verdicts=record.verdicts,
            )
        )
    return tuple(releases)


def image(group: Json) -> str | None:
    """Return the image of a group's server; None with a driver that has no images."""
    name: str | None = _config(group).get("image")
    return name


def model(group: Json) -> str | None:
    """Return the model of a group's server, from its command line: `vllm serve MODEL`, or --model."""
    arguments = [str(word) for word in _config(group).get("args") or ()]
    for word, following in zip_longest(arguments, arguments[1:]):
        if word.startswith("--model="):
            return word.partition("=")[2]
        if word == "--model":
            return following
    first = arguments[1:] if arguments[:1] == ["serve"] else arguments
    return first[0] if first and not first[0].startswith("-") else None


def _config(group: Json) -> Json:
    tasks = {task["Name"]: task for task in group.get("Tasks") or ()}
    config: Json = (tasks.get("vllm") or {}).get("Config") or {}
    return config


def task_groups(job: Json | None) -> list[Json]:
    """Return the task groups of a job as Nomad's API has it."""
    return list((job or {}).get("TaskGroups") or ())
