"""The paths of the admin port, and what each does."""

import os
from dataclasses import replace

from vllmjobs.supervisor.admin import Routes
from vllmjobs.supervisor.core.engines import Engine
from vllmjobs.supervisor.core.model import StopAsked
from vllmjobs.supervisor.core.report import HttpAnswer, Runtime, health, live, metrics, ready
from vllmjobs.supervisor.settings import SettingsError
from vllmjobs.supervisor.supervise import Supervisor


def routes(supervisor: Supervisor) -> Routes:
    """Return what the admin port answers; only on a unix socket can anything be asked for."""
    configuration = supervisor.configuration
    reports: Routes = {
        "GET /live": lambda _: live(),
        "GET /ready": lambda _: _ready(supervisor),
        "GET /ready/": lambda name: _ready(supervisor, name),
        "GET /health": lambda _: _health(supervisor),
        "GET /metrics": lambda _: (200, _metrics(supervisor)),
    }
    if configuration.settings.admin_path is None:
        return reports
    return {
        **reports,
        "POST /restart/": lambda name: _become(supervisor, name, configuration.same_again(name)),
        "POST /stop": lambda _: _stop(supervisor),
        "POST /reload": lambda secrets: _reload(supervisor, secrets),
        "POST /reload/": lambda name: _become(supervisor, name, configuration.wanted(name)),
    }


def _ready(supervisor: Supervisor, name: str = "") -> HttpAnswer:
    return ready(supervisor.configuration.spec, supervisor.state, name)


def _health(supervisor: Supervisor) -> HttpAnswer:
    return health(supervisor.configuration.spec, supervisor.state, _runtime(supervisor), supervisor.now)


def _metrics(supervisor: Supervisor) -> str:
    running = supervisor.children.running.values()
    dropped = {key: count for engine in running for key, count in engine.dropped.items()}
    dropped["", "output"] = supervisor.output.dropped  # of all that was to be written
    counters = replace(supervisor.counters, dropped=dropped, reaped=supervisor.processes.reaped)
    spec, state = supervisor.configuration.spec, supervisor.state
    return metrics(spec, state, _runtime(supervisor), counters, supervisor.now)


def _runtime(supervisor: Supervisor) -> Runtime:
    running = supervisor.children.running.items()
    return Runtime(
        supervisor.started_at,
        rss_bytes=_resident(),
        pids={name: engine.pid for name, engine in running if engine.pid is not None},
        gpus=supervisor.gpus.status(),
        progress={name: engine.progress for name, engine in running if engine.progress is not None},
        awaited=frozenset(supervisor.configuration.awaited),
    )


def _stop(supervisor: Supervisor) -> HttpAnswer:
    supervisor.handle(StopAsked())
    return 202, {"stopping": True}


def _reload(supervisor: Supervisor, secrets: str) -> HttpAnswer:
    try:
        return 200, {"rounds": supervisor.reload.read_again(secrets)}
    except SettingsError as error:
        return 409, {"error": str(error)}


def _become(supervisor: Supervisor, name: str, engine: Engine | None) -> HttpAnswer:
    """Let a child end, and become this engine, or nothing."""
    if engine is None and name not in supervisor.children.running:
        return _ready(supervisor, name)  # tells which there are
    if supervisor.state.is_stopping:
        return 409, {"error": "it is stopping"}
    if engine is not None and engine.is_front:
        return 409, {"error": f"{name} is the balancer, which is not restarted"}
    supervisor.reload.become(name, engine)
    return 202, {"instance": name}


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 (pathlib takes 0.7 MB)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
