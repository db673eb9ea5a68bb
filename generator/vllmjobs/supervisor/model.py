"""What the policy takes and gives: plain values. Times are seconds of a monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GPU_FATAL = 70  # EX_SOFTWARE of sysexits.h: what a job reschedules away from
GAVE_UP = 1


@dataclass(frozen=True)
class Child:
    """One engine, of which the policy need not know more."""

    name: str
    gpus: tuple[str, ...] = ()
    """No other child has any of these. Empty for the CPU."""
    is_front: bool = False
    """A balancer before the others: it is the last to be stopped, and without it all of it ends."""


@dataclass(frozen=True)
class Limits:
    """In seconds, but for counts. The figures are those of docs/supervisor.md."""

    load: float = 1800.0
    """From a start to the first answer."""
    hang: float = 120.0
    """A ready engine without any progress: the longest prefill counts no tokens until it ends."""
    restarts: int = 3
    """Unplanned ones in `window`, after which it is given up."""
    restarts_never_ready: int = 2
    window: float = 600.0
    backoff: float = 1.0
    """Before the first restart; doubled each time, a quarter more at random."""
    backoff_most: float = 60.0
    steady: float = 300.0
    """Ready for so long: the backoff begins again."""
    leave: float = 0.0
    """From unready to the drain: what a balancer needs to notice."""
    drain: float = 15.0
    """For the answers on their way."""
    drain_condemned: float = 5.0
    """The same on a GPU that is condemned."""
    term: float = 10.0
    """From SIGTERM to SIGKILL."""
    gone: float = 5.0
    """From SIGKILL until nothing is left: what takes longer hangs in the kernel."""
    vram: float = 60.0
    """Until the memory of its GPUs is free."""


@dataclass(frozen=True)
class Plan:
    """What is supervised."""

    children: tuple[Child, ...]
    limits: Limits = Limits()
    min_alive: int = 1
    """With fewer engines that are not given up, all of it ends: all of them under tensor_parallel."""
    seed: int = 0
    """For the jitter."""


# What happens.


@dataclass(frozen=True)
class Tick:
    """Nothing but time."""


@dataclass(frozen=True)
class Exited:
    """The child's own process ended; others of its tree may run on."""

    child: str
    status: int
    """Exit code, or the negative number of the signal."""


@dataclass(frozen=True)
class Cleared:
    """Nothing of the child's tree runs, and the memory of its GPUs is free."""

    child: str


@dataclass(frozen=True)
class Seen:
    """What a look at a running child showed."""

    child: str
    serves: bool
    """/health answered 200 and a completion of one token came."""
    progress: bool
    """It counted more tokens than at the look before, answered a completion, or has nothing to do."""
    unanswered: int | None = None
    """Requests on their way; None where it does not say."""


@dataclass(frozen=True)
class StopAsked:
    """SIGTERM or SIGINT; the second goes on without the drain, the third kills."""


@dataclass(frozen=True)
class RemoveAsked:
    """The child is to end, as in a stop: for good, or because `Added` follows when it has."""

    child: str


@dataclass(frozen=True)
class Added:
    """The plan has children that it had not, or others in the place of some that are over."""

    children: tuple[str, ...]


@dataclass(frozen=True)
class Condemned:
    """A GPU that nothing may run on any more."""

    gpu: str
    reason: str


Event = Tick | Exited | Cleared | Seen | StopAsked | RemoveAsked | Added | Condemned

# What is to be done.


@dataclass(frozen=True)
class Start:
    """Start the child: nothing of it runs."""

    child: str


@dataclass(frozen=True)
class Clear:
    """Kill what is left of the child's tree; `Cleared` when it is gone and the memory of its GPUs is free."""

    child: str


@dataclass(frozen=True)
class Terminate:
    """SIGTERM to the child's own process."""

    child: str


@dataclass(frozen=True)
class Kill:
    """SIGKILL to all of the child's tree."""

    child: str


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
class Say:
    """An event for the log."""

    event: str
    level: Literal["INFO", "WARNING", "ERROR"] = "INFO"
    child: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


Action = Start | Clear | Terminate | Kill | Fence | Exit | Say

# Where things stand.

Phase = Literal[
    "clearing",  # before each start, and after each end
    "waiting",  # out the backoff
    "starting",
    "ready",
    "leaving",  # unready, with answers on their way
    "terminating",
    "killing",
    "ended",
    "given_up",
]
RUNNING: tuple[Phase, ...] = ("starting", "ready", "leaving", "terminating", "killing")
OVER: tuple[Phase, ...] = ("ended", "given_up")


@dataclass(frozen=True)
class Instance:
    """Where one child stands."""

    phase: Phase = "clearing"
    since: float = 0.0
    """When that phase began."""
    due: float = 0.0
    """When it is started, while it waits; until when it drains, while it leaves."""
    then: Literal["start", "end", "give_up"] = "start"
    """What comes when it is cleared."""
    why: str = ""
    """Why it was ended or given up."""
    is_planned: bool = False
    """Whether its end is one that was asked for, and no failure."""
    failures: tuple[float, ...] = ()
    in_a_row: int = 0
    was_ready: bool = False
    ready_at: float | None = None
    """Of the life it is in."""
    progress_at: float = 0.0
    unanswered: int | None = None
    restarts: int = 0
    """Starts after the first."""
    starts: int = 0


@dataclass(frozen=True)
class State:
    """Where all of it stands."""

    instances: Mapping[str, Instance]
    asked: int = 0
    """How many times a stop was asked for."""
    code: int | None = None
    """Set once all of it ends."""
    is_over: bool = False
    condemned: Mapping[str, str] = field(default_factory=dict)
    """GPUs that nothing may run on any more, and why."""

    @property
    def is_stopping(self) -> bool:
        """Whether nothing is started any more."""
        return self.code is not None
