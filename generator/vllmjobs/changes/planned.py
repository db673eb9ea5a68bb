"""Nomad's plans as values: what they change, what they would do, and what they cannot place."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Literal

from msgspec.structs import replace

from vllmjobs.changes import effects
from vllmjobs.changes.jobs import registered, tree
from vllmjobs.changes.jobs.tree import Tree, number
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
from vllmjobs.text.english import counted
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE


def planned(
    name: str,
    job: Json,
    running: Json | None,
    plan: Json,
    deployment: Json | None,
    run: str,
    nodes: Sequence[Node] | None,
) -> JobChange:
    """Return what a run of `job` does.

    `job` is the answer of `/v1/jobs/parse`, canonicalized; `running` that of `/v1/job/ID`, None where there
    is none; `plan` that of `/v1/job/ID/plan`, with its Diff; `deployment` is the latest. `name` is the job's
    for `render --job`, `run` the command that makes the change. `nodes` is None where they may not be read.
    """
    asked = _Planned(name, job, running, plan, nodes)
    groups = tuple(_with_what_others_get(tuple(asked.groups())))
    own = asked.own_fields
    changed = plan["Diff"]["Type"] != "None" or own or any(each.actions or each.fields for each in groups)
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
    """Return the sentences of Nomad's Warnings, which helper/warning.go joins under a headline."""
    items = re.split(r"^\s*\* ", text, flags=re.MULTILINE)
    # Some validators join several again: "Group … has warnings: 1 error occurred:\n\t* …".
    sentences = (" ".join(item.split()) for item in items)
    return tuple(each for each in sentences if each and not re.search(r"(warnings?|occurred):$", each))


@dataclass(frozen=True)
class _Planned:
    """One job with its plan; see `planned` for the fields."""

    name: str
    job: Json
    running: Json | None
    plan: Json
    nodes: Sequence[Node] | None

    @cached_property
    def after(self) -> Tree:
        """The tree of the job as it is to be."""
        return registered.tree(self.job)

    @cached_property
    def before(self) -> Tree | None:
        """The tree of the job as it runs."""
        return registered.tree(self.running) if self.running else None

    @cached_property
    def own_fields(self) -> tuple[Field, ...]:
        """The differences of the job as a whole."""
        if self.before is None:
            return ()
        before, after = tree.without_groups(self.before), tree.without_groups(self.after)
        return registered.planned_fields(self.plan["Diff"], before, after, of_job=True)

    def groups(self) -> Iterator[GroupChange]:
        """Yield the groups in the order of the newer job; those that go come last."""
        old, new = tree.groups(self.before or {}), tree.groups(self.after)
        for name in new | old:
            yield self._group(name, old.get(name), new.get(name))

    def _group(self, name: str, before: Tree | None, after: Tree | None) -> GroupChange:
        desired = (self.plan.get("Annotations") or {}).get("DesiredTGUpdates") or {}
        metrics = self.plan.get("FailedTGAllocs") or {}
        diffs = {diff["Name"]: diff for diff in self.plan["Diff"].get("TaskGroups") or ()}
        specs = {spec["Name"]: spec for spec in self.job["TaskGroups"]}
        fields = registered.planned_fields(diffs.get(name, {}), before, after) if before and after else ()
        is_changed = bool(self.own_fields or fields or diffs.get(name, {}).get("Type", "None") != "None")
        is_only_counted = not self.own_fields and all(field.path == ("count",) for field in fields)
        updates = _updates(desired.get(name) or {})
        if self.job["Type"] in ("system", "sysbatch"):
            updates = _on_every_node(updates, is_changed or name in metrics)
        actions: tuple[GroupAction, ...] = ()
        if is_changed and (before is None or after is None):
            actions = ("new",) if before is None else ("gone",)
        elif is_changed:
            actions = effects.scaled(_count(before), _count(after))
            if updates.canary or updates.destructive_update:
                actions = ("destructive", *actions)
            elif updates.in_place_update and not is_only_counted:
                actions = ("in-place", *actions)
        count_before = _count(before)
        if self.running and self.running.get("Stop") and before and after:
            actions, count_before = ("scale-up",), 0
        failed = None
        if name in metrics and name in specs:
            failed = FailedPlacement(
                self.name, self.job, specs[name], updates, metrics, count_before, self.nodes
            )
        return GroupChange(
            name=name,
            actions=actions,
            count_before=count_before,
            count_after=_count(after),
            gpus_before=effects.gpus(before),
            gpus_after=effects.gpus(after),
            canaries=updates.canary,
            fields=effects.without_blame(fields, actions),
            updates=updates,
            unplaced=unplaced(failed) if failed else None,
        )


def _with_what_others_get(groups: tuple[GroupChange, ...]) -> Iterator[GroupChange]:
    """Yield the groups; one without room also says how many GPUs the same plan gives to the others."""
    given = {}
    for group in groups:
        updates = group.updates or Updates()
        wanted = updates.place + updates.canary + updates.destructive_update
        placed = max(0, wanted - (group.unplaced.failed if group.unplaced else 0))
        given[group.name] = placed * (group.gpus_after or 0)
    for group in groups:
        others = tuple(
            Amount(name=name, count=gpus) for name, gpus in given.items() if gpus and name != group.name
        )
        if group.unplaced and group.gpus_after and others:
            reasons = (*group.unplaced.reasons, Reason(kind="gpus-given", counts=others))
            group = replace(group, unplaced=replace(group.unplaced, reasons=reasons))
        yield group


def _count(group: Tree | None) -> int | None:
    return number(group["count"]) if group else None


def _updates(desired: Json) -> Updates:
    """Return the numbers of DesiredTGUpdates, whose names are ours, but that Nomad writes InPlaceUpdate."""
    names = {name: name.title().replace("_", "") for name in Updates.__struct_fields__}
    return Updates(**{name: desired.get(nomads, 0) for name, nomads in names.items()})


def _on_every_node(updates: Updates, may_place: bool) -> Updates:
    """Return the numbers of a system job with a Place that counts new allocations only.

    The scheduler's counts the nodes that the job can run on, also those that have it already
    (scheduler/scheduler_system.go computeJobAllocs, tgCandidateNodeCounts); before Nomad 1.11, those that a
    constraint rules out, too. Such a job never waits: once a node comes up, the job is started there.
    """
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
        yield "the job is stopped; running it starts it again"
    elif action == "changed" and deployment:
        for group in groups:
            if group.updates and group.updates.stop and not {"scale-down", "gone"} & set(group.actions):
                yield (
                    f"{group.name}: Nomad stops {counted(group.updates.stop, 'instance')} that the "
                    f"deployment of version {deployment.job_version} has started; the older ones keep running"
                )
    elif action == "none" and deployment:
        progress = "; ".join(deployment.groups)
        name = f"deployment {deployment.id[:8]}"
        yield f"{name} is {deployment.status}; running the job again does not change it ({progress})"
    elif action == "changed" and not own and not any(group.fields or group.actions for group in groups):
        yield "Nomad sees a difference that this report cannot name; nomad job plan shows it"


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
    """Write how far one group of a deployment is: until a promotion, only its canaries run."""
    healthy, unhealthy, canaries = state["HealthyAllocs"], state["UnhealthyAllocs"], state["DesiredCanaries"]
    if canaries and not state["Promoted"]:
        text = f"{min(healthy, canaries)} of {canaries} canaries healthy, not promoted"
        missing = canaries - len(state.get("PlacedCanaries") or ())
        text += f", {missing} not placed" if missing > 0 else ""
    else:
        text = f"{healthy} of {state['DesiredTotal']} healthy" + (", promoted" if state["Promoted"] else "")
    return text + (f", {unhealthy} unhealthy" if unhealthy else "")


def _preempted(allocations: Sequence[Json]) -> tuple[Preempted, ...]:
    stopped = Counter(map(itemgetter("JobID", "TaskGroup", "Namespace", "NodeName"), allocations))
    return tuple(
        Preempted(job=job, group=group, namespace=namespace, node=node, count=count)
        for (job, group, namespace, node), count in sorted(stopped.items())
    )
