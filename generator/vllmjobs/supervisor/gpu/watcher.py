"""The GPUs of the children: the NVML process, what it says, and whether their memory is free."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from vllmjobs.supervisor import report
from vllmjobs.supervisor.gpu import policy
from vllmjobs.supervisor.gpu.reader import GpuReader
from vllmjobs.supervisor.model import Child, Condemned, Say
from vllmjobs.supervisor.processes import Processes, Program, StartError

WATCH = "gpu-watch"  # its name among the processes
AGAIN_S = 5.0  # after it ended without being told to
_LEVELS = {"log": "INFO", "watch": "WARNING", "degrade": "WARNING", "fatal": "ERROR"}


class Gpus:
    """Those that the children name, by UUID or index; without any, nothing is started."""

    def __init__(
        self,
        children: Iterable[Child],
        processes: Processes,
        happen: Callable[[Condemned], None],
        say: Callable[[Say], None],
    ) -> None:
        self._wanted = _of(children)
        self._processes, self._happen, self._say = processes, happen, say
        self._loop = asyncio.get_running_loop()
        self._reader = GpuReader(self._loop.time())
        self._history = policy.History()
        self._pipes: tuple[int, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._pause = AGAIN_S
        self._is_closed = False

    def watch(self, children: Iterable[Child]) -> None:
        """Watch the GPUs of these children from now on."""
        before = self._wanted
        self._wanted = _of(children)
        if self._wanted.keys() == before.keys():
            return
        if self._pipes:
            self._again()
        else:
            self.start()

    def start(self) -> None:
        """Start the NVML process, where there are GPUs to watch."""
        if not self._wanted or self._is_closed:
            return
        command = (sys.executable, "-m", "vllmjobs.supervisor.gpu.watch", *self._wanted)
        try:
            started = self._processes.start(Program(WATCH, command, os.environ, forks=False, stdin=True))
        except StartError as error:
            self._say(Say("gpu_watch_failed", "ERROR", fields={"reason": error.why}))
            return
        assert started.stdin is not None
        self._pipes = (started.stdout, started.stderr, started.stdin)
        self._reader.started(self._loop.time())
        self._loop.add_reader(started.stdout, self._read)
        self._wait()

    def ended(self) -> None:
        """Start it again, unless there is nothing to watch."""
        self._let_go()
        if not self._reader.is_over and not self._is_closed:
            self._timer = self._loop.call_later(self._pause, self.start)
        self._pause = AGAIN_S

    def close(self) -> None:
        """End it: its stdin ends."""
        self._is_closed = True
        self._let_go()
        self._processes.terminate(WATCH)

    def look(self) -> None:
        """Ask it to look at once."""
        if self._pipes:
            with suppress(BrokenPipeError, BlockingIOError):
                os.write(self._pipes[2], b"\n")

    def memory(self, gpus: Iterable[str]) -> dict[str, int]:
        """Bytes in use on each of these, as last seen, by UUID."""
        looks = self._reader.looks.values()
        return {
            one.gpu: one.memory_used
            for one in looks
            if one.memory_used is not None and self._name(one.gpu) in set(gpus)
        }

    def are_free(self, gpus: Sequence[str], since: float, before: Mapping[str, int] | None) -> bool:
        """Whether an ended child's memory is free; without a driver, there is none to free.

        `before` is what was in use when it was started; None asks for empty GPUs.
        """
        if not self._wanted or self._reader.is_over:
            return True
        uuids = [uuid for name in gpus if (uuid := self._uuid(name))]
        if before is None:
            before = dict.fromkeys(uuids, 0)
        return len(uuids) == len(gpus) and policy.is_free(self._reader.looks, uuids, since, before)

    def shown(self) -> dict[str, report.Gpu] | None:
        """Each as /health shows it, by the children's names; None where nothing is known."""
        if not self._reader.looks:
            return None
        now = self._loop.time()
        well = {"ok": True, "degraded": True, "failed": False, "unknown": None}
        return {
            self._name(uuid): report.Gpu(
                well[policy.health(self._history, uuid, now)], look.memory_used, look.memory_total
            )
            for uuid, look in self._reader.looks.items()
        }

    def _read(self) -> None:
        try:
            data = os.read(self._pipes[0], 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._pipes[0])
            return
        is_first = not self._reader.looks
        for seen in self._reader.feed(data, self._loop.time()):
            self._judge(seen)
            if isinstance(seen, policy.Xid):
                self.look()  # at what the driver makes of it
        if is_first and self._reader.looks:
            self._say(
                Say("gpu_detected", fields={"gpus": [look.name for look in self._reader.looks.values()]})
            )
        self._wait()

    def _judge(self, event: policy.Event) -> None:
        uuid = getattr(event, "gpu", None)
        name = self._name(uuid) if uuid else None
        is_tensor_parallel = self._wanted.get(name or "", False)
        self._history, verdict = policy.judge(self._history, event, self._loop.time(), is_tensor_parallel)
        if not verdict.is_new:
            return
        if verdict.what != "fatal":
            fields = {"gpu": name, "reason": verdict.reason} if name else {"reason": verdict.reason}
            self._say(Say(f"gpu_{verdict.what}", _LEVELS[verdict.what], fields=fields))  # type: ignore[arg-type]
            return
        for gpu in [name] if name else self._wanted:
            self._happen(Condemned(gpu, verdict.reason))

    def _wait(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._reader.due, self._see_whether_it_hangs)

    def _see_whether_it_hangs(self) -> None:
        if self._reader.is_hung(self._loop.time()):
            self._judge(policy.Hung())
            self._again()
            self._reader.started(self._loop.time())
        if not self._is_closed and not self._reader.is_over:
            self._wait()

    def _again(self) -> None:
        """End it, and start another at once."""
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

    def _uuid(self, name: str) -> str | None:
        return next((uuid for uuid in self._reader.looks if self._name(uuid) == name), None)

    def _name(self, uuid: str) -> str:
        """What the children call it: by its UUID, or by its index."""
        look = self._reader.looks.get(uuid)
        index = str(look.index) if look and look.index is not None else None
        return index if uuid not in self._wanted and index in self._wanted else uuid


def _of(children: Iterable[Child]) -> dict[str, bool]:
    """Their GPUs, and of each whether its child has several: then it needs the links between them."""
    return {gpu: len(child.gpus) > 1 for child in children for gpu in child.gpus}
