"""The loop of the supervisor: each trigger goes to `core/step.py`, and what that decides is done.

Nothing here blocks or decides.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from vllmjobs.supervisor.children import Children
from vllmjobs.supervisor.core import model
from vllmjobs.supervisor.core.model import LogEvent, Operation, Trigger
from vllmjobs.supervisor.core.report import Counters, counted
from vllmjobs.supervisor.core.step import begin, due, step
from vllmjobs.supervisor.front import Front
from vllmjobs.supervisor.gpu.fence import fence
from vllmjobs.supervisor.gpu.monitor import GpuMonitor
from vllmjobs.supervisor.log.lines import event
from vllmjobs.supervisor.log.output import Output
from vllmjobs.supervisor.log.rotation import Rotation
from vllmjobs.supervisor.processes import Processes
from vllmjobs.supervisor.reload import Configuration, Reload
from vllmjobs.supervisor.settings import Settings
from vllmjobs.supervisor.signals import Signals
from vllmjobs.supervisor.unforeseen import Unforeseen

ROTATION_S, ROTATION_AGAIN_S = 1.0, 60.0  # between two looks at the log's size; after it could not be rotated
STOPS = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class Supervisor:
    """One run, from the first start to the exit code; made where its event loop runs."""

    def __init__(
        self, settings: Settings, processes: Processes, output: Output, tokens: Mapping[str, str]
    ) -> None:
        """Supervise `settings`; `tokens` are those of the supervisor alone, which fence a node."""
        self.configuration = Configuration(settings, os.environ)
        self.processes, self.output, self._tokens = processes, output, tokens
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        self.state, self._first = begin(self.configuration.spec, self.started_at)
        self.gpus = GpuMonitor(self.configuration.spec.children, processes, self.handle, self.log)
        self.children = Children(processes, self.gpus, output, self.handle, self.log)
        self.children.take(settings, self.state.children)
        self._front = Front(settings.upstreams_path, self.children.send, self.log)
        self.reload = Reload(
            self.configuration, self.children, self.gpus, self._front, handle=self.handle, log=self.log
        )
        self.counters = Counters()
        self._tick: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._fences: set[asyncio.Task[None]] = set()
        self._exit_code: asyncio.Future[int] = self._loop.create_future()

    async def run(self) -> int:
        """Supervise until all is over; return the exit code. Raises `ProcessError`."""
        self._loop.set_exception_handler(Unforeseen(self.log, self._loop.time))
        signals = self._signals()
        try:
            await self.children.clear_leftovers(self.configuration.spec.limits.gone)
            self.gpus.start()
            self._follow()
            self._perform(self._first)
            self._spawn(self.children.survey())
            if log := self.configuration.settings.log:
                self._spawn(self._rotate(Rotation(log)))
            return await self._exit_code
        finally:
            for task in self._tasks:
                task.cancel()
            self.gpus.close()
            self.children.close()
            if self._fences:  # a few seconds at most
                await asyncio.wait(self._fences)
            signals.close()

    def handle(self, trigger: Trigger) -> None:
        """Decide what to do about a trigger, and do it; a failure to decide ends the supervisor."""
        try:
            self._handle(trigger)
        except Exception as error:
            if not self._exit_code.done():
                self._exit_code.set_exception(error)

    def _handle(self, trigger: Trigger) -> None:
        self.state, operations = step(self.configuration.spec, self.state, trigger, self.now)
        self.children.enter_phases(self.state)
        self._follow()
        self._perform(operations)
        self.reload.settle(self.state)
        if self._tick:
            self._tick.cancel()
        at = due(self.configuration.spec, self.state)
        if at is not None and not self._exit_code.done():
            self._tick = self._loop.call_at(at, self.handle, model.Tick())

    @property
    def now(self) -> float:
        """Return the time on the clock of the state."""
        return self._loop.time()

    def log(self, entry: LogEvent) -> None:
        """Write an event to the log."""
        self.output.write([event(entry.name, entry.level, time.time(), entry.child, entry.fields)])

    def _perform(self, operations: list[Operation]) -> None:
        self.counters = counted(self.counters, operations)
        for operation in operations:
            match operation:
                case LogEvent():
                    self.log(operation)
                case model.Start(name):
                    self.children.start(name)
                case model.Clear(name):
                    self.children.running[name].stop_probing()
                    self._spawn(self.children.clear(name))
                case model.Terminate(name):
                    self.children.terminate(name)
                case model.Kill(name):
                    self.children.kill(name)
                case model.Fence(gpu, reason):
                    self._fences.add(self._loop.create_task(self._fence(gpu, reason)))
                case model.Exit(code):
                    self._exit_code.set_result(code)

    def _follow(self) -> None:
        ready = {name for name, child in self.state.children.items() if child.phase == "ready"}
        engines = [running.engine for running in self.children.running.values()]
        self._front.follow(self.configuration.settings.upstreams, engines, ready)

    async def _rotate(self, rotation: Rotation) -> None:
        """Begin a new log file whenever the old one is full, for ever."""
        pause = ROTATION_S
        while True:
            await asyncio.sleep(pause)
            pause = ROTATION_S
            if rotation.is_due and self.output.is_whole and (failed := rotation.turn()):
                self.log(failed)
                pause = ROTATION_AGAIN_S

    def _signals(self) -> Signals:
        handlers: dict[int, Callable[[], object]] = dict.fromkeys(
            STOPS, partial(self.handle, model.StopAsked())
        )
        handlers |= {number: partial(self.children.send_all, number) for number in FORWARDED}
        if self.configuration.settings.admin_path:  # on a box, where SIGHUP means that a terminal was closed
            handlers[signal.SIGHUP] = self._hang_up
        handlers[signal.SIGCHLD] = self.children.reap
        return Signals(handlers)

    def _hang_up(self) -> None:
        if not self.state.is_stopping:  # the shell sends it, and then the kernel: that is no hurry
            self.handle(model.StopAsked())

    async def _fence(self, gpu: str, reason: str) -> None:
        if why := await fence(gpu, reason, {**os.environ, **self._tokens}):
            self.log(LogEvent("node_not_fenced", "WARNING", fields={"gpu": gpu, "reason": why}))
        else:
            self.log(LogEvent("node_fenced", "WARNING", fields={"gpu": gpu, "reason": reason}))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        """Pass on a failure, which must not be a wait without end."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._exit_code.done():
            self._exit_code.set_exception(error)
