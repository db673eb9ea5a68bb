"""A release of one job, from its registration to its end, with the way back where it fails."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from vllmjobs.cluster.consul import ConsulError
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import ConflictError, NomadError, UnsureError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy import records
from vllmjobs.deploy.evidence import Evidence
from vllmjobs.deploy.follow import Follower
from vllmjobs.deploy.observe import Observer
from vllmjobs.deploy.records import RecordKeeper, new_record
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.rollout.decide import LAST_TRIES_S
from vllmjobs.rollout.deployments import spec
from vllmjobs.rollout.events import Event
from vllmjobs.rollout.model import FAILED, End, Fail, Observation, Record, ReleasePlan
from vllmjobs.rollout.observe import Memory, is_reverted
from vllmjobs.rollout.plans import balancer_plan, plan
from vllmjobs.text.json import Json


class Clients(NamedTuple):
    """The clients through which a release acts."""

    deployments: Deployments
    traffic: Traffic | None  # None for another job than the models', and where no balancer is to be asked
    reporter: Reporter


class Release:
    """The release of versions of one job of an environment."""

    def __init__(
        self, environment: Environment, where: Where, clients: Clients, timeout: float | None = None
    ) -> None:
        """`timeout`, in seconds, is for the whole release, instead of what follows from the environment."""
        self._environment, self.where, self._timeout = environment, where, timeout
        self._deployments, self._traffic, self._reporter = clients
        self._is_of_models = where.id == environment.job

    def register(self, job: Json, index: int, source: str, record: Record) -> int:
        """Register a job where its JobModifyIndex is still `index`; return the version that it is now.

        Raises `ConflictError` where somebody else was first.
        """
        try:
            answer = self._deployments.register(job, index, source)
        except UnsureError:
            answer = None
        registered = self._deployments.cluster.job(*self.where)
        if registered is None or (answer and registered["JobModifyIndex"] != answer.get("JobModifyIndex")):
            raise ConflictError(f"{self.where.id}: someone else has registered another version; try again")
        if answer is None and self._deployments.cluster.plan(job)["Diff"]["Type"] != "None":
            raise NomadError(f"{self.where.id}: the connection broke before it was registered; try again")
        version: int = registered["Version"]
        self._reporter.begin(self.where.id, version)
        self._reporter.tell(Event("registered", f"version {version} is registered"))
        self.keep(replace(record, version=version, life=registered.get("CreateIndex", 0)))
        return version

    def keep(self, record: Record) -> None:
        """Keep a record in the cluster."""
        self._keeper(record.version, record).keep()

    def follow(self, version: int, is_judged: bool = True, failed: Fail | None = None) -> End:
        """Follow that version to its end, and the way back if there is one.

        Without `is_judged`, and on a way back, canaries are promoted as soon as they are healthy. `failed` is
        the reason for which its deployment was failed already.
        """
        keeper = self._keeper(version)
        record = keeper.record
        self._reporter.begin(self.where.id, version, record.is_way_back or failed is not None)
        recorded = None
        if record.outcome in FAILED:
            recorded = Fail(reason=record.reason, outcome=record.outcome)
        release_plan = self._plan(version, is_judged and not record.is_way_back)
        end, observation = self._follow(release_plan, keeper, Memory(failed=failed, recorded=recorded))
        self._tell(end, version)
        if end.outcome == "superseded":
            if self._traffic:  # its canaries would keep our share
                tidy(self._traffic.withdraw, self._reporter)
            return end
        keeper.ends(end)
        if end.outcome in FAILED:
            self._follow_back(version, observation)
        if self._traffic and end.outcome != "left":  # with canaries that live on
            tidy(self._traffic.clean, self._reporter)
        return end

    def wait_until_evaluated(self, version: int) -> str | None:
        """Return the ID of that version's deployment; None where Nomad made none."""
        release_plan = self._plan(version, is_judged=False)
        observer = Observer(self._deployments, self.where, release_plan)
        memory, wait = Memory(), 0.0
        while True:
            memory, (observation, _) = observer.observe(memory, wait)
            is_superseded = observation.version != version
            is_late = observation.now >= release_plan.until
            if observation.deployment or observation.is_evaluated or is_superseded or is_late:
                return observation.deployment
            wait = 1.0

    def _follow(
        self, release_plan: ReleasePlan, keeper: RecordKeeper, memory: Memory
    ) -> tuple[End, Observation]:
        is_judged = any(group.is_judged for group in release_plan.groups)
        evidence = Evidence(self._environment, self._reporter.warn) if is_judged else None
        observer = Observer(self._deployments, self.where, release_plan, self._traffic, evidence)
        follower = Follower(
            self._deployments, self.where, release_plan, observer, self._traffic, keeper, self._reporter
        )
        try:
            return follower.follow(memory)
        finally:
            if evidence:
                evidence.close()

    def _follow_back(self, version: int, observation: Observation) -> None:
        """Follow the version that was registered in the place of one that failed, until it is stable."""
        job = self._deployments.cluster.job(*self.where)
        if job is None or job.get("Stop") or job["Version"] == version or not is_reverted(observation):
            return
        back: int = job["Version"]
        older = [one for one in self._deployments.versions(self.where) if one["Version"] < version]
        if all(spec(one) != spec(job) for one in older):
            self._reporter.tell(Event("superseded", f"version {back} is someone else's, not the rollback"))
            return
        self._reporter.begin(self.where.id, back, is_way_back=True)
        record = new_record(self._deployments, back, f"the rollback of version {version}", is_way_back=True)
        keeper = self._keeper(back, record)
        keeper.keep()
        end, _ = self._follow(self._plan(back, is_judged=False), keeper, Memory())
        keeper.ends(end)
        self._tell(end, back, f"the version before {version} is deployed again, as {back}")

    def _plan(self, version: int, is_judged: bool) -> ReleasePlan:
        now = time.monotonic()
        if self._is_of_models:
            release_plan = plan(self._environment, version, now, self._timeout, is_judged)
        else:
            release_plan = balancer_plan(self.where.id, version, now, self._timeout)
        self._deployments.nomad.deadline.until = release_plan.until + LAST_TRIES_S
        return release_plan

    def _keeper(self, version: int, record: Record | None = None) -> RecordKeeper:
        """Return the keeper of a version's record: the given one, else the cluster's, else a new one."""
        if record is None:
            record = records_by_version(self._deployments, self.where).get(version)
        record = replace(record or new_record(self._deployments, version), version=version)
        return RecordKeeper(self._deployments, self.where, record, self._reporter.warn)

    def _tell(self, end: End, version: int, deployed: str = "") -> None:
        result = {
            "successful": deployed or f"version {version} is deployed",
            "left": f"version {version} is left as it is",
            "stopped": "the job was stopped",
        }.get(end.outcome, f"version {version} is not deployed ({end.outcome})")
        text = f"{result}{f': {end.reason}' if end.reason else ''}"
        self._reporter.tell(Event("done", text, None, {"outcome": end.outcome}))


def tidy(clean: Callable[[], None], reporter: Reporter) -> None:
    """Take back the shares that balancers were asked for; a warning where that cannot be done now."""
    try:
        clean()
    except ConsulError as error:
        reporter.warn(f"the shares of the canaries stay in Consul until the next `vllmjobs deploy`: {error}")


def records_by_version(deployments: Deployments, where: Where) -> Mapping[int, Record]:
    """Return the records of a job by version; none where they may not be read."""
    try:
        return {record.version: record for record in records.read(deployments, where)}
    except NomadError:
        return {}
