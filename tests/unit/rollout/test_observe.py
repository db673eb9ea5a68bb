"""The observation of a release: the rules one by one, then random worlds."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vllmjobs.rollout.decide import decide
from vllmjobs.rollout.events import Snapshot, events
from vllmjobs.rollout.model import (
    Fail,
    GroupPlan,
    GroupState,
    Observation,
    Promote,
    ReleasePlan,
    Revert,
    Verdict,
)
from vllmjobs.rollout.observe import (
    FAST_POLL_S,
    POLL_S,
    SOON_POLL_S,
    TOLERANCE,
    Comparison,
    Memory,
    ObservedShares,
    Raw,
    attempted,
    comparisons,
    is_reverted,
    observe,
    poll_within,
    waiting_groups,
)
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE

PLAN = ReleasePlan(
    job="vllm-prod",
    version=7,
    groups=(
        GroupPlan(name="chat", shares=(0.05, 0.25, 0.5)),
        GroupPlan(name="embed", shares=(0.05,), is_judged=False),
    ),
    place_within=60,
    promote_by=1000,
    until=2000,
)
PASS = Verdict(result="pass", reason="within all limits")
FAILED = Fail(reason="chat: error_rate is 40 %, more than 5 %", outcome="refused")
JOB = {"Version": 7, "Stop": False}
NOTHING = Memory()


def allocation(id: str, version: int = 7, healthy: bool | None = True, **others: Any) -> Json:
    restarts, state = others.pop("restarts", 0), others.pop("task", "running")
    return {
        "ID": id,
        "TaskGroup": "chat",
        "NodeName": "gpu-1",
        "JobVersion": version,
        "DesiredStatus": "run",
        "ClientStatus": "running",
        "DeploymentStatus": {"Canary": version == 7, "Healthy": healthy},
        "TaskStates": {"vllm": {"State": state, "Restarts": restarts, "Events": []}},
        "AllocatedResources": {
            "Shared": {"Ports": [{"Label": "http", "HostIP": f"10.0.0.{ord(id)}", "Value": 20000}]},
        },
        **others,
    }


def deployment(*canaries: str, status: str = "running", promoted: bool = False) -> Json:
    group = {
        "DesiredCanaries": 1, "PlacedCanaries": [*canaries], "Promoted": promoted, "DesiredTotal": 2,
        "HealthyAllocs": len(canaries), "UnhealthyAllocs": 0,
    }  # fmt: skip
    return {
        "ID": "1a2b3c4d", "JobVersion": 7, "Status": status, "StatusDescription": "",
        "TaskGroups": {"chat": group},
    }  # fmt: skip


OLD, CANARY = allocation("a", version=6), allocation("b")
PLACED = Raw(job=JOB, deployment=deployment("b"), allocations=(OLD, CANARY))
UNPLACED = Raw(job=JOB, deployment=deployment(), allocations=(OLD,))


def shares(asked: float | None, given: float | None) -> ObservedShares:
    return ObservedShares(asked={} if asked is None else {"chat": asked}, given={"chat": given})


def chat(raw: Raw, memory: Memory = NOTHING, now: float = 100.0) -> GroupState:
    return observe(PLAN, memory, raw, now)[1].groups["chat"]


def test_a_job_that_was_stopped_or_purged_has_no_version() -> None:
    assert observe(PLAN, NOTHING, Raw(), 0)[1].version is None
    assert observe(PLAN, NOTHING, Raw(job=JOB | {"Stop": True}), 0)[1].version is None
    assert observe(PLAN, NOTHING, Raw(job=JOB), 0)[1].version == 7


def test_a_version_is_evaluated_once_the_evaluation_of_its_newest_change_is_complete() -> None:
    def is_evaluated(*evaluations: tuple[int, str]) -> bool:
        answer = [{"JobModifyIndex": index, "Status": status} for index, status in evaluations]
        return observe(PLAN, NOTHING, Raw(job=JOB, evaluations=answer), 0)[1].is_evaluated

    assert not is_evaluated()
    assert not is_evaluated((8, "complete"), (9, "pending"))
    assert not is_evaluated((9, "complete"), (9, "blocked"))
    assert is_evaluated((8, "pending"), (9, "complete"))


def test_a_version_with_a_deployment_was_evaluated() -> None:
    observation = observe(PLAN, NOTHING, PLACED, 0)[1]
    assert (observation.is_evaluated, observation.deployment) == (True, "1a2b3c4d")


def test_the_version_to_go_back_to_is_of_interest_after_a_failure_alone() -> None:
    versions = [
        {"Version": number, "Image": number, "Stable": number == 5, "Stop": False} for number in (5, 6, 7)
    ]
    assert observe(PLAN, NOTHING, replace(PLACED, versions=versions), 0)[1].stable is None
    failed = Raw(job=JOB, deployment=deployment("b", status="failed"), versions=versions)
    assert observe(PLAN, NOTHING, failed, 0)[1].stable == 5


def test_a_canary_without_a_node_is_counted_from_when_it_was_first_missed() -> None:
    memory, observation = observe(PLAN, NOTHING, UNPLACED, 100)
    assert observation.groups["chat"].unplaced_for == 0
    memory, observation = observe(PLAN, memory, UNPLACED, 159)
    assert observation.groups["chat"].unplaced_for == 59
    memory, observation = observe(PLAN, memory, PLACED, 160)
    assert observation.groups["chat"].unplaced_for == 0
    memory, _ = observe(PLAN, memory, UNPLACED, 170)
    assert chat(UNPLACED, memory, 180).unplaced_for == 10, "what came before does not count"


def test_after_the_promotion_no_canary_is_missed() -> None:
    promoted = replace(UNPLACED, deployment=deployment(promoted=True))
    memory, _ = observe(PLAN, NOTHING, promoted, 100)
    assert chat(promoted, memory, 200).unplaced_for == 0


def test_a_restart_counts_once_the_canary_was_healthy() -> None:
    """While it loads, a restart is the supervisor's business; later, it is a crash."""
    loading = replace(PLACED, allocations=(allocation("b", healthy=None, restarts=2),))
    healthy = replace(PLACED, allocations=(allocation("b", restarts=3),))
    crashed = replace(PLACED, allocations=(allocation("b", restarts=4, task="pending"),))
    memory, observation = observe(PLAN, NOTHING, loading, 0)
    assert observation.groups["chat"].restarted_canaries == 0
    memory, observation = observe(PLAN, memory, healthy, 1)
    assert observation.groups["chat"].restarted_canaries == 0
    memory, observation = observe(PLAN, memory, crashed, 2)
    assert observation.groups["chat"].restarted_canaries == 1
    back = replace(PLACED, allocations=(allocation("b", restarts=4),))
    assert chat(back, memory, 3).restarted_canaries == 1, "it is not forgotten when it serves again"


@pytest.mark.parametrize(
    ("share", "is_given"),
    [(0.05, True), (0.06, True), (0.04, True), (0.0, False), (0.024, False), (0.08, False), (None, True)],
)
def test_a_share_is_given_where_the_balancers_come_close(share: float | None, is_given: bool) -> None:
    group = chat(replace(PLACED, shares=shares(None, share)))
    assert (group.step, group.routed) == (0, is_given)


def test_a_large_share_is_held_to_the_tolerance() -> None:
    assert not chat(replace(PLACED, shares=shares(0.5, 0.53))).routed
    assert chat(replace(PLACED, shares=shares(0.5, 0.515))).routed


def test_a_small_share_is_held_to_half_of_itself() -> None:
    """A tolerance of 0.02 to either side would call a share of 0.01 given where canaries get nothing."""
    plan = replace(PLAN, groups=(GroupPlan(name="chat", shares=(0.01,)),))
    for share, is_given in ((0.001, False), (0.006, True), (0.014, True), (0.02, False)):
        raw = replace(PLACED, shares=shares(None, share))
        assert observe(plan, NOTHING, raw, 0)[1].groups["chat"].routed is is_given


def test_the_step_is_the_one_whose_share_was_asked_for() -> None:
    assert chat(replace(PLACED, shares=shares(0.25, 0.25))).step == 1
    assert chat(replace(PLACED, shares=shares(0.5, 0.25))).step == 2
    assert chat(replace(PLACED, shares=shares(0.33, 0.33))).step == 0, "somebody else wrote this one"
    assert chat(replace(PLACED, shares=shares(None, 0.05))).step == 0


def test_a_share_that_is_not_given_is_counted_from_when_it_was_asked_for() -> None:
    first = replace(PLACED, shares=shares(None, 0.0))
    memory, observation = observe(PLAN, NOTHING, first, 100)
    memory, observation = observe(PLAN, memory, first, 130)
    assert observation.groups["chat"].unrouted_for == 30
    second = replace(PLACED, shares=shares(0.25, 0.05))
    memory, observation = observe(PLAN, memory, second, 140)
    assert observation.groups["chat"].unrouted_for == 0, "the next step begins anew"
    assert chat(second, memory, 150).unrouted_for == 10


def test_a_canary_that_is_no_longer_healthy_is_given_its_time_anew() -> None:
    frozen = replace(PLACED, shares=shares(None, 0.0))
    memory, _ = observe(PLAN, NOTHING, frozen, 100)
    memory, _ = observe(PLAN, memory, UNPLACED, 120)
    assert chat(frozen, memory, 130).unrouted_for == 0


def test_while_consul_is_away_nobody_gets_a_share_and_the_clock_goes_on() -> None:
    frozen = replace(PLACED, shares=shares(None, 0.0))
    memory, _ = observe(PLAN, NOTHING, frozen, 100)
    away = replace(PLACED, shares=ObservedShares(is_known=False), verdicts={"chat": PASS})
    memory, observation = observe(PLAN, memory, away, 110)
    group = observation.groups["chat"]
    assert (group.routed, group.verdict, group.unrouted_for) == (False, None, 0)
    assert chat(frozen, memory, 130).unrouted_for == 30


def test_where_the_canaries_get_another_share_the_balancers_are_frozen() -> None:
    assert chat(replace(PLACED, shares=shares(0.25, 0.05))).gets_another_share
    assert not chat(replace(PLACED, shares=shares(0.25, 0.0))).gets_another_share
    assert not chat(replace(PLACED, shares=shares(0.25, 0.25))).gets_another_share


def test_without_a_balancer_to_ask_the_share_is_taken_as_given_and_that_is_told_once() -> None:
    unknown = replace(PLACED, shares=shares(None, None))
    memory, first = observe(PLAN, NOTHING, unknown, 0)
    assert first.groups["chat"].routed
    warnings = [one.text for one in events(None, Snapshot(first, {})) if one.kind == "warning"]
    assert warnings == ["chat: no balancer tells which share canaries get; the share asked for is assumed"]
    known = replace(PLACED, shares=shares(None, 0.05))
    memory, second = observe(PLAN, memory, known, 1)
    memory, third = observe(PLAN, memory, unknown, 2)
    for before, after in ((first, second), (second, third)):
        assert not [one for one in events(Snapshot(before, {}), Snapshot(after, {})) if one.kind == "warning"]


def test_a_verdict_counts_while_the_canaries_get_their_share() -> None:
    judged = replace(PLACED, shares=shares(None, 0.05), verdicts={"chat": PASS})
    assert chat(judged).verdict == PASS
    assert chat(replace(judged, shares=shares(None, 0.5))).verdict is None
    assert chat(replace(judged, shares=None)).verdict == PASS, "no balancer is to be asked for shares"
    promoted = replace(judged, deployment=deployment("b", promoted=True))
    assert chat(promoted).verdict is None


def test_healthy_canaries_are_compared_with_the_old_instances_of_their_group() -> None:
    routed = replace(PLACED, shares=shares(0.25, 0.25))
    assert comparisons(PLAN, routed) == {
        "chat": Comparison(
            step=1,
            share=0.25,
            canaries=frozenset({"10.0.0.98:20000"}),
            stable=frozenset({"10.0.0.97:20000"}),
        )
    }
    assert waiting_groups(PLAN, PLACED)


@pytest.mark.parametrize(
    "raw",
    [
        Raw(),
        UNPLACED,
        replace(PLACED, allocations=(OLD, allocation("b", healthy=None))),
        replace(PLACED, deployment=deployment("b", promoted=True)),
    ],
)
def test_nobody_is_measured_without_healthy_canaries_that_wait(raw: Raw) -> None:
    assert not waiting_groups(PLAN, raw)
    assert comparisons(PLAN, raw) == {}


def test_canaries_whose_share_is_not_given_are_not_measured() -> None:
    assert comparisons(PLAN, replace(PLACED, shares=shares(0.25, 0.05))) == {}


def test_a_group_that_is_not_judged_is_not_measured() -> None:
    assert not waiting_groups(replace(PLAN, groups=(GroupPlan(name="chat", is_judged=False),)), PLACED)


def test_what_a_run_before_us_was_about_to_fail_it_for_counts_where_it_had_failed() -> None:
    before = Memory(recorded=FAILED)
    failed = replace(PLACED, deployment=deployment("b", status="failed"))
    memory, observation = observe(PLAN, before, failed, 0)
    assert (memory.failed, observation.failed) == (FAILED, FAILED)
    memory, _ = observe(PLAN, before, PLACED, 0)
    memory, observation = observe(PLAN, memory, failed, 1)
    assert observation.failed is None, "it was not that run that failed it, but Nomad, later"


@pytest.mark.parametrize(
    ("memory", "newest", "status", "is_reverted_to"),
    [
        (Memory(failed=FAILED), 7, "failed", False),  # and Nomad has nothing to go back to
        (Memory(failed=FAILED), 8, "failed", True),
        (Memory(recorded=FAILED), 8, "failed", True),  # a run before us failed it
        (NOTHING, 7, "failed", False),
        (NOTHING, 8, "cancelled", False),  # somebody has registered another version
    ],
)
def test_a_deployment_that_nomad_has_collected_has_ended_and_not_well(
    memory: Memory, newest: int, status: str, is_reverted_to: bool
) -> None:
    """Nomad 1.11 collects one that failed within five minutes: see `_as_it_ended`."""
    raw = replace(PLACED, job=JOB | {"Version": newest}, is_forgotten=True)
    memory, observation = observe(PLAN, memory, raw, 100.0)
    assert (observation.status, is_reverted(observation)) == (status, is_reverted_to)
    assert observe(PLAN, memory, raw, 100.0) == (memory, observation)


def test_an_end_that_was_seen_is_kept_when_nomad_has_collected_the_deployment() -> None:
    raw = replace(PLACED, deployment=deployment("b", status="cancelled"), is_forgotten=True)
    assert observe(PLAN, Memory(failed=FAILED), raw, 100.0)[1].status == "cancelled"


def test_our_own_reason_comes_before_a_recorded_one() -> None:
    aborted = Fail(reason="aborted by alice", outcome="refused")
    failed = replace(PLACED, deployment=deployment("b", status="failed"))
    assert observe(PLAN, Memory(failed=aborted, recorded=FAILED), failed, 0)[1].failed == aborted


def test_what_was_attempted_is_remembered() -> None:
    assert attempted(NOTHING, FAILED).failed == FAILED
    assert attempted(NOTHING, Revert(version=5)).has_reverted
    assert attempted(NOTHING, Promote()) == NOTHING


def test_a_version_is_reverted_by_us_or_by_nomad() -> None:
    by_nomad = "Failed due to unhealthy allocations - rolling back to job version 5"
    plain = Observation(now=0, version=7, status="failed", description="Failed due to unhealthy allocations")
    assert not is_reverted(plain)
    assert is_reverted(replace(plain, description=by_nomad))
    assert is_reverted(replace(plain, has_reverted=True))


def test_it_is_observed_again_soon_while_something_moves() -> None:
    def polled(group: GroupState, measurement: float = inf) -> float:
        return poll_within(
            Observation(now=0, version=7, status="running", groups={"chat": group}), measurement
        )

    assert polled(GroupState()) == POLL_S
    assert polled(GroupState(routed=False)) == SOON_POLL_S
    assert polled(GroupState(promoted=True)) == FAST_POLL_S
    assert polled(GroupState(), measurement=3) == 3
    assert polled(GroupState(), measurement=0) == 0.1, "not all the time"


IDS = "abcdef"
SHARES = st.sampled_from([0.0, 0.01, 0.03, 0.05, 0.06, 0.25, 0.26, 0.5, 1.0])


@st.composite
def allocations(draw: st.DrawFn) -> list[Json]:
    def one(id: str) -> Json:
        return allocation(
            id,
            version=draw(st.sampled_from([5, 6, 7, 7])),
            healthy=draw(st.sampled_from([True, True, False, None])),
            restarts=draw(st.integers(0, 3)),
            task=draw(st.sampled_from(["running", "running", "pending", "dead"])),
            TaskGroup=draw(st.sampled_from(["chat", "chat", "embed", "gone"])),
            DesiredStatus=draw(st.sampled_from(["run", "run", "stop"])),
            ClientStatus=draw(
                st.sampled_from(["running", "running", "pending", "failed", "lost", "complete"])
            ),
        )

    return [one(id) for id in draw(st.lists(st.sampled_from(IDS), unique=True))]


@st.composite
def deployments(draw: st.DrawFn) -> Json:
    def group() -> Json:
        return {
            "DesiredCanaries": draw(st.integers(0, 2)),
            "PlacedCanaries": draw(st.none() | st.lists(st.sampled_from(IDS), unique=True)),
            "Promoted": draw(st.booleans()),
            "DesiredTotal": draw(st.integers(0, 3)),
            "HealthyAllocs": draw(st.integers(0, 3)),
            "UnhealthyAllocs": draw(st.integers(0, 3)),
        }

    names = draw(st.lists(st.sampled_from(["chat", "embed", "gone"]), unique=True))
    status = draw(st.sampled_from(["running", "running", "paused", "successful", "failed", "cancelled"]))
    return deployment(status=status) | {"TaskGroups": {name: group() for name in names}}


def by_group(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(["chat", "embed", "gone"]), values)


RAWS = st.builds(
    Raw,
    job=st.none() | st.builds(dict, Version=st.sampled_from([7, 7, 8]), Stop=st.booleans()),
    deployment=st.none() | deployments(),
    is_forgotten=st.booleans(),
    evaluations=st.lists(
        st.builds(
            dict, JobModifyIndex=st.integers(8, 9), Status=st.sampled_from(["complete", "pending", "blocked"])
        )
    ),
    allocations=allocations(),
    versions=st.just([JOB | {"Stable": False}, {"Version": 5, "Stable": True, "Image": "old"}]),
    shares=st.none()
    | st.builds(
        ObservedShares, is_known=st.booleans(), asked=by_group(SHARES), given=by_group(st.none() | SHARES)
    ),
    verdicts=by_group(st.just(PASS)),
)
ACTIONS = st.sampled_from([None, None, FAILED, Revert(version=5), Promote()])
WORLDS = st.lists(st.tuples(RAWS, st.sampled_from([-5.0, 0.0, 0.1, 10.0]), ACTIONS), min_size=1, max_size=6)


@given(WORLDS, st.sampled_from([None, FAILED]))
def test_an_observation_of_any_world_keeps_its_promises(world: Any, recorded: Fail | None) -> None:
    memory, now = Memory(recorded=recorded), 100.0
    for raw, step, action in world:
        now += step
        before, (memory, observation) = memory, observe(PLAN, memory, raw, now)
        assert observe(PLAN, memory, raw, now) == (memory, observation), "the same answers change nothing"
        assert memory.now == observation.now >= max(before.now, now), "time does not run backwards"
        assert before.failed is None or memory.failed == before.failed, "a failure is not forgotten"
        assert memory.has_reverted == before.has_reverted, "answers alone revert nothing"
        assert memory.restarts.items() >= before.restarts.items(), "nor is what was healthy"
        hold(raw, observation)
        decide(PLAN, observation)
        memory = attempted(memory, action) if action else memory


def hold(raw: Raw, observation: Observation) -> None:
    """Hold an observation against the answers that it was made of."""
    compared = comparisons(PLAN, raw)
    for name, group in observation.groups.items():
        for duration in (group.unplaced_for, group.unrouted_for):
            assert duration >= 0 and isfinite(duration)
        assert group.restarted_canaries <= len(raw.allocations)
        assert not (group.routed and group.unrouted_for), "what is given is not waited for"
        assert not (group.routed and group.gets_another_share)
        assert group.verdict is None or name in compared, "a verdict is of canaries that can be measured"
        if name in compared:
            assert group.routed and group.healthy_canaries >= group.desired_canaries > 0
            assert compared[name].step == group.step
            assert not compared[name].canaries & compared[name].stable
        if name == "chat" and raw.shares and group.routed and waiting_groups(PLAN, raw):
            share, wanted = raw.shares.given.get(name), PLAN.groups[0].shares[group.step]
            assert raw.shares.is_known, "without an answer, no share is given"
            assert share is None or (share > 0 and abs(share - wanted) <= TOLERANCE)
    assert compared.keys() <= observation.groups.keys()
    assert not (raw.is_forgotten and observation.status in ACTIVE), "Nomad collects what has ended"
    assert (observation.status == "none") == (raw.deployment is None)
