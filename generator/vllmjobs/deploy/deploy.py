"""`deploy`: check and plan are done; gate, register and follow each job of an environment that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from vllmjobs.balancers import balancer_of
from vllmjobs.changes.model import JobChange
from vllmjobs.changes.predicates import is_changed
from vllmjobs.changes.report.sentences import describe
from vllmjobs.cluster.consul import Consul, ConsulError
from vllmjobs.cluster.deployments import Deployments, where, where_of
from vllmjobs.cluster.failures import ConflictError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.release import Cluster, Release, kept
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.rollout.deployments import is_way_back
from vllmjobs.rollout.events import Happening
from vllmjobs.rollout.gates import RefusedError, version_to_be
from vllmjobs.rollout.model import Entry, Outcome
from vllmjobs.rollout.plans import held, only_shrinks, shares
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE

PATIENCE_S = 120.0  # while a server restarts, or a new leader is elected


class Deploy(NamedTuple):
    """What is to be deployed, and how."""

    name: str
    """The environment's, as a person types it."""
    environment: Environment
    jobs: Mapping[str, str]
    """HCL by name for `render --job`."""
    releases: Deployments
    reporter: Reporter
    gate: Callable[[Where, int, bool], Entry]
    """Raises `RefusedError`, or returns what is kept of the release; given the version that it is to be, and
    whether it is registered already: canaries are not left alone because a maintenance window has ended."""
    consul: Callable[[], Consul]
    timeout: float | None = None
    detach: bool = False


def deploy(asked: Deploy, planned: tuple[JobChange, ...]) -> Outcome:
    """Deploy what a plan says: the balancer first, which has to know the models' routes. Exits at the first
    job that is not deployed, with how that ended.

    Raises `RefusedError` where a gate is closed, `NomadError`, `ConsulError`, `ConflictError`.
    """
    work = [_Work(asked, job) for job in sorted(planned, key=lambda job: job.job == "vllm")]
    if not any(one.is_open for one in work):
        for one in work:
            one.leave()
        return "successful"
    entry = _gate(asked, next((one for one in work if one.job.job == "vllm"), None))
    for one in work:
        if one.is_open and (outcome := one.run(entry)) != "successful":
            return outcome
    return "successful"


def _gate(asked: Deploy, models: _Work | None) -> Entry:
    """Approvals are of a version of the models' job, whichever job changes."""
    nomad = asked.environment.nomad
    there = models.where if models else where(asked.environment.job or "", nomad.namespace, nomad.region)
    if models:
        *earlier, last = models.versions_of_release
    else:
        running = asked.releases.cluster.job(*there)
        *earlier, last = [version_to_be(running["Version"] if running else None)]
    is_resumed = models is not None and models.is_resumed
    for version in earlier:
        with suppress(RefusedError):
            return asked.gate(there, version, is_resumed)
    return asked.gate(there, last, is_resumed)


class _Work:
    """One job, as it is to be and as it runs."""

    def __init__(self, asked: Deploy, job: JobChange) -> None:
        self._asked, self.job = asked, job
        self._hcl = asked.jobs[job.job]
        self._spec: Json = asked.releases.cluster.parse(self._hcl, asked.environment.nomad.namespace)
        self.where = where_of(self._spec)
        running = asked.releases.cluster.job(*self.where)
        assert job.plan
        if running and running["JobModifyIndex"] != job.plan.modify_index:
            raise ConflictError(f"{self.where.id}: somebody else has just changed it; look, and try again")
        self.version: int | None = running["Version"] if running else None
        latest = asked.releases.cluster.deployment(*self.where) if running else None
        is_latest = bool(latest and latest["JobVersion"] == self.version)
        self._is_active = bool(is_latest and latest and latest["Status"] in ACTIVE)
        self._has_failed = bool(is_latest and latest and latest["Status"] == "failed")
        self._is_same = job.action == "none"
        self.is_resumed = (self._is_same and (self._is_active or self._has_failed)) or (
            self._is_active and only_shrinks(job)
        )
        self.is_open = self.is_resumed or not self._is_same

    @property
    def versions_of_release(self) -> list[int]:
        """The versions that may have been approved: the one that is registered, where this is the rest of it,
        and the one that is to be."""
        if self.version is None or not (self.is_resumed or only_shrinks(self.job)):
            return [version_to_be(self.version)]
        return [self.version] if self._is_same else [self.version, version_to_be(self.version)]

    def run(self, entry: Entry) -> Outcome:
        self._asked.reporter.begin(self.where.id, self.version)
        if self._is_active and not self.is_resumed:
            name = self._asked.name
            if self._is_way_back():
                raise RefusedError(
                    f"{self.where.id}: version {self.version} is a way back that has not ended; "
                    f"`vllmjobs rollback {name}` goes on with it, `vllmjobs abort {name}` ends it"
                )
            raise RefusedError(
                f"{self.where.id}: version {self.version}, another change, is being deployed; wait for it, "
                f"promote it with `vllmjobs promote {name}`, or end it with `vllmjobs abort {name}`"
            )
        if self.is_resumed:
            assert self.version is not None
            self.tell("resumed", f"version {self.version} is registered already, and is followed")
            outcome = self._follow(self.version)
            if outcome == "failed" and self._has_failed:
                self.tell("warning", "Nomad does not try the same version again: change it, or stop the job")
            if outcome != "successful" or self._is_same:
                return outcome
            return self._register(self._spec, entry)
        for group in filter(is_changed, self.job.groups):
            self.tell("planned", describe(group), group.name)
        kept = held(self.job)
        if kept:
            self.tell("held", f"{', '.join(kept)}: the count shrinks after the release")
            outcome = self._register(_with_counts(self._spec, kept), entry)
            if outcome != "successful" or self._asked.detach:
                return outcome
        return self._register(self._spec, entry)

    def _is_way_back(self) -> bool:
        """Whether what runs is an older version that was registered again."""
        assert self.version is not None
        entry = kept(self._asked.releases, self.where).get(self.version)
        return is_way_back(self.version, entry, self._asked.releases.versions(self.where))

    def leave(self) -> None:
        """Tell that nothing is to be done; a run that was killed may have left shares all the same."""
        self._asked.reporter.begin(self.where.id, self.version)
        self.tell("unchanged", "nothing is to be done")
        with suppress(ConsulError):
            if self.job.job == "vllm" and balancer_of(self._asked.environment).gives_shares:
                Traffic(self._asked.environment, self._asked.consul(), 0).clean()

    def tell(self, kind: str, text: str, group: str | None = None) -> None:
        self._asked.reporter.tell(Happening(kind, text, group))

    def _register(self, spec: Json, entry: Entry) -> Outcome:
        """At the index at which it was planned; the second of two, at the one that the first has left."""
        assert self.job.plan
        index = self.job.plan.modify_index
        if not self._is_same and self.version is not None:
            running = self._asked.releases.cluster.job(*self.where)
            mine = running and running["Version"] == self._mine
            index = running["JobModifyIndex"] if running and mine else index
        traffic = self._traffic(0)
        if traffic:
            if found := traffic.problems():
                raise RefusedError("\n".join(found))
            traffic.clean()
        release = Release(self._asked.environment, self.where, self._cluster(None), self._asked.timeout)
        self._mine = release.register(spec, index, self._hcl, entry)
        if self._asked.detach:
            deployment = release.wait_until_evaluated(self._mine)
            self.tell("detached", deployment or "no deployment: no instance has to be started")
            if deployment:
                self._asked.reporter.answer(deployment)
            return "successful"
        return self._follow(self._mine)

    _mine: int | None = None
    """The version that we registered."""

    def _follow(self, version: int) -> Outcome:
        release = Release(
            self._asked.environment, self.where, self._cluster(self._traffic(version)), self._asked.timeout
        )
        return release.follow(version).outcome

    def _cluster(self, traffic: Traffic | None) -> Cluster:
        return Cluster(self._asked.releases, traffic, self._asked.reporter)

    def _traffic(self, version: int) -> Traffic | None:
        """None for a balancer's own job, and without a balancer; Consul is needed for more than one step."""
        environment = self._asked.environment
        if self.job.job != "vllm" or not balancer_of(environment).gives_shares:
            return None
        try:
            traffic = Traffic(environment, self._asked.consul(), version)
            traffic.asked()
        except ConsulError as error:
            if any(len(shares(environment, model)) > 1 for model in environment.models.values()):
                raise
            self._asked.reporter.warn(f"canaries keep their first share: {error}")
            return None
        return traffic


def _with_counts(spec: Json, counts: Mapping[str, int]) -> Json:
    groups = [group | {"Count": counts.get(group["Name"], group["Count"])} for group in spec["TaskGroups"]]
    return spec | {"TaskGroups": groups}
