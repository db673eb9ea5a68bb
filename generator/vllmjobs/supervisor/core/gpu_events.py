"""The events of a GPU, as the watching process writes them and the supervisor reads them: one JSON line each.

| kind | when |
|---|---|
| reading | every 5 s for each GPU, with the fields of `GpuReading`; null where the driver does not tell |
| xid | as soon as the driver reports it, with its code |
| lost | every 5 s for a GPU that NVML calls lost, or of no use before it is reset, with the reason |
| unanswered | every 5 s for a GPU that cannot be asked, with the code (nvmlReturn_t) and the reason |
| no_driver | with the reason, before the process exits 0: there is nothing to watch |
| no_access | with the code and the reason, before the process exits 1: try again in some seconds |

Every line has `at`, seconds since 1970, and the first four `gpu`: the uuid, or what it was asked for by.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

FENCE_META = "vllmjobs_gpu_fenced"
"""The key of a node's metadata that fences it: nothing is placed on the node while it is set."""

# nvmlDeviceGpuRecoveryAction_t, from nvml.h; 0 is "none".
RECOVERY_ACTIONS = {
    1: "reset the GPU",
    2: "reboot the node",
    3: "drain its peer-to-peer traffic",
    4: "drain it and reset it",
    5: "recover the IMEX domain",
    6: "reset its PCIe bus",
    7: "reboot the system",
}

HANG = 10.0  # the seconds without a line after which it hangs: it writes one for every GPU every 5 s
FIRST = 30.0  # seconds to the first line: where nothing keeps the driver loaded, who asks first waits for it
LONGEST = 65536  # bytes of a line


@dataclass(frozen=True)
class GpuReading:
    """The values of a GPU, or of a MIG instance, which has its own memory; None for what is not given."""

    gpu: str  # the uuid; the name by which it was asked for, where it does not tell one
    at: float = 0.0  # the time of the reading: seconds of the supervisor's monotonic clock
    index: int | None = None
    name: str | None = None
    memory_used: int | None = None  # bytes in use, as `memory_total` without what the driver keeps for itself
    memory_total: int | None = None
    temperature: int | None = None  # the temperature in degrees Celsius
    recovery_action: int | None = None  # a key of `RECOVERY_ACTIONS`, or 0
    remap_pending: bool | None = None  # True if faulty rows of memory are remapped at the next reset
    remap_failed: bool | None = None  # True if a faulty row of memory cannot be remapped
    corrected_ecc: int | None = None  # the count of errors since the driver was loaded, as `uncorrected_ecc`
    uncorrected_ecc: int | None = None
    clocks_reasons: int | None = None  # the bits of nvmlClocksEventReason*

    @property
    def recovery(self) -> str:
        """Say what the driver asks for before the GPU is used again; empty for nothing."""
        if not self.recovery_action:
            return ""
        action = RECOVERY_ACTIONS.get(self.recovery_action, f"take recovery action {self.recovery_action}")
        return f"the driver asks to {action}"


@dataclass(frozen=True)
class Xid:
    """An error that the driver reported."""

    gpu: str
    code: int


@dataclass(frozen=True)
class Lost:
    """A GPU that NVML calls lost, or of no use before it is reset."""

    gpu: str
    reason: str


@dataclass(frozen=True)
class Unanswered:
    """A GPU that could not be asked, for a reason that need not be its own."""

    gpu: str
    code: int  # NVML's nvmlReturn_t
    reason: str


@dataclass(frozen=True)
class NoDriver:
    """There is no driver, or no GPU: nothing can be watched."""

    reason: str


@dataclass(frozen=True)
class NoAccess:
    """There is a driver, which this container cannot talk to (any more)."""

    code: int  # NVML's nvmlReturn_t
    reason: str


@dataclass(frozen=True)
class Hung:
    """NVML did not answer in time, on whichever GPU. No line says so: it follows from the clock."""


Written = GpuReading | Xid | Lost | Unanswered | NoDriver | NoAccess
GpuEvent = Written | Hung
KINDS: dict[str, type[Written]] = {
    "reading": GpuReading, "xid": Xid, "lost": Lost, "unanswered": Unanswered, "no_driver": NoDriver,
    "no_access": NoAccess,
}  # fmt: skip
_NAMES = {event: name for name, event in KINDS.items()}


def as_line(event: Written, at: float) -> bytes:
    """Write an event of `at`, seconds since 1970, as a line."""
    return json.dumps({"kind": _NAMES[type(event)], **asdict(event), "at": at}).encode() + b"\n"


def from_line(line: bytes, now: float) -> Written | None:
    """Read a line back, with a reading's `at` on the reader's clock; None for anything else.

    That is half a line of a process that was ended, or what a library printed.
    """
    try:
        fields: dict[str, Any] = json.loads(line)
        kind = KINDS[fields.pop("kind")]
        fields.pop("at", None)
        return GpuReading(**fields, at=now) if kind is GpuReading else kind(**fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


class GpuReader:
    """The supervisor's side of its watching processes, one after another: bytes become events, by a clock.

    One that hangs is ended with SIGTERM: SIGKILL does not end a process that waits in the driver any sooner,
    and one that is killed amid a call may leave the driver worse. Then `started` begins with another.
    """

    def __init__(self, now: float) -> None:
        self.readings: dict[str, GpuReading] = {}  # the last reading of each GPU; `at` is the clock of `feed`
        self.is_over = False  # True if there is nothing to watch: no other process need be started
        self._held = b""
        self.due = now + FIRST  # when the process hangs, if nothing is fed before

    def started(self, now: float) -> None:
        """Begin with another process."""
        self._held = b""
        self.due = now + (HANG if self.readings else FIRST)

    def feed(self, data: bytes, now: float) -> list[Written]:
        """Take what was read; return the events of its whole lines. Lines of anything else are left out."""
        *lines, self._held = (self._held + data).split(b"\n")
        self._held = self._held[:LONGEST]
        if lines:
            self.due = now + HANG
        events = [event for line in lines if (event := from_line(line, now))]
        for event in events:
            if isinstance(event, GpuReading):
                self.readings[event.gpu] = event
            self.is_over = isinstance(event, NoDriver)
        return events

    def is_hung(self, now: float) -> bool:
        """Tell whether a line is overdue: then this is `Hung`, and another process is to be started."""
        return not self.is_over and now >= self.due
