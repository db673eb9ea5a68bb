"""The questions to Nomad, Consul, the balancers and the instances; `rollout.observe` reads the answers."""

import math
import time
from dataclasses import dataclass

from msgspec.structs import replace

from vllmjobs.cluster.consul import ConsulError
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.evidence import Evidence
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.rollout.deployments import parse_allocations
from vllmjobs.rollout.events import Snapshot
from vllmjobs.rollout.model import Observation, ReleasePlan
from vllmjobs.rollout.observe import (
    SOON_POLL_S,
    Memory,
    ObservedShares,
    Raw,
    comparisons,
    observe,
    poll_within,
    waiting_groups,
)
from vllmjobs.text.json import Json


@dataclass
class Observer:
    """The observer of one version of one job. It keeps its place in Nomad's answers, and decides nothing."""

    deployments: Deployments
    where: Where
    plan: ReleasePlan
    traffic: Traffic | None = None  # without it, nothing is asked of balancers
    evidence: Evidence | None = None  # without it, nothing is measured
    _deployment: Json | None = None  # the version's, as it was last seen
    _is_forgotten: bool = False  # Nomad has it no more
    _index: int = 0

    def observe(self, memory: Memory, wait: float = 0.0) -> tuple[Memory, Snapshot]:
        """Return the release once something has changed, or after `wait` seconds. Raises `NomadError`."""
        raw = self._ask_nomad(wait)
        now = time.monotonic()
        if self.traffic and waiting_groups(self.plan, raw):
            try:
                shares = ObservedShares(asked=self.traffic.asked(), given=self.traffic.given())
            except ConsulError:  # a restart; until it is back, nobody knows who gets what
                shares = ObservedShares(is_known=False)
            raw = replace(raw, shares=shares)
        if self.evidence:
            raw = replace(raw, verdicts=self.evidence.verdicts(comparisons(self.plan, raw), now))
        memory, observation = observe(self.plan, memory, raw, now)
        allocations = {one.id: one for one in parse_allocations(raw.allocations, raw.deployment)}
        return memory, Snapshot(observation, allocations)

    def poll_within(self, observation: Observation) -> float:
        """Return the seconds after which to observe again, whatever happens."""
        measured = self.evidence.due(time.monotonic()) if self.evidence else math.inf
        return poll_within(observation, measured)

    def _ask_nomad(self, wait: float) -> Raw:
        evaluations = self._ask_deployment(wait)
        job = self.deployments.cluster.job(*self.where)
        if self._deployment and (job is None or job["Version"] != self.plan.version):
            # It was read before the job. It may have failed since, and so have registered another version.
            evaluations = self._ask_deployment(0.0)
        deployment = self._deployment
        has_failed = deployment is not None and (self._is_forgotten or deployment["Status"] == "failed")
        return Raw(
            job=job,
            deployment=deployment,
            is_forgotten=self._is_forgotten,
            evaluations=evaluations,
            allocations=self.deployments.allocations(self.where),
            versions=self.deployments.versions(self.where) if has_failed else (),
        )

    def _ask_deployment(self, wait: float) -> list[Json]:
        """Ask for the version's deployment; until there is one, return the job's evaluations."""
        if self._deployment:
            deployment, self._index = self.deployments.deployment_by_id(
                self._deployment["ID"], self.where, self._index, wait
            )
            self._deployment, self._is_forgotten = deployment or self._deployment, deployment is None
            if self._is_forgotten and wait:
                time.sleep(min(wait, SOON_POLL_S))  # Nomad lets nobody wait for what it has forgotten
            return []
        # Evaluations first: one that is complete has made its deployment already.
        evaluations = self.deployments.evaluations(self.where)
        # Not the latest deployment: where a version has failed, that is its successor's.
        own = [one for one in self.deployments.of_job(self.where) if one["JobVersion"] == self.plan.version]
        if own:
            self._deployment = own[0]
            return []
        if wait:
            time.sleep(min(wait, SOON_POLL_S))  # there is nothing yet on which Nomad could let us wait
        return evaluations
