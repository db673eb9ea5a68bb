"""The paths of the admin port, and what each does."""

from __future__ import annotations

import os
from dataclasses import replace

from vllmjobs.supervisor.admin import Routes
from vllmjobs.supervisor.core.engines import Engine
from vllmjobs.supervisor.core.model import StopAsked
from vllmjobs.supervisor.core.report import Answer, Runtime, health, live, metrics, ready
from vllmjobs.supervisor.settings import SettingsError
from vllmjobs.supervisor.supervise import Supervisor


def routes(supervisor: Supervisor) -> Routes:
    """Return what the admin port answers; only on a unix socket can anything be asked for."""
    shown = _Reports(supervisor)
    reports: Routes = {
        "GET /live": lambda _: live(),
        "GET /ready": lambda _: shown.ready(),
        "GET /ready/": shown.ready,
        "GET /health": lambda _: shown.health(),
        "GET /metrics": lambda _: (200, shown.metrics()),
    }
    if supervisor.configuration.settings.admin_path is None:
        return reports
    requests = _Requests(supervisor)
    return {
        **reports,
        "POST /restart/": requests.restart,
        "POST /stop": requests.stop,
        "POST /reload": requests.reload,
        "POST /reload/": requests.reload_one,
    }


class _Reports:
    """The answers about the state of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def ready(self, name: str = "") -> Answer:
        """Answer whether a balancer may send requests."""
        return ready(self._supervisor.configuration.spec, self._supervisor.state, name)

    def health(self) -> Answer:
        """Answer with everything."""
        supervisor = self._supervisor
        return health(supervisor.configuration.spec, supervisor.state, self._runtime(), supervisor.now)

    def metrics(self) -> str:
        """Return the page of metrics."""
        supervisor = self._supervisor
        running = supervisor.children.running.values()
        dropped = {key: count for engine in running for key, count in engine.dropped.items()}
        dropped["", "output"] = supervisor.output.dropped  # of all that was to be written
        counters = replace(supervisor.counters, dropped=dropped, reaped=supervisor.processes.reaped)
        spec, state = supervisor.configuration.spec, supervisor.state
        return metrics(spec, state, self._runtime(), counters, supervisor.now)

    def _runtime(self) -> Runtime:
        supervisor = self._supervisor
        running = supervisor.children.running.items()
        return Runtime(
            supervisor.started_at,
            rss_bytes=_resident(),
            pids={name: engine.pid for name, engine in running if engine.pid is not None},
            gpus=supervisor.gpus.status(),
            progress={name: engine.progress for name, engine in running if engine.progress is not None},
            awaited=frozenset(supervisor.configuration.awaited),
        )


class _Requests:
    """The requests to a supervisor on one box."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def stop(self, _: str) -> Answer:
        """Stop everything."""
        self._supervisor.handle(StopAsked())
        return 202, {"stopping": True}

    def reload(self, secrets: str) -> Answer:
        """Read the configuration again."""
        try:
            return 200, {"rounds": self._supervisor.reload.read_again(secrets)}
        except SettingsError as error:
            return 409, {"error": str(error)}

    def reload_one(self, name: str) -> Answer:
        """Let one engine become what the configuration has."""
        return self._become(name, self._supervisor.configuration.wanted(name))

    def restart(self, name: str) -> Answer:
        """Restart one engine."""
        return self._become(name, self._supervisor.configuration.same_again(name))

    def _become(self, name: str, engine: Engine | None) -> Answer:
        supervisor = self._supervisor
        if engine is None and name not in supervisor.children.running:
            return ready(supervisor.configuration.spec, supervisor.state, name)  # tells which there are
        if supervisor.state.is_stopping:
            return 409, {"error": "it stops"}
        if engine is not None and engine.is_front:
            return 409, {"error": f"{name} is not restarted"}
        supervisor.reload.become(name, engine)
        return 202, {"instance": name}


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 (pathlib takes 0.7 MB)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
