"""The loop: what happens goes to the policy, and what it decides is done. Nothing here blocks or decides."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vllmjobs.supervisor import policy, report
from vllmjobs.supervisor.admin import Admin, AdminError, Routes
from vllmjobs.supervisor.engine import Running
from vllmjobs.supervisor.fence import fence
from vllmjobs.supervisor.gpus import WATCH, Gpus
from vllmjobs.supervisor.logs import event
from vllmjobs.supervisor.model import (
    Action,
    Clear,
    Cleared,
    Event,
    Exit,
    Exited,
    Fence,
    Kill,
    RestartAsked,
    Say,
    Start,
    StopAsked,
    Terminate,
    Tick,
)
from vllmjobs.supervisor.output import Output
from vllmjobs.supervisor.processes import ProcessError, Processes, StartError
from vllmjobs.supervisor.settings import USAGE, Settings, SettingsError, read
from vllmjobs.supervisor.upstreams import Upstreams

STOPS = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
NOT_STARTED = 127  # of a shell: no such command
RESCAN_S = 0.05  # between two looks at what was killed
SURVEY_S = (
    10.0  # between two looks at who descends from whom: what was seen once is known when it hides later
)
LAST_WORDS_S = 1.0  # for the output, when all is over


class Supervisor:
    """One run, from the first start to the exit code; made where its event loop runs."""

    def __init__(self, settings: Settings, processes: Processes, output: Output) -> None:
        self._settings, self._processes, self._output = settings, processes, output
        self._loop = asyncio.get_running_loop()
        self._plan = plan = settings.plan
        self._began = self._loop.time()
        self._state, self._first = policy.begin(plan, self._began)
        self._running = {
            engine.name: Running(engine, plan.limits.hang, settings.log_rate, output, self.happen)
            for engine in settings.engines
        }
        names = [gpu for engine in settings.engines for gpu in engine.gpus]
        is_parallel = any(len(engine.gpus) > 1 for engine in settings.engines)
        self._gpus = Gpus(names, is_parallel, processes, self.happen, self._say)
        self._memory: dict[str, dict[str, int] | None] = {}
        """By child, what was in use on its GPUs when it was started; None before, if something was left."""
        self._upstreams = Upstreams(settings.upstreams_path, settings.upstreams)
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
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            for name, pids in self._processes.leftovers().items():
                self._say(Say("leftovers_killed", "WARNING", name, {"pids": sorted(pids)}))
                self._memory[name] = None
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
        try:
            self._is_told = not self._upstreams.write(ready) and self._is_told
        except OSError as error:
            self._say(Say("upstreams_not_written", "ERROR", fields={"reason": str(error)}))
        for name, running in self._running.items():
            if running.engine.is_front and name in ready and not self._is_told:
                self._processes.terminate(name, signal.SIGHUP)
                self._is_told = True

    def _start(self, name: str) -> None:
        running = self._running[name]
        self._memory[name] = self._gpus.memory(running.engine.gpus)
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
        while self._kill(name):
            await asyncio.sleep(RESCAN_S)
        running, since = self._running[name], self._loop.time()
        running.close()
        gpus = running.engine.gpus
        self._gpus.look()
        while not self._gpus.are_free(gpus, since, self._memory.get(name, {})):
            await asyncio.sleep(RESCAN_S)
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
                self._running[ended.name].hear()
                self.happen(Exited(ended.name, ended.status))

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
        return {**routes, "POST /restart/": self._restart, "POST /stop": self._stop}

    def _restart(self, name: str) -> report.Answer:
        if name not in self._running:
            return report.ready(self._plan, self._state, name)  # says which there are
        self.happen(RestartAsked(name))
        phase = self._state.instances[name].phase
        return 202 if phase == "leaving" else 409, {"instance": name, "phase": phase}

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
        )

    def _metrics(self) -> str:
        dropped = {key: count for one in self._running.values() for key, count in one.dropped.items()}
        dropped["", "output"] = self._output.dropped  # of all that was to be written
        counters = replace(self._counters, dropped=dropped, reaped=self._processes.reaped)
        return report.metrics(self._plan, self._state, self._look(), counters, self._loop.time())


def _resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 (pathlib takes 0.7 MB)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def supervise(settings: Settings) -> int:
    """Supervise until all is over; return the exit code. Raises `AdminError`, `ProcessError`."""
    output = Output(1, asyncio.get_running_loop())
    try:
        return await Supervisor(settings, Processes(settings.identity), output).run()
    finally:
        output.close(LAST_WORDS_S)


def main() -> None:
    """`vllmjobs-supervise`."""
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--help" in options or "-h" in options:
        print(USAGE, end="")
        return
    if "--version" in options:
        from vllmjobs import __version__  # noqa: PLC0415

        print(f"vllmjobs-supervise {__version__}")
        return
    try:
        settings = read(arguments, os.environ)
    except SettingsError as error:
        print(f"vllmjobs-supervise: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(asyncio.run(supervise(settings)))
    except (AdminError, ProcessError) as error:
        print(f"vllmjobs-supervise: {error}", file=sys.stderr)
        sys.exit(1)
