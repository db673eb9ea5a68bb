"""`deploy`, after check and plan: pass the gates, then register and follow each job that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from vllmjobs.balancers import balancer_of
from vllmjobs.changes.model import JobChange
from vllmjobs.changes.report.sentences import describe
from vllmjobs.cluster.consul import ConsulApi, ConsulError
from vllmjobs.cluster.deployments import Deployments, where, where_of
from vllmjobs.cluster.failures import ConflictError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.release import Clients, Release, records_by_version
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.rollout.deployments import is_way_back, waits_for_promotion
from vllmjobs.rollout.events import Event
from vllmjobs.rollout.gates import RefusedError, version_to_be
from vllmjobs.rollout.model import Outcome, Record
from vllmjobs.rollout.plans import counts_to_keep, only_shrinks, shares
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE

PATIENCE_S = 120.0  # while a server restarts, or a new leader is elected


class DeployRequest(NamedTuple):
    """One run of `deploy`: what is to be deployed, and how."""

    command: Callable[[str], str]  # returns what a person is to type for a command on this environment
    environment: Environment
    jobs: Mapping[str, str]  # the HCL of each job, by the name that `render --job` takes
    deployments: Deployments
    reporter: Reporter
    gate: Callable[[Where, int, bool], Record]
    """The gates. Raises `RefusedError`, or returns the record of the release; given the version that it is to
    be, and whether it is registered already: canaries are not left alone because a maintenance window has
    ended."""
    consul: Callable[[], ConsulApi]  # makes the client of Consul, where one is needed
    timeout: float | None = None  # seconds for each job; None for what follows from the environment
    detach: bool = False  # register, and leave the rest to a later run


def deploy_jobs(request: DeployRequest, planned: tuple[JobChange, ...]) -> Outcome:
    """Deploy the jobs that a plan changes: the balancer first, which has to know the models' routes.

    Ends at the first job that is not deployed, and returns how that ended. Raises `RefusedError` where a gate
    is closed, `NomadError`, `ConsulError`, `ConflictError`.
    """
    in_order = sorted(planned, key=lambda job: job.job == "vllm")
    deploys = [_JobDeploy(request, job) for job in in_order]
    if not any(one.is_open for one in deploys):
        for one in deploys:
            one.leave()
        return "successful"
    record = _gate(request, next((one for one in deploys if one.job.job == "vllm"), None))
    for one in deploys:
        if one.is_open and (outcome := one.run(record)) != "successful":
            return outcome
    return "successful"


def _gate(request: DeployRequest, models: _JobDeploy | None) -> Record:
    """Pass the gates; approvals are for a version of the models' job, whichever job changes."""
    nomad = request.environment.nomad
    if models:
        place, versions, is_resumed = models.where, models.versions_of_release, models.is_resumed
    else:
        place = where(request.environment.job or "", nomad.namespace, nomad.region)
        running = request.deployments.cluster.job(*place)
        versions, is_resumed = [version_to_be(running["Version"] if running else None)], False
    *earlier, last = versions
    for version in earlier:
        with suppress(RefusedError):
            return request.gate(place, version, is_resumed)
    return request.gate(place, last, is_resumed)


class _JobDeploy:
    """The deploy of one job."""

    def __init__(self, request: DeployRequest, job: JobChange) -> None:
        """Ask Nomad for the job. Raises `ConflictError` where it has changed since it was planned."""
        assert job.plan
        cluster = request.deployments.cluster
        self._request, self.job = request, job
        self._spec = cluster.parse(request.jobs[job.job], request.environment.nomad.namespace)
        self.where = where_of(self._spec)
        self.version: int | None = None  # the registered one; None without one
        status, self._can_be_aborted = None, False
        if running := cluster.job(*self.where):
            if running["JobModifyIndex"] != job.plan.modify_index:
                raise ConflictError(f"{job.id}: someone else has just changed it; look at it, then try again")
            self.version = running["Version"]
            latest = cluster.deployment(*self.where)
            own = latest if latest and latest["JobVersion"] == self.version else None
            status = own["Status"] if own else None
            self._can_be_aborted = waits_for_promotion(own)
        self._is_active, self._has_failed = status in ACTIVE, status == "failed"
        self._is_same = job.action == "none"
        self.is_resumed = (self._is_same and (self._is_active or self._has_failed)) or (
            self._is_active and only_shrinks(job)
        )
        self.is_open = self.is_resumed or not self._is_same
        self._registered: int | None = None  # the version that we registered

    @property
    def versions_of_release(self) -> list[int]:
        """The versions that may be approved: the registered one, where this is its rest, and the next one."""
        if self.version is None or not (self.is_resumed or only_shrinks(self.job)):
            return [version_to_be(self.version)]
        return [self.version] if self._is_same else [self.version, version_to_be(self.version)]

    def run(self, record: Record) -> Outcome:
        """Register and follow what is to be, or go on with what is registered already."""
        self._request.reporter.begin(self.where.id, self.version)
        if self._is_active and not self.is_resumed:
            self._refuse_another_change()
        if self.is_resumed:
            assert self.version is not None
            self._tell("resumed", f"version {self.version} is already registered; following its deployment")
            outcome = self._follow(self.version)
            if outcome == "failed" and self._has_failed:
                self._tell("warning", "Nomad does not deploy a version twice; change the job, or stop it")
            if outcome != "successful" or self._is_same:
                return outcome
            return self._register(self._spec, record)
        for group in (one for one in self.job.groups if one.is_changed):
            self._tell("planned", describe(group), group.name)
        counts = counts_to_keep(self.job)
        if counts:
            self._tell("held", f"{', '.join(counts)}: the count shrinks after the release")
            groups = self._spec["TaskGroups"]
            kept = [group | {"Count": counts.get(group["Name"], group["Count"])} for group in groups]
            outcome = self._register(self._spec | {"TaskGroups": kept}, record)
            if outcome != "successful" or self._request.detach:
                return outcome
        return self._register(self._spec, record)

    def leave(self) -> None:
        """Tell that nothing is to be done; a run that was killed may have left shares all the same."""
        self._request.reporter.begin(self.where.id, self.version)
        self._tell("unchanged", "nothing to do")
        with suppress(ConsulError):
            if self.job.job == "vllm" and balancer_of(self._request.environment).gives_shares:
                Traffic(self._request.environment, self._request.consul(), 0).clean()

    def _refuse_another_change(self) -> None:
        assert self.version is not None
        command, deployments = self._request.command, self._request.deployments
        known = records_by_version(deployments, self.where).get(self.version)
        if is_way_back(self.version, known, deployments.versions(self.where)):
            raise RefusedError(
                f"{self.where.id}: version {self.version} is a rollback that has not ended; "
                f"`{command('rollback')}` goes on with it"
                + (f", `{command('abort')}` ends it" if self._can_be_aborted else "")
            )
        ways_out = [
            *([f"promote it with `{command('promote')}`"] if self._can_be_aborted else []),
            f"end it with `{command('abort' if self._can_be_aborted else 'rollback')}`",
        ]
        raise RefusedError(
            f"{self.where.id}: version {self.version}, another change, is being deployed; "
            f"{', '.join(['wait for it', *ways_out[:-1]])}, or {ways_out[-1]}"
        )

    def _tell(self, kind: str, text: str, group: str | None = None) -> None:
        self._request.reporter.tell(Event(kind, text, group))

    def _register(self, spec: Json, record: Record) -> Outcome:
        """Register a job where nobody has changed it since, and follow it, unless it is to be detached."""
        index = self._expected_index()
        traffic = self._traffic(0)
        if traffic:
            if problems := traffic.problems():
                raise RefusedError(*problems)
            traffic.clean()
        hcl = self._request.jobs[self.job.job]
        version = self._registered = self._release(None).register(spec, index, hcl, record)
        if not self._request.detach:
            return self._follow(version)
        deployment = self._release(None).wait_until_evaluated(version)
        self._tell("detached", deployment or "no deployment: no instance has to be started")
        if deployment:
            self._request.reporter.answer(deployment)
        return "successful"

    def _expected_index(self) -> int:
        """Return the index at which the job was planned; after a first part, the one that this has left."""
        assert self.job.plan
        if not self._is_same and self.version is not None:
            running = self._request.deployments.cluster.job(*self.where)
            if running and running["Version"] == self._registered:
                return int(running["JobModifyIndex"])
        return self.job.plan.modify_index

    def _follow(self, version: int) -> Outcome:
        return self._release(self._traffic(version)).follow(version).outcome

    def _release(self, traffic: Traffic | None) -> Release:
        clients = Clients(self._request.deployments, traffic, self._request.reporter)
        return Release(self._request.environment, self.where, clients, self._request.timeout)

    def _traffic(self, version: int) -> Traffic | None:
        """Return the shares of a version; None for a balancer's own job, and without a balancer.

        Raises `ConsulError` only where more than one step needs Consul.
        """
        environment = self._request.environment
        if self.job.job != "vllm" or not balancer_of(environment).gives_shares:
            return None
        try:
            traffic = Traffic(environment, self._request.consul(), version)
            traffic.asked()
        except ConsulError as error:
            if any(len(shares(environment, model)) > 1 for model in environment.models.values()):
                raise
            self._request.reporter.warn(f"the canaries keep their first share of the requests: {error}")
            return None
        return traffic
