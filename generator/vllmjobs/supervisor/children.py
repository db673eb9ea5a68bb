"""The children of a supervisor: started, signalled, and cleared away to the last of their trees."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from vllmjobs.supervisor.core.model import Cleared, Exited, Handle, Log, LogEvent, State
from vllmjobs.supervisor.engine import RunningEngine
from vllmjobs.supervisor.gpu.monitor import WATCH, GpuMonitor
from vllmjobs.supervisor.log.output import Output
from vllmjobs.supervisor.processes import ProcessError, Processes, Program, StartError
from vllmjobs.supervisor.settings import Settings

NOT_STARTED = 127  # a shell's exit code for: no such command
RESCAN_S = 0.05  # between two scans for what was killed
SURVEY_S = 10.0  # between two surveys of who descends from whom: a process found once is known when it hides


class Children:
    """The engines and balancers by name, and what runs of each."""

    def __init__(
        self, processes: Processes, gpus: GpuMonitor, output: Output, handle: Handle, log: Log
    ) -> None:
        """Start nothing yet; `handle` gets what happens to the children."""
        self.running: dict[str, RunningEngine] = {}
        self._processes, self._gpus, self._output = processes, gpus, output
        self._handle, self._log = handle, log
        self._loop = asyncio.get_running_loop()
        self._memory: dict[str, int] = {}  # in use by GPU, when a child, whichever, was last started on it
        self._left_over: set[str] = set()  # of which an earlier supervisor had left something, until started

    def take(self, settings: Settings, begun: Iterable[str]) -> None:
        """Hold these engines from now on: `begun` anew, the others as they run."""
        names = [engine.name for engine in settings.engines]
        for name in self.running.keys() - set(names) | set(begun) & self.running.keys():
            self.running.pop(name).close()
        hang, rate = settings.limits.hang, settings.log_rate
        self.running = {
            engine.name: self.running.get(engine.name)
            or RunningEngine(engine, hang, rate, self._output, self._handle)
            for engine in settings.engines
        }

    def enter_phases(self, state: State) -> None:
        """Let each child know its phase, which its probes follow."""
        for name, running in self.running.items():
            running.enter(state.children[name].phase)

    async def clear_leftovers(self, seconds: float) -> None:
        """Kill what an earlier supervisor left, for so many seconds at most."""
        for name, pids in self._processes.leftovers().items():
            self._log(LogEvent("leftovers_killed", "WARNING", name, {"pids": sorted(pids)}))
            self._left_over.add(name)
        for _ in range(round(seconds / RESCAN_S)):
            if not self._processes.kill_leftovers():
                break
            await asyncio.sleep(RESCAN_S)

    def start(self, name: str) -> None:
        """Start a child; one that cannot be started has exited."""
        running = self.running[name]
        engine = running.engine
        self._memory |= self._gpus.memory(engine.gpus)
        self._left_over.discard(name)
        try:
            running.check_port()
            running.started(self._processes.start(Program(name, engine.command, engine.env)))
        except StartError as error:
            self._log(LogEvent("instance_not_started", "ERROR", name, {"reason": error.reason}))
            self._loop.call_soon(self._handle, Exited(name, NOT_STARTED))
            return
        self._log(LogEvent("instance_started", "INFO", name, {"pid": running.pid}))

    async def clear(self, name: str) -> None:
        """Kill what is left of a child, until nothing is, then wait for the memory of its GPUs."""
        running = self.running[name]
        while running is self.running.get(name) and self.kill(name):  # else another has its name
            await asyncio.sleep(RESCAN_S)
        gpus, since = running.engine.gpus, self._loop.time()
        running.close()
        self._gpus.read_now()
        while not self._gpus.are_free(gpus, since, None if name in self._left_over else self._memory):
            await asyncio.sleep(RESCAN_S)
        if running is self.running.get(name):
            self._handle(Cleared(name))

    def terminate(self, name: str) -> None:
        """Send a child the signal that stops it."""
        self.send(name, self.running[name].engine.stop_signal)

    def send(self, name: str, number: int) -> None:
        """Send a signal to a child's own process."""
        self._processes.terminate(name, number)

    def send_all(self, number: int) -> None:
        """Send a signal to every child's own process."""
        for name in self.running:
            self.send(name, number)

    def kill(self, name: str) -> bool:
        """Kill a child's whole tree; tell whether something of it may be left."""
        try:
            return bool(self._processes.kill(name))
        except ProcessError as error:  # such as too many open files
            self._log(LogEvent("tree_not_seen", "WARNING", name, {"reason": str(error)}))
            return True

    async def survey(self) -> None:
        """Scan now and then who descends from whom, for ever."""
        while True:
            await asyncio.sleep(SURVEY_S)
            with suppress(ProcessError):
                self._processes.tree(next(iter(self.running)))

    def reap(self) -> None:
        """Take in which processes have ended."""
        for ended in self._processes.reap():
            if ended.name == WATCH:
                self._gpus.ended()
            elif ended.name:
                if ended.name in self.running:
                    self.running[ended.name].read_pipes()
                self._handle(Exited(ended.name, ended.status))

    def close(self) -> None:
        """Kill all of them."""
        for name, running in self.running.items():
            running.stop_probing()
            self.kill(name)
            running.close()
