"""The answers of the admin port, from the state: /live, /ready, /health and /metrics."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllmjobs import __version__
from vllmjobs.supervisor.core.model import Child, ChildState, LogEvent, Operation, State, SupervisorSpec
from vllmjobs.supervisor.core.step import is_ready

HttpAnswer = tuple[int, dict[str, Any]]  # an HTTP status and what is sent as JSON


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One GPU as last read; None for what it does not tell."""

    is_healthy: bool | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """The facts about the running supervisor that are not in the state of its decisions."""

    started_at: float  # the time at which the supervisor started, on its monotonic clock
    rss_bytes: int | None = None  # the resident memory of the supervisor itself
    pids: Mapping[str, int] = field(default_factory=dict)  # the process of each child that runs
    gpus: Mapping[str, GpuStatus] | None = None  # None when nothing is known: without a driver, or on a CPU
    progress: Mapping[str, str] = field(default_factory=dict)  # the last progress bar of each loading child
    awaited: Collection[str] = ()  # the children asked to end, where what comes after has not begun


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters, and the last measured times; `counted` keeps those that follow from events."""

    failures: Mapping[str, int] = field(default_factory=dict)
    load_seconds: Mapping[str, float] = field(default_factory=dict)  # of each child's last start
    drain_seconds: Mapping[str, float] = field(default_factory=dict)  # of each child's last stop
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by child and "stdout" or "stderr"
    reaped: int = 0  # the orphans that were reaped


def counted(counters: Counters, operations: Iterable[Operation]) -> Counters:
    """Return the counters after these operations, of which the events count."""
    for operation in operations:
        match operation:
            case LogEvent("instance_failed", _, str(name)):
                failures = {**counters.failures, name: counters.failures.get(name, 0) + 1}
                counters = replace(counters, failures=failures)
            case LogEvent("instance_ready", _, str(name), {"load_seconds": seconds}):
                counters = replace(counters, load_seconds={**counters.load_seconds, name: seconds})
            case LogEvent("instance_drained", _, str(name), {"drain_seconds": seconds}):
                counters = replace(counters, drain_seconds={**counters.drain_seconds, name: seconds})
    return counters


def live() -> HttpAnswer:
    """Answer that the supervisor runs."""
    return 200, {"live": True}


def ready(spec: SupervisorSpec, state: State, name: str = "") -> HttpAnswer:
    """Tell whether a balancer may send requests here, or to one child; 503 the moment a stop begins."""
    if not name:
        is_so = is_ready(spec, state)
        instances = {child.name: _is_up(state, child.name) for child in spec.children}
        return 200 if is_so else 503, {"ready": is_so, "instances": instances}
    if name not in state.children:
        return 404, {"error": f"no such instance: {name}", "instances": sorted(state.children)}
    is_so = _is_up(state, name)
    return 200 if is_so else 503, {"ready": is_so, "instance": name}


def health(spec: SupervisorSpec, state: State, runtime: Runtime, now: float) -> HttpAnswer:
    """Answer with everything, for people and dashboards; 200 while it serves, or starts as it should."""
    status = _status(spec, state, now)
    is_well = status in ("ok", "sleeping", "starting") or (status == "degraded" and is_ready(spec, state))
    phases = {one.phase for one in state.children.values()}
    return 200 if is_well else 503, {
        "status": status,
        "gpu_available": _has_gpu(spec, runtime),
        "model_loaded": bool(phases & {"ready", "leaving"}),
        "memory_usage": {
            "rss_bytes": runtime.rss_bytes,
            "gpus": [
                {"gpu": name, "used_bytes": gpu.used_bytes, "total_bytes": gpu.total_bytes}
                for name, gpu in sorted((runtime.gpus or {}).items())
            ],
        },
        "balancer_status": "in" if is_ready(spec, state) else "out",
        "progress": dict(runtime.progress),
        "uptime_seconds": round(now - runtime.started_at, 3),
        "instances": {
            child.name: _shown(child, state, runtime, spec.limits.window, now) for child in spec.children
        },
    }


def _status(spec: SupervisorSpec, state: State, now: float) -> str:
    if state.is_stopping:
        return "failed" if state.code else "stopping"
    ones = state.children.values()
    phases = {one.phase for one in ones}
    if phases <= {"ready", "sleeping"}:
        return "sleeping" if "sleeping" in phases else "ok"
    is_as_planned = all(_is_as_planned(one, now - spec.limits.window) for one in ones)
    return "starting" if is_as_planned else "degraded"


def _is_as_planned(one: ChildState, since: float) -> bool:
    """Tell whether a child serves, is started without trouble, or ends because that was asked for."""
    if one.phase in ("ready", "sleeping"):
        return True
    is_ending = one.phase in ("terminating", "killing") and not one.is_planned
    is_off = one.phase == "given_up" or one.then == "give_up" or is_ending
    return not is_off and all(at <= since for at in one.failures)


def _is_up(state: State, name: str) -> bool:
    return state.children[name].phase == "ready" and not state.is_stopping


def _has_gpu(spec: SupervisorSpec, runtime: Runtime) -> bool | None:
    """Tell whether one of the children's GPUs works; None where they have none, or nothing is known."""
    wanted = {gpu for child in spec.children for gpu in child.gpus}
    if runtime.gpus is None or not wanted:
        return None
    return any(gpu.is_healthy is not False for name, gpu in runtime.gpus.items() if name in wanted)


def _shown(child: Child, state: State, runtime: Runtime, window: float, now: float) -> dict[str, Any]:
    one = state.children[child.name]
    is_up = one.phase in ("ready", "leaving") and one.ready_at is not None
    return {
        "phase": one.phase,
        "ready": _is_up(state, child.name),
        "pid": runtime.pids.get(child.name),
        "gpus": list(child.gpus),
        "restarts": one.restarts,
        "failures": sum(at > now - window for at in one.failures),
        "ready_seconds": round(now - (one.ready_at or 0), 3) if is_up else None,
        "unanswered": one.unanswered,
        "awaited": child.name in runtime.awaited,
        "why": one.why or one.answered,
    }


PREFIX = "vllmjobs_supervisor_"
_Samples = list[tuple[dict[str, str], float | None]]


def metrics(spec: SupervisorSpec, state: State, runtime: Runtime, counters: Counters, now: float) -> str:
    """Return a page of Prometheus' text format 0.0.4; unknown values are left out."""
    page = ""
    for name, kind, about, samples in _metrics(spec, state, runtime, counters, now):
        if known := [(labels, value) for labels, value in samples if value is not None]:
            page += f"# HELP {PREFIX}{name} {about}\n# TYPE {PREFIX}{name} {kind}\n"
            page += "".join(f"{PREFIX}{name}{_labels(labels)} {float(value)!r}\n" for labels, value in known)
    return page


def _metrics(
    spec: SupervisorSpec, state: State, runtime: Runtime, counters: Counters, now: float
) -> list[tuple[str, str, str, _Samples]]:
    """Return the name, the type, the help and the values of each metric, in the order of the page."""
    ones = {child.name: state.children[child.name] for child in spec.children}
    gpus = sorted((runtime.gpus or {}).items())
    dropped = sorted(counters.dropped.items())

    def of_each(values: Mapping[str, float]) -> _Samples:
        return [({"instance": name}, values[name]) for name in ones if name in values]

    return [
        ("info", "gauge", "The version of the supervisor.", [({"version": __version__}, 1)]),
        ("uptime_seconds", "gauge", "Seconds that the supervisor has run.", [({}, now - runtime.started_at)]),
        ("ready", "gauge", "Whether a balancer may send requests here.", [({}, is_ready(spec, state))]),
        ("instance_ready", "gauge", "Whether an instance may be sent requests.",
         of_each({name: _is_up(state, name) for name in ones})),
        ("instance_restarts_total", "counter", "Starts of an instance after the first one.",
         of_each({name: one.restarts for name, one in ones.items()})),
        ("instance_failures_total", "counter", "Ends that nobody asked for, exit code 0 included.",
         of_each({name: counters.failures.get(name, 0) for name in ones})),
        ("instance_given_up", "gauge", "Whether an instance is not started any more.",
         of_each({name: one.phase == "given_up" for name, one in ones.items()})),
        ("load_seconds", "gauge", "Seconds from last start to first answer.", of_each(counters.load_seconds)),
        ("drain_seconds", "gauge", "Seconds that the last drain took.", of_each(counters.drain_seconds)),
        ("gpu_healthy", "gauge", "Whether a GPU works.",
         [({"gpu": name}, gpu.is_healthy) for name, gpu in gpus]),
        ("gpu_memory_used_bytes", "gauge", "Memory in use by all that runs on a GPU.",
         [({"gpu": name}, gpu.used_bytes) for name, gpu in gpus]),
        ("gpu_memory_total_bytes", "gauge", "Memory of a GPU.",
         [({"gpu": name}, gpu.total_bytes) for name, gpu in gpus]),
        ("log_lines_dropped_total", "counter", "Lines of the log that were too many, or that nobody took.",
         [({"instance": name, "stream": stream}, count) for (name, stream), count in dropped]),
        ("zombies_reaped_total", "counter", "Reaped orphans of the children.", [({}, counters.reaped)]),
        ("resident_memory_bytes", "gauge", "Memory of the supervisor itself.", [({}, runtime.rss_bytes)]),
    ]  # fmt: skip


def _labels(labels: Mapping[str, str]) -> str:
    escaped = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
    pairs = (f'{name}="{value.translate(escaped)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}" if labels else ""
