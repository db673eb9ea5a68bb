"""What the supervisor does next: a pure function of where things stand, of what happened and of the time.

It never starts an engine where another may still run, keeps to the budget of restarts, and always ends after
a stop was asked for: `tests/unit/supervisor/test_policy.py` drives it through random orders of events.
"""

from __future__ import annotations

from dataclasses import replace

from vllmjobs.supervisor.model import (
    GAVE_UP,
    GPU_FATAL,
    OVER,
    Action,
    Added,
    Child,
    Clear,
    Cleared,
    Condemned,
    Event,
    Exit,
    Exited,
    Fence,
    Instance,
    Kill,
    Limits,
    Plan,
    RemoveAsked,
    Say,
    Seen,
    Start,
    State,
    StopAsked,
    Terminate,
)
from vllmjobs.supervisor.restarts import failed


def begin(plan: Plan, now: float) -> tuple[State, list[Action]]:
    """First of all, whatever an earlier supervisor has left is cleared away."""
    instances = {child.name: Instance(since=now) for child in plan.children}
    return State(instances), [Clear(child.name) for child in plan.children]


def step(plan: Plan, state: State, event: Event, now: float) -> tuple[State, list[Action]]:
    """Where things stand after an event, and what is to be done. Total: no event is out of place.

    What the plan does not name any more is forgotten.
    """
    if state.is_over:
        return state, []
    turn = _Turn(plan, state, now)
    turn.take(event)
    turn.go_on()
    return turn.state, turn.actions


def is_ready(plan: Plan, state: State) -> bool:
    """Whether a balancer may send requests here."""
    ready = {name for name, one in state.instances.items() if one.phase == "ready"}
    fronts = {child.name for child in plan.children if child.is_front}
    return not state.is_stopping and fronts <= ready and len(ready - fronts) >= max(1, plan.min_alive)


def due(plan: Plan, state: State) -> float | None:
    """When `step` wants a `Tick`, if nothing happens before."""
    times = [time for one in state.instances.values() if (time := _deadline(plan.limits, state, one))]
    return min(times, default=None)


def _deadline(limits: Limits, state: State, one: Instance) -> float | None:
    """When the phase of an instance has lasted long enough."""
    match one.phase:
        case "waiting" | "leaving":
            return one.due
        case "starting":
            return one.since + limits.load
        case "ready":
            return one.progress_at + limits.hang
        case "terminating":
            return one.since + limits.term
        case "killing":
            return one.since + limits.gone
        case "clearing":
            return one.since + (limits.gone if state.is_stopping else limits.vram)
        case _:
            return None


class _Turn:
    """One step, while it is made."""

    def __init__(self, plan: Plan, state: State, now: float) -> None:
        self.plan, self.limits, self.now = plan, plan.limits, now
        names = [child.name for child in plan.children if child.name in state.instances]
        self.state = replace(state, instances={name: state.instances[name] for name in names})
        self.actions: list[Action] = []

    def take(self, event: Event) -> None:
        """Take in what happened."""
        if getattr(event, "child", None) not in (None, *self.state.instances):
            return
        match event:
            case Exited(name, status):
                self._exited(name, status)
            case Cleared(name):
                if self._at(name).phase == "clearing":
                    self._cleared(name)
            case Seen():
                self._seen(event)
            case StopAsked():
                self._stop_asked()
            case RemoveAsked(name):
                fronts = {child.name for child in self.plan.children if child.is_front}
                if not self.state.is_stopping and name not in fronts:
                    self._end(name, "that was asked for", self.limits.drain)
            case Added(names):
                for name in names:
                    self._added(name)
            case Condemned(gpu, reason):
                self._condemned(gpu, reason)

    def go_on(self) -> None:
        """Do what the time asks for; then see whether all of it is over."""
        for child in self.plan.children:
            one = self._at(child.name)
            deadline = _deadline(self.limits, self.state, one)
            if one.phase == "leaving" and self._is_drained(one):
                deadline = self.now
            if deadline is not None and deadline <= self.now:
                self._late(child, one)
        given_up = {child for child in self.plan.children if self._at(child.name).phase == "given_up"}
        alive = sum(not child.is_front for child in {*self.plan.children} - given_up)
        if alive < max(1, self.plan.min_alive) or any(child.is_front for child in given_up):
            self._stop(GAVE_UP)
        if self.state.is_stopping:
            self._stop_fronts()
        code = self.state.code
        if code is not None and all(one.phase in OVER for one in self.state.instances.values()):
            self.state = replace(self.state, is_over=True)
            self.actions.append(Exit(code))

    def _late(self, child: Child, one: Instance) -> None:
        match one.phase:
            case "waiting":
                self._set(
                    child.name, phase="starting", since=self.now, starts=one.starts + 1,
                    restarts=one.restarts + bool(one.starts), ready_at=None, is_planned=False, why="",
                )  # fmt: skip
                self.actions.append(Start(child.name))
            case "starting":
                self._kill(child.name, f"not ready after {self.limits.load:g} s")
            case "ready":
                self._kill(child.name, f"no progress for {self.limits.hang:g} s")
            case "leaving":
                self._terminate(child.name)
            case "terminating":
                self._kill(child.name, one.why)
            case "killing":
                self._say("instance_cannot_be_killed", child.name, "ERROR")
                self._over(child.name, "given_up", "it cannot be killed: it hangs in the kernel")
            case "clearing":
                if self.state.is_stopping:
                    self._over(child.name, "ended", "something of it may be left")
                else:
                    self._say("gpu_memory_not_freed", child.name, "ERROR", gpus=list(child.gpus))
                    self._over(child.name, "given_up", f"not cleared after {self.limits.vram:g} s")

    def _exited(self, name: str, status: int) -> None:
        one = self._at(name)
        if one.phase not in ("starting", "ready", "leaving", "terminating", "killing"):
            return
        why = one.why or _ended(status)
        changes = {"phase": "clearing", "since": self.now, "why": why, "unanswered": None}
        if one.is_planned:
            self._say("instance_stopped", name, status=status, reason=why)
        else:
            self._say(
                "instance_failed",
                name,
                "ERROR",
                status=status,
                reason=why,
                was_ready=one.ready_at is not None,
            )
            more, said = failed(self.plan, name, one, self.now)
            changes |= more
            self.actions += said
        self._set(name, **changes)
        self.actions.append(Clear(name))

    def _cleared(self, name: str) -> None:
        one = self._at(name)
        if one.then == "start":
            self._set(name, phase="waiting", since=self.now)
        else:
            self._over(name, "given_up" if one.then == "give_up" else "ended", one.why)

    def _seen(self, seen: Seen) -> None:
        one = self._at(seen.child)
        if one.phase not in ("starting", "ready", "leaving"):
            return
        if seen.progress:
            self._set(seen.child, progress_at=self.now)
        self._set(seen.child, unanswered=seen.unanswered)
        if one.phase == "starting" and seen.serves:
            self._set(
                seen.child, phase="ready", since=self.now, ready_at=self.now, was_ready=True,
                progress_at=self.now,
            )  # fmt: skip
            self._say("instance_ready", seen.child, load_seconds=round(self.now - one.since, 3))

    def _stop_asked(self) -> None:
        self.state = replace(self.state, asked=self.state.asked + 1)
        if self.state.asked == 1:
            self._stop(0)
            return
        self._say("stop_hurried", None, "WARNING", asked=self.state.asked)
        for name, one in list(self.state.instances.items()):
            if self.state.asked == 2 and one.phase == "leaving":
                self._terminate(name)
            elif self.state.asked > 2 and one.phase in ("leaving", "terminating"):
                self._kill(name, "a stop was asked for three times")

    def _stop(self, code: int, drain: float | None = None) -> None:
        """Begin to end all of it; the first code stays."""
        if self.state.is_stopping:
            return
        until = self.limits.drain if drain is None else drain
        self.state = replace(self.state, code=code)
        self._say("stopping", None, code=code)
        for child in self.plan.children:
            if child.is_front and self._at(child.name).phase in ("starting", "ready"):
                self._set(child.name, then="end")  # once the others are over
            else:
                self._end(child.name, "it was stopped", until)

    def _end(self, name: str, why: str, drain: float) -> None:
        one = self._at(name)
        match one.phase:
            case "waiting":
                self._over(name, "ended", why)
            case "clearing":
                self._set(name, since=self.now, then="end" if one.then == "start" else one.then)
            case "starting":  # it has no answers to give
                self._set(name, is_planned=True, then="end")
                self._terminate(name)
            case "ready":
                self._leave(name, why, drain, is_planned=True, then="end")
            case _ if one.phase not in OVER and one.then == "start":
                self._set(name, then="end")

    def _added(self, name: str) -> None:
        """Begin with a child as if it were the first time, but for how often it was started."""
        before = self.state.instances.get(name, Instance())
        fresh = Instance(since=self.now, starts=before.starts, restarts=before.restarts)
        self.state = replace(self.state, instances={**self.state.instances, name: fresh})
        gpus = next(child.gpus for child in self.plan.children if child.name == name)
        broken = [f"GPU {gpu}: {self.state.condemned[gpu]}" for gpu in gpus if gpu in self.state.condemned]
        if broken or self.state.is_stopping:
            self._over(name, "given_up" if broken else "ended", "; ".join(broken))
        else:
            self.actions.append(Clear(name))

    def _stop_fronts(self) -> None:
        """Stop the balancers, once nothing is left behind them."""
        fronts = {child.name for child in self.plan.children if child.is_front}
        others = [one for name, one in self.state.instances.items() if name not in fronts]
        if all(one.phase in OVER for one in others):
            for name in fronts:
                if self._at(name).phase in ("starting", "ready"):
                    self._set(name, is_planned=True, why="it was stopped")
                    self._terminate(name)

    def _condemned(self, gpu: str, reason: str) -> None:
        self._say("gpu_condemned", None, "ERROR", gpu=gpu, reason=reason)
        self.actions.append(Fence(gpu, reason))
        self.state = replace(self.state, condemned={**self.state.condemned, gpu: reason})
        why = f"GPU {gpu}: {reason}"
        on_it = [child.name for child in self.plan.children if gpu in child.gpus]
        left = sum(
            not (child.is_front or child.name in on_it or _is_given_up(self._at(child.name)))
            for child in self.plan.children
        )
        if on_it and left < max(1, self.plan.min_alive):
            self._stop(GPU_FATAL, self.limits.drain_condemned)
            return
        for name in on_it:
            one = self._at(name)
            match one.phase:
                case "waiting":
                    self._over(name, "given_up", why)
                case "clearing":
                    self._set(name, then="give_up", why=why)
                case "starting":
                    self._set(name, then="give_up", is_planned=True, why=why)
                    self._terminate(name)
                case "ready" | "leaving":
                    self._leave(name, why, self.limits.drain_condemned, is_planned=True, then="give_up")
                case _ if one.phase not in OVER:
                    self._set(name, then="give_up", why=why)

    def _leave(self, name: str, why: str, drain: float, **changes: object) -> None:
        self._say("instance_leaves", name, reason=why, unanswered=self._at(name).unanswered)
        until = self.now + self.limits.leave + drain
        # What it had to answer at the last look is not what it has now.
        self._set(name, phase="leaving", since=self.now, due=until, why=why, unanswered=None, **changes)

    def _is_drained(self, one: Instance) -> bool:
        return one.unanswered == 0 and self.now >= one.since + self.limits.leave

    def _terminate(self, name: str) -> None:
        one = self._at(name)
        if one.phase == "leaving":
            self._say(
                "instance_drained", name, "INFO" if one.unanswered == 0 else "WARNING",
                drain_seconds=round(self.now - one.since, 3), unanswered=one.unanswered,
            )  # fmt: skip
        self._set(name, phase="terminating", since=self.now)
        self.actions.append(Terminate(name))

    def _kill(self, name: str, why: str) -> None:
        self._say("instance_killed", name, "ERROR", reason=why or "it did not end on SIGTERM")
        self._set(name, phase="killing", since=self.now, why=why)
        self.actions.append(Kill(name))

    def _over(self, name: str, phase: str, why: str) -> None:
        self._set(name, phase=phase, since=self.now, why=why)

    def _at(self, name: str) -> Instance:
        return self.state.instances[name]

    def _set(self, name: str, **changes: object) -> None:
        changed = replace(self._at(name), **changes)  # type: ignore[arg-type]
        self.state = replace(self.state, instances={**self.state.instances, name: changed})

    def _say(self, event: str, child: str | None, level: str = "INFO", **fields: object) -> None:
        self.actions.append(Say(event, level, child, fields))  # type: ignore[arg-type]


def _is_given_up(one: Instance) -> bool:
    """Or will be, as soon as nothing of it is left."""
    return one.phase == "given_up" or one.then == "give_up"


def _ended(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"
