"""What a release does next: a pure function of what it is and what is seen of it.

It never promotes what has no passing verdict for the last share of each group, never stops the last healthy
instance of a group, and always ends: `tests/unit/rollout/test_decide.py` drives it through a hundred
thousand orders of events.
"""

from vllmjobs.rollout.model import (
    Action,
    End,
    Fail,
    Group,
    GroupPlan,
    Observation,
    Outcome,
    Plan,
    Promote,
    Revert,
    Shift,
    Wait,
)

# A balancer follows Consul within seconds; nginx waits up to 5 s and reloads. After a minute it does not.
ROUTE_WITHIN_S = 60.0
# What is to be done is tried for so long after the time was up; then a person has to.
LAST_TRIES_S = 300.0


def decide(plan: Plan, seen: Observation) -> Action:
    """What is to be done now. Total: for every observation there is an action."""
    action = _decide(plan, seen)
    if not isinstance(action, End | Wait) and seen.now >= plan.until + LAST_TRIES_S:
        return End(outcome="left", reason=f"{type(action).__name__.lower()} was tried until the time was up")
    return action


def _decide(plan: Plan, seen: Observation) -> Action:
    if seen.status == "failed":
        return _after_failure(plan, seen)
    if seen.version is None:
        return End(outcome="stopped", reason="the job was stopped")
    if seen.version != plan.version or seen.status == "cancelled":
        newer = f"; version {seen.version} was registered" if seen.version != plan.version else ""
        return End(outcome="superseded", reason=f"version {plan.version} is not followed any more{newer}")
    if seen.status == "successful":
        old = sum(group.old_running for group in seen.groups.values())
        if old and seen.now < plan.until:
            return Wait(reason=f"{old} old instances end their streams")
        return End(outcome="successful", reason="")
    if seen.status == "none":
        return _without_deployment(plan, seen)
    plans = {group.name: group for group in plan.groups}
    if plan.is_way_back:  # to a version that may have had other groups
        plans = {name: GroupPlan(name=name, is_judged=False) for name in seen.groups} | plans
    waiting = {name: way for name, way in plans.items() if _is_waiting(seen.groups.get(name))}
    if seen.status == "paused" or not waiting:
        return _until(plan.until, seen, "paused by somebody" if seen.status == "paused" else _progress(seen))
    return _before_promotion(plan, seen, waiting)


def _before_promotion(plan: Plan, seen: Observation, waiting: dict[str, GroupPlan]) -> Action:
    groups = {name: seen.groups[name] for name in waiting}
    if why := _no_room(plan, groups):
        return _fail(plan, seen, groups, why, "no-room")
    for name, group in groups.items():
        if group.restarted_canaries:
            return _fail(plan, seen, groups, f"{name}: a healthy canary ended and was restarted", "refused")
        if waiting[name].is_judged and group.verdict and group.verdict.result == "fail":
            return _fail(plan, seen, groups, f"{name}: {group.verdict.reason}", "refused")
        is_late = group.unrouted_for >= ROUTE_WITHIN_S
        if is_late or (group.is_fed and _is_up(plan, seen)):
            share = f"{waiting[name].shares[group.step]:.4g}"
            why = f"{name}: the balancers do not give the canaries their share of {share}"
            if group.is_fed:  # their tables are frozen, and would not lose what is stopped
                left = "left, as they would go on to send requests to canaries that are stopped"
                return End(outcome="left", reason=f"{why}; {left}")
            return _fail(plan, seen, groups, why, "failed")
    if unhealthy := [
        name for name, group in groups.items() if group.healthy_canaries < group.desired_canaries
    ]:
        lacking = any(groups[name].placed_canaries < groups[name].desired_canaries for name in unhealthy)
        why = f"{', '.join(unhealthy)}: canaries {'have no node' if lacking else 'are not healthy'}"
        return _in_time(plan, seen, groups, why, "no-room" if lacking else "failed")
    undone = [name for name, group in groups.items() if not _has_passed(waiting[name], group)]
    further = {
        name: group.step + 1
        for name, group in groups.items()
        if name not in undone and not _is_last(waiting[name], group)
    }
    if not undone and not further:
        return Promote()
    why = "; ".join(_undecided(name, groups[name]) for name in undone or further)
    action = _in_time(plan, seen, groups, why, "refused")
    return Shift(steps=further) if further and isinstance(action, Wait) else action


def _is_waiting(group: Group | None) -> bool:
    return group is not None and group.desired_canaries > 0 and not group.promoted


def _has_passed(plan: GroupPlan, group: Group) -> bool:
    """Whether the step that the group is at is done."""
    if not plan.is_judged:
        return True
    return group.routed and group.verdict is not None and group.verdict.result == "pass"


def _is_last(plan: GroupPlan, group: Group) -> bool:
    return not plan.is_judged or group.step >= len(plan.shares) - 1


def _no_room(plan: Plan, groups: dict[str, Group]) -> str:
    lacking = [
        f"{name}: {group.desired_canaries - group.placed_canaries} of {group.desired_canaries} canaries"
        for name, group in groups.items()
        if group.placed_canaries < group.desired_canaries and group.unplaced_for >= plan.place_within
    ]
    return f"{', '.join(lacking)} found no node within {plan.place_within:.0f} s" if lacking else ""


def _undecided(name: str, group: Group) -> str:
    if not group.routed:
        return f"{name}: the balancers have yet to take the share"
    return f"{name}: {group.verdict.reason if group.verdict else 'not measured yet'}"


def _in_time(plan: Plan, seen: Observation, groups: dict[str, Group], why: str, outcome: Outcome) -> Action:
    """Wait while there is time; Nomad itself would wait for a promotion without end."""
    if not _is_up(plan, seen):
        return Wait(reason=why)
    return _fail(plan, seen, groups, f"{why}, and the time is up", outcome)


def _is_up(plan: Plan, seen: Observation) -> bool:
    return seen.now >= min(plan.promote_by, plan.until)


def _fail(plan: Plan, seen: Observation, groups: dict[str, Group], why: str, outcome: Outcome) -> Action:
    """Stop the canaries, unless no other instance of their group is healthy."""
    if plan.is_way_back:
        return _until(plan.until, seen, why)
    alone = [name for name, group in groups.items() if group.healthy_canaries and not group.old_healthy]
    if alone:
        only = f"{why}; left, as only the canaries of {', '.join(alone)} are healthy"
        return _until(plan.until, seen, only)
    return Fail(reason=why, outcome=outcome)


def _after_failure(plan: Plan, seen: Observation) -> Action:
    """The canaries are being stopped. With auto_revert, Nomad registers the stable version in the same
    moment; else later placements would be of the version that failed (hashicorp/nomad#5619)."""
    if seen.version == plan.version and seen.stable is not None and not seen.has_reverted:
        return Revert(version=seen.stable)
    if seen.failed:
        return End(outcome=seen.failed.outcome, reason=seen.failed.reason)
    return End(outcome="failed", reason=seen.description)


def _without_deployment(plan: Plan, seen: Observation) -> Action:
    """Nomad makes none where no instance is started or changed, as for a smaller count."""
    if seen.is_evaluated:
        return End(outcome="successful", reason="no instance had to be started")
    return _until(plan.until, seen, "the scheduler has yet to look at it")


def _until(until: float, seen: Observation, reason: str) -> Action:
    if seen.now < until:
        return Wait(reason=reason)
    return End(outcome="left", reason=f"{reason}; the time is up, and it goes on without us")


def _progress(seen: Observation) -> str:
    healthy = sum(group.healthy for group in seen.groups.values())
    desired = sum(group.desired_total for group in seen.groups.values())
    return f"{healthy} of {desired} new instances are healthy"
