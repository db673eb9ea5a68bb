"""vLLM's other processes: EngineCore and its workers, through which each step of the stand-in makes its way.

They are there when WORKERS says so, and only count for what happens when one of them dies or stops:

| which | dies | stops |
|---|---|---|
| the API server | EngineCore and workers live on (vllm-project/vllm#55510) | |
| EngineCore | so do its workers; the API server ends in exit 0 (vllm-project/vllm#48966) | no step ends |
| a worker | so does EngineCore | no step ends, and /health is 200 (vllm-project/vllm#45094) |
"""

import asyncio
import os
import select
import subprocess
import sys
from contextlib import suppress

COMMAND = (sys.executable, "-m", "vllmjobs_sandbox.engine.core")
PIPE = subprocess.PIPE


class Core:
    """EngineCore, as the API server sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin and process.stdout
        self._process, self._there, self._back = process, process.stdin, process.stdout

    @classmethod
    async def start(cls, workers: int) -> "Core":
        """Start it, with its workers."""
        return cls(
            await asyncio.create_subprocess_exec(
                *COMMAND, "EngineCore", str(workers), stdin=PIPE, stdout=PIPE
            )
        )

    async def step(self) -> bool:
        """Let every worker take part in a step; False when that is not possible any more."""
        self._there.write(b".")
        return bool(await self._back.read(1))

    async def ended(self) -> None:
        """Wait for its end."""
        await self._process.wait()

    async def stop(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.ended()


def core(workers: int) -> None:
    """Pass on each step, until a worker is gone."""
    pipes = [_worker() for _ in range(workers)]
    answers = [back for _, back in pipes]
    asked = [0]
    while True:
        ready = select.select([*asked, *answers], [], [])[0]
        if 0 not in ready:
            return  # nothing was asked for: a worker is gone
        if not os.read(0, 1):
            asked = []  # the API server is gone
            continue
        for there, _ in pipes:
            os.write(there, b".")
        if not all(os.read(back, 1) for back in answers):
            return
        with suppress(BrokenPipeError):
            os.write(1, b".")


def _worker() -> tuple[int, int]:
    process = subprocess.Popen([*COMMAND, "Worker"], stdin=PIPE, stdout=PIPE)
    assert process.stdin and process.stdout
    return os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())


def worker() -> None:
    """Answer each step, until EngineCore is gone."""
    while step := os.read(0, 1):
        os.write(1, step)


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        core(int(sys.argv[2])) if sys.argv[1] == "EngineCore" else worker()
