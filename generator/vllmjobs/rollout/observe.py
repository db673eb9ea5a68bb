"""The observation of a release: a pure function of its plan, its memory, and the answers of the cluster.

`observe` folds the answers into the memory, and reads the observation off it. The same answers at the same
time change nothing; no answer makes it forget a failure; time does not run backwards:
`tests/unit/rollout/test_observe.py` drives it through random worlds.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from msgspec.structs import replace

from vllmjobs.rollout.deployments import Allocation, group_states, is_old, is_ready, parse_allocations, stable
from vllmjobs.rollout.model import (
    Action,
    Fail,
    GroupPlan,
    GroupState,
    Observation,
    ReleasePlan,
    Revert,
    Verdict,
)
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE
from vllmjobs.text.value import Value

TOLERANCE = 0.02  # the share that is given may differ by so much from the one that was asked for
POLL_S = 10.0  # Nomad answers at once when the deployment changes, and not when allocations alone do
FAST_POLL_S = 1.0  # while old instances end
SOON_POLL_S = 0.25  # while a balancer has yet to take a share: moments, mostly
_ROLLED_BACK = "rolling back to job version"  # nomad/structs/structs.go DeploymentStatusDescriptionRollback


class ObservedShares(Value, frozen=True):
    """The canaries' shares of the requests, 0 to 1, by group."""

    is_known: bool = True  # false where Consul did not answer: nobody knows who gets what
    asked: Mapping[str, float] = {}  # those asked for; a group is missing where none was
    given: Mapping[str, float | None] = {}  # by the balancers; None, or missing, where none can be asked


class Raw(Value, frozen=True):
    """The answers of Nomad, Consul, the balancers and the instances, before anything is made of them."""

    job: Json | None = None  # the job as Nomad has it; None where there is none
    deployment: Json | None = None  # the deployment of the plan's version; None where there is none
    is_forgotten: bool = False  # Nomad has the deployment no more: it is as it was last seen
    evaluations: Sequence[Json] = ()  # the job's, as long as there is no deployment
    allocations: Sequence[Json] = ()
    versions: Sequence[Json] = ()  # the job's versions, once the deployment has failed
    shares: ObservedShares | None = None  # of canaries; None where nobody was to be asked for them
    verdicts: Mapping[str, Verdict] = {}  # on the groups of `comparisons`, where there is one


class Memory(Value, frozen=True):
    """The facts that are remembered from one observation of a release to the next."""

    now: float = -inf  # the time of the last observation
    failed: Fail | None = None  # the reason for which we failed the deployment, if we did
    recorded: Fail | None = None
    """The reason for which a run before us was about to fail the deployment. It counts where the deployment
    has failed when we first look at it."""
    has_reverted: bool = False  # we registered an older version, or may have
    unplaced_since: Mapping[str, float] = {}  # since a group lacks canaries, by its name
    unrouted_since: Mapping[tuple[str, int], float] = {}  # a share is asked for, by group and step
    restarts: Mapping[str, int] = {}  # of a canary when it was first healthy, by its allocation's ID
    assumed: frozenset[str] = frozenset()  # the groups for which no balancer could be asked


class Comparison(Value, frozen=True):
    """The two sides that a step of one group compares; addresses are `ip:port`."""

    step: int  # the index of the plan's share
    share: float  # the share of the requests that the canaries get
    canaries: frozenset[str]  # the addresses of the canaries that are ready
    stable: frozenset[str]  # the addresses of the old instances that serve


def observe(plan: ReleasePlan, memory: Memory, raw: Raw, now: float) -> tuple[Memory, Observation]:
    """Return what is to be remembered, and the observation. Total: any answers make one."""
    raw = _as_it_ended(plan, memory, raw)
    memory = _remember(plan, memory, raw, now)
    deployment = raw.deployment
    has_failed = deployment is not None and deployment["Status"] == "failed"
    return memory, Observation(
        now=memory.now,
        version=None if raw.job is None or raw.job.get("Stop") else raw.job["Version"],
        status=deployment["Status"] if deployment else "none",
        deployment=deployment["ID"] if deployment else None,
        description=deployment["StatusDescription"] if deployment else "",
        is_evaluated=deployment is not None or _is_evaluated(raw.evaluations),
        groups=_groups(plan, memory, raw),
        stable=stable(raw.versions, plan.version) if has_failed else None,
        has_reverted=memory.has_reverted,
        failed=memory.failed,
    )


def _as_it_ended(plan: ReleasePlan, memory: Memory, raw: Raw) -> Raw:
    """Return the answers with a forgotten deployment as it must have ended, where that was not seen.

    Nomad collects a deployment that has ended and has no instance left, and one that failed within five
    minutes: its ModifyTime is 0 then, since the watcher sets no UpdatedAt (nomad 1.11.3,
    deploymentwatcher/deployment_watcher.go, getDeploymentStatusUpdate; core_sched.go, deploymentGC). One that
    succeeded has instances. So it has failed, or another version has ended it.
    """
    if not raw.is_forgotten or raw.deployment is None or raw.deployment["Status"] not in ACTIVE:
        return raw
    newest = raw.job["Version"] if raw.job else plan.version
    has_failed = memory.failed or memory.recorded or newest == plan.version
    description = "Nomad has collected it"
    if has_failed and newest != plan.version:
        description += f" - {_ROLLED_BACK} {stable(raw.versions, plan.version)}"
    ended = {"Status": "failed" if has_failed else "cancelled", "StatusDescription": description}
    return replace(raw, deployment=raw.deployment | ended)


def attempted(memory: Memory, action: Action) -> Memory:
    """Return the memory with an action that is about to be tried: it counts also where no answer comes."""
    match action:
        case Fail():
            return replace(memory, failed=action)
        case Revert():
            return replace(memory, has_reverted=True)
        case _:
            return memory


def waiting_groups(plan: ReleasePlan, raw: Raw) -> dict[str, GroupPlan]:
    """Return the groups whose canaries are all healthy, and wait for a verdict: their share matters now."""
    states = _states(raw)
    return {
        group.name: group
        for group in plan.groups
        if group.is_judged
        and group.shares
        and (state := states.get(group.name))
        and 0 < state.desired_canaries <= state.healthy_canaries
        and not state.promoted
    }


def comparisons(plan: ReleasePlan, raw: Raw) -> dict[str, Comparison]:
    """Return the groups that can be measured now: their canaries are healthy and get their share."""
    allocations = parse_allocations(raw.allocations, raw.deployment)
    compared = {}
    for name, group in waiting_groups(plan, raw).items():
        if not _is_routed(name, group, raw.shares):
            continue
        step = _step(group, raw.shares)
        own = [one for one in allocations if one.group == name]
        compared[name] = Comparison(
            step=step,
            share=group.shares[step],
            canaries=_addresses(one for one in own if one.is_canary and is_ready(one)),
            stable=_addresses(one for one in own if is_old(one)),
        )
    return compared


def is_reverted(observation: Observation) -> bool:
    """Tell whether the deployment failed, and an older version was registered in its place."""
    return observation.has_reverted or _ROLLED_BACK in observation.description


def poll_within(observation: Observation, next_measurement: float) -> float:
    """Return the seconds to the next observation; `next_measurement` is infinite if nothing is measured."""
    groups = observation.groups.values()
    poll = FAST_POLL_S if any(group.promoted for group in groups) else POLL_S
    if any(not group.routed for group in groups):
        poll = SOON_POLL_S
    return max(0.1, min(poll, next_measurement))


def _remember(plan: ReleasePlan, memory: Memory, raw: Raw, now: float) -> Memory:
    now = max(now, memory.now)
    failed, recorded = memory.failed, memory.recorded
    if raw.deployment:
        if raw.deployment["Status"] == "failed":
            failed = failed or recorded
        recorded = None
    waiting = waiting_groups(plan, raw)
    unplaced = [
        name
        for name, state in _states(raw).items()
        if state.placed_canaries < state.desired_canaries and not state.promoted
    ]
    allocations = parse_allocations(raw.allocations, raw.deployment)
    restarts = {one.id: one.restarts for one in allocations if one.is_canary and is_ready(one)}
    return replace(
        memory,
        now=now,
        failed=failed,
        recorded=recorded,
        unplaced_since={name: memory.unplaced_since.get(name, now) for name in unplaced},
        unrouted_since=_unrouted_since(memory, waiting, raw.shares, now),
        restarts={**restarts, **memory.restarts},
        assumed=memory.assumed | {name for name in waiting if _is_assumed(name, raw.shares)},
    )


def _unrouted_since(
    memory: Memory, waiting: Mapping[str, GroupPlan], shares: ObservedShares | None, now: float
) -> dict[tuple[str, int], float]:
    """Return since when shares are asked for and not given; without an answer, as it was remembered."""
    since = {key: at for key, at in memory.unrouted_since.items() if key[0] in waiting}
    if shares is None or not shares.is_known:
        return since
    for name, group in waiting.items():
        key = (name, _step(group, shares))
        if _is_routed(name, group, shares):
            since.pop(key, None)
        else:
            since.setdefault(key, now)
    return since


def _groups(plan: ReleasePlan, memory: Memory, raw: Raw) -> dict[str, GroupState]:
    waiting = waiting_groups(plan, raw)
    allocations = parse_allocations(raw.allocations, raw.deployment)
    groups = {}
    for name, state in _states(raw).items():
        canaries = [one for one in allocations if one.group == name and one.is_canary]
        state = replace(
            state,
            unplaced_for=memory.now - memory.unplaced_since.get(name, memory.now),
            restarted_canaries=sum(one.restarts > memory.restarts.get(one.id, inf) for one in canaries),
            is_share_assumed=name in memory.assumed,
        )
        groups[name] = _with_share(name, state, waiting[name], memory, raw) if name in waiting else state
    return groups


def _with_share(name: str, state: GroupState, plan: GroupPlan, memory: Memory, raw: Raw) -> GroupState:
    """Return the state with the step that was asked for, whether the balancers give it, and the verdict."""
    is_routed = _is_routed(name, plan, raw.shares)
    if raw.shares and not raw.shares.is_known:
        return replace(state, routed=False)
    step = _step(plan, raw.shares)
    return replace(
        state,
        step=step,
        routed=is_routed,
        unrouted_for=memory.now - memory.unrouted_since.get((name, step), memory.now),
        gets_another_share=not is_routed and bool(raw.shares and raw.shares.given.get(name)),
        verdict=raw.verdicts.get(name) if is_routed else None,
    )


def _states(raw: Raw) -> dict[str, GroupState]:
    if raw.deployment is None:
        return {}
    return group_states(raw.deployment, parse_allocations(raw.allocations, raw.deployment))


def _is_evaluated(evaluations: Sequence[Json]) -> bool:
    """Tell whether the scheduler is done with the newest change of the job."""
    newest = max((one.get("JobModifyIndex", 0) for one in evaluations), default=0)
    states = {one["Status"] for one in evaluations if one.get("JobModifyIndex", 0) == newest}
    return "complete" in states and not {"pending", "blocked"} & states


def _step(plan: GroupPlan, shares: ObservedShares | None) -> int:
    """Return the index of the plan's share that was asked for; of the first, where none was."""
    share = shares.asked.get(plan.name) if shares else None
    steps = [step for step, wanted in enumerate(plan.shares) if share and abs(wanted - share) < 1e-4]
    return steps[-1] if steps else 0


def _is_routed(name: str, plan: GroupPlan, shares: ObservedShares | None) -> bool:
    """Tell whether the balancers give the share that was asked for; also where none can be asked."""
    if shares is None:
        return True
    if not shares.is_known:
        return False
    if _is_assumed(name, shares):
        return True
    given, wanted = shares.given[name], plan.shares[_step(plan, shares)]
    return given is not None and abs(given - wanted) <= min(TOLERANCE, wanted / 2)


def _is_assumed(name: str, shares: ObservedShares | None) -> bool:
    return shares is not None and shares.is_known and shares.given.get(name) is None


def _addresses(allocations: Iterable[Allocation]) -> frozenset[str]:
    return frozenset(one.address for one in allocations if one.address)
