"""What is to be done about a GPU: a pure function of what was observed and of the time.

A GPU that is condemned stays so: only a person, or a supervisor that starts anew, trusts it again. Times are
seconds of a monotonic clock. What each XID means stands in `data/xid.json`, beside its source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

HOUR = 3600.0
FAULTS = 3
"""Incidents of the class `restart` in an hour, with which the GPU itself is to blame."""
INCIDENT = 10.0
"""Seconds: one illegal access is reported once for every multiprocessor that it stops."""
SLOWDOWNS = 6
SLOWDOWN_WINDOW = 600.0
LASTING = 60.0
"""Seconds after which a slowdown that lasts counts again."""
HANGS = 3
AT_ONCE = 30.0
"""Seconds in which all GPUs are looked at, however slowly."""

# nvmlClocksEventReason*, from nvml.h: hardware slowdown, software and hardware thermal slowdown, power brake.
# Not the software power cap (4), under which a GPU that is busy runs all day.
SLOW = 8 | 32 | 64 | 128
UNKNOWN_ERROR = 999  # NVML_ERROR_UNKNOWN
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
NO_ACCESS = (
    "the access to every GPU is lost, which is no fault of theirs: a reload of systemd can take the devices "
    "from a container (NVIDIA/nvidia-container-toolkit#48); this container has to be started anew"
)

# What is observed. A value is None where the GPU, its driver or the permissions do not give it.


@dataclass(frozen=True)
class Look:
    """A look at a GPU or a MIG instance, which has its memory and processes to itself."""

    gpu: str
    """Its uuid; what it was asked for by, where it does not tell one."""
    at: float = 0.0
    index: int | None = None
    name: str | None = None
    memory_used: int | None = None
    """In bytes, without what the driver keeps for itself, as `memory_total`."""
    memory_total: int | None = None
    temperature: int | None = None
    """In degrees Celsius."""
    recovery_action: int | None = None
    """A key of `RECOVERY_ACTIONS`, or 0."""
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    corrected_ecc: int | None = None
    """Since the driver was loaded, as `uncorrected_ecc`."""
    uncorrected_ecc: int | None = None
    clocks_reasons: int | None = None
    """Bits of nvmlClocksEventReason*."""
    pids: tuple[int, ...] | None = None
    """Those that compute on it, as far as this container sees them; one without NVML's pids has ()."""


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
    code: int
    """nvmlReturn_t."""
    reason: str


@dataclass(frozen=True)
class Hung:
    """NVML did not answer in time; which GPU it hangs on is not known."""


@dataclass(frozen=True)
class NoDriver:
    """There is nothing to observe."""

    reason: str


@dataclass(frozen=True)
class NoAccess:
    """There is a driver, which this container cannot talk to (any more)."""

    code: int
    """nvmlReturn_t."""
    reason: str


Observation = Look | Xid | Lost | Unanswered | NoDriver | NoAccess
Event = Observation | Hung


@dataclass(frozen=True)
class Verdict:
    """What an event means for its GPU; for `Hung`, for all of them."""

    what: Literal["log", "watch", "degrade", "fatal"]
    """`watch`: its engine may fail of it, and is then started again as ever. `degrade`: it serves, slowly or
    alone; see to it. `fatal`: nothing may run on it any more."""
    reason: str = ""
    is_new: bool = True
    """Whether this is to be said: it is neither nothing, nor what was said before."""


NOTHING = Verdict("log", is_new=False)


@dataclass(frozen=True)
class Gpu:
    """What is remembered of one."""

    fatal: str | None = None
    """Why it is condemned."""
    look: Look | None = None
    faults: tuple[float, ...] = ()
    """When incidents of the class `restart` began."""
    slowdowns: tuple[float, ...] = ()
    unknown_error: float | None = None
    """When it last answered so; None once it answers well."""
    degraded_at: float | None = None
    said: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """What is remembered of all of them."""

    gpus: Mapping[str, Gpu] = field(default_factory=dict)
    hangs: int = 0
    fatal: str | None = None
    """Why all of them are."""
    said: frozenset[str] = frozenset()


def _read() -> dict[int, tuple[str, str, str]]:
    # importlib.resources would take 1.6 MB of memory, and pathlib 0.7 MB.
    with open(f"{__file__.rpartition('/')[0]}/data/xid.json", "rb") as file:  # noqa: PTH123
        table = json.load(file)
    classes = table["classes"]
    return {
        int(code): (row["name"], *(classes[row["class"]][where] for where in ("one_gpu", "tensor_parallel")))
        for code, row in table["xids"].items()
    }


XIDS = _read()
"""Of each XID its name, and what is done about it on one GPU, and under tensor parallelism."""


def judge(history: History, event: Event, now: float, is_tensor_parallel: bool) -> tuple[History, Verdict]:
    """What an event means, and what to remember. Total: no event is out of place."""
    match event:
        case Hung():
            return _hung(history)
        case NoDriver(reason):
            return _once_for_all(history, reason)
        case NoAccess(code, reason):
            text = NO_ACCESS if code == UNKNOWN_ERROR else f"the driver cannot be asked: {reason}"
            return _once_for_all(history, text)
    gpu = history.gpus.get(event.gpu, Gpu())
    if (condemned := gpu.fatal if history.fatal is None else history.fatal) is not None:
        return history, Verdict("fatal", condemned, is_new=False)
    match event:
        case Look():
            gpu, verdict = _look(gpu, event, now)
            history = replace(history, hangs=0, said=history.said - {NO_ACCESS})
        case Xid():
            gpu, verdict = _xid(gpu, event.code, now, is_tensor_parallel)
        case Lost(_, reason):
            verdict = Verdict("fatal", reason)
        case Unanswered(_, code, reason):
            gpu = replace(gpu, unknown_error=now if code == UNKNOWN_ERROR else None)
            others = [one for name, one in history.gpus.items() if name != event.gpu and one.fatal is None]
            if all(
                one.unknown_error is not None and now - one.unknown_error <= AT_ONCE for one in (gpu, *others)
            ):
                history, verdict = _once_for_all(history, NO_ACCESS)
            else:
                gpu, verdict = _once(gpu, f"it cannot be asked: {reason}", now)
    if verdict.what == "fatal":
        gpu = replace(gpu, fatal=verdict.reason)
    elif verdict.what == "degrade":
        gpu = replace(gpu, degraded_at=now)
    return replace(history, gpus={**history.gpus, event.gpu: gpu}), verdict


def health(history: History, gpu: str, now: float) -> Literal["ok", "degraded", "failed", "unknown"]:
    """How well a GPU is; for an hour after it was degraded it is not `ok`."""
    one = history.gpus.get(gpu, Gpu())
    if history.fatal is not None or one.fatal is not None:
        return "failed"
    if one.look is None or history.hangs or one.unknown_error is not None:
        return "unknown"
    return "degraded" if one.degraded_at is not None and now - one.degraded_at < HOUR else "ok"


def is_free(
    looks: Mapping[str, Look],
    gpus: Iterable[str],
    since: float,
    before: Mapping[str, int],
    pids: Iterable[int] = (),
    slack: int = 2**30,
) -> bool:
    """Whether an ended instance holds none of the memory of its GPUs any more.

    `looks` are the last ones, of which those before `since` say nothing. `before` is the memory in use, in
    bytes, when the instance was last started; with so much and `slack` more, a GPU counts as free. That
    works in a container that does not see the pids of others, too, and beside processes that are not ours.
    `pids` are the instance's: as long as NVML lists one of them, its memory is not free. A GPU without a
    `before` is judged by `pids` alone; 0 asks for an empty GPU, as after an earlier supervisor's orphans.
    """
    ours = set(pids)
    for gpu in gpus:
        look = looks.get(gpu)
        if look is None or look.at < since or ours.intersection(look.pids or ()):
            return False
        if look.memory_used is not None and gpu in before and look.memory_used > before[gpu] + slack:
            return False
    return True


def _hung(history: History) -> tuple[History, Verdict]:
    if history.fatal is not None:
        return history, Verdict("fatal", history.fatal, is_new=False)
    history = replace(history, hangs=history.hangs + 1)
    reason = f"NVML does not answer ({history.hangs} of {HANGS} times in a row)"
    if history.hangs < HANGS:
        return history, Verdict("watch", reason)
    return replace(history, fatal=reason), Verdict("fatal", reason)


def _look(gpu: Gpu, look: Look, now: float) -> tuple[Gpu, Verdict]:
    last, gpu = gpu.look, replace(gpu, look=look, unknown_error=None)
    if action := look.recovery_action:
        return gpu, Verdict("fatal", f"the driver asks to {RECOVERY_ACTIONS.get(action, f'do {action}')}")
    if look.remap_failed:
        return gpu, Verdict("fatal", "a row of its memory is faulty and cannot be remapped")
    if look.clocks_reasons and look.clocks_reasons & SLOW:
        return _slowdown(gpu, now, is_new=last is None or not (last.clocks_reasons or 0) & SLOW)
    if look.remap_pending:
        return _once(gpu, "faulty rows of its memory are remapped at its next reset", now)
    for kind in ("uncorrected_ecc", "corrected_ecc"):
        before = getattr(last, kind, None)
        if before is not None and (getattr(look, kind) or 0) > before:
            return _once(gpu, f"it counts {kind.removesuffix('_ecc')} ECC errors", now)
    return gpu, NOTHING


def _slowdown(gpu: Gpu, now: float, is_new: bool) -> tuple[Gpu, Verdict]:
    slowdowns = tuple(at for at in gpu.slowdowns if at > now - SLOWDOWN_WINDOW)
    if is_new or not slowdowns or now - slowdowns[-1] >= LASTING:
        slowdowns = (*slowdowns, now)
    gpu = replace(gpu, slowdowns=slowdowns)
    if len(slowdowns) < SLOWDOWNS:
        return _once(gpu, "it is slowed down: too hot, or short of power", now)
    reason = f"it was slowed down {SLOWDOWNS} times and more in {SLOWDOWN_WINDOW / 60:g} minutes"
    gpu, verdict = _once(gpu, reason, now)
    return gpu, replace(verdict, what="degrade")


def _xid(gpu: Gpu, code: int, now: float, is_tensor_parallel: bool) -> tuple[Gpu, Verdict]:
    name, alone, together = XIDS.get(code, ("unknown to us", "log", "log"))
    reason = f"XID {code} ({name})"
    match together if is_tensor_parallel else alone:
        case "fatal":
            return gpu, _condemned(gpu, reason)
        case "degrade":
            return gpu, Verdict("degrade", reason)
        case "restart":
            faults = tuple(at for at in gpu.faults if at > now - HOUR)
            if not faults or now - faults[-1] >= INCIDENT:
                faults = (*faults, now)
            gpu = replace(gpu, faults=faults)
            if len(faults) >= FAULTS:
                return gpu, _condemned(gpu, f"{reason}, {FAULTS} such incidents in an hour")
            return gpu, Verdict("watch", reason)
        case _:
            return gpu, Verdict("log", reason)


def _condemned(gpu: Gpu, reason: str) -> Verdict:
    """By an XID, unless the driver itself says that this GPU needs no recovery; a change of that is fatal."""
    if gpu.look and gpu.look.recovery_action == 0:
        return Verdict("degrade", f"{reason}, but the driver asks for no recovery")
    return Verdict("fatal", reason)


def _once(gpu: Gpu, reason: str, now: float) -> tuple[Gpu, Verdict]:
    """Say what lasts once an hour."""
    said = {text: at for text, at in gpu.said.items() if now - at < HOUR}
    if reason in said:
        return gpu, Verdict("log", reason, is_new=False)
    return replace(gpu, said={**said, reason: now}), Verdict("log", reason)


def _once_for_all(history: History, reason: str) -> tuple[History, Verdict]:
    is_new = reason not in history.said
    return replace(history, said=history.said | {reason}), Verdict("log", reason, is_new)
