"""A release of one job, from its registration to its end; and ways back."""

from __future__ import annotations

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
from vllmjobs.deploy.observe import Clock, Observer
from vllmjobs.deploy.record_keeper import Record, now, who
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.rollout.deployments import spec
from vllmjobs.rollout.events import Happening
from vllmjobs.rollout.model import End, Entry, Fail, Plan
from vllmjobs.rollout.plans import balancer_plan, plan
from vllmjobs.text.json import Json

_FAILED = ("failed", "refused", "no-room")


class Cluster(NamedTuple):
    """What a release acts on."""

    releases: Deployments
    traffic: Traffic | None
    """None for a job that is not the models', and where no balancer is to be asked for shares."""
    reporter: Reporter
    clock: Clock = time.monotonic


class Release:
    """Of one job of an environment."""

    def __init__(
        self, environment: Environment, where: Where, cluster: Cluster, timeout: float | None = None
    ) -> None:
        """`timeout`, in seconds, is for all of it, instead of what follows from the environment."""
        self._environment, self.where, self._timeout = environment, where, timeout
        self._releases, self._traffic, self._reporter, self._clock = cluster
        self._is_of_models = where.id == environment.job

    def register(self, job: Json, index: int, source: str, entry: Entry) -> int:
        """Register a job where its JobModifyIndex is still `index`; return the version that it is now.

        Raises `ConflictError` where somebody else was first.
        """
        try:
            answer = self._releases.register(job, index, source)
        except UnsureError:
            answer = None
        registered = self._releases.cluster.job(*self.where)
        if registered is None or (answer and registered["JobModifyIndex"] != answer["JobModifyIndex"]):
            raise ConflictError(f"{self.where.id}: somebody else has registered another version")
        if answer is None and self._releases.cluster.plan(job)["Diff"]["Type"] != "None":
            raise NomadError(f"{self.where.id}: the connection broke, and it was not registered")
        version: int = registered["Version"]
        self._reporter.begin(self.where.id, version)
        self._reporter.tell(Happening("registered", f"version {version} is registered"))
        self.keep(replace(entry, version=version))
        return version

    def keep(self, entry: Entry) -> None:
        """Keep an entry in the cluster."""
        self._record(entry.version, entry).keep()

    def follow(self, version: int, is_judged: bool = True, failed: Fail | None = None) -> End:
        """Follow that version to its end, and the way back if there is one.

        Without `is_judged`, and on a way back, canaries are promoted as soon as they are healthy. `failed` is
        what its deployment was failed for already.
        """
        record = self._record(version)
        is_way_back = record.entry.is_way_back
        self._reporter.begin(self.where.id, version, is_way_back or failed is not None)
        recorded = None
        if record.entry.outcome in _FAILED:
            recorded = Fail(reason=record.entry.reason, outcome=record.entry.outcome)
        way = self._plan(version, is_judged and not is_way_back)
        end, observer = self._follow(way, record, failed, recorded)
        self._tell(end, version)
        if end.outcome == "superseded":
            if self._traffic:  # its canaries would keep our share
                tidy(self._traffic.withdraw, self._reporter)
            return end
        record.ended(end)
        if end.outcome in _FAILED:
            self._follow_back(version, observer)
        if self._traffic and end.outcome != "left":  # with canaries that live on
            tidy(self._traffic.clean, self._reporter)
        return end

    def wait_until_evaluated(self, version: int) -> str | None:
        """The id of that version's deployment; None where Nomad made none."""
        observer = Observer(self._releases, self.where, self._plan(version, is_judged=False))
        wait = 0.0
        while True:
            seen, _ = observer.look(wait)
            is_late = seen.now >= observer.plan.until
            if observer.deployment or seen.is_evaluated or seen.version != version or is_late:
                return observer.deployment
            wait = 1.0

    def _follow(
        self, way: Plan, record: Record, failed: Fail | None = None, recorded: Fail | None = None
    ) -> tuple[End, Observer]:
        is_judged = any(group.is_judged for group in way.groups)
        evidence = Evidence(self._environment, self._reporter.warn) if is_judged else None
        observer = Observer(
            self._releases, self.where, way, self._traffic, evidence, self._clock, self._reporter.warn
        )
        observer.failed, observer.recorded = failed, recorded
        follower = Follower(self._releases, self.where, observer, self._traffic, record, self._reporter)
        try:
            return follower.follow(), observer
        finally:
            if evidence:
                evidence.close()

    def _follow_back(self, version: int, observer: Observer) -> None:
        """What was registered in the place of a version that failed is of no use before it is stable."""
        job = self._releases.cluster.job(*self.where)
        if job is None or job["Stop"] or job["Version"] == version or not observer.is_reverted:
            return
        back: int = job["Version"]
        older = [one for one in self._releases.versions(self.where) if one["Version"] < version]
        if all(spec(one) != spec(job) for one in older):
            self._reporter.tell(
                Happening("superseded", f"version {back} is not the way back: somebody else's")
            )
            return
        self._reporter.begin(self.where.id, back, is_way_back=True)
        entry = Entry(
            version=back,
            at=now(),
            by=who(self._releases),
            reason=f"the way back from version {version}",
            is_way_back=True,
        )
        record = self._record(back, entry)
        record.keep()
        end, _ = self._follow(self._plan(back, is_judged=False), record)
        record.ended(end)
        self._tell(end, back, f"the version before {version} is deployed again, as {back}")

    def _plan(self, version: int, is_judged: bool) -> Plan:
        if self._is_of_models:
            return plan(self._environment, version, self._clock(), self._timeout, is_judged)
        return balancer_plan(self.where.id, version, self._clock(), self._timeout)

    def _record(self, version: int, entry: Entry | None = None) -> Record:
        """With what is kept of that version already, if anything is."""
        if entry is None:
            entry = kept(self._releases, self.where).get(version)
        entry = entry or Entry(version=version, at=now(), by=who(self._releases))
        return Record(self._releases, self.where, replace(entry, version=version), self._reporter.warn)

    def _tell(self, end: End, version: int, deployed: str = "") -> None:
        said = {
            "successful": deployed or f"version {version} is deployed",
            "left": f"version {version} is left as it is",
            "stopped": "the job was stopped",
        }.get(end.outcome, f"version {version} is not deployed ({end.outcome})")
        text = f"{said}{f': {end.reason}' if end.reason else ''}"
        self._reporter.tell(Happening("done", text, None, {"outcome": end.outcome}))


def tidy(clean: Callable[[], None], reporter: Reporter) -> None:
    """Take back what was asked of balancers; it harms nobody where that cannot be done now."""
    try:
        clean()
    except ConsulError as error:
        reporter.warn(f"shares of canaries stay in Consul until the next `vllmjobs deploy`: {error}")


def kept(releases: Deployments, where: Where) -> Mapping[int, Entry]:
    """What is kept of a job's versions; nothing where it may not be read."""
    try:
        return {entry.version: entry for entry in records.read(releases, where)}
    except NomadError:
        return {}
