"""The plan of a release, from its environment."""

from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from vllmjobs.changes.model import Field, GroupChange, JobChange
from vllmjobs.cli import main
from vllmjobs.cli.following import DURATION
from vllmjobs.environment.model import Balancer, Environment, Model
from vllmjobs.environment.rollout import Analysis, Rollout
from vllmjobs.rollout.plans import counts_to_keep, only_shrinks, plan, shares


def environment(balancer: str = "fabio", **rollout: Any) -> Environment:
    model = Model(model="facebook/opt-125m", replicas=4, rollout=Rollout(**rollout))
    return Environment(job="vllm-prod", balancer=Balancer(kind=balancer), models={"chat": model})  # type: ignore[arg-type]


def changed(*groups: GroupChange, fields: tuple[Field, ...] = ()) -> JobChange:
    return JobChange(
        job="vllm", id="vllm-prod", namespace="default", region="global", action="changed",
        fields=fields, groups=groups,
    )  # fmt: skip


def group(*actions: Any, before: int = 4, after: int = 4, fields: tuple[Field, ...] = ()) -> GroupChange:
    return GroupChange(
        name="chat", actions=actions, count_before=before, count_after=after, gpus_before=1, gpus_after=1,
        fields=fields,
    )  # fmt: skip


COUNT = Field(path=("count",), before="4", after="2")
IMAGE = Field(path=("task", "vllm", "config", "image"), before="a", after="b", replaces=True)


@pytest.mark.parametrize(
    ("rollout", "steps"),
    [
        ({}, (0.1,)),
        ({"weight": 0.05, "steps": [0.25, 0.5]}, (0.05, 0.25, 0.5)),
        ({"strategy": "blue_green", "weight": 0.05}, (0.05, 1.0)),
        ({"strategy": "rolling"}, ()),
    ],
)
def test_each_strategy_has_its_steps(rollout: dict[str, Any], steps: tuple[float, ...]) -> None:
    described = environment(**rollout)
    assert shares(described, described.models["chat"]) == steps


def test_without_a_balancer_there_is_one_step() -> None:
    described = environment("none", steps=[0.5])
    assert shares(described, described.models["chat"]) == (0.1,)


def test_more_steps_and_longer_windows_have_more_time() -> None:
    one = plan(environment(), 7, now=100.0)
    two = plan(environment(steps=[0.5]), 7, now=100.0)
    longer = plan(environment(analysis=Analysis(window="20m")), 7, now=100.0)
    assert 100 < one.promote_by < two.promote_by < longer.promote_by
    assert one.promote_by < one.until


def test_a_timeout_is_for_all_of_it() -> None:
    timed = plan(environment(steps=[0.5]), 7, now=100.0, timeout=60.0)
    assert (timed.promote_by, timed.until) == (160.0, 160.0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("1.5m", 90), ("500ms", 0.5)])
def test_a_timeout_is_written_as_nomad_writes_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["abc", "90", "", "1d", "5 m", "-5m"])
def test_what_is_no_duration_is_an_error_with_exit_code_1(text: str) -> None:
    ended = CliRunner().invoke(main, ["deploy", "dev", f"--timeout={text}"])
    assert ended.exit_code == 1
    assert f"'{text}' is not a duration; write it as in 90s, 45m or 1h30m" in ended.output


def test_a_way_back_is_not_judged() -> None:
    assert plan(environment(), 7, now=0.0).groups[0].is_judged
    assert not plan(environment(), 7, now=0.0, is_judged=False).groups[0].is_judged
    assert not plan(environment(analysis=None), 7, now=0.0).groups[0].is_judged


def test_a_count_that_shrinks_beside_a_change_is_held() -> None:
    assert counts_to_keep(changed(group("destructive", "scale-down", before=4, after=2))) == {"chat": 4}
    assert counts_to_keep(changed(group("scale-down", before=4, after=2))) == {}
    assert counts_to_keep(changed(group("destructive", "scale-up", before=4, after=6))) == {}


def test_a_group_that_only_shrinks_waits_for_the_verdict_on_the_others() -> None:
    other = group("scale-down", before=3, after=0)
    assert counts_to_keep(changed(group("destructive"), replace(other, name="large"))) == {"large": 3}


def test_what_is_left_of_a_held_change_is_smaller_counts() -> None:
    assert only_shrinks(changed(group("scale-down", before=4, after=2, fields=(COUNT,))))
    # Beside a deployment that runs, Nomad's plan replaces instances for the same count.
    assert only_shrinks(changed(group("destructive", "scale-down", before=4, after=2, fields=(COUNT,))))
    assert not only_shrinks(changed(group("scale-up", before=2, after=4, fields=(COUNT,))))
    assert not only_shrinks(changed(group("destructive", "scale-down", after=2, fields=(COUNT, IMAGE))))
    assert not only_shrinks(changed(group("scale-down", after=2, fields=(COUNT,)), fields=(IMAGE,)))
