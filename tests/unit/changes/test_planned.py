"""A plan's answer as values; `tests/cluster` asks the real scheduler for one."""

from typing import Any

import pytest

from vllmjobs.changes.model import GroupAction, JobChange
from vllmjobs.changes.planned import planned, warnings
from vllmjobs.text.json import Json

RUN = "nomad job run -check-index 7 job.nomad.hcl"


def job(*groups: Json, **more: Any) -> Json:
    return {"ID": "vllm-prod", "Type": "service", "Datacenters": ["dc1"], "TaskGroups": list(groups), **more}


def group(name: str = "chat", count: int = 2, **task: Any) -> Json:
    resources = {"MemoryMB": 256, "Devices": [{"Name": "nvidia/gpu", "Count": 2}]}
    return {
        "Name": name,
        "Count": count,
        "Tasks": [{"Name": "vllm", "Driver": "docker", "Resources": resources, **task}],
    }


def edited(name: str, *words: str, fields: tuple[str, ...] = ()) -> Json:
    """The Diff of a group: objects of its task, and fields of its own."""
    objects = [{"Name": word, "Type": "Edited", "Fields": []} for word in words]
    return {
        "Name": name,
        "Type": "Edited",
        "Fields": [{"Name": field, "Type": "Edited", "Old": "1", "New": "2"} for field in fields],
        "Tasks": [{"Name": "vllm", "Type": "Edited", "Objects": objects}] if objects else None,
    }


def plan(
    new: Json,
    old: Json | None = None,
    *diffs: Json,
    updates: dict[str, Json] | None = None,
    deployment: Json | None = None,
    **more: Any,
) -> JobChange:
    kind = "Added" if old is None else "Edited" if diffs else "None"
    diff = {"Type": kind, "Fields": None, "Objects": None, "TaskGroups": list(diffs), **more.pop("diff", {})}
    annotations = {"DesiredTGUpdates": updates or {}, "PreemptedAllocs": more.pop("preempted", None)}
    answer = {"Diff": diff, "Annotations": annotations, "JobModifyIndex": 7, **more}
    return planned("vllm", new, old, answer, deployment, RUN, None)


def test_a_value_is_told_in_the_jobspecs_words() -> None:
    found = plan(
        job(group(KillTimeout=315 * 10**9, Config={"image": "vllm:2", "args": ["serve", "--a", "--b"]})),
        job(group(KillTimeout=60 * 10**9, Config={"image": "vllm:1", "args": ["serve", "--b"]})),
        {
            "Name": "chat",
            "Type": "Edited",
            "Tasks": [
                {
                    "Name": "vllm",
                    "Type": "Edited",
                    "Fields": [{"Name": "KillTimeout", "Type": "Edited", "Old": "1", "New": "2"}],
                    "Objects": [{"Name": "Config", "Type": "Edited", "Fields": []}],
                }
            ],
        },
        updates={"chat": {"Canary": 1, "Ignore": 2}},
    )
    told = {(field.path, field.before, field.after, field.replaces) for field in found.groups[0].fields}
    assert told == {
        (("task", "vllm", "kill_timeout"), "1m", "5m15s", False),
        (("task", "vllm", "config", "image"), "vllm:1", "vllm:2", True),
        (("task", "vllm", "config", "args"), None, "--a", True),
    }
    assert (found.action, found.groups[0].actions, found.groups[0].canaries) == (
        "changed",
        ("destructive",),
        1,
    )
    assert (found.groups[0].gpus_before, found.groups[0].gpus_after) == (2, 2)


def test_a_secret_is_hidden_on_both_sides() -> None:
    found = plan(
        job(group(Env={"HF_TOKEN": "hf_new"})), job(group(Env={"HF_TOKEN": "hf_old"})), edited("chat", "Env")
    )
    (field,) = found.groups[0].fields
    assert field.hidden
    assert "hf_" not in str(field)


def test_what_nomad_adds_to_a_job_is_no_change() -> None:
    implied = {"LTarget": "${attr.consul.version}", "Operand": "semver", "RTarget": ">= 1.8.0"}
    old = job(group(), Region="global", Namespace="default", Stable=True)
    old["TaskGroups"][0] |= {"Constraints": [implied], "Networks": [{"Mode": "host", "IP": "10.0.0.1"}]}
    same = plan(job(group()), old, updates={"chat": {"Ignore": 2}})
    assert (same.action, same.fields, same.groups[0].fields, same.has_changed) == ("none", (), (), False)


def test_a_constraint_that_comes_does_not_take_nomads_own_away() -> None:
    implied = {"LTarget": "${attr.consul.version}", "Operand": "semver", "RTarget": ">= 1.8.0"}
    own = {"LTarget": "${attr.kernel.name}", "Operand": "=", "RTarget": "linux"}
    old, new = group(), group()
    old["Constraints"], new["Constraints"] = [implied], [own]
    said = {"LTarget": "${attr.kernel.name}", "Operand": "=", "RTarget": "linux"}
    fields = [{"Name": name, "Type": "Added", "Old": "", "New": value} for name, value in said.items()]
    diff = edited("chat") | {"Objects": [{"Name": "Constraint", "Type": "Added", "Fields": fields}]}
    found = plan(job(new), job(old), diff, updates={"chat": {"InPlaceUpdate": 2}})
    assert {field.path[:2] for field in found.groups[0].fields} == {("constraint", "${attr.kernel.name}")}
    assert found.groups[0].actions == ("in-place",)


def test_a_spread_is_told_though_nomads_diff_leaves_it_out() -> None:
    new = group()
    new["Spreads"] = [
        {"Attribute": "${node.datacenter}", "Weight": 50, "SpreadTarget": [{"Value": "dc1", "Percent": 70}]}
    ]
    found = plan(job(new), job(group()), updates={"chat": {"InPlaceUpdate": 2}})
    assert found.action == "changed"
    assert [(field.path, field.after) for field in found.groups[0].fields] == [
        (("spread", "${node.datacenter}", "weight"), "50"),
        (("spread", "${node.datacenter}", "target", "dc1", "percent"), "70"),
    ]
    assert found.groups[0].actions == ("in-place",)


@pytest.mark.parametrize(
    ("count", "updates", "actions"),
    [
        (2, {"InPlaceUpdate": 2}, ("in-place",)),
        (2, {"DestructiveUpdate": 1, "Ignore": 1}, ("destructive",)),
        (2, {"Canary": 1, "Ignore": 2}, ("destructive",)),
        (4, {"InPlaceUpdate": 2, "Place": 2}, ("in-place", "scale-up")),
        (1, {"DestructiveUpdate": 1, "Stop": 1}, ("destructive", "scale-down")),
        (2, {"Place": 2}, ()),
    ],
)
def test_what_the_scheduler_does_to_a_group(
    count: int, updates: Json, actions: tuple[GroupAction, ...]
) -> None:
    found = plan(
        job(group(count=count, KillSignal="SIGTERM")),
        job(group(KillSignal="SIGINT")),
        {
            "Name": "chat",
            "Type": "Edited",
            "Fields": [{"Name": "Count", "Type": "Edited", "Old": "2", "New": str(count)}],
            "Tasks": [
                {
                    "Name": "vllm",
                    "Type": "Edited",
                    "Fields": [{"Name": "KillSignal", "Type": "Edited", "Old": "SIGINT", "New": "SIGTERM"}],
                }
            ],
        },
        updates={"chat": updates},
    )
    assert found.groups[0].actions == actions


def test_a_group_in_which_nothing_differs_is_left_alone_however_nomad_counts_it() -> None:
    found = plan(
        job(group("chat", count=3), group("large")),
        job(group("chat"), group("large")),
        edited("chat", fields=("Count",)),
        updates={"chat": {"Place": 1, "InPlaceUpdate": 2}, "large": {"InPlaceUpdate": 2}},
    )
    assert [(one.name, one.actions) for one in found.groups] == [("chat", ("scale-up",)), ("large", ())]


def test_a_priority_reaches_every_group() -> None:
    fields = [{"Name": "Priority", "Type": "Edited", "Old": "50", "New": "80"}]
    found = plan(
        job(group(), Priority=80),
        job(group(), Priority=50),
        diff={"Type": "Edited", "Fields": fields},
        updates={"chat": {"InPlaceUpdate": 2}},
    )
    assert [(field.path, field.before, field.after) for field in found.fields] == [
        (("priority",), "50", "80")
    ]
    assert found.groups[0].actions == ("in-place",)


def test_groups_that_come_and_go_stand_in_the_order_of_the_newer_job() -> None:
    found = plan(
        job(group("new"), group("chat")),
        job(group("chat"), group("old")),
        {"Name": "new", "Type": "Added"},
        {"Name": "old", "Type": "Deleted"},
        updates={"new": {"Place": 2}, "chat": {"InPlaceUpdate": 2}, "old": {"Stop": 2}},
    )
    assert [(one.name, one.actions, one.count_before, one.count_after) for one in found.groups] == [
        ("new", ("new",), None, 2),
        ("chat", (), 2, 2),
        ("old", ("gone",), 2, None),
    ]
    assert [one.fields for one in found.groups] == [(), (), ()]


def test_placements_that_wait_are_a_change_of_an_unchanged_job() -> None:
    failed = {"NodesEvaluated": 1, "DimensionExhausted": {"memory": 1}}
    found = plan(job(group()), job(group()), updates={"chat": {"Place": 1}}, FailedTGAllocs={"chat": failed})
    assert (found.action, found.groups[0].actions) == ("none", ())
    assert found.has_changed
    assert found.is_unplaceable


@pytest.mark.parametrize("updates", [{"Place": 3, "Ignore": 3}, {"Place": 5, "Ignore": 3}])
def test_a_system_job_that_is_unchanged_places_nothing(updates: Json) -> None:
    spec = job(group(), Type="system")
    found = plan(spec, spec, updates={"chat": updates})
    assert found.groups[0].updates
    assert found.groups[0].updates.place == 0
    assert not found.has_changed


def test_a_system_job_that_changes_is_placed_where_it_was_not() -> None:
    new, old = job(group(Env={"A": "1"}), Type="system"), job(group(), Type="system")
    updates = {"Place": 4, "DestructiveUpdate": 1, "Ignore": 2}
    failed = {"NodesEvaluated": 1, "DimensionExhausted": {"memory": 1}, "CoalescedFailures": 1}
    found = plan(new, old, edited("chat", "Env"), updates={"chat": updates}, FailedTGAllocs={"chat": failed})
    assert found.groups[0].updates
    assert found.groups[0].updates.place == 1
    assert found.groups[0].unplaced
    assert (found.groups[0].unplaced.failed, found.groups[0].unplaced.wanted) == (2, 4)


def test_who_is_preempted_is_counted_by_job_group_and_node() -> None:
    one = {"JobID": "batch", "TaskGroup": "train", "Namespace": "ml", "NodeName": "gpu-1"}
    found = plan(job(group()), preempted=[one, {**one, "NodeName": "gpu-2"}, one]).plan
    assert found
    assert [(gone.job, gone.group, gone.namespace, gone.node, gone.count) for gone in found.preempted] == [
        ("batch", "train", "ml", "gpu-1", 2),
        ("batch", "train", "ml", "gpu-2", 1),
    ]


def deployment(status: str = "running", **group: Any) -> Json:
    state = {
        "DesiredCanaries": 0,
        "PlacedCanaries": None,
        "DesiredTotal": 4,
        "HealthyAllocs": 2,
        "UnhealthyAllocs": 0,
        "Promoted": False,
    }
    return {
        "ID": "0123456789",
        "JobVersion": 3,
        "Status": status,
        "StatusDescription": "Deployment is running",
        "TaskGroups": {"chat": {**state, **group}},
    }


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "chat: 2 of 4 healthy"),
        ({"DesiredCanaries": 1, "Promoted": True}, "chat: 2 of 4 healthy, promoted"),
        (
            {"DesiredCanaries": 2, "PlacedCanaries": ["a"], "HealthyAllocs": 1, "UnhealthyAllocs": 1},
            "chat: 1 of 2 canaries healthy, not promoted, 1 not placed, 1 unhealthy",
        ),
    ],
)
def test_how_far_a_deployment_in_the_way_is(state: Json, said: str) -> None:
    found = plan(
        job(group(count=3)),
        job(group()),
        edited("chat", fields=("Count",)),
        updates={"chat": {"Place": 1}},
        deployment=deployment(**state),
    ).plan
    assert found
    assert found.deployment
    assert found.deployment.groups == (said,)


@pytest.mark.parametrize("status", ["successful", "failed", "cancelled"])
def test_a_deployment_that_has_ended_is_in_nobodys_way(status: str) -> None:
    changed = plan(job(group(count=3)), job(group()), edited("chat"), deployment=deployment(status)).plan
    assert changed
    assert changed.deployment is None


def test_the_warnings_of_nomad_are_single_sentences() -> None:
    text = (
        '2 warnings:\n\n* Group "chat" has warnings: 1 error occurred:\n\t* Update max parallel count is '
        "greater than task group count (5 > 2).\n\n* Namespace is\n  old"
    )
    assert warnings(text) == (
        "Update max parallel count is greater than task group count (5 > 2).",
        "Namespace is old",
    )
    assert warnings("") == ()
