"""The overview of a job that `status` shows: its instances, its deployment, and the commands to type next."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from vllmjobs.rollout import deployments
from vllmjobs.rollout.history import image, model, task_groups
from vllmjobs.rollout.model import Record, Verdict
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE, ENDED
from vllmjobs.text.value import Value

Command = Callable[..., str]
"""Returns what a person is to type for a command and its arguments, such as `vllmjobs logs prod chat`."""
JobPhase = Literal["stopped", "releasing", "failed", "settled"]
Role = Literal["canary", "new", "current", "old"]


class Part(Value, frozen=True):
    """The instances of one version in one group."""

    version: int
    role: Role
    """`canary` and `new` belong to a deployment that runs, before and after its promotion; `old` ones are
    about to end; `current` ones serve otherwise."""
    desired: int  # instances that are wanted
    healthy: int  # those that run, and are healthy as far as the last deployment has checked
    placed: int  # instances that have a node, and have not ended
    failed: int  # instances that did not end well, as long as Nomad remembers them
    restarts: int  # restarts of instances that have not ended
    gpus: int  # GPUs in use
    nodes: tuple[str, ...]  # the nodes' names
    image: str | None  # the image of their server
    model: str | None  # the model of their server
    why: str  # the last thing that went wrong with one of them, in Nomad's words


class Weight(Value, frozen=True):
    """The canaries' share of the requests, 0 to 1; None where it is not known."""

    asked: float | None
    given: float | None  # by the balancers


class GroupView(Value, frozen=True):
    """One group, which serves one model."""

    name: str
    parts: tuple[Part, ...]  # the group's versions, the newest first
    is_well: bool  # all wanted instances are healthy
    weight: Weight | None  # the canaries' share; None without canaries
    progress_by: str | None  # the next instance is healthy by then, or the deployment fails; UTC, ISO 8601
    step: int | None  # the index of the step that the verdict is on
    verdict: Verdict | None  # the last verdict of this version's release


class DeploymentView(Value, frozen=True):
    """The newest deployment."""

    id: str
    version: int  # the job's version that it deploys
    status: str
    description: str  # Nomad's description of the status


class Overview(Value, frozen=True):
    """The things that a person on call wants to see first."""

    job: str
    namespace: str
    version: int
    is_well: bool  # every group has the instances that it wants, and no release has failed
    summary: str  # one line: the state of it all
    next: tuple[tuple[str, str], ...]  # commands to type next, each with what it does
    deployment: DeploymentView | None  # the newest deployment; None without one
    groups: tuple[GroupView, ...]  # the groups, in the job's order
    weakened: tuple[str, ...]  # the gates that this version has weakened: `approvals: 2 → 0`


def overview(
    command: Command,
    job: Json,
    versions: Iterable[Json],
    deployment: Json | None,
    allocations: Iterable[Json],
    records: Iterable[Record] = (),
    weights: Mapping[str, Weight] | None = None,
) -> Overview:
    """Return the overview, from the answers of Nomad's API, the records and the canaries' shares.

    `command` is for this environment; without `weights`, those of canaries are not known.
    """
    allocations = list(allocations)
    jobs = {one["Version"]: one for one in versions} | {job["Version"]: job}
    record = next((one for one in records if one.version == job["Version"]), None)
    phase = _phase(job, deployment)
    is_way_back = deployments.is_way_back(job["Version"], record, jobs.values())
    judging = deployment if phase == "releasing" else None
    views = []
    for name in (group["Name"] for group in task_groups(job)):
        state = ((deployment or {}).get("TaskGroups") or {}).get(name) or {}
        own = [one for one in allocations if one["TaskGroup"] == name]
        parts = _parts(name, job["Version"], jobs, phase, state, own, judging)
        has_canaries = any(part.role == "canary" for part in parts)
        progress = state.get("RequireProgressBy") if phase == "releasing" else None
        views.append(
            GroupView(
                name=name,
                parts=parts,
                is_well=all(part.healthy >= part.desired for part in parts),
                weight=(weights or {}).get(name, Weight(asked=None, given=None)) if has_canaries else None,
                progress_by=None if (progress or "0001-").startswith("0001-") else progress,  # Go's zero time
                step=record.steps.get(name) if record else None,
                verdict=record.verdicts.get(name) if record else None,
            )
        )
    return Overview(
        job=job["ID"],
        namespace=job.get("Namespace") or "default",
        version=job["Version"],
        is_well=phase in ("settled", "releasing") and all(view.is_well for view in views),
        summary=_summary(job, phase, deployment, views),
        next=tuple(_next(command, phase, views, is_way_back)),
        deployment=DeploymentView(
            id=deployment["ID"],
            version=deployment["JobVersion"],
            status=deployment["Status"],
            description=deployment["StatusDescription"],
        )
        if deployment
        else None,
        groups=tuple(views),
        weakened=record.weakened if record else (),
    )


def _parts(
    name: str,
    current: int,
    jobs: Mapping[int, Json],
    phase: JobPhase,
    state: Json,
    allocations: list[Json],
    judging: Json | None,
) -> tuple[Part, ...]:
    """Return the versions of a group: the job's, and others as long as an instance of them has not ended.

    `judging` is the deployment, as long as it runs.
    """
    alive = {one["JobVersion"] for one in allocations if one["ClientStatus"] not in ENDED}
    # Until its canaries are promoted, and after it was failed before that, the version before it serves.
    waits = phase in ("releasing", "failed") and state.get("DesiredCanaries") and not state.get("Promoted")
    before = max((one for one in alive if one != current), default=None)
    serving = before if waits and before is not None else current
    parts = []
    for version in sorted({current, *alive}, reverse=True):
        role: Role = "current" if version == serving else "old"
        group = next((one for one in task_groups(jobs.get(version)) if one["Name"] == name), None)
        wanted = group["Count"] if group and version == serving else 0
        if phase == "stopped":
            role, wanted = "old", 0
        elif phase == "releasing" and version == current:
            role = "canary" if waits else "new"
            wanted = state["DesiredCanaries"] if waits else wanted
        own = [one for one in allocations if one["JobVersion"] == version]
        parts.append(_part(version, role, wanted, own, group, judging))
    return tuple(parts)


def _part(
    version: int, role: Role, wanted: int, answer: list[Json], group: Json | None, deployment: Json | None
) -> Part:
    alive = [one for one in answer if one["ClientStatus"] not in ENDED]
    allocations = deployments.parse_allocations(answer, deployment)
    return Part(
        version=version,
        role=role,
        desired=wanted,
        healthy=sum(map(_serves, allocations)),
        placed=len(alive),
        failed=sum(one.state in ("failed", "lost") for one in allocations),
        restarts=sum(one.restarts for one in allocations if one.state not in ENDED),
        gpus=sum(map(_gpus, alive)),
        nodes=tuple(sorted({one["NodeName"] for one in alive})),
        image=image(group) if group else None,
        model=model(group) if group else None,
        why=next((one.why for one in allocations if one.why and not _serves(one)), ""),
    )


def _serves(allocation: deployments.Allocation) -> bool:
    """Tell whether it serves: healthy if a running deployment placed it, else not known to be unhealthy."""
    return deployments.is_ready(allocation) or deployments.is_old(allocation)


def _gpus(allocation: Json) -> int:
    tasks = ((allocation.get("AllocatedResources") or {}).get("Tasks") or {}).values()
    devices = (device for task in tasks for device in task.get("Devices") or ())
    return sum(len(device["DeviceIDs"] or ()) for device in devices if device["Type"] == "gpu")


def _phase(job: Json, deployment: Json | None) -> JobPhase:
    if job.get("Stop"):
        return "stopped"
    if not deployment or deployment["JobVersion"] != job["Version"]:
        return "settled"
    if deployment["Status"] in ACTIVE:
        return "releasing"
    return "failed" if deployment["Status"] in ("failed", "cancelled") else "settled"


def _summary(job: Json, phase: JobPhase, deployment: Json | None, views: Sequence[GroupView]) -> str:
    version = job["Version"]
    parts = [part for view in views for part in view.parts]
    if phase == "stopped":
        return "the job is stopped"
    if phase == "releasing":
        canaries = [part for part in parts if part.role == "canary"]
        new = canaries or [part for part in parts if part.role == "new"]
        counts = f"{_healthy(new)} {'canaries ' if canaries else ''}healthy"
        if missing := sum(max(part.desired - part.placed, 0) for part in new):
            counts += f", {missing} without a node"
        if canaries and all(part.healthy >= part.desired for part in canaries):
            return f"version {version} waits for its promotion: {counts}"
        return f"version {version} is being deployed: {counts}"
    wanted = [part for part in parts if part.desired]
    if phase == "failed" and deployment:
        description = deployment["StatusDescription"]
        ended = "was cancelled" if deployment["Status"] == "cancelled" else "has failed"
        serving = " and ".join(str(one) for one in sorted({part.version for part in wanted}))
        return (
            f"the deployment of version {version} {ended}{f' ({description})' if description else ''}; "
            f"version {serving} serves: {_healthy(wanted)} healthy"
        )
    unwell = ", ".join(view.name for view in views if not view.is_well)
    counts = f"version {version}, {_healthy(wanted)} instances healthy"
    return f"{unwell} lacks instances: {counts}" if unwell else f"all is well: {counts}"


def _healthy(parts: Sequence[Part]) -> str:
    return f"{sum(part.healthy for part in parts)} of {sum(part.desired for part in parts)}"


def _next(
    command: Command, phase: JobPhase, views: Sequence[GroupView], is_way_back: bool
) -> Iterator[tuple[str, str]]:
    canaries = [part for view in views for part in view.parts if part.role == "canary"]
    if phase == "stopped":
        yield command("deploy"), "start it again"
        return
    if phase == "releasing":
        if is_way_back:
            yield command("rollback"), "go on with the rollback"
        else:
            yield command("deploy"), "go on with the release"
        if canaries and all(part.healthy >= part.desired for part in canaries):
            yield command("promote"), "promote the canaries now, without a verdict"
        if canaries:
            yield command("abort"), "stop the new instances; the old version serves on"
        elif not is_way_back:
            yield command("rollback"), "go back to the version before"
    if phase == "failed":
        yield command("rollback"), "make the serving version the newest one"
    for view in views:
        if not view.is_well:
            only = ["--canary"] if any(part.role == "canary" for part in view.parts) else []
            yield command("logs", view.name, *only), "see what its instances say"
