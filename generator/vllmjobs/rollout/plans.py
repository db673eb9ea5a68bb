"""The plan of a release, with steps and deadlines that follow from the environment."""

import math

from vllmjobs.balancers import balancer_of
from vllmjobs.changes.model import JobChange
from vllmjobs.environment.derive import canaries
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.quantity import seconds
from vllmjobs.rollout.decide import ROUTE_WITHIN_S
from vllmjobs.rollout.model import GroupPlan, ReleasePlan

PATIENCE = 3  # windows that a step may take: failed measurements and too few requests prolong it
BALANCER_S = 1800.0  # for a job that is not the models': its update stanza ends it long before


def shares(environment: Environment, model: Model) -> tuple[float, ...]:
    """Return the share of the requests that a model's canaries get at each step; none without canaries."""
    rollout = model.rollout
    if not canaries(model):
        return ()
    if not balancer_of(environment).gives_shares:
        return (rollout.weight,)
    return (rollout.weight, 1.0) if rollout.strategy == "blue_green" else (rollout.weight, *rollout.steps)


def plan(
    environment: Environment, version: int, now: float, timeout: float | None = None, is_judged: bool = True
) -> ReleasePlan:
    """Return the plan for a version of the models' job, from `now` on.

    `timeout`, in seconds as `now`, is for the whole release. Without `is_judged`, canaries are promoted as
    soon as they are healthy: for a way back.
    """
    groups = tuple(
        GroupPlan(
            name=name,
            shares=shares(environment, model),
            is_judged=is_judged and model.rollout.analysis is not None,
        )
        for name, model in environment.models.items()
    )
    models = environment.models.values()
    to_promote = max(_to_promote(environment, model, is_judged) for model in models)
    balancer = balancer_of(environment)
    after = max(_rounds(model) * balancer.deadlines(model).progress_deadline for model in models)
    until = now + (to_promote + after if timeout is None else timeout)
    return ReleasePlan(
        job=environment.job or "",
        version=version,
        groups=groups,
        place_within=max(seconds(model.rollout.placement_deadline) for model in models),
        promote_by=min(now + to_promote, until) if timeout is None else until,
        until=until,
        is_way_back=not is_judged,
    )


def balancer_plan(job: str, version: int, now: float, timeout: float | None = None) -> ReleasePlan:
    """Return the plan for a version of a balancer's job, which has no canaries."""
    until = now + (BALANCER_S if timeout is None else timeout)
    return ReleasePlan(job=job, version=version, groups=(), place_within=0, promote_by=until, until=until)


def counts_to_keep(job: JobChange) -> dict[str, int]:
    """Return the counts to keep until instances are replaced, by group: of those that shrink meanwhile.

    A verdict is on the whole job, so it comes before any instance is given up. And beside canaries, Nomad
    stops old instances at once where a count shrinks, and does not start them again when the canaries fail
    (hashicorp/nomad#19643).
    """
    if not any("destructive" in group.actions for group in job.groups):
        return {}
    return {
        group.name: group.count_before
        for group in job.groups
        if "scale-down" in group.actions and group.count_before
    }


def only_shrinks(job: JobChange) -> bool:
    """Tell whether only smaller counts are left of a change, as after a release that kept its counts."""
    paths = {field.path for group in job.groups for field in group.fields}
    is_of_counts = job.action == "changed" and not job.fields and paths == {("count",)}
    return is_of_counts and all((group.count_before or 0) >= (group.count_after or 0) for group in job.groups)


def _to_promote(environment: Environment, model: Model, is_judged: bool) -> float:
    times = balancer_of(environment).deadlines(model)
    steps = 0.0
    if is_judged and model.rollout.analysis:
        window = seconds(model.rollout.analysis.window)
        steps = len(shares(environment, model)) * (PATIENCE * window + ROUTE_WITHIN_S)
    return times.progress_deadline + seconds(model.rollout.placement_deadline) + steps


def _rounds(model: Model) -> int:
    """Return how often Nomad waits for new instances to be healthy after a promotion."""
    return max(1, math.ceil((model.replicas - canaries(model)) / model.rollout.max_parallel))
