"""Two jobs, to what differs between them and what Nomad does for it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vllmjobs.changes.compare import compare
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.model import Field, GroupChange, JobChange
from vllmjobs.environment.load import load_file
from vllmjobs.environment.model import Environment
from vllmjobs.project.differences import differences
from vllmjobs.project.templates import rendered, templates

JOB = """
job "chat" {
  meta {
    team = "ml"
  }

  group "web" {
    count = 2

    update {
      canary = 1
    }

    task "vllm" {
      driver = "docker"

      config {
        image = "vllm:1"
        args  = ["serve", "--port=1", "--quiet"]
      }

      template {
        destination = "local/one"
        data        = "1"
      }

      template {
        destination = "local/two"
        data        = "2"
      }

      resources {
        device "nvidia/gpu" {
          count = 2
        }
      }
    }
  }
}
"""
EVERY_KEY = Path(__file__).parents[2] / "cases/every_key.yaml"
TEMPLATES = templates(Path("nowhere"))


def compared(before: str | None, after: str | None, as_one: bool = False) -> list[JobChange]:
    old, new = (None if hcl is None else read(hcl, "job") for hcl in (before, after))
    return compare("vllm", old, new, as_one)


def changed(old: str, new: str) -> JobChange:
    """Return what becomes of JOB when some of its words are replaced by others."""
    assert JOB.count(old) == 1
    (job,) = compared(JOB, JOB.replace(old, new))
    return job


def web(old: str, new: str) -> GroupChange:
    return next(group for group in changed(old, new).groups if group.name == "web")


def told(fields: tuple[Field, ...]) -> list[tuple[str, str | None, str | None]]:
    return [(".".join(field.path), field.before, field.after) for field in fields]


def test_the_same_job_is_no_change() -> None:
    (job,) = compared(JOB, JOB)
    assert (job.action, job.fields, job.notes) == ("none", (), ())
    assert [(group.name, group.actions, group.fields) for group in job.groups] == [("web", (), ())]


def test_a_change_that_replaces_allocations_is_tried_by_canaries() -> None:
    group = web('"vllm:1"', '"vllm:2"')
    assert told(group.fields) == [("task.vllm.config.image", "vllm:1", "vllm:2")]
    assert group.fields[0].replaces
    assert (group.actions, group.canaries, group.gpus_after) == (("destructive",), 1, 2)


def test_a_change_in_place_has_no_canary() -> None:
    group = web("canary = 1", "canary = 2")
    assert (group.actions, group.canaries) == (("in-place",), 0)


def test_a_change_of_the_count_is_told_by_its_direction() -> None:
    assert web("count = 2\n\n", "count = 3\n\n").actions == ("scale-up",)
    group = web("count = 2\n\n", "count = 0\n\n")
    assert (group.actions, group.count_before, group.count_after) == (("scale-down",), 2, 0)


def test_a_count_that_only_nomad_can_work_out_is_not_guessed() -> None:
    group = web("count = 2\n\n", "count = var.replicas\n\n")
    assert (group.count_before, group.count_after) == (2, None)
    assert told(group.fields) == [("count", "2", "${var.replicas}")]


def test_a_change_of_the_whole_job_reaches_every_group() -> None:
    job = changed('team = "ml"', 'team = "web"')
    assert told(job.fields) == [("meta.team", "ml", "web")]
    assert [(group.actions, group.fields) for group in job.groups] == [(("destructive",), ())]


def test_meta_that_no_task_gets_to_see_replaces_nothing() -> None:
    own = JOB.replace('driver = "docker"', 'driver = "docker"\nmeta {\nteam = "mine"\n}')
    (job,) = compared(own, own.replace('team = "ml"', 'team = "web"'))
    assert [group.actions for group in job.groups] == [("in-place",)]


def test_meta_that_moves_from_the_job_to_the_group_replaces_nothing() -> None:
    moved = JOB.replace('meta {\n    team = "ml"\n  }', "").replace(
        "count = 2\n\n", 'count = 2\nmeta {\nteam = "ml"\n}\n'
    )
    (job,) = compared(JOB, moved)
    assert [group.actions for group in job.groups] == [("in-place",)]


@pytest.mark.parametrize(
    ("args", "items"),
    [
        ('"serve", "--port=2", "--quiet"', [("--port=1", "--port=2")]),
        ('"serve", "--port=1"', [("--quiet", None)]),
        ('"serve", "--port=1", "--quiet", "--fast"', [(None, "--fast")]),
        ('"serve", "--fast", "--port=1", "--quiet"', [(None, "--fast")]),
        ('"serve", "--quiet", "--port=1"', [(None, "--quiet"), ("--quiet", None)]),
        ("", [("serve", None), ("--port=1", None), ("--quiet", None)]),
        ('"serve", 1, "--quiet"', [("--port=1", "1")]),
    ],
)
def test_lists_are_told_item_by_item(args: str, items: list[tuple[str | None, str | None]]) -> None:
    group = web('"serve", "--port=1", "--quiet"', args)
    assert [(field.before, field.after) for field in group.fields] == items
    assert {field.path for field in group.fields} == {("task", "vllm", "config", "args")}


@pytest.mark.parametrize(
    ("one", "other", "told_as"),
    [
        ("1", '"1"', ("1", '"1"')),
        ("true", '"true"', ("true", '"true"')),
        ("[1]", '["1"]', ("1", '"1"')),
        ("[1]", "[true]", ("1", "true")),
        ("{ a = 1 }", "{ a = true }", ("1", "true")),
    ],
)
def test_a_driver_tells_a_number_from_its_digits(one: str, other: str, told_as: tuple[str, str]) -> None:
    was, now = (JOB.replace('image = "vllm:1"', f"debug = {each}") for each in (one, other))
    (job,) = compared(was, now)
    assert [(field.before, field.after) for field in job.groups[0].fields] == [told_as]


def test_elsewhere_a_number_and_its_digits_are_the_same() -> None:
    assert changed("count = 2\n\n", 'count = "2"\n\n').action == "none"


def test_a_block_that_comes_is_told_by_what_it_says() -> None:
    group = web("count = 2\n\n", 'count = 2\nnetwork {\nport "http" {\nto = 80\n}\nport "admin" {}\n}\n')
    assert told(group.fields) == [
        ("network.port.http.to", None, "80"),
        ("network.port.http.host_network", None, "default"),
        ("network.port.admin.host_network", None, "default"),
    ]


def test_a_block_that_says_nothing_is_told_by_its_name() -> None:
    group = web('driver = "docker"', 'driver = "docker"\ndispatch_payload {}')
    assert told(group.fields) == [("task.vllm.dispatch_payload", None, "{}")]


def test_a_task_that_comes_is_told_whole_and_replaces_the_allocations() -> None:
    group = web('task "vllm" {', 'task "more" {\ndriver = "docker"\n}\ntask "vllm" {')
    assert group.actions == ("destructive",)
    assert {field.path[:2] for field in group.fields} == {("task", "more")}
    assert ("task.more.driver", None, "docker") in told(group.fields)


def test_templates_that_swap_places_are_a_change() -> None:
    one, other = (
        'destination = "local/one"\n        data        = "1"',
        'destination = "local/two"\n        data        = "2"',
    )
    swapped = JOB.replace(one, "here").replace(other, one).replace("here", other)
    (job,) = compared(JOB, swapped)
    (field,) = job.groups[0].fields
    assert told((field,)) == [("task.vllm.template", "local/one, local/two", "local/two, local/one")]
    assert field.replaces


def test_groups_come_and_go_by_their_names() -> None:
    job = changed('group "web"', 'group "front"')
    assert [(group.name, group.actions, group.count_before, group.count_after) for group in job.groups] == [
        ("front", ("new",), None, 2),
        ("web", ("gone",), 2, None),
    ]


@pytest.mark.parametrize(
    "identity", ['job "other"', 'job "chat" {\nnamespace = "ml"', 'job "chat" {\nregion = "eu"']
)
def test_under_another_id_namespace_or_region_it_is_another_job(identity: str) -> None:
    other = JOB.replace('job "chat" {', identity if "{" in identity else identity + " {")
    gone, new = compared(JOB, other)
    assert (gone.action, new.action) == ("gone", "new")
    assert gone.notes == (
        "nothing renders chat any more, but it keeps running; stop it: nomad job stop chat",
    )
    assert [group.actions for group in new.groups] == [("new",)]


def test_two_jobs_may_be_compared_as_one() -> None:
    (job,) = compared(JOB, JOB.replace('job "chat"', 'job "other"'), as_one=True)
    assert told(job.fields) == [("id", "chat", "other")]


def test_a_job_that_only_one_side_has_is_new_or_gone() -> None:
    assert [job.action for job in compared(None, JOB)] == ["new"]
    assert [job.action for job in compared(JOB, None)] == ["gone"]
    assert compared(None, None) == []


def test_nomad_refuses_to_change_the_type_of_a_job() -> None:
    job = changed("meta {\n    team", 'type = "batch"\n  meta {\n    team')
    assert "Nomad cannot turn a service job into a batch job: give it another name" in job.notes


def test_a_change_of_where_it_may_run_is_said_to_be_open() -> None:
    job = changed("count = 2\n\n", 'count = 2\nconstraint {\nattribute = "${node.class}"\nvalue = "x"\n}\n')
    assert [group.actions for group in job.groups] == [("in-place",)]
    (note,) = job.notes
    assert note.startswith("constraint may exclude nodes")


def shuffled(value: Any, draw: st.DrawFn) -> Any:
    """The same maps with their keys in another order."""
    if isinstance(value, dict):
        keys = draw(st.permutations(sorted(value)))
        return {key: shuffled(value[key], draw) for key in keys}
    return value


@st.composite
def other_order(draw: st.DrawFn) -> Environment:
    environment = load_file(EVERY_KEY).environment
    assert environment is not None
    return msgspec.convert(shuffled(msgspec.to_builtins(environment), draw), Environment)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(one=other_order(), other=other_order())
def test_the_order_of_an_environments_keys_is_no_change(one: Environment, other: Environment) -> None:
    jobs = differences(rendered(one, TEMPLATES), rendered(other, TEMPLATES))
    assert {job.action for job in jobs} == {"none"}
