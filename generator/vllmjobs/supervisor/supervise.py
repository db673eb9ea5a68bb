"""The loop: what happens goes to the policy, and what it decides is done. Nothing here blocks or decides."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vllmjobs.supervisor import policy, report
from vllmjobs.supervisor.admin import Admin, Routes
from vllmjobs.supervisor.changes import differences, rounds, settled
from vllmjobs.supervisor.engine import Running
from vllmjobs.supervisor.gpu.fence import fence
from vllmjobs.supervisor.gpu.watcher import WATCH, Gpus
from vllmjobs.supervisor.log.lines import event
from vllmjobs.supervisor.log.output import Output
from vllmjobs.supervisor.model import (
    OVER,
    Action,
    Added,
    Clear,
    Cleared,
    Event,
    Exit,
    Exited,
    Fence,
    Kill,
    RemoveAsked,
    Say,
    Start,
    StopAsked,
    Terminate,
    Tick,
)
from vllmjobs.supervisor.processes import ProcessError, Processes, StartError
from vllmjobs.supervisor.settings import Engine, Settings, SettingsError, read_file
from vllmjobs.supervisor.upstreams import Upstreams

STOPS = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
NOT_STARTED = 127  # of a shell: no such command
RESCAN_S = 0.05  # between two looks at what was killed
SURVEY_S = 10.0  # between two looks at who descends from whom: who was seen once is known when it hides


class Supervisor:
    """One run, from the first start to the exit code; made where its event loop runs."""

    def __init__(self, settings: Settings, processes: Processes, output: Output) -> None:
        self._settings, self._processes, self._output = settings, processes, output
        self._loop = asyncio.get_running_loop()
        self._plan = plan = settings.plan
        self._began = self._loop.time()
        self._state, self._first = policy.begin(plan, self._began)
        self._running = {engine.name: self._made(engine) for engine in settings.engines}
        self._wanted = {engine.name: engine for engine in settings.engines}
        """As the configuration has them since it was last read."""
        self._awaited: dict[str, Engine | None] = {}
        """What engines are to become once they are over; None for nothing."""
        self._environ = dict(os.environ)
        self._gpus = Gpus(plan.children, processes, self.happen, self._say)
        self._memory: dict[str, int] = {}
        """By GPU, what was in use when an engine was last started on it, whichever it was."""
        self._left: set[str] = set()
        """Children of which an earlier supervisor had left something, until they are started."""
        self._upstreams = Upstreams(settings.upstreams_path)
        self._is_told = True
        """Whether the balancer has read its files since they were written."""
        self._counters = report.Counters()
        self._tick: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._fences: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[int] = self._loop.create_future()

    async def run(self) -> int:
        """Supervise until all is over; return the exit code. Raises `AdminError`, `ProcessError`."""
        settings = self._settings
        admin = Admin(self._routes(), settings.admin_host, settings.admin_port, settings.admin_path)
        await admin.start()
        for number in STOPS:
            self._loop.add_signal_handler(number, self.happen, StopAsked())
        for number in FORWARDED:
            self._loop.add_signal_handler(number, self._forward, number)
        if settings.admin_path:  # on a box, where it tells of a terminal that was closed
            self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            for name, pids in self._processes.leftovers().items():
                self._say(Say("leftovers_killed", "WARNING", name, {"pids": sorted(pids)}))
                self._left.add(name)
            for _ in range(round(self._plan.limits.gone / RESCAN_S)):
                if not self._processes.kill_leftovers():
                    break
                await asyncio.sleep(RESCAN_S)
            self._gpus.start()
            self._route()
            self._do(self._first)
            self._spawn(self._survey())
            return await self._over
        finally:
            for task in self._tasks:
                task.cancel()
            self._gpus.close()
            for name, running in self._running.items():
                running.ended()
                self._kill(name)
                running.close()
            if self._fences:  # a few seconds at most
                await asyncio.wait(self._fences)
            await admin.close()

    def happen(self, event: Event) -> None:
        """Take in what happened, and do what the policy decides."""
        self._state, actions = policy.step(self._plan, self._state, event, self._loop.time())
        for name, running in self._running.items():
            running.is_in(self._state.instances[name].phase)
        self._route()
        self._do(actions)
        self._settle()
        if self._tick:
            self._tick.cancel()
        due = policy.due(self._plan, self._state)
        if due is not None and not self._over.done():
            self._tick = self._loop.call_at(due, self.happen, Tick())

    def _do(self, actions: list[Action]) -> None:
        self._counters = report.counted(self._counters, actions)
        for action in actions:
            match action:
                case Say():
                    self._say(action)
                case Start(name):
                    self._start(name)
                case Clear(name):
                    self._running[name].ended()
                    self._spawn(self._clear(name))
                case Terminate(name):
                    self._processes.terminate(name, self._running[name].engine.stop_signal)
                case Kill(name):
                    self._kill(name)
                case Fence(gpu, reason):
                    self._fences.add(self._loop.create_task(self._fence(gpu, reason)))
                case Exit(code):
                    self._over.set_result(code)

    def _route(self) -> None:
        """Tell the balancer in front who is ready."""
        ready = {name for name, one in self._state.instances.items() if one.phase == "ready"}
        lines = [one.engine.line for name, one in self._running.items() if name in ready and one.engine.line]
        try:
            self._is_told = not self._upstreams.write(self._settings.upstreams, lines) and self._is_told
        except OSError as error:
            self._say(Say("upstreams_not_written", "ERROR", fields={"reason": str(error)}))
        for name, running in self._running.items():
            if running.engine.is_front and name in ready and not self._is_told:
                self._processes.terminate(name, signal.SIGHUP)
                self._is_told = True

    def _settle(self) -> None:
        """Let go of engines that are over and no longer wanted, and take on those that wait for a place."""
        if self._state.is_stopping:
            return
        over = {name for name, one in self._state.instances.items() if one.phase in OVER}
        engines, coming = settled(self._settings.engines, self._awaited, over)
        names = [engine.name for engine in engines]
        if not coming and len(names) == len(self._running):
            return
        self._settings = replace(self._settings, engines=engines)
        self._plan = self._settings.plan
        self._awaited = {
            name: to for name, to in self._awaited.items() if name not in coming and (to or name in names)
        }
        for name in self._running.keys() - set(names) | set(coming) & self._running.keys():
            self._running.pop(name).close()
        made = {engine.name: self._made(engine) for engine in engines if engine.name in coming}
        self._running = {name: {**self._running, **made}[name] for name in names}
        self._gpus.watch(self._plan.children)
        self.happen(Added(coming))

    def _made(self, engine: Engine) -> Running:
        hang, rate = self._settings.limits.hang, self._settings.log_rate
        return Running(engine, hang, rate, self._output, self.happen)

    def _start(self, name: str) -> None:
        running = self._running[name]
        self._memory |= self._gpus.memory(running.engine.gpus)
        self._left.discard(name)
        try:
            running.check_port()
            running.start(self._processes.start(running.program))
        except StartError as error:
            self._say(Say("instance_not_started", "ERROR", name, {"reason": error.why}))
            self._loop.call_soon(self.happen, Exited(name, NOT_STARTED))
            return
        self._say(Say("instance_started", "INFO", name, {"pid": running.pid}))

    async def _clear(self, name: str) -> None:
        """Kill what is left, until nothing is, then wait for the memory of its GPUs."""
        running = self._running[name]
        while running is self._running.get(name) and self._kill(name):  # else another has its name
            await asyncio.sleep(RESCAN_S)
        gpus, since = running.engine.gpus, self._loop.time()
        running.close()
        self._gpus.look()
        while not self._gpus.are_free(gpus, since, None if name in self._left else self._memory):
            await asyncio.sleep(RESCAN_S)
        if running is self._running.get(name):
            self.happen(Cleared(name))

    def _kill(self, name: str) -> bool:
        """Whether something of it may be left."""
        try:
            return bool(self._processes.kill(name))
        except ProcessError as error:  # such as too many open files
            self._say(Say("tree_not_seen", "WARNING", name, {"reason": str(error)}))
            return True

    async def _survey(self) -> None:
        while True:
            await asyncio.sleep(SURVEY_S)
            with suppress(ProcessError):
                self._processes.tree(next(iter(self._running)))

    async def _fence(self, gpu: str, reason: str) -> None:
        if why := await fence(gpu, reason, os.environ):
            self._say(Say("node_not_fenced", "WARNING", fields={"gpu": gpu, "reason": why}))
        else:
            self._say(Say("node_fenced", "WARNING", fields={"gpu": gpu, "reason": reason}))

    def _reap(self) -> None:
        for ended in self._processes.reap():
            if ended.name == WATCH:
                self._gpus.ended()
            elif ended.name:
                if ended.name in self._running:
                    self._running[ended.name].hear()
                self.happen(Exited(ended.name, ended.status))

    def _hang_up(self) -> None:
        if not self._state.is_stopping:  # the shell says it, and then the kernel: that is no hurry
            self.happen(StopAsked())

    def _forward(self, number: int) -> None:
        for name in self._running:
            self._processes.terminate(name, number)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        """What fails here must not be a wait without end."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._over.done():
            self._over.set_exception(error)

    def _say(self, said: Say) -> None:
        self._output.write([event(said.event, said.level, time.time(), said.child, said.fields)])

    def _routes(self) -> Routes:
        routes: Routes = {
            "GET /live": lambda _: report.live(),
            "GET /ready": lambda _: report.ready(self._plan, self._state),
            "GET /ready/": lambda name: report.ready(self._plan, self._state, name),
            "GET /health": lambda _: report.health(self._plan, self._state, self._look(), self._loop.time()),
            "GET /metrics": lambda _: (200, self._metrics()),
        }
        if self._settings.admin_path is None:
            return routes
        return {
            **routes,
            "POST /restart/": self._restart,
            "POST /stop": self._stop,
            "POST /reload": self._reload,
            "POST /reload/": self._reload_one,
        }

    def _restart(self, name: str) -> report.Answer:
        engines = {engine.name: engine for engine in self._settings.engines}
        return self._become(name, self._awaited.get(name) or engines.get(name))

    def _reload(self, secrets: str) -> report.Answer:
        """Read the configuration again, and take all of it but the engines, which are reloaded one by one."""
        assert self._settings.path
        try:
            environ = self._environ | json.loads(secrets or "{}")
            read = read_file(self._settings.path, environ)
        except (SettingsError, ValueError, TypeError) as error:
            return 409, {"error": str(error)}
        self._environ, self._wanted = environ, {engine.name: engine for engine in read.engines}
        self._awaited = {name: self._wanted.get(name) for name in self._awaited}
        engines = tuple(
            self._wanted.get(engine.name, engine) if engine.is_front else engine
            for engine in self._settings.engines
        )
        self._settings = replace(read, engines=engines)
        self._plan = self._settings.plan
        for engine in engines:
            self._running[engine.name].engine = engine
        self._is_told = False  # it reads its own configuration again, too
        self._say(Say("configuration_read", fields=differences(engines, read.engines)))
        self.happen(Tick())
        return 200, {"rounds": rounds(engines, read.engines)}

    def _reload_one(self, name: str) -> report.Answer:
        return self._become(name, self._wanted.get(name))

    def _become(self, name: str, engine: Engine | None) -> report.Answer:
        if engine is None and name not in self._running:
            return report.ready(self._plan, self._state, name)  # says which there are
        is_front = engine is not None and engine.is_front
        if self._state.is_stopping or is_front:
            return 409, {"error": "it stops" if self._state.is_stopping else f"{name} is not restarted"}
        self._awaited[name] = engine
        self.happen(RemoveAsked(name))
        return 202, {"instance": name}

    def _stop(self, _: str) -> report.Answer:
        self.happen(StopAsked())
        return 202, {"stopping": True}

    def _look(self) -> report.Look:
        running = self._running.items()
        return report.Look(
            self._began,
            rss_bytes=_resident(),
            pids={name: one.pid for name, one in running if one.pid is not None},
            gpus=self._gpus.shown(),
            progress={name: one.progress for name, one in running if one.progress is not None},
            awaited=frozenset(self._awaited),
        )

    def _metrics(self) -> str:
        dropped = {key: count for one in self._running.values() for key, count in one.dropped.items()}
        dropped["", "output"] = self._output.dropped  # of all that was to be written
        counters = replace(self._counters, dropped=dropped, reaped=self._processes.reaped)
        return report.metrics(self._plan, self._state, self._look(), counters, self._loop.time())


def _resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 (pathlib takes 0.7 MB)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
