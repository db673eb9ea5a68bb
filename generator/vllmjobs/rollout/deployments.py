"""What a deployment and its job's allocations say, as Nomad's API gives them, in a release's words."""

from collections.abc import Iterable
from typing import Any

from vllmjobs.rollout.model import Entry, Group, Value
from vllmjobs.text.json import Json
from vllmjobs.text.states import ENDED

# What Nomad counts, or changes by itself, in a job: api/jobs.go.
_COUNTED = (
    "Version", "Stable", "Status", "StatusDescription", "CreateIndex", "ModifyIndex", "JobModifyIndex",
    "SubmitTime", "VersionTag", "Stop",
)  # fmt: skip


def spec(job: Json) -> dict[str, Any]:
    """What somebody wrote of a job: two versions with the same are one job."""
    return {key: value for key, value in job.items() if key not in _COUNTED}


def stable(versions: Iterable[Json], current: int) -> int | None:
    """The newest version to go back to: deployed with success, not a stopped job, and another job than the
    current one, to which Nomad would not change it.
    """
    kept = {one["Version"]: one for one in versions}
    mine = spec(kept[current]) if current in kept else {}
    fit = [
        number
        for number, job in kept.items()
        if job["Stable"] and not job.get("Stop") and number != current and spec(job) != mine
    ]
    return max(fit, default=None)


def is_way_back(version: int, entry: Entry | None, versions: Iterable[Json]) -> bool:
    """Whether a version is an older one that was registered again, and needs no verdict.

    As its record says. Without one, as after a kill or where Nomad went back by itself: whether it is the
    same job as an older version that was deployed with success.
    """
    if entry:
        return entry.is_way_back
    kept = {one["Version"]: one for one in versions}
    if version not in kept or kept[version].get("Stop"):
        return False
    mine = spec(kept[version])
    return any(
        number < version and job.get("Stable") and not job.get("Stop") and spec(job) == mine
        for number, job in kept.items()
    )


class Instance(Value, frozen=True):
    """One allocation of a group."""

    id: str
    group: str
    node: str
    version: int
    is_canary: bool
    """Of the deployment that is followed, and not promoted."""
    is_of_deployment: bool
    """Placed, or changed in place, by the deployment that is followed."""
    is_wanted: bool
    """Not told to stop."""
    state: str
    """ClientStatus: pending, running, complete, failed, lost, unknown."""
    is_starting: bool
    """Whether a task of it waits to be started, for the first time or again."""
    healthy: bool | None
    """As the deployment has it; None where that is not known yet."""
    restarts: int
    address: str | None
    """`ip:port` of its API."""
    why: str = ""
    """The last thing that happened to a task that did not end well, in Nomad's words."""


def instances(allocations: Iterable[Json], deployment: Json | None) -> list[Instance]:
    """Every allocation of a job (api/allocations.go AllocationListStub, with resources), as an `Instance`.

    A list of allocations does not name their deployments, but a version has no more than one.
    """
    canaries = {
        id
        for group in (deployment or {}).get("TaskGroups", {}).values()
        for id in group["PlacedCanaries"] or ()
    }
    version = deployment["JobVersion"] if deployment else None
    return [_instance(allocation, version, canaries) for allocation in allocations]


def is_old(instance: Instance) -> bool:
    """Whether it serves, and what is released is to take its place."""
    return (
        not instance.is_of_deployment
        and instance.is_wanted
        and instance.state == "running"
        and not instance.is_starting
        and instance.healthy is not False
    )


def is_ready(instance: Instance) -> bool:
    """Whether it runs, and was found healthy."""
    return (
        instance.is_wanted
        and instance.state == "running"
        and not instance.is_starting
        and instance.healthy is True
    )


def groups(deployment: Json, seen: Iterable[Instance]) -> dict[str, Group]:
    """What is seen of each group of a deployment; without what only balancers and metrics tell."""
    by_group: dict[str, list[Instance]] = {}
    for instance in seen:
        by_group.setdefault(instance.group, []).append(instance)
    version = deployment["JobVersion"]
    return {
        name: _group(state, by_group.get(name, []), version)
        for name, state in (deployment.get("TaskGroups") or {}).items()
    }


def _group(state: Json, found: list[Instance], version: int) -> Group:
    canaries = [one for one in found if one.is_canary and one.is_wanted and one.state not in ENDED]
    return Group(
        desired_canaries=state["DesiredCanaries"],
        placed_canaries=len(canaries),
        healthy_canaries=sum(map(is_ready, canaries)),
        promoted=state["Promoted"],
        desired_total=state["DesiredTotal"],
        healthy=state["HealthyAllocs"],
        unhealthy=state["UnhealthyAllocs"],
        old_healthy=sum(map(is_old, found)),
        old_running=sum(one.version != version and one.state in ("pending", "running") for one in found),
    )


def address(allocation: Json, label: str = "http") -> str | None:
    """`ip:port` of a port of an allocation, as /v1/allocations lists it with resources; None without one.

    Group networks are under Shared.Ports, those of a task under its Networks, which Nomad deprecates
    (nomad/structs/structs.go AllocatedResources).
    """
    resources = allocation.get("AllocatedResources") or {}
    for port in (resources.get("Shared") or {}).get("Ports") or ():
        if port["Label"] == label:
            return _joined(port["HostIP"], port["Value"])
    for task in (resources.get("Tasks") or {}).values():
        for network in task.get("Networks") or ():
            for port in (*(network.get("DynamicPorts") or ()), *(network.get("ReservedPorts") or ())):
                if port["Label"] == label:
                    return _joined(network["IP"], port["Value"])
    return None


def _joined(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _instance(allocation: Json, version: int | None, canaries: set[str]) -> Instance:
    status = allocation.get("DeploymentStatus") or {}
    tasks = list((allocation.get("TaskStates") or {}).values())
    return Instance(
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
        why=_why(tasks),
    )


def _why(tasks: list[Any]) -> str:
    """The newest event of a task that says that it ended badly (api/tasks.go TaskEvent)."""
    bad = ("Terminated", "Driver Failure", "Failed Validation", "Setup Failure", "Not Restarting", "Killing")
    events = [event for task in tasks for event in task.get("Events") or () if event["Type"] in bad]
    newest = max(events, key=lambda event: event["Time"], default=None)
    return newest["DisplayMessage"] if newest else ""
