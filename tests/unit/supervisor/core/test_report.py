"""What the admin port shows for where things stand."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

import vllmjobs
from vllmjobs.supervisor.core import report
from vllmjobs.supervisor.core.model import (
    Child,
    Cleared,
    Condemned,
    Exited,
    LogEvent,
    Probed,
    RemoveAsked,
    State,
    StopAsked,
    SupervisorSpec,
    Tick,
    Trigger,
)
from vllmjobs.supervisor.core.report import Counters, GpuStatus, Runtime
from vllmjobs.supervisor.core.step import begin, step

TWO = SupervisorSpec((Child("chat-0", ("GPU-a",)), Child("chat-1", ("GPU-b",))))
RUNTIME = Runtime(
    started_at=0.0,
    rss_bytes=20_000_000,
    pids={"chat-0": 41, "chat-1": 42},
    gpus={"GPU-a": GpuStatus(True, 60 << 30, 80 << 30), "GPU-b": GpuStatus(None, None, None)},
    progress={"chat-0": "Loading safetensors checkpoint shards: 50%"},
)


def after(spec: SupervisorSpec, *events: Trigger) -> State:
    """Where things stand after these, one a second."""
    state, _ = begin(spec, 0.0)
    for now, event in enumerate(events, 1):
        state, _ = step(spec, state, event, float(now))
    return state


def serving(name: str) -> tuple[Trigger, ...]:
    return Cleared(name), Tick(), Probed(name, serves=True, progress=True, unanswered=3)


def asleep(name: str) -> Trigger:
    return Probed(name, serves=False, progress=True, sleeps=True)


BOTH = (*serving("chat-0"), *serving("chat-1"))


def shown(
    state: State, runtime: Runtime = RUNTIME, spec: SupervisorSpec = TWO, now: float = 10.0
) -> tuple[int, str]:
    status, body = report.health(spec, state, runtime, now)
    return status, body["status"]


# /health


def test_health_tells_all_of_it_in_one_answer() -> None:
    assert report.health(TWO, after(TWO, *serving("chat-0")), RUNTIME, now=10.0) == (
        200,
        {
            "status": "starting",
            "gpu_available": True,
            "model_loaded": True,
            "memory_usage": {
                "rss_bytes": 20_000_000,
                "gpus": [
                    {"gpu": "GPU-a", "used_bytes": 60 << 30, "total_bytes": 80 << 30},
                    {"gpu": "GPU-b", "used_bytes": None, "total_bytes": None},
                ],
            },
            "balancer_status": "in",
            "progress": {"chat-0": "Loading safetensors checkpoint shards: 50%"},
            "uptime_seconds": 10.0,
            "instances": {
                "chat-0": {
                    "phase": "ready",
                    "ready": True,
                    "pid": 41,
                    "gpus": ["GPU-a"],
                    "restarts": 0,
                    "failures": 0,
                    "ready_seconds": 7.0,
                    "unanswered": 3,
                    "awaited": False,
                    "why": "",
                },
                "chat-1": {
                    "phase": "clearing",
                    "ready": False,
                    "pid": 42,
                    "gpus": ["GPU-b"],
                    "restarts": 0,
                    "failures": 0,
                    "ready_seconds": None,
                    "unanswered": None,
                    "awaited": False,
                    "why": "",
                },
            },
        },
    )


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), (200, "starting")),
        (BOTH, (200, "ok")),
        ((*BOTH, asleep("chat-1")), (200, "sleeping")),
        ((*BOTH, asleep("chat-0"), asleep("chat-1")), (200, "sleeping")),
        ((*BOTH, asleep("chat-0"), Exited("chat-1", 0)), (503, "degraded")),
        ((*BOTH, Exited("chat-1", 0)), (200, "degraded")),
        ((*BOTH, Exited("chat-1", 0), Exited("chat-0", 1)), (503, "degraded")),
        ((*BOTH, RemoveAsked("chat-1")), (200, "starting")),
        ((*BOTH, Condemned("GPU-b", "XID 79")), (200, "degraded")),
        ((*BOTH, StopAsked()), (503, "stopping")),
    ],
    ids=[
        "at first",
        "all ready",
        "one asleep",
        "all asleep",
        "one asleep, one failed",
        "one failed",
        "all failed",
        "restart asked for",
        "a GPU lost",
        "stop",
    ],
)
def test_health_is_200_while_it_serves_or_starts_as_it_should(
    events: tuple[Trigger, ...], expected: tuple[int, str]
) -> None:
    assert shown(after(TWO, *events)) == expected


def test_a_stop_that_nobody_asked_for_is_a_failure() -> None:
    spec = SupervisorSpec((Child("chat-0", ("GPU-a",)),))
    state = after(spec, *serving("chat-0"), Condemned("GPU-a", "XID 79"))
    assert shown(state, spec=spec) == (503, "failed")


def test_an_engine_that_hangs_degrades_before_it_is_gone() -> None:
    ready_at = 3
    state = after(TWO, *BOTH, *[Tick()] * (ready_at + int(TWO.limits.hang) - len(BOTH)))
    assert {name: one.phase for name, one in state.children.items()} == {
        "chat-0": "killing",
        "chat-1": "ready",
    }
    assert shown(state, now=ready_at + TWO.limits.hang) == (200, "degraded")


def test_a_failure_is_forgotten_when_the_window_has_passed() -> None:
    state = after(TWO, *BOTH, Exited("chat-1", 1))
    assert shown(state, now=606.0) == (200, "degraded")
    assert shown(state, now=608.0) == (200, "starting")


def test_fewer_than_the_least_number_of_instances_are_not_enough() -> None:
    spec = replace(TWO, min_alive=2)
    assert shown(after(spec, *BOTH, Exited("chat-1", 1)), spec=spec) == (503, "degraded")


@pytest.mark.parametrize(
    ("gpus", "available"),
    [
        (None, None),
        ({}, False),
        ({"GPU-a": GpuStatus(is_healthy=False), "GPU-b": GpuStatus(is_healthy=False)}, False),
        ({"GPU-a": GpuStatus(is_healthy=False), "GPU-b": GpuStatus(is_healthy=True)}, True),
        ({"GPU-of-others": GpuStatus(is_healthy=True)}, False),
    ],
)
def test_a_gpu_is_available_when_one_of_those_asked_for_works(
    gpus: dict[str, GpuStatus] | None, available: bool | None
) -> None:
    runtime = replace(RUNTIME, gpus=gpus)
    assert report.health(TWO, after(TWO), runtime, 1.0)[1]["gpu_available"] is available


def test_on_a_cpu_no_gpu_is_missed() -> None:
    spec = SupervisorSpec((Child("chat-0"),))
    assert report.health(spec, after(spec), replace(RUNTIME, gpus={}), 1.0)[1]["gpu_available"] is None


def test_the_balancer_follows_ready() -> None:
    state = after(TWO, *BOTH, StopAsked())
    assert report.health(TWO, state, RUNTIME, 9.0)[1]["balancer_status"] == "out"


# /ready and /live


def test_ready_turns_503_the_moment_a_stop_begins() -> None:
    state = after(TWO, *BOTH)
    assert report.ready(TWO, state) == (200, {"ready": True, "instances": {"chat-0": True, "chat-1": True}})
    state, _ = step(TWO, state, StopAsked(), 9.0)
    assert report.ready(TWO, state) == (
        503,
        {"ready": False, "instances": {"chat-0": False, "chat-1": False}},
    )
    assert report.ready(TWO, state, "chat-0")[0] == 503


def test_each_instance_has_a_ready_of_its_own() -> None:
    state = after(TWO, *serving("chat-0"))
    assert report.ready(TWO, state, "chat-0") == (200, {"ready": True, "instance": "chat-0"})
    assert report.ready(TWO, state, "chat-1") == (503, {"ready": False, "instance": "chat-1"})
    assert report.ready(TWO, state, "chat-2")[0] == 404


def test_live_needs_nothing() -> None:
    assert report.live() == (200, {"live": True})


# /metrics


def samples(page: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name without the prefix, then by the labels' values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation
        for sample in family.samples:
            name = sample.name.removeprefix("vllmjobs_supervisor_")
            found.setdefault(name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_the_metrics_are_those_of_the_manual() -> None:
    counters = Counters(
        failures={"chat-1": 1},
        load_seconds={"chat-0": 34.5},
        drain_seconds={"chat-0": 2.25},
        dropped={("chat-0", "stdout"): 7},
        reaped=1000,
    )
    state = after(TWO, *BOTH, Exited("chat-1", 0))
    assert samples(report.metrics(TWO, state, RUNTIME, counters, now=10.0)) == {
        "info": {(vllmjobs.__version__,): 1},
        "uptime_seconds": {(): 10},
        "ready": {(): 1},
        "instance_ready": {("chat-0",): 1, ("chat-1",): 0},
        "instance_restarts_total": {("chat-0",): 0, ("chat-1",): 0},
        "instance_failures_total": {("chat-0",): 0, ("chat-1",): 1},
        "instance_given_up": {("chat-0",): 0, ("chat-1",): 0},
        "load_seconds": {("chat-0",): 34.5},
        "drain_seconds": {("chat-0",): 2.25},
        "gpu_healthy": {("GPU-a",): 1},
        "gpu_memory_used_bytes": {("GPU-a",): 60 << 30},
        "gpu_memory_total_bytes": {("GPU-a",): 80 << 30},
        "log_lines_dropped_total": {("chat-0", "stdout"): 7},
        "zombies_reaped_total": {(): 1000},
        "resident_memory_bytes": {(): 20_000_000},
    }


def test_hostile_names_are_read_back_as_they_were() -> None:
    hostile = 'a"b\\n\\"\nc{}=,#'
    spec = SupervisorSpec((Child(hostile),))
    found = samples(report.metrics(spec, after(spec), RUNTIME, Counters(), 1.0))
    assert found["instance_ready"] == {(hostile,): 0}


def test_the_counters_follow_what_the_policy_says() -> None:
    state, _ = begin(TWO, 0.0)
    counters, failed = Counters(), (*BOTH, Exited("chat-0", 1), Exited("chat-1", -9))
    for now, event in enumerate((*failed, *serving("chat-1"), StopAsked(), StopAsked()), 1):
        state, operations = step(TWO, state, event, float(now))
        counters = report.counted(counters, operations)
    assert counters.failures == {"chat-0": 1, "chat-1": 1}
    assert counters.load_seconds == {"chat-0": 2.0, "chat-1": 1.0}
    assert report.counted(counters, [LogEvent("instance_failed", "ERROR", "chat-0")]).failures["chat-0"] == 2
    drained = report.counted(
        counters, [LogEvent("instance_drained", "INFO", "chat-0", {"drain_seconds": 1.5})]
    )
    assert drained.drain_seconds == {"chat-0": 1.5, "chat-1": 1.0}
