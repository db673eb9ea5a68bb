"""One look at a release: what Nomad, Consul, the balancers and the instances say, as an `Observation`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from vllmjobs.cluster.consul import ConsulError
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.evidence import Evidence, Sides
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.rollout.deployments import Instance, groups, instances, is_old, is_ready, stable
from vllmjobs.rollout.events import Seen
from vllmjobs.rollout.model import Fail, Group, GroupPlan, Observation, Plan
from vllmjobs.text.json import Json

LONGEST_S = 10.0  # between two looks: what changes in allocations alone wakes nobody
ROUTING_S = 1.0  # while a balancer has yet to take a share
WAY_BACK = "rolling back to job version"  # nomad/structs/structs.go DeploymentStatusDescriptionRollback
UNROUTED = "unrouted at "
POINTS = 0.02  # by which the share that is given may differ from the one that was asked for
Clock = Callable[[], float]


class Observer:
    """Looks at one version of one job."""

    def __init__(
        self,
        releases: Deployments,
        where: Where,
        plan: Plan,
        traffic: Traffic | None = None,
        evidence: Evidence | None = None,
        clock: Clock = time.monotonic,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Without `traffic` nothing is asked of balancers, without `evidence` nothing is measured."""
        self._releases, self._where, self.plan = releases, where, plan
        self._traffic, self._evidence, self.clock = traffic, evidence, clock
        self._groups = {group.name: group for group in plan.groups}
        self._deployment: Json | None = None
        self._index = 0
        self._since: dict[tuple[str, str], float] = {}
        self._restarts: dict[str, int] = {}
        self._unknown: set[str] = set()
        self._warn = warn
        self.deployment: str | None = None
        """The id of the version's deployment, once there is one."""
        self.has_reverted = False
        """Whether we registered an older version."""
        self.failed: Fail | None = None
        """What the deployment was failed for, if it was by us."""
        self.recorded: Fail | None = None
        """What a run before us was about to fail it for: believed where it had failed when we came."""

    @property
    def is_reverted(self) -> bool:
        """Whether the version's deployment failed, and an older version was registered in its place."""
        description = (self._deployment or {}).get("StatusDescription", "")
        return self.has_reverted or WAY_BACK in description

    def look(self, wait: float = 0.0) -> Seen:
        """What is seen once something has changed, or after `wait` seconds. Raises `NomadError`."""
        evaluated = self._read_deployment(wait)
        job = self._releases.cluster.job(*self._where)
        if self._deployment and (job is None or job["Version"] != self.plan.version):
            # Read before the job, it may not have failed yet, which is what registered another version.
            self._read_deployment(0.0)
        found = instances(self._releases.allocations(self._where), self._deployment)
        deployment = self._deployment
        if self.recorded and deployment:
            if deployment["Status"] == "failed":
                self.failed = self.failed or self.recorded
            self.recorded = None
        seen = groups(deployment, found) if deployment else {}
        now = self.clock()
        observation = Observation(
            now=now,
            version=None if job is None or job["Stop"] else job["Version"],
            status=deployment["Status"] if deployment else "none",
            description=deployment["StatusDescription"] if deployment else "",
            is_evaluated=evaluated,
            groups=self._with_traffic(seen, found, now),
            stable=self._stable() if deployment and deployment["Status"] == "failed" else None,
            has_reverted=self.has_reverted,
            failed=self.failed,
        )
        return observation, {one.id: one for one in found}

    def patience(self, seen: Observation) -> float:
        """The seconds for which nothing but a change is of interest."""
        unrouted = any(not group.routed for group in seen.groups.values())
        measured = self._evidence.due(self.clock()) if self._evidence else math.inf
        return max(0.1, min(LONGEST_S, measured, ROUTING_S if unrouted else math.inf))

    def _read_deployment(self, wait: float) -> bool:
        """Whether the scheduler has looked at the version; also of one without a deployment."""
        if self.deployment:
            found, self._index = self._releases.deployment_by_id(
                self.deployment, self._where, self._index, wait
            )
            if found is None:  # only what has ended is forgotten, and nobody can tell how
                raise NomadError(f"{self._where.id}: deployment {self.deployment[:8]} is gone from Nomad")
            self._deployment = found
            return True
        # Evaluations first: one that is complete has made its deployment already.
        evaluations = self._releases.evaluations(self._where)
        newest = max((one.get("JobModifyIndex", 0) for one in evaluations), default=0)
        states = [one["Status"] for one in evaluations if one.get("JobModifyIndex", 0) == newest]
        # Not the latest: where a version has failed, that is the deployment of its successor.
        own = [
            one for one in self._releases.deployments(self._where) if one["JobVersion"] == self.plan.version
        ]
        if own:
            self._deployment, self.deployment = own[0], own[0]["ID"]
        elif wait:
            time.sleep(min(wait, ROUTING_S))  # there is nothing yet on which Nomad could let us wait
        return "complete" in states and not {"pending", "blocked"} & {*states}

    def _stable(self) -> int | None:
        return stable(self._releases.versions(self._where), self.plan.version)

    def _with_traffic(self, seen: dict[str, Group], found: list[Instance], now: float) -> dict[str, Group]:
        """The groups with what only balancers and metrics tell."""
        canaries = {name: [one for one in found if one.group == name and one.is_canary] for name in seen}
        for name, group in seen.items():
            lacks = group.placed_canaries < group.desired_canaries and not group.promoted
            seen[name] = replace(
                group,
                unplaced_for=self._for("unplaced", name, lacks, now),
                restarted_canaries=sum(map(self._has_restarted, canaries[name])),
            )
        waiting = [
            name
            for name, group in seen.items()
            if name in self._groups
            and self._groups[name].is_judged
            and 0 < group.desired_canaries <= group.healthy_canaries
            and not group.promoted
        ]
        for what, name in [*self._since]:
            if what.startswith(UNROUTED) and name not in waiting:
                del self._since[what, name]
        if not self._evidence or not waiting:
            return seen
        seen |= self._routed({name: seen[name] for name in waiting}, now)
        judged = {
            name: Sides(
                step=seen[name].step,
                share=self._groups[name].shares[seen[name].step],
                canaries=_addresses(one for one in canaries[name] if is_ready(one)),
                stable=_addresses(one for one in found if one.group == name and is_old(one)),
            )
            for name in waiting
            if seen[name].routed
        }
        for name, verdict in self._evidence.verdicts(judged, now).items():
            seen[name] = replace(seen[name], verdict=verdict)
        return seen

    def _routed(self, waiting: dict[str, Group], now: float) -> dict[str, Group]:
        """The groups with the step that was asked for, and whether the balancers give it."""
        if not self._traffic:
            return waiting
        try:
            asked, given = self._traffic.asked(), self._traffic.given()
        except ConsulError:  # a restart; until it is back, nobody knows who gets what
            return {name: replace(group, routed=False) for name, group in waiting.items()}
        routed: dict[str, Group] = {}
        for name, group in waiting.items():
            step = _step(self._groups[name], asked.get(name))
            is_given = self._is_given(name, self._groups[name].shares[step], given.get(name))
            unrouted_for = self._for(f"{UNROUTED}{step}", name, not is_given, now)
            is_fed = not is_given and bool(given.get(name))
            routed[name] = replace(
                group, step=step, routed=is_given, unrouted_for=unrouted_for, is_fed=is_fed
            )
        return routed

    def _is_given(self, name: str, wanted: float, given: float | None) -> bool:
        if given is None:
            if name not in self._unknown:
                self._unknown.add(name)
                self._warn(
                    f"{name}: no balancer can be asked which share the canaries get; it is taken as given"
                )
            return True
        return given > 0 and abs(given - wanted) <= min(POINTS, wanted / 2)

    def _for(self, what: str, name: str, holds: bool, now: float) -> float:
        """The seconds for which it holds."""
        if not holds:
            self._since.pop((what, name), None)
            return 0.0
        return now - self._since.setdefault((what, name), now)

    def _has_restarted(self, canary: Instance) -> bool:
        """Whether it ended by itself since it was first found healthy."""
        if is_ready(canary):
            self._restarts.setdefault(canary.id, canary.restarts)
        return canary.restarts > self._restarts.get(canary.id, canary.restarts)


def _step(plan: GroupPlan, share: float | None) -> int:
    """Which of the plan's shares was asked for; the first, where none was."""
    steps = [step for step, wanted in enumerate(plan.shares) if share and abs(wanted - share) < 1e-4]
    return steps[-1] if steps else 0


def _addresses(found: Iterable[Instance]) -> frozenset[str]:
    return frozenset(one.address for one in found if one.address)
