"""What the admin port shows: from where things stand to /live, /ready, /health and /metrics. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllmjobs import __version__
from vllmjobs.supervisor.model import Action, Child, Instance, Plan, Say, State
from vllmjobs.supervisor.policy import is_ready

Answer = tuple[int, dict[str, Any]]
"""An HTTP status and what is sent as JSON."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as last seen; None for what it does not say."""

    is_healthy: bool | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What the policy's state does not know."""

    started_at: float
    """When the supervisor started, on the policy's clock."""
    rss_bytes: int | None = None
    """Of the supervisor itself."""
    pids: Mapping[str, int] = field(default_factory=dict)
    gpus: Mapping[str, Gpu] | None = None
    """None when nothing is known of any: without a driver, or on a CPU."""
    progress: Mapping[str, str] = field(default_factory=dict)
    """The last word of each child about its load."""
    balancer: str | None = None
    """"in" or "out", or what a balancer says; None when one follows /ready."""
    awaited: Collection[str] = ()
    """Children that were asked to end, and what is to come after them has not begun."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What only grows, or was measured last; `counted` keeps those that the policy speaks of."""

    failures: Mapping[str, int] = field(default_factory=dict)
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each child's last start."""
    drain_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each child's last stop."""
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Lines of a child's stream, "stdout" or "stderr", that were not passed on."""
    reaped: int = 0
    """Orphans."""


def counted(counters: Counters, actions: Iterable[Action]) -> Counters:
    """The counters after what the policy said."""
    for action in actions:
        match action:
            case Say("instance_failed", _, str(name)):
                failures = {**counters.failures, name: counters.failures.get(name, 0) + 1}
                counters = replace(counters, failures=failures)
            case Say("instance_ready", _, str(name), {"load_seconds": seconds}):
                counters = replace(counters, load_seconds={**counters.load_seconds, name: seconds})
            case Say("instance_drained", _, str(name), {"drain_seconds": seconds}):
                counters = replace(counters, drain_seconds={**counters.drain_seconds, name: seconds})
    return counters


def live() -> Answer:
    """That it answers at all."""
    return 200, {"live": True}


def ready(plan: Plan, state: State, name: str = "") -> Answer:
    """Whether a balancer may send requests here, or to one instance; 503 the moment a stop begins."""
    if not name:
        is_so = is_ready(plan, state)
        instances = {child.name: _is_up(state, child.name) for child in plan.children}
        return 200 if is_so else 503, {"ready": is_so, "instances": instances}
    if name not in state.instances:
        return 404, {"error": f"no such instance: {name}", "instances": sorted(state.instances)}
    is_so = _is_up(state, name)
    return 200 if is_so else 503, {"ready": is_so, "instance": name}


def health(plan: Plan, state: State, look: Look, now: float) -> Answer:
    """All of it, for people and dashboards; 200 while it serves, or starts as it should."""
    status = _status(plan, state, now)
    is_well = status in ("ok", "starting") or (status == "degraded" and is_ready(plan, state))
    phases = {one.phase for one in state.instances.values()}
    balancer = look.balancer or ("in" if is_ready(plan, state) else "out")
    return 200 if is_well else 503, {
        "status": status,
        "gpu_available": _has_gpu(plan, look),
        "model_loaded": bool(phases & {"ready", "leaving"}),
        "memory_usage": {
            "rss_bytes": look.rss_bytes,
            "gpus": [
                {"gpu": name, "used_bytes": gpu.used_bytes, "total_bytes": gpu.total_bytes}
                for name, gpu in sorted((look.gpus or {}).items())
            ],
        },
        "balancer_status": balancer,
        "progress": dict(look.progress),
        "uptime_seconds": round(now - look.started_at, 3),
        "instances": {
            child.name: _shown(child, state, look, plan.limits.window, now) for child in plan.children
        },
    }


def _status(plan: Plan, state: State, now: float) -> str:
    if state.is_stopping:
        return "failed" if state.code else "stopping"
    ones = state.instances.values()
    if all(one.phase == "ready" for one in ones):
        return "ok"
    is_as_planned = all(_is_as_planned(one, now - plan.limits.window) for one in ones)
    return "starting" if is_as_planned else "degraded"


def _is_as_planned(one: Instance, since: float) -> bool:
    """Whether it serves, is started without trouble, or ends because that was asked for."""
    if one.phase == "ready":
        return True
    is_ending = one.phase in ("terminating", "killing") and not one.is_planned
    is_off = one.phase == "given_up" or one.then == "give_up" or is_ending
    return not is_off and all(at <= since for at in one.failures)


def _is_up(state: State, name: str) -> bool:
    return state.instances[name].phase == "ready" and not state.is_stopping


def _has_gpu(plan: Plan, look: Look) -> bool | None:
    """Whether one of those that are asked for works; None where none is, or nothing is known."""
    wanted = {gpu for child in plan.children for gpu in child.gpus}
    if look.gpus is None or not wanted:
        return None
    return any(gpu.is_healthy is not False for name, gpu in look.gpus.items() if name in wanted)


def _shown(child: Child, state: State, look: Look, window: float, now: float) -> dict[str, Any]:
    one = state.instances[child.name]
    is_up = one.phase in ("ready", "leaving") and one.ready_at is not None
    return {
        "phase": one.phase,
        "ready": _is_up(state, child.name),
        "pid": look.pids.get(child.name),
        "gpus": list(child.gpus),
        "restarts": one.restarts,
        "failures": sum(at > now - window for at in one.failures),
        "ready_seconds": round(now - (one.ready_at or 0), 3) if is_up else None,
        "unanswered": one.unanswered,
        "awaited": child.name in look.awaited,
        "why": one.why,
    }


def metrics(plan: Plan, state: State, look: Look, counters: Counters, now: float) -> str:
    """A page of Prometheus' text format 0.0.4; what is not known is left out."""
    return "".join(
        f"# HELP {_PREFIX}{name} {_escaped(about)}\n# TYPE {_PREFIX}{name} {kind}\n"
        + "".join(f"{_PREFIX}{name}{_labels(labels)} {float(value)!r}\n" for labels, value in samples)
        for name, kind, about, samples in _families(plan, state, look, counters, now)
        if samples
    )


_PREFIX = "vllmjobs_supervisor_"
_Samples = list[tuple[dict[str, str], float]]
_Family = tuple[str, str, str, _Samples]


def _families(plan: Plan, state: State, look: Look, counters: Counters, now: float) -> Iterator[_Family]:
    """Each with its name, type and help."""
    ones = {child.name: state.instances[child.name] for child in plan.children}
    gpus = sorted((look.gpus or {}).items())

    def of_each(values: Mapping[str, float]) -> _Samples:
        return [({"instance": name}, values[name]) for name in ones if name in values]

    def of_gpus(values: Mapping[str, float | None]) -> _Samples:
        return [({"gpu": name}, value) for name, value in values.items() if value is not None]

    yield "info", "gauge", "Which version this is.", [({"version": __version__}, 1)]
    yield "uptime_seconds", "gauge", "Since the supervisor started.", [({}, now - look.started_at)]
    yield "ready", "gauge", "Whether a balancer may send requests here.", [({}, is_ready(plan, state))]
    yield (
        "instance_ready", "gauge", "Whether an instance may be sent requests.",
        of_each({name: _is_up(state, name) for name in ones}),
    )  # fmt: skip
    yield (
        "instance_restarts_total", "counter", "Starts after the first.",
        of_each({name: one.restarts for name, one in ones.items()}),
    )  # fmt: skip
    yield (
        "instance_failures_total", "counter", "Ends that nobody asked for, exit code 0 included.",
        of_each({name: counters.failures.get(name, 0) for name in ones}),
    )  # fmt: skip
    yield (
        "instance_given_up", "gauge", "Whether an instance is not started any more.",
        of_each({name: one.phase == "given_up" for name, one in ones.items()}),
    )  # fmt: skip
    yield "load_seconds", "gauge", "From the last start to the first answer.", of_each(counters.load_seconds)
    yield "drain_seconds", "gauge", "Of the last drain.", of_each(counters.drain_seconds)
    yield (
        "gpu_healthy",
        "gauge",
        "Whether a GPU works.",
        of_gpus({name: gpu.is_healthy for name, gpu in gpus}),
    )
    yield (
        "gpu_memory_used_bytes", "gauge", "Of all that run on a GPU.",
        of_gpus({name: gpu.used_bytes for name, gpu in gpus}),
    )  # fmt: skip
    yield (
        "gpu_memory_total_bytes", "gauge", "What a GPU has.",
        of_gpus({name: gpu.total_bytes for name, gpu in gpus}),
    )  # fmt: skip
    yield (
        "log_lines_dropped_total", "counter", "Lines that were too many, or that nobody took.",
        [({"instance": name, "stream": stream}, n) for (name, stream), n in sorted(counters.dropped.items())],
    )  # fmt: skip
    yield "zombies_reaped_total", "counter", "Orphans of the children.", [({}, counters.reaped)]
    if look.rss_bytes is not None:
        yield "resident_memory_bytes", "gauge", "Of the supervisor itself.", [({}, look.rss_bytes)]


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value, quote=True)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}" if labels else ""


def _escaped(text: str, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
