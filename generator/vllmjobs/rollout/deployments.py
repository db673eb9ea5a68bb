"""Nomad's versions, deployments and allocations, read from its API's answers into the values of a release."""

from collections.abc import Iterable
from typing import Any

from vllmjobs.rollout.model import GroupState, Record
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE, ENDED
from vllmjobs.text.value import Value

# The fields of a job that Nomad counts, or changes by itself: api/jobs.go.
_COUNTED = (
    "Version", "Stable", "Status", "StatusDescription", "CreateIndex", "ModifyIndex", "JobModifyIndex",
    "SubmitTime", "VersionTag", "Stop",
)  # fmt: skip


def spec(job: Json) -> dict[str, Any]:
    """Return the part of a job that somebody wrote: two versions with the same spec are one job."""
    return {key: value for key, value in job.items() if key not in _COUNTED}


def stable(versions: Iterable[Json], current: int) -> int | None:
    """Return the newest version to go back to, or None.

    It was deployed with success, is no stopped job, and is another job than the current one, to which Nomad
    would not change it.
    """
    kept = {version["Version"]: version for version in versions}
    current_spec = spec(kept[current]) if current in kept else {}
    fit = [
        number
        for number, job in kept.items()
        if job.get("Stable") and not job.get("Stop") and number != current and spec(job) != current_spec
    ]
    return max(fit, default=None)


def is_way_back(version: int, record: Record | None, versions: Iterable[Json]) -> bool:
    """Tell whether a version is an older one that was registered again, and needs no verdict.

    Its record says so. Without a record, as after a kill or where Nomad went back by itself, it is one where
    it is the same job as an older version that was deployed with success.
    """
    if record:
        return record.is_way_back
    kept = {one["Version"]: one for one in versions}
    if version not in kept or kept[version].get("Stop"):
        return False
    own_spec = spec(kept[version])
    return any(
        number < version and job.get("Stable") and not job.get("Stop") and spec(job) == own_spec
        for number, job in kept.items()
    )


def waits_for_promotion(deployment: Json | None) -> bool:
    """Tell whether a deployment has not ended, and has canaries to promote: that long it can be aborted."""
    if deployment is None or deployment["Status"] not in ACTIVE:
        return False
    groups = (deployment.get("TaskGroups") or {}).values()
    return any(group["DesiredCanaries"] and not group["Promoted"] for group in groups)


class Allocation(Value, frozen=True):
    """One allocation of a group: one instance of a model's server."""

    id: str
    group: str
    node: str
    version: int  # the job's version that it runs
    is_canary: bool  # of the deployment that is followed, until its promotion
    is_of_deployment: bool  # the deployment that is followed placed it, or changed it in place
    is_wanted: bool  # false once it is told to stop
    state: str  # Nomad's ClientStatus: pending, running, complete, failed, lost, unknown
    is_starting: bool  # one of its tasks waits to be started, for the first time or again
    healthy: bool | None  # the health that the deployment has for it; None until that is known
    restarts: int  # restarts of its tasks
    address: str | None  # the `ip:port` of its API
    why: str = ""  # the last thing that happened to a task that did not end well, in Nomad's words


def parse_allocations(answer: Iterable[Json], deployment: Json | None) -> list[Allocation]:
    """Return every allocation of a job, from Nomad's list (api/allocations.go AllocationListStub, with
    resources).

    A list of allocations does not name their deployments, but a version has no more than one.
    """
    groups = ((deployment or {}).get("TaskGroups") or {}).values()
    canaries = {id for group in groups for id in group["PlacedCanaries"] or ()}
    version = deployment["JobVersion"] if deployment else None
    return [_allocation(allocation, version, canaries) for allocation in answer]


def is_old(allocation: Allocation) -> bool:
    """Tell whether an allocation serves, and is to be replaced by what is released."""
    return _runs(allocation) and not allocation.is_of_deployment and allocation.healthy is not False


def is_ready(allocation: Allocation) -> bool:
    """Tell whether an allocation runs, and the deployment has found it healthy."""
    return _runs(allocation) and allocation.healthy is True


def _runs(allocation: Allocation) -> bool:
    return allocation.is_wanted and allocation.state == "running" and not allocation.is_starting


def group_states(deployment: Json, allocations: Iterable[Allocation]) -> dict[str, GroupState]:
    """Return the state of each group, by name, with what Nomad alone tells (api/deployments.go)."""
    by_group: dict[str, list[Allocation]] = {}
    for allocation in allocations:
        by_group.setdefault(allocation.group, []).append(allocation)
    version = deployment["JobVersion"]
    return {
        name: _group_state(group, by_group.get(name, []), version)
        for name, group in (deployment.get("TaskGroups") or {}).items()
    }


def _group_state(group: Json, allocations: list[Allocation], version: int) -> GroupState:
    canaries = [one for one in allocations if one.is_canary and one.is_wanted and one.state not in ENDED]
    others = [one for one in allocations if one.version != version]
    return GroupState(
        desired_canaries=group["DesiredCanaries"],
        placed_canaries=len(canaries),
        healthy_canaries=sum(map(is_ready, canaries)),
        promoted=group["Promoted"],
        desired_total=group["DesiredTotal"],
        healthy=group["HealthyAllocs"],
        unhealthy=group["UnhealthyAllocs"],
        old_healthy=sum(map(is_old, allocations)),
        old_running=sum(one.state in ("pending", "running") for one in others),
    )


def address(allocation: Json, label: str = "http") -> str | None:
    """Return the `ip:port` of a port of an allocation, as /v1/allocations lists it with resources, or None.

    The ports of group networks are under Shared.Ports, those of a task under its Networks, which Nomad
    deprecates (nomad/structs/structs.go AllocatedResources).
    """
    resources = allocation.get("AllocatedResources") or {}
    ports = [(port["HostIP"], port) for port in (resources.get("Shared") or {}).get("Ports") or ()]
    for task in (resources.get("Tasks") or {}).values():
        for network in task.get("Networks") or ():
            own = (*(network.get("DynamicPorts") or ()), *(network.get("ReservedPorts") or ()))
            ports += [(network["IP"], port) for port in own]
    ip, value = next(((ip, port["Value"]) for ip, port in ports if port["Label"] == label), ("", 0))
    return f"[{ip}]:{value}" if ":" in ip else f"{ip}:{value}" if ip else None


def _allocation(allocation: Json, version: int | None, canaries: set[str]) -> Allocation:
    status = allocation.get("DeploymentStatus") or {}
    tasks = list((allocation.get("TaskStates") or {}).values())
    return Allocation(
        id=allocation["ID"],
        group=allocation["TaskGroup"],
        node=allocation.get("NodeName", ""),
        version=allocation["JobVersion"],
        is_canary=allocation["ID"] in canaries and bool(status.get("Canary")),
        is_of_deployment=allocation["JobVersion"] == version,
        is_wanted=allocation["DesiredStatus"] == "run",
        state=allocation["ClientStatus"],
        is_starting=any(task["State"] == "pending" for task in tasks),
        healthy=status.get("Healthy"),
        restarts=sum(task["Restarts"] for task in tasks),
        address=address(allocation),
        why=_last_failure(tasks),
    )


def _last_failure(tasks: list[Any]) -> str:
    """Return the newest event of a task that says that it ended badly (api/tasks.go TaskEvent)."""
    bad = ("Terminated", "Driver Failure", "Failed Validation", "Setup Failure", "Not Restarting", "Killing")
    events = [event for task in tasks for event in task.get("Events") or () if event["Type"] in bad]
    newest = max(events, key=lambda event: event["Time"], default=None)
    return newest["DisplayMessage"] if newest else ""
