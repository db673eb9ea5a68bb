"""The values that `step.py` takes and returns. Times are seconds of a monotonic clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GPU_FATAL = 70  # EX_SOFTWARE of sysexits.h: what a job reschedules away from
GAVE_UP = 1


@dataclass(frozen=True)
class Child:
    """One engine or balancer, with what the decisions about it need."""

    name: str
    gpus: tuple[str, ...] = ()  # the child's GPUs, which no other child has; empty for the CPU
    is_front: bool = False  # True if it is the balancer before the others: stopped last; without it all ends


@dataclass(frozen=True)
class SupervisionLimits:
    """The limits in seconds, but for counts. The figures are those of docs/supervisor.md."""

    load: float = 1800.0  # the time from a start to the first answer
    hang: float = 120.0  # without progress when ready: the longest prefill counts no tokens before its end
    restarts: int = 3  # the number of unplanned restarts in `window`, after which a child is given up
    restarts_never_ready: int = 2  # the same number for a child that was never ready
    window: float = 600.0  # the time over which failures are counted
    backoff: float = 1.0  # the pause before the first restart; doubled each time, a quarter more at random
    backoff_most: float = 60.0  # the longest pause before a restart, without the random part
    steady: float = 300.0  # the time a child must be ready before the backoff begins again
    leave: float = 0.0  # the time from unready to the drain: what a balancer needs to notice
    drain: float = 15.0  # the time for the answers on their way
    drain_condemned: float = 5.0  # the time for the answers on their way, on a GPU that is condemned
    term: float = 10.0  # the time from SIGTERM to SIGKILL
    gone: float = 5.0  # the time from SIGKILL until nothing is left: what takes longer hangs in the kernel
    vram: float = 60.0  # the time until the memory of a child's GPUs is free


@dataclass(frozen=True)
class SupervisorSpec:
    """The children to supervise, and the limits."""

    children: tuple[Child, ...]
    limits: SupervisionLimits = SupervisionLimits()
    min_alive: int = 1  # the fewest engines not given up; with fewer all ends. All under tensor_parallel
    seed: int = 0  # the seed of the random part of the backoff


@dataclass(frozen=True)
class OfChild:
    """The name of one child, which is all that many triggers and operations hold."""

    child: str


# What makes the supervisor decide.


@dataclass(frozen=True)
class Tick:
    """Some deadline has come; nothing else happened."""


@dataclass(frozen=True)
class Exited:
    """The child's own process ended; others of its tree may run on."""

    child: str
    status: int  # exit code, or the negative number of the signal


class Cleared(OfChild):
    """Nothing of the child's tree runs, and the memory of its GPUs is free."""


@dataclass(frozen=True)
class Probed:
    """The result of one probe of a running child."""

    child: str
    serves: bool  # True if /health answered 200 and a completion of one token came
    progress: bool  # True if it counted more tokens, answered a completion, or has nothing to do
    unanswered: int | None = None  # the requests on their way; None where the engine does not tell
    sleeps: bool = False  # True if it sleeps on purpose: unready, and not broken
    reason: str = ""  # what it answered instead of serving; empty where it serves, or said nothing
    is_unprobed: bool = False  # True if no probe fits it, so that /health and /v1/models are the word


@dataclass(frozen=True)
class StopAsked:
    """SIGTERM or SIGINT came; the second goes on without the drain, the third kills."""


class RemoveAsked(OfChild):
    """The child is to end, as in a stop: for good, or because `Added` follows when it has."""


@dataclass(frozen=True)
class Added:
    """The spec has children that it had not, or others in the place of some that are over."""

    children: tuple[str, ...]


@dataclass(frozen=True)
class Condemned:
    """A GPU failed; nothing may run on it any more."""

    gpu: str
    reason: str


Trigger = Tick | Exited | Cleared | Probed | StopAsked | RemoveAsked | Added | Condemned
"""Each thing that makes the supervisor decide anew."""

# What the supervisor then does.


class Start(OfChild):
    """Start the child: nothing of it runs."""


class Clear(OfChild):
    """Kill what is left of the child's tree; `Cleared` when it is gone and the memory of its GPUs is free."""


class Terminate(OfChild):
    """Send SIGTERM to the child's own process."""


class Kill(OfChild):
    """Send SIGKILL to all of the child's tree."""


@dataclass(frozen=True)
class Fence:
    """Keep others from being placed on this GPU's node."""

    gpu: str
    reason: str


@dataclass(frozen=True)
class Exit:
    """End the supervisor."""

    code: int


@dataclass(frozen=True)
class LogEvent:
    """Write an event to the log."""

    name: str
    level: Literal["INFO", "WARNING", "ERROR"] = "INFO"
    child: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


Handle = Callable[[Trigger], None]  # what the parts of the supervisor tell their triggers to
Log = Callable[[LogEvent], None]
Operation = Start | Clear | Terminate | Kill | Fence | Exit | LogEvent  # what the supervisor can do

Phase = Literal[
    "clearing",  # before each start, and after each end
    "waiting",  # out the backoff
    "starting",
    "ready",
    "sleeping",  # on purpose (vLLM's sleep mode): unready, never asked for anything, not restarted
    "leaving",  # unready, with answers on their way
    "terminating",
    "killing",
    "ended",
    "given_up",
]
UP: tuple[Phase, ...] = ("starting", "ready", "sleeping")  # it runs, and nobody has told it to stop
RUNNING: tuple[Phase, ...] = ("starting", "ready", "sleeping", "leaving", "terminating", "killing")
OVER: tuple[Phase, ...] = ("ended", "given_up")


@dataclass(frozen=True)
class ChildState:
    """The state of one child."""

    phase: Phase = "clearing"
    since: float = 0.0  # the time at which that phase began
    due: float = 0.0  # the time at which it is started, while it waits; until which it drains, when it leaves
    then: Literal["start", "end", "give_up"] = "start"  # the next thing to do with it when it is cleared
    why: str = ""  # the reason for which it was ended or given up
    is_planned: bool = False  # True if its end is one that was asked for, and no failure
    failures: tuple[float, ...] = ()  # the times of its failures in the window
    in_a_row: int = 0  # the number of failures since it was last steady
    was_ready: bool = False  # True if it was ever ready
    ready_at: float | None = None  # the time at which it got ready in its present life
    progress_at: float = 0.0  # the time at which it last made progress
    unanswered: int | None = None  # the requests on their way at the last probe
    restarts: int = 0  # the number of starts after the first
    starts: int = 0  # the number of starts
    answered: str = ""  # what it answered at the last probe instead of serving
    told_at: float | None = None  # the time at which that was last logged, in its present life


@dataclass(frozen=True)
class State:
    """The state of everything that is supervised."""

    children: Mapping[str, ChildState]
    asked: int = 0  # the number of times that a stop was asked for
    code: int | None = None  # the exit code, set once all of it ends
    is_over: bool = False  # True if everything has ended
    condemned: Mapping[str, str] = field(default_factory=dict)  # why nothing may run on a GPU any more

    @property
    def is_stopping(self) -> bool:
        """Tell whether nothing is started any more."""
        return self.code is not None
