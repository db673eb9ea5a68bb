"""One child while it runs: its two pipes, and the probes of it."""

import asyncio
import errno
import os
import socket
import time
from contextlib import suppress

from vllmjobs.supervisor.core.engines import Engine
from vllmjobs.supervisor.core.model import Handle, Phase, Probed
from vllmjobs.supervisor.http_client import LOOPBACK
from vllmjobs.supervisor.log.lines import Lines, Rate, Stream
from vllmjobs.supervisor.log.output import Output
from vllmjobs.supervisor.probes import Timeouts, probe, probe_front, probe_leaving
from vllmjobs.supervisor.processes import Started, StartError

AT_ONCE = 1 << 18  # bytes of one read
# Seconds between two probes: a load takes minutes, a drain ends with the last answer.
PAUSES: dict[Phase, float] = {"starting": 0.5, "ready": 5.0, "sleeping": 1.0, "leaving": 0.1}
USUAL = Timeouts()
FIRST = Timeouts(completion=30.0)  # of a life, and after a sleep: what was compiled late is compiled then
PROBES = 8  # at least, in the time without progress after which an engine hangs
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


class RunningEngine:
    """An engine and what runs of it; `handle` gets the results of its probes."""

    def __init__(self, engine: Engine, hang: float, log_rate: float, output: Output, handle: Handle) -> None:
        """Probe it often enough for a `hang` of so many seconds; pass on `log_rate` lines a second."""
        self.engine = engine
        self.pid: int | None = None
        self._output, self._handle = output, handle
        self._loop = asyncio.get_running_loop()
        rate = Rate(burst=int(5 * log_rate), per_second=log_rate)
        prefix = engine.env.get("VLLM_LOGGING_PREFIX", "")
        offset = time.time() - self._loop.time()
        self._lines = {stream: Lines(engine.name, stream, rate, offset, prefix) for stream in STREAMS}
        self._pipes: dict[Stream, int] = {}
        self._due: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._phase: Phase = "clearing"
        self._pauses = {**PAUSES, "ready": min(PAUSES["ready"], hang / PROBES)}
        self._changed = asyncio.Event()

    @property
    def progress(self) -> str | None:
        """Return the last progress bar of its load."""
        return self._lines["stderr"].progress or self._lines["stdout"].progress

    @property
    def dropped(self) -> dict[tuple[str, str], int]:
        """Return the number of lines that were too many, by stream."""
        return {(self.engine.name, stream): lines.dropped for stream, lines in self._lines.items()}

    def check_port(self) -> None:
        """Check that nobody else answers at its port; raises `StartError`."""
        engine = self.engine
        host = LOOPBACK.get(engine.host, engine.host)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            try:
                trial.bind((host, engine.port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    reason = f"port {engine.port} is taken by another program"
                    raise StartError(engine.name, reason) from error

    def started(self, started: Started) -> None:
        """Read its pipes and probe it from now on."""
        self.pid = started.pid
        self._pipes = {"stdout": started.stdout, "stderr": started.stderr}
        for stream, pipe in self._pipes.items():
            self._loop.add_reader(pipe, self._read, stream)
        self._probing = self._loop.create_task(self._probe())

    def enter(self, phase: Phase) -> None:
        """Take over the phase of its state; a change of it is probed at once."""
        if phase != self._phase:
            self._phase = phase
            self._changed.set()

    def stop_probing(self) -> None:
        """End the probes: its process is gone, while others may still write."""
        self.pid = None
        if self._probing:
            self._probing.cancel()
            self._probing = None

    def read_pipes(self) -> None:
        """Read what it has written so far, so that its end is logged after it."""
        for stream in list(self._pipes):
            self._read(stream)

    def close(self) -> None:
        """Read what is left in its pipes: nothing writes to them any more."""
        for stream in list(self._pipes):
            while stream in self._pipes and self._read(stream):
                pass
            self._end(stream)

    async def _probe(self) -> None:
        sample = None
        while True:
            engine, phase = self.engine, self._phase
            self._changed.clear()
            try:
                if engine.is_front:
                    result = await probe_front(engine)
                elif phase == "leaving":
                    result = await probe_leaving(engine)
                else:
                    sample, result = await probe(engine, sample, USUAL if phase == "ready" else FIRST)
            except Exception as error:  # a fault of ours, for which no engine is killed
                what = f"the probe of {engine.name}"
                self._loop.call_exception_handler({"message": what, "exception": error})
                is_ready, is_asleep = phase == "ready", phase == "sleeping"
                result = Probed(engine.name, serves=is_ready, progress=True, sleeps=is_asleep)
            if self._phase != phase:  # what it had to answer before it leaves is not what it has then
                continue
            self._handle(result)
            # Not wait_for, which until Python 3.12 may take a cancellation for the end of the wait.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pauses.get(self._phase, 1.0)):
                    await self._changed.wait()

    def _read(self, stream: Stream) -> bool:
        """Pass on what there is; tell whether there may be more."""
        try:
            data = os.read(self._pipes[stream], AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            self._end(stream)
            return False
        self._output.write(self._lines[stream].feed(data, self._loop.time()))
        self._wait()
        return True

    def _end(self, stream: Stream) -> None:
        if (pipe := self._pipes.pop(stream, None)) is not None:
            self._loop.remove_reader(pipe)
            os.close(pipe)
            self._output.write(self._lines[stream].flush(self._loop.time()))

    def _wait(self) -> None:
        """Come back for what is held, such as a traceback that may go on."""
        times = [until for lines in self._lines.values() if (until := lines.held_until) is not None]
        if times and self._due is None:
            self._due = self._loop.call_at(min(times), self._take_held)

    def _take_held(self) -> None:
        self._due = None
        for lines in self._lines.values():
            self._output.write(lines.due(self._loop.time()))
        self._wait()
