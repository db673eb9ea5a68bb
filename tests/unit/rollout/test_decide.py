"""The next action of a release: the rules one by one, then thousands of orders of events."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from vllmjobs.rollout.decide import LAST_TRIES_S, ROUTE_WITHIN_S, decide
from vllmjobs.rollout.model import (
    Action,
    End,
    Fail,
    GroupPlan,
    GroupState,
    Observation,
    Promote,
    ReleasePlan,
    Revert,
    Shift,
    Verdict,
    Wait,
)

PASS = Verdict(result="pass", reason="all metrics are within their limits")
FAIL = Verdict(result="fail", reason="error_rate is 40 %, more than 5 %")
UNDECIDED = Verdict(result="undecided", reason="3 of 20 requests")
PLAN = ReleasePlan(
    job="vllm-prod",
    version=7,
    groups=(GroupPlan(name="chat", shares=(0.05, 0.25, 0.5)),),
    place_within=60,
    promote_by=1000,
    until=2000,
)
CANARY = GroupState(
    desired_canaries=1, placed_canaries=1, healthy_canaries=1, desired_total=3, healthy=1,
    old_healthy=3, old_running=3,
)  # fmt: skip


def observed(group: GroupState = CANARY, **others: Any) -> Observation:
    fields: dict[str, Any] = {
        "now": 100.0,
        "version": 7,
        "status": "running",
        "groups": {"chat": group},
    } | others
    return Observation(**fields)


def test_canaries_that_load_are_waited_for() -> None:
    assert isinstance(decide(PLAN, observed(replace(CANARY, healthy_canaries=0))), Wait)


def test_a_healthy_canary_is_not_promoted_before_it_was_measured() -> None:
    assert isinstance(decide(PLAN, observed()), Wait)
    assert isinstance(decide(PLAN, observed(replace(CANARY, verdict=UNDECIDED))), Wait)


def test_a_passing_verdict_gives_the_canaries_the_next_share() -> None:
    assert decide(PLAN, observed(replace(CANARY, verdict=PASS))) == Shift(steps={"chat": 1})


def test_a_passing_verdict_on_the_last_share_promotes() -> None:
    assert decide(PLAN, observed(replace(CANARY, verdict=PASS, step=2))) == Promote()


def test_a_verdict_before_the_balancers_took_the_share_promotes_nothing() -> None:
    unrouted = replace(CANARY, verdict=PASS, step=2, routed=False)
    assert isinstance(decide(PLAN, observed(unrouted)), Wait)


def test_a_share_that_no_balancer_takes_ends_the_release() -> None:
    unrouted = replace(CANARY, routed=False, unrouted_for=ROUTE_WITHIN_S)
    action = decide(PLAN, observed(unrouted))
    assert isinstance(action, Fail)
    assert "do not give the canaries their share of 0.05" in action.reason


def test_canaries_are_left_where_the_balancers_would_go_on_sending_them_requests() -> None:
    """A table that takes no share over does not lose the canaries either."""
    frozen = replace(CANARY, step=1, routed=False, gets_another_share=True, unrouted_for=ROUTE_WITHIN_S)
    action = decide(PLAN, observed(frozen))
    assert isinstance(action, End)
    assert action.outcome == "left"
    sooner = replace(frozen, unrouted_for=ROUTE_WITHIN_S - 1)
    assert isinstance(decide(PLAN, observed(sooner)), Wait)
    assert isinstance(decide(PLAN, observed(sooner, now=1000.0)), End)


def test_a_failing_verdict_fails_the_deployment_and_says_why() -> None:
    action = decide(PLAN, observed(replace(CANARY, verdict=FAIL)))
    assert action == Fail(reason="chat: error_rate is 40 %, more than 5 %", outcome="refused")


def test_a_canary_that_ended_by_itself_is_refused() -> None:
    action = decide(PLAN, observed(replace(CANARY, restarted_canaries=1, verdict=PASS)))
    assert isinstance(action, Fail)
    assert action.outcome == "refused"


def test_canaries_without_room_are_given_up_in_time() -> None:
    """Nomad would wait for GPUs for ever."""
    blocked = replace(CANARY, placed_canaries=0, healthy_canaries=0, unplaced_for=59)
    assert isinstance(decide(PLAN, observed(blocked)), Wait)
    action = decide(PLAN, observed(replace(blocked, unplaced_for=60)))
    assert isinstance(action, Fail)
    assert action.outcome == "no-room"


def test_canaries_without_room_when_the_time_is_up_have_no_room() -> None:
    """A timeout may be shorter than the time in which a canary is to have a node."""
    blocked = replace(CANARY, placed_canaries=0, healthy_canaries=0, unplaced_for=30)
    action = decide(PLAN, observed(blocked, now=1000.0))
    assert action == Fail(reason="chat: canaries have no node, and the time is up", outcome="no-room")
    slow = decide(PLAN, observed(replace(CANARY, healthy_canaries=0), now=1000.0))
    assert slow == Fail(reason="chat: canaries are not healthy, and the time is up", outcome="failed")


def test_undecided_until_the_time_is_up_is_refused() -> None:
    """Nomad would wait for a promotion for ever."""
    action = decide(PLAN, observed(replace(CANARY, verdict=UNDECIDED), now=1000.0))
    assert isinstance(action, Fail)
    assert action.outcome == "refused"


def test_without_analysis_healthy_canaries_are_promoted() -> None:
    plan = replace(PLAN, groups=(replace(PLAN.groups[0], is_judged=False),))
    assert decide(plan, observed()) == Promote()


def test_one_group_that_is_not_done_holds_the_promotion_of_all() -> None:
    """Nomad promotes a deployment as a whole."""
    plan = replace(PLAN, groups=(*PLAN.groups, replace(PLAN.groups[0], name="large")))
    done = replace(CANARY, verdict=PASS, step=2)
    both = {"chat": done, "large": replace(CANARY, verdict=UNDECIDED, step=2)}
    assert isinstance(decide(plan, observed(groups=both)), Wait)
    both["large"] = done
    assert decide(plan, observed(groups=both)) == Promote()


def test_the_last_healthy_instance_is_left_whatever_the_verdict() -> None:
    alone = replace(CANARY, verdict=FAIL, old_healthy=0)
    assert isinstance(decide(PLAN, observed(alone)), Wait)
    assert decide(PLAN, observed(alone, now=2000.0)) == End(
        outcome="left",
        reason="chat: error_rate is 40 %, more than 5 %; left, as only the canaries of chat are healthy; "
        "the time is up; Nomad goes on without this command",
    )


def test_a_newer_version_ends_it() -> None:
    action = decide(PLAN, observed(version=8, status="cancelled"))
    assert isinstance(action, End)
    assert action.outcome == "superseded"


def test_somebody_elses_promotion_is_followed() -> None:
    promoted = replace(CANARY, promoted=True, verdict=UNDECIDED)
    assert isinstance(decide(PLAN, observed(promoted)), Wait)
    ended = replace(promoted, old_running=0)
    assert decide(PLAN, observed(ended, status="successful")) == End(outcome="successful", reason="")


def test_old_instances_end_their_streams_before_it_is_done() -> None:
    promoted = replace(CANARY, promoted=True)
    assert isinstance(decide(PLAN, observed(promoted, status="successful")), Wait)


def test_a_failed_version_is_replaced_where_nomad_does_not_revert() -> None:
    """Later placements would be of the version that failed (hashicorp/nomad#5619)."""
    assert decide(PLAN, observed(status="failed", stable=5)) == Revert(version=5)


def test_a_failure_ends_as_what_it_was_failed_for() -> None:
    failed = Fail(reason="chat: slow", outcome="refused")
    ended = decide(PLAN, observed(status="failed", version=8, failed=failed))
    assert ended == End(outcome="refused", reason="chat: slow")


def test_a_job_that_was_stopped_ends_it() -> None:
    action = decide(PLAN, observed(version=None, status="cancelled"))
    assert isinstance(action, End)
    assert action.outcome == "stopped"


class Cluster:
    """A job with two groups under release, as Nomad would have it, to which anything may happen."""

    GROUPS = ("chat", "large")

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.plan = replace(
            PLAN,
            groups=tuple(
                GroupPlan(
                    name=name,
                    shares=(0.1, 0.5)[: chance.randint(1, 2)],
                    is_judged=chance.random() < 0.8,
                )
                for name in self.GROUPS
            ),
            place_within=chance.choice([10.0, 60.0]),
            promote_by=300.0,
            until=600.0,
            is_way_back=chance.random() < 0.1,
        )
        self.version: int | None = 7
        self.status: Any = chance.choice(["none", "pending", "running", "running", "running"])
        self.is_evaluated = self.status != "none" or chance.random() < 0.3
        self.stable = chance.choice([None, 6])
        self.has_reverted = False
        self.auto_revert = chance.random() < 0.5
        self.failed: Fail | None = None
        self.groups = {name: self._group() for name in self.GROUPS}
        self.passed: dict[str, int] = {}

    def _group(self) -> GroupState:
        canaries = self.chance.choice([0, 1, 2])
        old = self.chance.choice([0, 1, 3])
        return GroupState(desired_canaries=canaries, desired_total=3, old_healthy=old, old_running=old)

    def observe(self) -> Observation:
        return Observation(
            now=self.now, version=self.version, status=self.status, is_evaluated=self.is_evaluated,
            groups=dict(self.groups) if self.status != "none" else {}, stable=self.stable, failed=self.failed,
            has_reverted=self.has_reverted,
        )  # fmt: skip

    def happen(self) -> None:
        """One event that nobody asked for."""
        chance = self.chance
        self.now += chance.choice([0.1, 1, 5, 30])
        name = chance.choice(self.GROUPS)
        group = self.groups[name]
        plan = next(one for one in self.plan.groups if one.name == name)
        waits = group.desired_canaries and not group.promoted
        match chance.randrange(22):
            case 0:
                self.is_evaluated = True
                self.status = "running" if self.status in ("none", "pending") else self.status
            case 1 | 2 | 3 if waits:
                placed = min(group.desired_canaries, group.placed_canaries + 1)
                self.groups[name] = replace(group, placed_canaries=placed, unplaced_for=0)
            case 4 | 5 | 6 | 7 if waits and self.status == "running":
                self.groups[name] = replace(group, healthy_canaries=group.placed_canaries)
            case 8:  # a node is lost
                healthy = max(0, group.healthy_canaries - 1)
                self.groups[name] = replace(
                    group, placed_canaries=healthy, healthy_canaries=healthy, verdict=None
                )
            case 9:
                self.groups[name] = replace(group, old_healthy=chance.randint(0, 3))
            case 10 | 11 | 12 | 13 if waits and plan.is_judged and group.routed and self._is_measured(group):
                verdict = chance.choice([PASS, PASS, PASS, UNDECIDED, FAIL])
                self.groups[name] = replace(group, verdict=verdict)
            case 14:
                fed = group.routed and chance.random() < 0.5
                self.groups[name] = replace(
                    group, routed=not group.routed, unrouted_for=0, gets_another_share=fed
                )
            case 15 if not group.routed:
                self.groups[name] = replace(group, unrouted_for=group.unrouted_for + 30)
            case 16 if waits and group.placed_canaries < group.desired_canaries:
                self.groups[name] = replace(group, unplaced_for=group.unplaced_for + 30)
            case 17 if chance.random() < 0.05:
                self.version, self.status = 9, "cancelled"  # somebody registers
            case 18 if chance.random() < 0.05:
                self.version, self.status = None, "cancelled"  # somebody stops the job
            case 19 if chance.random() < 0.1:
                self._fail()  # Nomad's own deadlines, or somebody
            case 20 if chance.random() < 0.1:
                self._promote()  # somebody
            case 21:
                restarted = int(chance.random() < 0.05 and group.healthy_canaries > 0)
                self.groups[name] = replace(group, restarted_canaries=restarted, old_running=0)
        if self.status == "running" and all(
            not one.desired_canaries or one.promoted for one in self.groups.values()
        ):
            self.status = chance.choice(["running", "successful"])

    def _is_measured(self, group: GroupState) -> bool:
        return 0 < group.desired_canaries <= group.healthy_canaries

    def _fail(self) -> None:
        if self.status != "running":
            return
        self.status = "failed"
        if self.auto_revert and self.stable is not None:
            self.version = 8
        for name, group in self.groups.items():
            if not group.promoted:
                self.groups[name] = replace(group, placed_canaries=0, healthy_canaries=0)

    def _promote(self) -> None:
        """Nomad refuses it where a canary is not healthy."""
        waiting = [one for one in self.groups.values() if one.desired_canaries and not one.promoted]
        if self.status != "running" or any(one.healthy_canaries < one.desired_canaries for one in waiting):
            return
        for name, group in self.groups.items():
            self.groups[name] = replace(group, promoted=True, old_healthy=0)

    def do(self, action: Action) -> None:
        """Do what `decide` asks for, and hold it to its promises; now and then it does not work."""
        works = self.chance.random() < 0.8
        match action:
            case Promote():
                self._hold_promotion()
                if works:
                    self._promote()
            case Fail():
                for name, group in self.groups.items():
                    if group.desired_canaries and not group.promoted and group.healthy_canaries:
                        assert group.old_healthy, f"the last healthy instances of {name} would be stopped"
                self.failed = action
                if works:
                    self._fail()
            case Shift(steps=steps):
                for name, step in steps.items():
                    group = self.groups[name]
                    assert group.verdict == PASS, "a share grows on a passing verdict only"
                    assert step == group.step + 1, "no step is left out"
                    if works:
                        self.groups[name] = replace(group, step=step, verdict=None, routed=False)
            case Revert(version=version):
                assert (self.status, self.version, version) == ("failed", 7, self.stable)
                assert not self.has_reverted, "once is enough: Nomad answers 200 where nothing changes"
                self.has_reverted = works
                if works and self.chance.random() < 0.9:
                    self.version = 8

    def _hold_promotion(self) -> None:
        for plan in self.plan.groups:
            group = self.groups[plan.name]
            if not group.desired_canaries or group.promoted:
                continue
            assert group.healthy_canaries >= group.desired_canaries, "canaries are promoted when healthy"
            if plan.is_judged:
                assert group.verdict == PASS, "nothing is promoted without a passing verdict"
                assert group.step == len(plan.shares) - 1, "nothing is promoted before its last share"
                assert group.routed, "a verdict is of the share that the balancers give"


@pytest.mark.parametrize("part", range(10))
def test_in_any_order_of_events_it_is_safe_and_ends(part: int, long: bool) -> None:
    """Ten times five hundred orders, with --long ten thousand; each is told by its seed."""
    orders = 10_000 if long else 500
    ends: Counter[str] = Counter()
    for seed in range(part * orders, (part + 1) * orders):
        cluster = Cluster(random.Random(seed))
        action: Action = Wait(reason="")
        for _ in range(2_000):
            action = decide(cluster.plan, cluster.observe())
            if isinstance(action, End):
                break
            try:
                cluster.do(action)
            except AssertionError as broken:
                raise AssertionError(f"seed {seed}: {broken}: {action} on {cluster.observe()}") from broken
            cluster.happen()
        assert isinstance(action, End), f"seed {seed} has not ended: {action} on {cluster.observe()}"
        assert cluster.now <= cluster.plan.until + LAST_TRIES_S + 60, f"seed {seed} ended late"
        ends[action.outcome] += 1
    # Each way to end is among them, or the events were not random enough to prove anything.
    assert {"successful", "failed", "refused", "no-room", "superseded", "stopped", "left"} <= {*ends}, ends
