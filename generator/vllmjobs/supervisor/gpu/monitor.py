"""The monitor of the children's GPUs: the process that reads NVML, its events, and whether memory is free."""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from vllmjobs.supervisor.core.gpu_events import GpuEvent, GpuReader, Hung, Xid
from vllmjobs.supervisor.core.gpu_verdicts import History, health, is_free, judge
from vllmjobs.supervisor.core.model import Child, Condemned, Handle, Log, LogEvent
from vllmjobs.supervisor.core.report import GpuStatus
from vllmjobs.supervisor.processes import Processes, Program, StartError

WATCH = "gpu-watch"  # the process's name among the children
AGAIN_S = 5.0  # after it ended without being told to
_LEVELS = {"log": "INFO", "watch": "WARNING", "degrade": "WARNING", "fatal": "ERROR"}


class GpuMonitor:
    """The GPUs that the children name, by UUID or index; without any, nothing is started."""

    def __init__(self, children: Iterable[Child], processes: Processes, handle: Handle, log: Log) -> None:
        """Watch the GPUs of `children`; `handle` is called for a GPU that is condemned."""
        self._wanted = _gpus_of(children)
        self._processes, self._handle, self._log = processes, handle, log
        self._loop = asyncio.get_running_loop()
        self._reader = GpuReader(self._loop.time())
        self._history = History()
        self._pipes: tuple[int, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._pause = AGAIN_S
        self._is_closed = False

    def watch(self, children: Iterable[Child]) -> None:
        """Watch the GPUs of these children from now on."""
        before = self._wanted
        self._wanted = _gpus_of(children)
        if self._wanted.keys() == before.keys():
            return
        if self._pipes:
            self._again()
        else:
            self.start()

    def start(self) -> None:
        """Start the process, where there are GPUs to watch."""
        if not self._wanted or self._is_closed:
            return
        command = (sys.executable, "-m", "vllmjobs.supervisor.gpu.watch", *self._wanted)
        try:
            started = self._processes.start(Program(WATCH, command, os.environ, forks=False, stdin=True))
        except StartError as error:
            self._log(LogEvent("gpu_watch_failed", "ERROR", fields={"reason": error.reason}))
            return
        assert started.stdin is not None
        self._pipes = (started.stdout, started.stderr, started.stdin)
        self._reader.started(self._loop.time())
        self._loop.add_reader(started.stdout, self._read)
        self._wait()

    def ended(self) -> None:
        """Start the process again, unless there is nothing to watch."""
        self._let_go()
        if not self._reader.is_over and not self._is_closed:
            self._timer = self._loop.call_later(self._pause, self.start)
        self._pause = AGAIN_S

    def close(self) -> None:
        """End the process: its stdin ends."""
        self._is_closed = True
        self._let_go()
        self._processes.terminate(WATCH)

    def read_now(self) -> None:
        """Ask the process for a reading at once."""
        if self._pipes:
            with suppress(BrokenPipeError, BlockingIOError):
                os.write(self._pipes[2], b"\n")

    def memory(self, gpus: Iterable[str]) -> dict[str, int]:
        """Return the bytes in use on each of these GPUs, as last read, by UUID."""
        return {
            reading.gpu: reading.memory_used
            for reading in self._reader.readings.values()
            if reading.memory_used is not None and self._name(reading.gpu) in set(gpus)
        }

    def are_free(self, gpus: Sequence[str], since: float, before: Mapping[str, int] | None) -> bool:
        """Tell whether an ended child's memory is free; without a driver, there is none to free.

        `before` is what was in use when it was started; None asks for empty GPUs.
        """
        if not self._wanted or self._reader.is_over:
            return True
        uuids = [uuid for uuid in self._reader.readings if self._name(uuid) in gpus]
        if before is None:
            before = dict.fromkeys(uuids, 0)
        return len(uuids) == len(gpus) and is_free(self._reader.readings, uuids, since, before)

    def status(self) -> dict[str, GpuStatus] | None:
        """Return each GPU as /health shows it, by the children's names; None where nothing is known."""
        if not self._reader.readings:
            return None
        now = self._loop.time()
        healthy = {"ok": True, "degraded": True, "failed": False, "unknown": None}
        return {
            self._name(uuid): GpuStatus(
                healthy[health(self._history, uuid, now)], reading.memory_used, reading.memory_total
            )
            for uuid, reading in self._reader.readings.items()
        }

    def _read(self) -> None:
        try:
            data = os.read(self._pipes[0], 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._pipes[0])
            return
        is_first = not self._reader.readings
        for event in self._reader.feed(data, self._loop.time()):
            self._judge(event)
            if isinstance(event, Xid):
                self.read_now()  # what the driver makes of it
        if is_first and self._reader.readings:
            names = [reading.name for reading in self._reader.readings.values()]
            self._log(LogEvent("gpu_detected", fields={"gpus": names}))
        self._wait()

    def _judge(self, event: GpuEvent) -> None:
        uuid = getattr(event, "gpu", None)
        name = self._name(uuid) if uuid else None
        is_tensor_parallel = self._wanted.get(name or "", False)
        self._history, verdict = judge(self._history, event, self._loop.time(), is_tensor_parallel)
        if not verdict.is_new:
            return
        if verdict.what != "fatal":
            fields = {"gpu": name, "reason": verdict.reason} if name else {"reason": verdict.reason}
            self._log(LogEvent(f"gpu_{verdict.what}", _LEVELS[verdict.what], fields=fields))  # type: ignore[arg-type]
            return
        for gpu in [name] if name else self._wanted:
            self._handle(Condemned(gpu, verdict.reason))

    def _wait(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._reader.due, self._check_that_it_answers)

    def _check_that_it_answers(self) -> None:
        if self._reader.is_hung(self._loop.time()):
            self._judge(Hung())
            self._again()
            self._reader.started(self._loop.time())
        if not self._is_closed and not self._reader.is_over:
            self._wait()

    def _again(self) -> None:
        """End the process, and start another at once."""
        self._pause = 0.0
        self._processes.terminate(WATCH)  # SIGKILL amid a call may leave the driver worse

    def _let_go(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._pipes:
            self._loop.remove_reader(self._pipes[0])
            for pipe in self._pipes:
                os.close(pipe)
            self._pipes = ()

    def _name(self, uuid: str) -> str:
        """Return what the children call a GPU: its UUID, or its index."""
        reading = self._reader.readings.get(uuid)
        index = str(reading.index) if reading and reading.index is not None else None
        return index if uuid not in self._wanted and index in self._wanted else uuid


def _gpus_of(children: Iterable[Child]) -> dict[str, bool]:
    """Return the children's GPUs, and whether the child of each has several, so that it needs their links."""
    return {gpu: len(child.gpus) > 1 for child in children for gpu in child.gpus}
