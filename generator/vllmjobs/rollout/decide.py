"""The next action of a release: a pure function of its plan and its observation.

It never promotes what has no passing verdict for the last share of each group, never stops the last healthy
instance of a group, and always ends: `tests/unit/rollout/test_decide.py` drives it through a hundred
thousand orders of events.
"""

from vllmjobs.rollout.model import (
    Action,
    End,
    Fail,
    GroupPlan,
    GroupState,
    Observation,
    Outcome,
    Promote,
    ReleasePlan,
    Revert,
    Shift,
    Wait,
)
from vllmjobs.text.english import counted

# A balancer follows Consul within seconds; nginx waits up to 5 s and reloads. After a minute it will not.
ROUTE_WITHIN_S = 60.0
# An action is tried for so long after the time was up; then a person has to do it.
LAST_TRIES_S = 30.0


def decide(plan: ReleasePlan, observed: Observation) -> Action:
    """Return what to do now. Total: for every observation there is an action."""
    action = _decide(plan, observed)
    if not isinstance(action, End | Wait) and observed.now >= plan.until + LAST_TRIES_S:
        return End(outcome="left", reason=f"tried to {type(action).__name__.lower()} until the time was up")
    return action


def _decide(plan: ReleasePlan, observed: Observation) -> Action:
    if observed.status == "failed":
        return _after_failure(plan, observed)
    if observed.version is None:
        return End(outcome="stopped", reason="the job was stopped")
    if observed.version != plan.version:
        newer = f"version {observed.version} was registered"
        return End(outcome="superseded", reason=f"version {plan.version} is not followed any more; {newer}")
    if observed.status == "cancelled":
        return End(outcome="superseded", reason=f"version {plan.version} is not followed any more")
    if observed.status == "successful":
        old = sum(group.old_running for group in observed.groups.values())
        if old and observed.now < plan.until:
            return Wait(reason=f"requests of {counted(old, 'old instance')} are finished first")
        return End(outcome="successful", reason="")
    if observed.status == "none":
        # Nomad makes no deployment where no instance is started or changed, as for a smaller count.
        if observed.is_evaluated:
            return End(outcome="successful", reason="no instance had to be started")
        return _until(plan, observed, "Nomad's scheduler has not looked at it yet")
    if observed.status == "paused":
        return _until(plan, observed, "someone has paused the deployment")
    if waiting := _waiting(plan, observed):
        return _before_promotion(plan, observed, waiting)
    healthy = sum(group.healthy for group in observed.groups.values())
    desired = sum(group.desired_total for group in observed.groups.values())
    return _until(plan, observed, f"{healthy} of {desired} new instances are healthy")


def _waiting(plan: ReleasePlan, observed: Observation) -> dict[str, GroupPlan]:
    plans = {group.name: group for group in plan.groups}
    if plan.is_way_back:  # to a version that may have had other groups
        plans = {name: GroupPlan(name=name, is_judged=False) for name in observed.groups} | plans
    return {
        name: group
        for name, group in plans.items()
        if (state := observed.groups.get(name)) and state.desired_canaries > 0 and not state.promoted
    }


def _before_promotion(plan: ReleasePlan, observed: Observation, waiting: dict[str, GroupPlan]) -> Action:
    groups = {name: observed.groups[name] for name in waiting}
    if reason := _no_room(plan, groups):
        return _fail(plan, observed, groups, reason, "no-room")
    for name, group in groups.items():
        if group.restarted_canaries:
            reason = f"{name}: a healthy canary ended and was restarted"
            return _fail(plan, observed, groups, reason, "refused")
        if waiting[name].is_judged and group.verdict and group.verdict.result == "fail":
            return _fail(plan, observed, groups, f"{name}: {group.verdict.reason}", "refused")
        is_late = group.unrouted_for >= ROUTE_WITHIN_S
        if is_late or (group.gets_another_share and _is_up(plan, observed)):
            share = f"{waiting[name].shares[group.step]:.4g}"
            reason = f"{name}: the balancers do not give the canaries their share of {share}"
            if group.gets_another_share:  # their tables are frozen, and would not lose what is stopped
                left = "left, as the balancers would still send requests to the canaries once they stop"
                return End(outcome="left", reason=f"{reason}; {left}")
            return _fail(plan, observed, groups, reason, "failed")
    unwell = [name for name, group in groups.items() if group.healthy_canaries < group.desired_canaries]
    if unwell:
        lacking = any(groups[name].placed_canaries < groups[name].desired_canaries for name in unwell)
        reason = f"{', '.join(unwell)}: canaries {'have no node' if lacking else 'are not healthy'}"
        return _in_time(plan, observed, groups, reason, "no-room" if lacking else "failed")
    undone = [name for name, group in groups.items() if not _has_passed(waiting[name], group)]
    further = {
        name: group.step + 1
        for name, group in groups.items()
        if name not in undone and waiting[name].is_judged and group.step < len(waiting[name].shares) - 1
    }
    if not undone and not further:
        return Promote()
    reason = "; ".join(_undecided(name, groups[name]) for name in undone or further)
    action = _in_time(plan, observed, groups, reason, "refused")
    return Shift(steps=further) if further and isinstance(action, Wait) else action


def _has_passed(plan: GroupPlan, group: GroupState) -> bool:
    is_passed = group.verdict is not None and group.verdict.result == "pass"
    return not plan.is_judged or (group.routed and is_passed)


def _no_room(plan: ReleasePlan, groups: dict[str, GroupState]) -> str:
    lacking = [
        f"{name}: {group.desired_canaries - group.placed_canaries} of {group.desired_canaries} canaries"
        for name, group in groups.items()
        if group.placed_canaries < group.desired_canaries and group.unplaced_for >= plan.place_within
    ]
    return f"{', '.join(lacking)} found no node within {plan.place_within:.0f} s" if lacking else ""


def _undecided(name: str, group: GroupState) -> str:
    if not group.routed:
        return f"{name}: the balancers do not give that share yet"
    return f"{name}: {group.verdict.reason if group.verdict else 'not measured yet'}"


def _in_time(
    plan: ReleasePlan, observed: Observation, groups: dict[str, GroupState], reason: str, outcome: Outcome
) -> Action:
    """Wait while there is time, then fail; Nomad itself would wait for a promotion without end."""
    if not _is_up(plan, observed):
        return Wait(reason=reason)
    return _fail(plan, observed, groups, f"{reason}, and the time is up", outcome)


def _is_up(plan: ReleasePlan, observed: Observation) -> bool:
    return observed.now >= min(plan.promote_by, plan.until)


def _fail(
    plan: ReleasePlan, observed: Observation, groups: dict[str, GroupState], reason: str, outcome: Outcome
) -> Action:
    """Stop the canaries, unless no other instance of their group is healthy."""
    if plan.is_way_back:
        return _until(plan, observed, reason)
    alone = [name for name, group in groups.items() if group.healthy_canaries and not group.old_healthy]
    if alone:
        only = f"{reason}; left, as only the canaries of {', '.join(alone)} are healthy"
        return _until(plan, observed, only)
    return Fail(reason=reason, outcome=outcome)


def _after_failure(plan: ReleasePlan, observed: Observation) -> Action:
    """Go back to the stable version, unless Nomad has; the canaries are being stopped.

    With auto_revert, Nomad registers the stable version in the same moment; else later placements would be of
    the version that failed (hashicorp/nomad#5619).
    """
    if observed.version == plan.version and observed.stable is not None and not observed.has_reverted:
        return Revert(version=observed.stable)
    if observed.failed:
        return End(outcome=observed.failed.outcome, reason=observed.failed.reason)
    return End(outcome="failed", reason=observed.description)


def _until(plan: ReleasePlan, observed: Observation, reason: str) -> Action:
    if observed.now < plan.until:
        return Wait(reason=reason)
    return End(outcome="left", reason=f"{reason}; the time is up; Nomad goes on without this command")
