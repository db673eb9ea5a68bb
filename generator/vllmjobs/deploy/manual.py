"""`promote`, `abort` and `rollback`: a person decides, and it is followed to its end."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vllmjobs.changes.room.sentences import reasons
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import DeploymentEndedError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.records import new_record, who
from vllmjobs.deploy.release import Clients, Release, records_by_version
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError
from vllmjobs.project.plan import Planner
from vllmjobs.rollout.deployments import (
    group_states,
    is_way_back,
    parse_allocations,
    spec,
    stable,
    waits_for_promotion,
)
from vllmjobs.rollout.events import Event
from vllmjobs.rollout.model import Fail, Outcome
from vllmjobs.text.json import Json
from vllmjobs.text.states import ACTIVE


class NoRoomError(UserError):
    """The canaries of the way back have no node."""

    exit_code = 3


class Running(NamedTuple):
    """The version that is deployed now."""

    version: int
    deployment: Json | None  # the version's deployment; None without one

    @property
    def is_active(self) -> bool:
        """True until its deployment has ended."""
        return self.deployment is not None and self.deployment["Status"] in ACTIVE


class Manual(NamedTuple):
    """The commands by which a person decides about one job."""

    environment: Environment
    where: Where
    clients: Clients
    command: Callable[[str], str]  # returns what a person is to type for a command on this environment
    timeout: float | None = None  # seconds for the whole of it; None for what follows from the environment

    @property
    def _deployments(self) -> Deployments:
        return self.clients.deployments

    def promote(self) -> Outcome:
        """Promote the canaries, whatever the verdict, and follow them; also where that is done already."""
        running = self._running()
        if _is_promoted(running):
            self._tell(running.version, "resumed", "the canaries are already promoted; following them")
            return self._release().follow(running.version, is_judged=False).outcome
        running = self._waiting("promote")
        self._deployments.promote(running.deployment["ID"], self.where)  # type: ignore[index]
        text = f"{who(self._deployments)} promotes all canaries"
        self._tell(running.version, "promoting", text)
        return self._release().follow(running.version, is_judged=False).outcome

    def abort(self, force: bool) -> Outcome:
        """Fail the deployment; without `force`, not where no other instance of a group is healthy."""
        running = self._waiting("abort")
        deployment = running.deployment or {}
        if not force:
            self._refuse_to_stop_the_last(deployment)
        failed = Fail(reason=f"aborted by {who(self._deployments)}", outcome="refused")
        try:
            self._deployments.fail(deployment["ID"], self.where)
        except DeploymentEndedError:
            raise self._error("the deployment has ended in the meantime") from None
        self._tell(running.version, "failing", failed.reason, is_way_back=True)
        end = self._release().follow(running.version, failed=failed)
        return "successful" if end.outcome == "refused" else end.outcome

    def rollback(self, version: int | None) -> Outcome:
        """Make an old version the newest, and follow it to its promotion; go on with one that has not ended.

        Where canaries of a version are not promoted yet and no other is named, it is enough to stop them.
        """
        running = self._running()
        versions = {one["Version"]: one for one in self._deployments.versions(self.where)}
        if self._is_going_back(running, versions, version):
            text = f"version {running.version} is already the rollback; following its deployment"
            self._tell(running.version, "resumed", text, is_way_back=True)
            return self._release().follow(running.version, is_judged=False).outcome
        if version is None and waits_for_promotion(running.deployment):
            return self.abort(force=False)
        to = self._target(versions, running.version, version)
        self._check_room(versions[to])
        self._deployments.revert(self.where, to, running.version)
        job = self._deployments.cluster.job(*self.where)
        assert job
        release = self._release()
        release.keep(new_record(self._deployments, job["Version"], f"back to version {to}", is_way_back=True))
        text = f"version {to} is registered again, as {job['Version']}"
        self._tell(job["Version"], "registered", text, is_way_back=True)
        return release.follow(job["Version"], is_judged=False).outcome

    def _release(self) -> Release:
        return Release(self.environment, self.where, self.clients, self.timeout)

    def _is_going_back(self, running: Running, versions: Mapping[int, Json], wanted: int | None) -> bool:
        """Tell whether the way back that is asked for is registered already, and has not ended yet."""
        current = running.version
        record = records_by_version(self._deployments, self.where).get(current)
        if not is_way_back(current, record, versions.values()):
            return False
        if wanted is not None and spec(versions.get(wanted, {})) != spec(versions[current]):
            return False
        if running.is_active:
            return True
        if record:
            return record.outcome is None
        # Nomad, or a run that was killed, went back from the version before, and nobody has followed it.
        job_deployments = self._deployments.of_job(self.where)
        return any(one["JobVersion"] == current - 1 and one["Status"] == "failed" for one in job_deployments)

    def _is_way_back(self, running: Running) -> bool:
        record = records_by_version(self._deployments, self.where).get(running.version)
        versions = self._deployments.versions(self.where)
        return running.is_active and is_way_back(running.version, record, versions)

    def _running(self) -> Running:
        job = self._deployments.cluster.job(*self.where)
        if job is None:
            raise self._error(f"there is no such job; `{self.command('deploy')}` starts it")
        latest = self._deployments.cluster.deployment(*self.where)
        is_of_version = latest and latest["JobVersion"] == job["Version"]
        return Running(job["Version"], latest if is_of_version else None)

    def _waiting(self, command: str) -> Running:
        """Return the version that is deployed; refuse where none of its canaries waits for a promotion."""
        running = self._running()
        if not waits_for_promotion(running.deployment):
            what = "has no canaries that wait for a promotion"
            goes = (
                "goes on with the rollback"
                if self._is_way_back(running)
                else "goes back to the version before"
            )
            back = f"; `{self.command('rollback')}` {goes}" if command == "abort" else ""
            raise self._error(f"version {running.version} {what}{back}")
        return running

    def _refuse_to_stop_the_last(self, deployment: Json) -> None:
        allocations = parse_allocations(self._deployments.allocations(self.where), deployment)
        groups = group_states(deployment, allocations)
        alone = [name for name, group in groups.items() if group.healthy_canaries and not group.old_healthy]
        if alone:
            only = f"only the canaries of {', '.join(alone)} are healthy, and this would stop them"
            raise self._error(f"{only}; --force does it anyway")

    def _target(self, versions: Mapping[int, Json], current: int, wanted: int | None) -> int:
        """Return the version to go back to; by itself, the newest that was deployed with success."""
        others = ", ".join(str(one) for one in sorted(versions, reverse=True) if one != current) or "none"
        if wanted is not None:
            if wanted not in versions or wanted == current:
                raise self._error(f"there is no other version {wanted}; Nomad keeps {others}")
            if versions[wanted].get("Stop"):
                raise self._error(f"version {wanted} is a stop of the job; Nomad keeps {others}")
            return wanted
        newest = stable(versions.values(), current)
        if newest is None:
            raise self._error(f"no other version was deployed successfully; Nomad keeps {others}: name one")
        return newest

    def _check_room(self, job: Json) -> None:
        plan = Planner(self._deployments.cluster, []).plan("vllm", {**job, "Stop": False})
        if plan.is_unplaceable:
            full = [(group.name, reasons(group.unplaced)) for group in plan.groups if group.unplaced]
            lines = [f"{self.where.id}: version {job['Version']} has no room"]
            raise NoRoomError(*lines, *(f"{name}: {', '.join(why)}" for name, why in full))

    def _error(self, text: str) -> UserError:
        return UserError(f"{self.where.id}: {text}")

    def _tell(self, version: int, kind: str, text: str, is_way_back: bool = False) -> None:
        self.clients.reporter.begin(self.where.id, version, is_way_back)
        self.clients.reporter.tell(Event(kind, text))


def _is_promoted(running: Running) -> bool:
    """Tell whether all canaries are promoted, and the deployment has not failed since."""
    deployment = running.deployment or {}
    states = _with_canaries(running)
    has_not_failed = running.is_active or deployment.get("Status") == "successful"
    return has_not_failed and bool(states) and all(state["Promoted"] for state in states)


def _with_canaries(running: Running) -> list[Json]:
    groups = ((running.deployment or {}).get("TaskGroups") or {}).values()
    return [state for state in groups if state["DesiredCanaries"]]
