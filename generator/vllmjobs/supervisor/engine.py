"""One child while it runs: its two pipes, and the looks at how it does."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from vllmjobs.supervisor.log.lines import Lines, Rate
from vllmjobs.supervisor.log.output import Output
from vllmjobs.supervisor.model import Phase, Seen
from vllmjobs.supervisor.probes import HERE, Target, Timeouts, look, look_at_front, look_at_leaving
from vllmjobs.supervisor.processes import Program, Started, StartError
from vllmjobs.supervisor.settings import Engine

AT_ONCE = 1 << 18  # bytes of one read
# Seconds between two looks: a load takes minutes, a drain ends with the last answer.
PAUSES: dict[Phase, float] = {"starting": 0.5, "ready": 5.0, "leaving": 0.1}
USUAL = Timeouts()
FIRST = Timeouts(completion=30.0)  # of a life: what was compiled late is compiled then
LOOKS = 8  # at least, in the time without progress after which an engine hangs
Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


class Running:
    """An engine and what runs of it; `happen` gets what is seen."""

    def __init__(
        self, engine: Engine, hang: float, log_rate: float, output: Output, happen: Callable[[Seen], None]
    ) -> None:
        self.engine = engine
        self.pid: int | None = None
        self._output, self._happen = output, happen
        self._loop = asyncio.get_running_loop()
        rate = Rate(burst=int(5 * log_rate), per_second=log_rate)
        prefix = engine.env.get("VLLM_LOGGING_PREFIX", "")
        offset = time.time() - self._loop.time()
        self._lines = {stream: Lines(engine.name, stream, rate, offset, prefix) for stream in STREAMS}
        self._pipes: dict[Stream, int] = {}
        self._due: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._phase: Phase = "clearing"
        self._pauses = {**PAUSES, "ready": min(PAUSES["ready"], hang / LOOKS)}
        self._changed = asyncio.Event()

    @property
    def program(self) -> Program:
        """What is started."""
        return Program(self.engine.name, self.engine.command, self.engine.env)

    @property
    def progress(self) -> str | None:
        """The last word about its load."""
        return self._lines["stderr"].progress or self._lines["stdout"].progress

    @property
    def dropped(self) -> dict[tuple[str, str], int]:
        """Lines that were too many, by stream."""
        return {(self.engine.name, stream): lines.dropped for stream, lines in self._lines.items()}

    def check_port(self) -> None:
        """See that nobody else answers where it is going to; raises `StartError`."""
        engine = self.engine
        host = HERE.get(engine.host, engine.host)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            try:
                asked.bind((host, engine.port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise StartError(
                        engine.name, f"port {engine.port} is taken by another program"
                    ) from error

    def start(self, started: Started) -> None:
        """Read its pipes, and look at it from now on."""
        self.pid = started.pid
        self._pipes = {"stdout": started.stdout, "stderr": started.stderr}
        for stream, pipe in self._pipes.items():
            self._loop.add_reader(pipe, self._read, stream)
        self._looking = self._loop.create_task(self._look())

    def is_in(self, phase: Phase) -> None:
        """Take in what the policy calls it now; a change of it is looked at at once."""
        if phase != self._phase:
            self._phase = phase
            self._changed.set()

    def ended(self) -> None:
        """Look no more: its process is gone, while others may still write."""
        self.pid = None
        if self._looking:
            self._looking.cancel()
            self._looking = None

    def hear(self) -> None:
        """Take what it has said so far, so that its end is told of after it."""
        for stream in list(self._pipes):
            self._read(stream)

    def close(self) -> None:
        """Take what is left in its pipes: nothing writes to them any more."""
        for stream in list(self._pipes):
            while stream in self._pipes and self._read(stream):
                pass
            self._end(stream)

    async def _look(self) -> None:
        sample = None
        while True:
            engine = self.engine
            target = Target(
                engine.name, engine.host, engine.port, engine.served_name, engine.api_key, tls=engine.tls
            )
            self._changed.clear()
            phase = self._phase
            if engine.is_front:
                seen = await look_at_front(target)
            elif phase == "leaving":
                seen = await look_at_leaving(target)
            else:
                sample, seen = await look(target, sample, FIRST if phase == "starting" else USUAL)
            if self._phase != phase:  # what it had to answer before it leaves is not what it has then
                continue
            self._happen(seen)
            # Not wait_for, which until Python 3.12 may take a cancellation for the end of the wait.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pauses.get(self._phase, 1.0)):
                    await self._changed.wait()

    def _read(self, stream: Stream) -> bool:
        """Pass on what there is; whether there may be more."""
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
