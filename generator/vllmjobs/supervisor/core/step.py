"""The supervisor's decisions: a pure function of the state, of what has happened and of the time.

It never starts an engine where another may still run, keeps to the budget of restarts, and always ends after
a stop was asked for: `tests/unit/supervisor/core/test_step.py` drives it through random orders of triggers.
"""

import zlib
from dataclasses import replace

from vllmjobs.supervisor.core import model
from vllmjobs.supervisor.core.model import ChildState, LogEvent, Operation, State, SupervisorSpec, Trigger

JITTER = 0.25  # the largest random part of a pause before a restart
TELL_AGAIN = 60.0  # seconds until another answer of an engine that does not get ready is logged


def begin(spec: SupervisorSpec, now: float) -> tuple[State, list[Operation]]:
    """Return the first state and operations: whatever an earlier supervisor has left is cleared away."""
    children = {child.name: ChildState(since=now) for child in spec.children}
    return State(children), [model.Clear(child.name) for child in spec.children]


def step(spec: SupervisorSpec, state: State, trigger: Trigger, now: float) -> tuple[State, list[Operation]]:
    """Return the state after any trigger, and what is to be done. Children not in the spec are forgotten."""
    if state.is_over:
        return state, []
    turn = _Turn(spec, state, now)
    turn.take(trigger)
    turn.go_on()
    return turn.state, turn.operations


def is_ready(spec: SupervisorSpec, state: State) -> bool:
    """Tell whether a balancer may send requests here."""
    ready = {name for name, one in state.children.items() if one.phase == "ready"}
    fronts = {child.name for child in spec.children if child.is_front}
    return not state.is_stopping and fronts <= ready and len(ready - fronts) >= max(1, spec.min_alive)


def due(spec: SupervisorSpec, state: State) -> float | None:
    """Return when `step` wants a `Tick`, if nothing happens before; None for never."""
    times = [time for one in state.children.values() if (time := _deadline(spec.limits, state, one))]
    return min(times, default=None)


def _deadline(limits: model.SupervisionLimits, state: State, one: ChildState) -> float | None:
    """Return when the phase of a child has lasted long enough; None for never."""
    match one.phase:
        case "waiting" | "leaving":
            return one.due
        case "starting":
            return one.since + limits.load
        case "ready" | "sleeping":
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
    """One step while it is made."""

    def __init__(self, spec: SupervisorSpec, state: State, now: float) -> None:
        self.spec, self.limits, self.now = spec, spec.limits, now
        names = [child.name for child in spec.children if child.name in state.children]
        self.state = replace(state, children={name: state.children[name] for name in names})
        self.operations: list[Operation] = []

    def take(self, trigger: Trigger) -> None:
        """Change the state by what happened."""
        if getattr(trigger, "child", None) not in (None, *self.state.children):
            return
        match trigger:
            case model.Exited(name, status):
                self._exited(name, status)
            case model.Cleared(name):
                if self._at(name).phase == "clearing":
                    self._cleared(name)
            case model.Probed():
                self._probed(trigger)
            case model.StopAsked():
                self._stop_asked()
            case model.RemoveAsked(name):
                fronts = {child.name for child in self.spec.children if child.is_front}
                if not self.state.is_stopping and name not in fronts:
                    self._end(name, "its stop was asked for", self.limits.drain)
            case model.Added(names):
                for name in names:
                    self._added(name)
            case model.Condemned(gpu, reason):
                self._condemned(gpu, reason)

    def go_on(self) -> None:
        """Do what the time asks for; then see whether all of it is over."""
        for child in self.spec.children:
            one = self._at(child.name)
            deadline = _deadline(self.limits, self.state, one)
            is_drained = one.unanswered == 0 and self.now >= one.since + self.limits.leave
            if one.phase == "leaving" and is_drained:
                deadline = self.now
            if deadline is not None and deadline <= self.now:
                self._late(child, one)
        given_up = {child for child in self.spec.children if self._at(child.name).phase == "given_up"}
        alive = sum(not child.is_front for child in {*self.spec.children} - given_up)
        if alive < max(1, self.spec.min_alive) or any(child.is_front for child in given_up):
            self._stop(model.GAVE_UP)
        if self.state.is_stopping:
            self._stop_fronts()
        code = self.state.code
        if code is not None and all(one.phase in model.OVER for one in self.state.children.values()):
            self.state = replace(self.state, is_over=True)
            self.operations.append(model.Exit(code))

    def _late(self, child: model.Child, one: ChildState) -> None:
        match one.phase:
            case "waiting":
                starts, restarts = one.starts + 1, one.restarts + bool(one.starts)
                self._set(child.name, phase="starting", since=self.now, starts=starts, restarts=restarts)
                self._set(child.name, ready_at=None, is_planned=False, why="", answered="", told_at=None)
                self.operations.append(model.Start(child.name))
            case "starting":
                answered = f": {one.answered}" if one.answered else ""
                self._kill(child.name, f"not ready after {self.limits.load:g} s{answered}")
            case "ready" | "sleeping":
                self._kill(child.name, f"no progress for {self.limits.hang:g} s")
            case "leaving":
                self._terminate(child.name)
            case "terminating":
                self._kill(child.name, one.why)
            case "killing":
                self._log("instance_cannot_be_killed", child.name, "ERROR")
                self._over(child.name, "given_up", "it cannot be killed: it hangs in the kernel")
            case "clearing":
                if self.state.is_stopping:
                    left = "its processes or their GPU memory may be left"
                    self._log("instance_not_cleared", child.name, "ERROR", reason=left)
                    self._over(child.name, "ended", left)
                else:
                    self._log("gpu_memory_not_freed", child.name, "ERROR", gpus=list(child.gpus))
                    self._over(child.name, "given_up", f"GPU memory is not free after {self.limits.vram:g} s")

    def _exited(self, name: str, status: int) -> None:
        one = self._at(name)
        if one.phase not in model.RUNNING:
            return
        why = one.why or (f"signal {-status}" if status < 0 else f"exit code {status}")
        changes: dict[str, object] = {"phase": "clearing", "since": self.now, "why": why, "unanswered": None}
        if one.is_planned:
            self._log("instance_stopped", name, status=status, reason=why)
        else:
            was_ready = one.ready_at is not None
            self._log("instance_failed", name, "ERROR", status=status, reason=why, was_ready=was_ready)
            changes |= self._failed(name, one)
        self._set(name, **changes)
        self.operations.append(model.Clear(name))

    def _failed(self, name: str, one: ChildState) -> dict[str, object]:
        """Log a failure, and return what it changes of a child, such as when it is due again."""
        limits = self.limits
        failures = (*(at for at in one.failures if at > self.now - limits.window), self.now)
        was_steady = one.ready_at is not None and self.now - one.ready_at >= limits.steady
        in_a_row = 0 if was_steady else one.in_a_row
        changes: dict[str, object] = {"failures": failures, "in_a_row": in_a_row + 1}
        if one.then != "start":
            return changes
        if len(failures) > (limits.restarts if one.was_ready else limits.restarts_never_ready):
            self._log("instance_given_up", name, "ERROR", failures=len(failures), window=limits.window)
            return changes | {"then": "give_up"}
        pause = _backoff(self.spec, name, in_a_row, one.starts)
        self._log("instance_restarts", name, "WARNING", after_seconds=round(pause, 1), failures=len(failures))
        return changes | {"due": self.now + pause}

    def _cleared(self, name: str) -> None:
        one = self._at(name)
        if one.then == "start":
            self._set(name, phase="waiting", since=self.now)
        else:
            self._over(name, "given_up" if one.then == "give_up" else "ended", one.why)

    def _probed(self, result: model.Probed) -> None:
        name, one = result.child, self._at(result.child)
        if one.phase not in (*model.UP, "leaving"):
            return
        is_new = one.phase in ("starting", "sleeping") and result.serves
        # One that was woken and does not answer makes no progress, whatever it counts.
        if (result.progress and (one.phase != "sleeping" or result.sleeps)) or is_new:
            self._set(name, progress_at=self.now)
        self._set(name, unanswered=result.unanswered, answered="" if result.serves else result.reason)
        if is_new:
            self._ready(name, one, result)
        elif result.sleeps and one.phase in ("starting", "ready"):
            self._set(name, phase="sleeping", since=self.now, progress_at=self.now)
            self._log("instance_sleeps", name, reason=result.reason)
        elif one.phase == "starting" and result.reason not in ("", one.answered) and self._is_news(one):
            self._set(name, told_at=self.now)
            self._log("instance_not_ready", name, "WARNING", reason=result.reason)

    def _is_news(self, one: ChildState) -> bool:
        return one.told_at is None or self.now - one.told_at >= TELL_AGAIN

    def _ready(self, name: str, one: ChildState, result: model.Probed) -> None:
        seconds = round(self.now - one.since, 3)
        ready_at = self.now if one.ready_at is None else one.ready_at
        self._set(name, phase="ready", since=self.now, ready_at=ready_at, was_ready=True)
        if one.phase == "sleeping":
            self._log("instance_awake", name, slept_seconds=seconds)
        else:
            self._log("instance_ready", name, load_seconds=seconds)
        if result.is_unprobed:
            self._log("instance_not_probed", name, "WARNING", reason=result.reason)

    def _stop_asked(self) -> None:
        self.state = replace(self.state, asked=self.state.asked + 1)
        if self.state.asked == 1:
            self._stop(0)
            return
        self._log("stop_hurried", None, "WARNING", asked=self.state.asked)
        for name, one in list(self.state.children.items()):
            if self.state.asked == 2 and one.phase == "leaving":
                self._terminate(name)
            elif self.state.asked > 2 and one.phase in ("leaving", "terminating"):
                self._kill(name, "a stop was asked for three times")

    def _stop(self, code: int, drain: float | None = None) -> None:
        """Begin to end everything; the first code stays."""
        if self.state.is_stopping:
            return
        until = self.limits.drain if drain is None else drain
        self.state = replace(self.state, code=code)
        self._log("stopping", None, code=code)
        for child in self.spec.children:
            if child.is_front and self._at(child.name).phase in model.UP:
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
            case "starting" | "sleeping":  # it has no answers to give
                self._set(name, is_planned=True, then="end")
                self._terminate(name)
            case "ready":
                self._leave(name, why, drain, is_planned=True, then="end")
            case _ if one.phase not in model.OVER and one.then == "start":
                self._set(name, then="end")

    def _added(self, name: str) -> None:
        """Begin with a child as if it were the first time, but for how often it was started."""
        before = self.state.children.get(name, ChildState())
        fresh = ChildState(since=self.now, starts=before.starts, restarts=before.restarts)
        self.state = replace(self.state, children={**self.state.children, name: fresh})
        gpus = next(child.gpus for child in self.spec.children if child.name == name)
        broken = [f"GPU {gpu}: {self.state.condemned[gpu]}" for gpu in gpus if gpu in self.state.condemned]
        if broken or self.state.is_stopping:
            self._over(name, "given_up" if broken else "ended", "; ".join(broken))
        else:
            self.operations.append(model.Clear(name))

    def _stop_fronts(self) -> None:
        """Stop the balancers, once nothing is left behind them."""
        fronts = {child.name for child in self.spec.children if child.is_front}
        others = [one for name, one in self.state.children.items() if name not in fronts]
        if all(one.phase in model.OVER for one in others):
            for name in fronts:
                if self._at(name).phase in model.UP:
                    self._set(name, is_planned=True, why="it was stopped")
                    self._terminate(name)

    def _condemned(self, gpu: str, reason: str) -> None:
        self._log("gpu_condemned", None, "ERROR", gpu=gpu, reason=reason)
        self.operations.append(model.Fence(gpu, reason))
        self.state = replace(self.state, condemned={**self.state.condemned, gpu: reason})
        why = f"GPU {gpu}: {reason}"
        on_it = [child.name for child in self.spec.children if gpu in child.gpus]
        left = sum(
            not (child.is_front or child.name in on_it or _is_given_up(self._at(child.name)))
            for child in self.spec.children
        )
        if on_it and left < max(1, self.spec.min_alive):
            self._stop(model.GPU_FATAL, self.limits.drain_condemned)
            return
        for name in on_it:
            one = self._at(name)
            match one.phase:
                case "waiting":
                    self._over(name, "given_up", why)
                case "clearing":
                    self._set(name, then="give_up", why=why)
                case "starting" | "sleeping":
                    self._set(name, then="give_up", is_planned=True, why=why)
                    self._terminate(name)
                case "ready" | "leaving":
                    self._leave(name, why, self.limits.drain_condemned, is_planned=True, then="give_up")
                case _ if one.phase not in model.OVER:
                    self._set(name, then="give_up", why=why)

    def _leave(self, name: str, why: str, drain: float, **changes: object) -> None:
        self._log("instance_leaves", name, reason=why, unanswered=self._at(name).unanswered)
        until = self.now + self.limits.leave + drain
        # What it had to answer at the last probe is not what it has now.
        self._set(name, phase="leaving", since=self.now, due=until, why=why, unanswered=None, **changes)

    def _terminate(self, name: str) -> None:
        one = self._at(name)
        if one.phase == "leaving":
            level, seconds = "INFO" if one.unanswered == 0 else "WARNING", round(self.now - one.since, 3)
            self._log("instance_drained", name, level, drain_seconds=seconds, unanswered=one.unanswered)
        self._set(name, phase="terminating", since=self.now)
        self.operations.append(model.Terminate(name))

    def _kill(self, name: str, why: str) -> None:
        answered = {"answered": found} if (found := self._at(name).answered) else {}
        self._log("instance_killed", name, "ERROR", reason=why or "it did not end on SIGTERM", **answered)
        self._set(name, phase="killing", since=self.now, why=why)
        self.operations.append(model.Kill(name))

    def _over(self, name: str, phase: str, why: str) -> None:
        self._set(name, phase=phase, since=self.now, why=why)

    def _at(self, name: str) -> ChildState:
        return self.state.children[name]

    def _set(self, name: str, **changes: object) -> None:
        changed = replace(self._at(name), **changes)  # type: ignore[arg-type]
        self.state = replace(self.state, children={**self.state.children, name: changed})

    def _log(self, name: str, child: str | None, level: str = "INFO", **fields: object) -> None:
        self.operations.append(LogEvent(name, level, child, fields))  # type: ignore[arg-type]


def _backoff(spec: SupervisorSpec, name: str, in_a_row: int, starts: int) -> float:
    """Return the pause: doubled each time, and a little more that differs from child to child."""
    pause = min(spec.limits.backoff_most, spec.limits.backoff * 2.0 ** min(in_a_row, 30))
    chance = zlib.crc32(f"{spec.seed} {name} {starts}".encode()) / 2**32
    return pause * (1 + JITTER * chance)


def _is_given_up(one: ChildState) -> bool:
    """Tell whether it is given up, or will be as soon as nothing of it is left."""
    return one.phase == "given_up" or one.then == "give_up"
