"""The verdict on a GPU: a pure function of its events and of the time.

A GPU that is condemned stays so: only a person, or a supervisor that starts anew, trusts it again. Times are
seconds of a monotonic clock. What each XID means stands in `data/xid.json`, beside its source.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vllmjobs.supervisor.core import gpu_events
from vllmjobs.supervisor.core.gpu_events import GpuEvent, GpuReading

HOUR = 3600.0
FAULTS = 3  # the incidents of the class `restart` in an hour with which the GPU itself is to blame
INCIDENT = 10.0  # seconds: one illegal access is reported once for every multiprocessor that it stops
SLOWDOWNS = 6
SLOWDOWN_WINDOW = 600.0
LASTING = 60.0  # the seconds after which a slowdown that lasts counts again
HANGS = 3
SLACK = 2**30  # bytes that others may take meanwhile, of a GPU that counts as free
AT_ONCE = 30.0  # the seconds in which all GPUs are read, however slowly

# nvmlClocksEventReason*, from nvml.h: hardware slowdown, software and hardware thermal slowdown, power brake.
# Not the software power cap (4), under which a GPU that is busy runs all day.
SLOW = 8 | 32 | 64 | 128
UNKNOWN_ERROR = 999  # NVML_ERROR_UNKNOWN
NO_ACCESS = (
    "the access to every GPU is lost, and no GPU is at fault: a reload of systemd can take the devices "
    "from a container (NVIDIA/nvidia-container-toolkit#48); start this container anew"
)


@dataclass(frozen=True)
class Meaning:
    """The meaning of an event for its GPU; for `Hung`, for all of them."""

    what: Literal["log", "watch", "degrade", "fatal"]
    """`watch`: its engine may fail of it, and is then started again as ever. `degrade`: it serves, slowly or
    alone; see to it. `fatal`: nothing may run on it any more."""
    reason: str = ""
    is_new: bool = True  # True if this is to be logged: it is neither nothing, nor what was logged before


NOTHING = Meaning("log", is_new=False)


@dataclass(frozen=True)
class GpuHistory:
    """The memory of one GPU's past."""

    fatal: str | None = None  # the reason for which it is condemned
    reading: GpuReading | None = None  # the last reading
    faults: tuple[float, ...] = ()  # the times at which incidents of the class `restart` began
    slowdowns: tuple[float, ...] = ()  # the times at which slowdowns began, or had lasted
    unknown_error: float | None = None  # the time at which it last answered so; None once it answers well
    degraded_at: float | None = None  # the time at which it was last degraded
    logged: Mapping[str, float] = field(default_factory=dict)  # the time at which each reason was last logged


@dataclass(frozen=True)
class History:
    """The memory of all GPUs' past."""

    gpus: Mapping[str, GpuHistory] = field(default_factory=dict)
    hangs: int = 0  # the times in a row that NVML did not answer
    fatal: str | None = None  # the reason for which all of them are condemned
    logged: frozenset[str] = frozenset()  # the reasons that were logged for all of them


def _read() -> dict[int, tuple[str, str, str]]:
    # importlib.resources would take 1.6 MB of memory, and pathlib 0.7 MB.
    with open(f"{__file__.rpartition('/')[0]}/data/xid.json", "rb") as file:  # noqa: PTH123
        table = json.load(file)
    classes = table["classes"]
    return {
        int(code): (row["name"], *(classes[row["class"]][where] for where in ("one_gpu", "tensor_parallel")))
        for code, row in table["xids"].items()
    }


XIDS = _read()  # each XID with its name, and what is done about it on one GPU, and under tensor parallelism


def judge(history: History, event: GpuEvent, now: float, is_tensor_parallel: bool) -> tuple[History, Meaning]:
    """Return what to remember, and what an event means. Total: no event is out of place."""
    match event:
        case gpu_events.Hung():
            return _hung(history)
        case gpu_events.NoDriver(reason):
            return _once_for_all(history, reason)
        case gpu_events.NoAccess(code, reason):
            text = NO_ACCESS if code == UNKNOWN_ERROR else f"the driver cannot be asked: {reason}"
            return _once_for_all(history, text)
    gpu = history.gpus.get(event.gpu, GpuHistory())
    if (condemned := gpu.fatal if history.fatal is None else history.fatal) is not None:
        return history, Meaning("fatal", condemned, is_new=False)
    match event:
        case GpuReading():
            gpu, verdict = _reading(gpu, event, now)
            history = replace(history, hangs=0, logged=history.logged - {NO_ACCESS})
        case gpu_events.Xid():
            gpu, verdict = _xid(gpu, event.code, now, is_tensor_parallel)
        case gpu_events.Lost(_, reason):
            verdict = Meaning("fatal", reason)
        case gpu_events.Unanswered(_, code, reason):
            gpu = replace(gpu, unknown_error=now if code == UNKNOWN_ERROR else None)
            others = [one for name, one in history.gpus.items() if name != event.gpu and one.fatal is None]
            times = [one.unknown_error for one in (gpu, *others)]
            if all(at is not None and now - at <= AT_ONCE for at in times):
                history, verdict = _once_for_all(history, NO_ACCESS)
            else:
                gpu, verdict = _once(gpu, f"it cannot be asked: {reason}", now)
    if verdict.what == "fatal":
        gpu = replace(gpu, fatal=verdict.reason)
    elif verdict.what == "degrade":
        gpu = replace(gpu, degraded_at=now)
    return replace(history, gpus={**history.gpus, event.gpu: gpu}), verdict


def health(history: History, gpu: str, now: float) -> Literal["ok", "degraded", "failed", "unknown"]:
    """Return the health of a GPU; for an hour after it was degraded it is not `ok`."""
    one = history.gpus.get(gpu, GpuHistory())
    if history.fatal is not None or one.fatal is not None:
        return "failed"
    if one.reading is None or history.hangs or one.unknown_error is not None:
        return "unknown"
    return "degraded" if one.degraded_at is not None and now - one.degraded_at < HOUR else "ok"


def is_free(
    readings: Mapping[str, GpuReading], gpus: Iterable[str], since: float, before: Mapping[str, int]
) -> bool:
    """Tell whether a child that ended holds none of the memory of its GPUs any more.

    `readings` are the last ones, of which those before `since` tell nothing. `before` is the memory in use,
    in bytes, when the child was last started; with so much and `SLACK` more, a GPU counts as free. That
    works in a container that does not see the pids of others, too, and beside processes that are not ours.
    A GPU without a `before` is free; 0 asks for an empty GPU, as after an earlier supervisor's orphans.
    """
    for gpu in gpus:
        reading = readings.get(gpu)
        if reading is None or reading.at < since:
            return False
        if reading.memory_used is not None and gpu in before and reading.memory_used > before[gpu] + SLACK:
            return False
    return True


def _hung(history: History) -> tuple[History, Meaning]:
    if history.fatal is not None:
        return history, Meaning("fatal", history.fatal, is_new=False)
    history = replace(history, hangs=history.hangs + 1)
    reason = f"NVML does not answer ({history.hangs} of {HANGS} times in a row)"
    if history.hangs < HANGS:
        return history, Meaning("watch", reason)
    return replace(history, fatal=reason), Meaning("fatal", reason)


def _reading(gpu: GpuHistory, reading: GpuReading, now: float) -> tuple[GpuHistory, Meaning]:
    last, gpu = gpu.reading, replace(gpu, reading=reading, unknown_error=None)
    if reading.recovery:
        return gpu, Meaning("fatal", reading.recovery)
    if reading.remap_failed:
        return gpu, Meaning("fatal", "a row of its memory is faulty and cannot be remapped")
    if reading.clocks_reasons and reading.clocks_reasons & SLOW:
        return _slowdown(gpu, now, is_new=last is None or not (last.clocks_reasons or 0) & SLOW)
    if reading.remap_pending:
        return _once(gpu, "faulty rows of its memory are remapped at its next reset", now)
    for kind in ("uncorrected_ecc", "corrected_ecc"):
        before = getattr(last, kind, None)
        if before is not None and (getattr(reading, kind) or 0) > before:
            return _once(gpu, f"it counts {kind.removesuffix('_ecc')} ECC errors", now)
    return gpu, NOTHING


def _slowdown(gpu: GpuHistory, now: float, is_new: bool) -> tuple[GpuHistory, Meaning]:
    slowdowns = tuple(at for at in gpu.slowdowns if at > now - SLOWDOWN_WINDOW)
    if is_new or not slowdowns or now - slowdowns[-1] >= LASTING:
        slowdowns = (*slowdowns, now)
    gpu = replace(gpu, slowdowns=slowdowns)
    if len(slowdowns) < SLOWDOWNS:
        return _once(gpu, "it is slowed down: too hot, or short of power", now)
    reason = f"it was slowed down {SLOWDOWNS} or more times in {SLOWDOWN_WINDOW / 60:g} minutes"
    gpu, verdict = _once(gpu, reason, now)
    return gpu, replace(verdict, what="degrade")


def _xid(gpu: GpuHistory, code: int, now: float, is_tensor_parallel: bool) -> tuple[GpuHistory, Meaning]:
    name, alone, together = XIDS.get(code, ("unknown to us", "log", "log"))
    reason = f"XID {code} ({name})"
    match together if is_tensor_parallel else alone:
        case "fatal":
            return gpu, _condemned(gpu, reason)
        case "degrade":
            return gpu, Meaning("degrade", reason)
        case "restart":
            faults = tuple(at for at in gpu.faults if at > now - HOUR)
            if not faults or now - faults[-1] >= INCIDENT:
                faults = (*faults, now)
            gpu = replace(gpu, faults=faults)
            if len(faults) >= FAULTS:
                return gpu, _condemned(gpu, f"{reason}, {FAULTS} such incidents in an hour")
            return gpu, Meaning("watch", reason)
        case _:
            return gpu, Meaning("log", reason)


def _condemned(gpu: GpuHistory, reason: str) -> Meaning:
    """Condemn a GPU by an XID, unless the driver says it needs no recovery; a change of that is fatal."""
    if gpu.reading and gpu.reading.recovery_action == 0:
        return Meaning("degrade", f"{reason}, but the driver asks for no recovery")
    return Meaning("fatal", reason)


def _once(gpu: GpuHistory, reason: str, now: float) -> tuple[GpuHistory, Meaning]:
    """Log what lasts once an hour."""
    logged = {text: at for text, at in gpu.logged.items() if now - at < HOUR}
    if reason in logged:
        return gpu, Meaning("log", reason, is_new=False)
    return replace(gpu, logged={**logged, reason: now}), Meaning("log", reason)


def _once_for_all(history: History, reason: str) -> tuple[History, Meaning]:
    is_new = reason not in history.logged
    return replace(history, logged=history.logged | {reason}), Meaning("log", reason, is_new)
