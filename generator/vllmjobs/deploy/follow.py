"""Follows a version of a job: look, decide, act, until it has ended."""

from __future__ import annotations

from vllmjobs.cluster.consul import ConsulError
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import ConflictError, DeploymentEndedError, NotHealthyError, UnsureError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.observe import Observer
from vllmjobs.deploy.record_keeper import Record
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic, TrafficError
from vllmjobs.rollout.decide import decide
from vllmjobs.rollout.events import Happening, Seen, happenings
from vllmjobs.rollout.model import Action, End, Fail, Promote, Revert, Shift, Wait

AGAIN_S = 2.0  # after what did not work; somebody else may have done it, which the next look tells
# What the next look tells more of.
PASSING = (ConflictError, DeploymentEndedError, NotHealthyError, UnsureError, ConsulError, TrafficError)


class Follower:
    """Does what `decide` says."""

    def __init__(
        self,
        releases: Deployments,
        where: Where,
        observer: Observer,
        traffic: Traffic | None,
        record: Record,
        reporter: Reporter,
    ) -> None:
        """`traffic` is None where no balancer is to be asked for anything."""
        self._releases, self._where, self._traffic = releases, where, traffic
        self._observer, self._record, self._reporter = observer, record, reporter
        self._said = ""

    def follow(self) -> End:
        """Until the release has ended. Raises `NomadError`, with everything left as it is."""
        before: Seen | None = None
        wait = 0.0
        while True:
            seen = self._observer.look(wait)
            self._reporter.deployment = self._observer.deployment
            for happening in happenings(before, seen):
                self._reporter.tell(happening)
            self._record.judged(seen[0])
            before = seen
            action = decide(self._observer.plan, seen[0])
            if isinstance(action, End):
                self._reporter.show(seen, "")
                return action
            if isinstance(action, Wait):
                self._reporter.show(seen, action.reason)
                wait = self._observer.patience(seen[0])
            else:
                wait = 0.0 if self._does(action, seen) else AGAIN_S

    def _does(self, action: Action, seen: Seen) -> bool:
        """Whether it was done; what stands in the way is told, once."""
        try:
            self._act(action, seen)
        except PASSING as error:
            if str(error) != self._said:
                self._said = str(error)
                self._reporter.tell(Happening("refused", self._said))
            return False
        return True

    def _act(self, action: Action, seen: Seen) -> None:
        deployment = self._observer.deployment or ""
        match action:
            case Shift():
                self._shift(action)
            case Promote():
                self._releases.promote(deployment, self._where)
                self._reporter.tell(Happening("promoting", "all canaries are to be promoted"))
            case Fail():
                self._observer.failed = action
                self._record.failing(action)
                self._releases.fail(deployment, self._where)
                self._reporter.tell(Happening("failing", f"the deployment is to fail: {action.reason}"))
            case Revert():
                self._observer.has_reverted = True  # also where the answer does not come
                try:
                    self._releases.revert(self._where, action.version, self._observer.plan.version)
                except ConflictError:
                    self._observer.has_reverted = False
                    raise
                text = f"back to version {action.version}, the last that was deployed with success"
                self._reporter.tell(Happening("reverted", text, None, {"to": action.version}))

    def _shift(self, action: Shift) -> None:
        """A share is of all canaries of a group together."""
        if not self._traffic:
            return
        plans = {group.name: group for group in self._observer.plan.groups}
        shares = {name: plans[name].shares[step] for name, step in action.steps.items()}
        self._traffic.ask(shares)
        for name, share in shares.items():
            text = f"canaries are to get {share:.4%} of the requests".replace(".0000%", " %")
            self._reporter.tell(Happening("shifted", text, name, {"share": share}))
