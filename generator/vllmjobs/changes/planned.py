"""A plan of Nomad's, as values: what it changes, what it would do, and what it cannot place."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec.structs import replace

from vllmjobs.changes import effects
from vllmjobs.changes.jobs import nomad_diff, registered, tree
from vllmjobs.changes.jobs.tree import Tree
from vllmjobs.changes.model import (
    Amount,
    Deployment,
    Field,
    GroupAction,
    GroupChange,
    JobChange,
    JobPlan,
    Preempted,
    Reason,
    Updates,
)
from vllmjobs.changes.room.fleet import Node
from vllmjobs.changes.room.placement import FailedPlacement
from vllmjobs.changes.room.unplaced import unplaced

Json = Mapping[str, Any]
# Of a deployment that has not ended: nomad/structs/deployment.go Active
ACTIVE = ("running", "paused", "blocked", "unblocking", "initializing", "pending")


def planned(
    name: str,
    job: Json,
    running: Json | None,
    plan: Json,
    deployment: Json | None,
    run: str,
    nodes: Sequence[Node] | None,
) -> JobChange:
    """What a run of `job` does.

    `job` is the answer of `/v1/jobs/parse`, canonicalized; `running` that of `/v1/job/ID`, None where there
    is none; `plan` that of `/v1/job/ID/plan`, with its Diff; `deployment` is the latest. `name` is the job's
    for `render --job`, `run` the command that makes the change. `nodes` is None where they may not be read.
    """
    diff = plan["Diff"]
    after = registered.tree(job)
    before = registered.tree(running) if running else None
    own = nomad_diff.job_fields(diff, before, after) if before is not None else ()
    is_stopped = bool(running and running.get("Stop"))
    groups = tuple(_groups(name, job, plan, before, after, own, nodes, is_stopped))
    groups = tuple(_with_what_others_get(groups))
    changed = diff["Type"] != "None" or own or any(group.actions or group.fields for group in groups)
    action: Literal["none", "new", "changed"] = "new" if running is None else "changed" if changed else "none"
    active = _deployment(deployment)
    return JobChange(
        job=name,
        id=job["ID"],
        namespace=(running or job).get("Namespace") or "default",
        region=(running or job).get("Region") or "global",
        action=action,
        fields=own,
        groups=groups,
        notes=tuple(_notes(running, action, active, own, groups)),
        plan=JobPlan(
            modify_index=plan["JobModifyIndex"] if running else 0,
            run=run,
            warnings=warnings(plan.get("Warnings") or ""),
            deployment=active if changed else None,
            preempted=_preempted((plan.get("Annotations") or {}).get("PreemptedAllocs") or ()),
        ),
    )


def warnings(text: str) -> tuple[str, ...]:
    """The sentences of Nomad's Warnings, which helper/warning.go joins under a headline."""
    said = re.split(r"^\s*\* ", text, flags=re.MULTILINE)
    # A validator of its own joins several again: "Group … has warnings: 1 error occurred:\n\t* …".
    plain = (" ".join(one.split()) for one in said)
    return tuple(one for one in plain if one and not re.search(r"(warnings?|occurred):$", one))


def _groups(
    name: str,
    job: Json,
    plan: Json,
    before: Tree | None,
    after: Tree,
    own: tuple[Field, ...],
    nodes: Sequence[Node] | None,
    is_stopped: bool,
) -> Iterator[GroupChange]:
    """In the order of the newer job; those that go, last."""
    desired = (plan.get("Annotations") or {}).get("DesiredTGUpdates") or {}
    failed = plan.get("FailedTGAllocs") or {}
    diffs = {diff["Name"]: diff for diff in plan["Diff"].get("TaskGroups") or ()}
    old, new = tree.groups(before or {}), tree.groups(after)
    specs = {spec["Name"]: spec for spec in job["TaskGroups"]}
    for group in (*new, *(group for group in old if group not in new)):
        was, now = old.get(group), new.get(group)
        fields = nomad_diff.group_fields(diffs.get(group), was, now) if was and now else ()
        is_changed = bool(own or fields or diffs.get(group, {}).get("Type", "None") != "None")
        updates = _updates(desired.get(group) or {})
        if job["Type"] in ("system", "sysbatch"):
            updates = _on_every_node(updates, is_changed or group in failed)
        actions = _actions(was, now, updates, fields, own) if is_changed else ()
        count_before = _count(was)
        if is_stopped and was and now:
            actions, count_before = ("scale-up",), 0
        yield GroupChange(
            name=group,
            actions=actions,
            count_before=count_before,
            count_after=_count(now),
            gpus_before=effects.gpus(was) if was else None,
            gpus_after=effects.gpus(now) if now else None,
            canaries=updates.canary,
            fields=effects.blamed(fields, actions),
            updates=updates,
            unplaced=unplaced(FailedPlacement(name, job, specs[group], updates, failed, count_before, nodes))
            if group in failed and group in specs
            else None,
        )


def _with_what_others_get(groups: tuple[GroupChange, ...]) -> Iterator[GroupChange]:
    """Yield the groups; one without room also says how many GPUs the same plan gives to the others."""
    given = {group.name: _placed(group) * (group.gpus_after or 0) for group in groups}
    for group in groups:
        others = tuple(
            Amount(name=name, count=gpus) for name, gpus in given.items() if gpus and name != group.name
        )
        if group.unplaced and group.gpus_after and others:
            reasons = (*group.unplaced.reasons, Reason(kind="gpus-given", counts=others))
            group = replace(group, unplaced=replace(group.unplaced, reasons=reasons))
        yield group


def _placed(group: GroupChange) -> int:
    updates = group.updates
    wanted = updates.place + updates.canary + updates.destructive_update if updates else 0
    return max(0, wanted - (group.unplaced.failed if group.unplaced else 0))


def _actions(
    before: Tree | None,
    after: Tree | None,
    updates: Updates,
    fields: tuple[Field, ...],
    own: tuple[Field, ...],
) -> tuple[GroupAction, ...]:
    if before is None or after is None:
        return ("new",) if before is None else ("gone",)
    done: list[GroupAction] = []
    if updates.canary or updates.destructive_update:
        done.append("destructive")
    elif updates.in_place_update and (own or any(field.path != ("count",) for field in fields)):
        done.append("in-place")
    return (*done, *effects.scaled(_count(before), _count(after)))


def _count(group: Tree | None) -> int | None:
    return tree.number(group["count"]) if group else None


def _updates(desired: Json) -> Updates:
    return Updates(
        place=desired.get("Place", 0),
        canary=desired.get("Canary", 0),
        destructive_update=desired.get("DestructiveUpdate", 0),
        in_place_update=desired.get("InPlaceUpdate", 0),
        stop=desired.get("Stop", 0),
        migrate=desired.get("Migrate", 0),
        ignore=desired.get("Ignore", 0),
        preemptions=desired.get("Preemptions", 0),
    )


def _on_every_node(updates: Updates, may_place: bool) -> Updates:
    """Of a system job, Place counts the nodes that it can run on, also those that have it already
    (scheduler/scheduler_system.go computeJobAllocs, tgCandidateNodeCounts); before Nomad 1.11, those that a
    constraint rules out, too. Such a job never waits: where a node comes up, it is started.
    """  # fmt: skip
    there = updates.ignore + updates.in_place_update + updates.destructive_update
    return replace(updates, place=max(0, updates.place - there) if may_place else 0)


def _notes(
    running: Json | None,
    action: str,
    deployment: Deployment | None,
    own: tuple[Field, ...],
    groups: tuple[GroupChange, ...],
) -> Iterator[str]:
    if running and running.get("Stop"):
        yield "the job is stopped, and a run starts it again"
    elif action == "changed" and deployment:
        for group in groups:
            if group.updates and group.updates.stop and not {"scale-down", "gone"} & set(group.actions):
                yield (
                    f"{group.name}: {group.updates.stop} of version {deployment.job_version} stop, which its "
                    "deployment has started; those of before run on"
                )
    elif action == "none" and deployment:
        said = "; ".join(deployment.groups)
        yield f"deployment {deployment.id[:8]} is {deployment.status}, and a run leaves it alone ({said})"
    elif action == "changed" and not own and not any(group.fields or group.actions for group in groups):
        yield "Nomad sees a difference that has no words here; nomad job plan shows it"


def _deployment(deployment: Json | None) -> Deployment | None:
    if not deployment or deployment["Status"] not in ACTIVE:
        return None
    groups = deployment.get("TaskGroups") or {}
    return Deployment(
        id=deployment["ID"],
        job_version=deployment["JobVersion"],
        status=deployment["Status"],
        description=deployment["StatusDescription"],
        groups=tuple(f"{name}: {_progress(state)}" for name, state in sorted(groups.items())),
    )


def _progress(state: Json) -> str:
    """One group of a deployment: until a promotion, only its canaries run."""
    healthy, unhealthy, canaries = state["HealthyAllocs"], state["UnhealthyAllocs"], state["DesiredCanaries"]
    if canaries and not state["Promoted"]:
        said = f"{min(healthy, canaries)} of {canaries} canaries healthy, not promoted"
        missing = canaries - len(state.get("PlacedCanaries") or ())
        said += f", {missing} not placed" if missing > 0 else ""
    else:
        said = f"{healthy} of {state['DesiredTotal']} healthy" + (", promoted" if state["Promoted"] else "")
    return said + (f", {unhealthy} unhealthy" if unhealthy else "")


def _preempted(allocations: Sequence[Json]) -> tuple[Preempted, ...]:
    stopped = Counter(
        (one["JobID"], one["TaskGroup"], one["Namespace"], one["NodeName"]) for one in allocations
    )
    return tuple(
        Preempted(job=job, group=group, namespace=namespace, node=node, count=count)
        for (job, group, namespace, node), count in sorted(stopped.items())
    )
