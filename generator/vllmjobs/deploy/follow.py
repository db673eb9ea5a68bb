"""The loop of a release: observe, decide, act, until it has ended."""

import math
from dataclasses import dataclass

from vllmjobs.cluster.consul import ConsulError
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import ConflictError, DeploymentEndedError, NotHealthyError, UnsureError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy.observe import Observer
from vllmjobs.deploy.records import RecordKeeper
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic, TrafficError
from vllmjobs.rollout.decide import decide
from vllmjobs.rollout.events import Event, Snapshot, events
from vllmjobs.rollout.model import Action, End, Fail, Observation, Promote, ReleasePlan, Revert, Shift, Wait
from vllmjobs.rollout.observe import Memory, attempted

RETRY_S = 2.0  # after an action that failed; somebody else may have done it, which is observed next
# Errors after which the next observation tells more.
PASSING = (ConflictError, DeploymentEndedError, NotHealthyError, UnsureError, ConsulError, TrafficError)


@dataclass
class Follower:
    """Carries out what `decide` returns."""

    deployments: Deployments
    where: Where
    plan: ReleasePlan
    observer: Observer
    traffic: Traffic | None  # None where no balancer is to be asked for anything
    keeper: RecordKeeper
    reporter: Reporter
    last_refusal: str = ""

    def follow(self, memory: Memory) -> tuple[End, Observation]:
        """Follow the release to its end; return that, and what was observed then.

        An action that was done and is to be done again, as with a server that only says yes, takes its time.

        Raises `NomadError`, with everything left as it is.
        """
        before: Snapshot | None = None
        tried: Action | None = None
        wait = 0.0
        while True:
            memory, snapshot = self.observer.observe(memory, wait)
            observation = snapshot.observation
            self.reporter.deployment = observation.deployment
            for event in events(before, snapshot):
                self.reporter.tell(event)
            self.keeper.judged(observation)
            before = snapshot
            action = decide(self.plan, observation)
            match action:
                case End():
                    self.reporter.show(snapshot, "")
                    return action, observation
                case Wait():
                    self.reporter.show(snapshot, action.reason)
                    left = self.plan.until - observation.now
                    wait = min(self.observer.poll_within(observation), left if left > 0 else math.inf)
                case _:
                    memory, is_done = self._attempt(action, memory, observation)
                    wait = 0.0 if is_done and action != tried else RETRY_S
                    tried = action

    def _attempt(self, action: Action, memory: Memory, observation: Observation) -> tuple[Memory, bool]:
        """Act; return what is to be remembered, and whether it was done. A refusal is reported once."""
        try:
            self._act(action, observation)
        except PASSING as error:
            if str(error) != self.last_refusal:
                self.last_refusal = str(error)
                self.reporter.tell(Event("refused", str(error)))
            # After a conflict, it is certain that no older version was registered by us.
            is_undone = isinstance(action, Revert) and isinstance(error, ConflictError)
            return memory if is_undone else attempted(memory, action), False
        return attempted(memory, action), True

    def _act(self, action: Action, observation: Observation) -> None:
        deployment = observation.deployment or ""
        match action:
            case Shift():
                self._shift(action)
            case Promote():
                self.deployments.promote(deployment, self.where)
                self.reporter.tell(Event("promoting", "promoting all canaries"))
            case Fail():
                self.keeper.ends(action)
                self.deployments.fail(deployment, self.where)
                self.reporter.tell(Event("failing", f"failing the deployment: {action.reason}"))
            case Revert():
                self.deployments.revert(self.where, action.version, self.plan.version)
                text = f"reverted to version {action.version}, the last one that was deployed successfully"
                self.reporter.tell(Event("reverted", text, None, {"to": action.version}))

    def _shift(self, action: Shift) -> None:
        """Ask for the share of each group; it is the share of all its canaries together."""
        if not self.traffic:
            return
        plans = {group.name: group for group in self.plan.groups}
        shares = {name: plans[name].shares[step] for name, step in action.steps.items()}
        self.traffic.ask(shares)
        for name, share in shares.items():
            text = f"asking balancers to give canaries {share:.4%} of the requests".replace(".0000%", " %")
            self.reporter.tell(Event("shifted", text, name, {"share": share}))
