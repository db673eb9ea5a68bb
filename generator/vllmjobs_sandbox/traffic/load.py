"""A steady load of completions by the `openai` client, and what became of every one of them.

    python -m vllmjobs_sandbox.traffic.load ADDRESS --out FILE [--workers 20] [--per-second 45]

Until SIGTERM, then what has begun is awaited. Each worker asks again once it has its answer (a closed loop),
and all share the connections of one client, which retries nothing. Half of the requests are streamed and half
are chats; one in five is ten times as long, so that there is always one to be cut.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import start, wait_until
from vllmjobs_sandbox.cluster.programs import SOURCES

TIMEOUT = 60.0  # seconds for one answer
BEGUN = 120.0  # seconds until the load has begun: on a busy machine, Python was seen to start for 30
SHORT, LONG = 4, 40  # tokens
EVERY = 0.5  # seconds between two writings of the file
TIME = "%Y/%m/%d %H:%M:%S"  # as Go's log writes it
PROMPT = "What is a canary release?"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]


class Kind(NamedTuple):
    """One way to ask."""

    chat: bool
    streamed: bool
    tokens: int


KINDS = [
    Kind(chat, streamed, LONG if number == 0 else SHORT)
    for number in range(5)
    for chat in (True, False)
    for streamed in (True, False)
]


class Answered(NamedTuple):
    """The version and the length that an answer shows."""

    fingerprint: str
    reasons: list[str]
    tokens: int | None


class Counts(msgspec.Struct):
    """The outcomes of the requests so far."""

    answered: int = 0
    """Whole: with a finish reason, and as many tokens as were asked for."""
    failures: list[str] = []
    """Each with the time and the error."""
    truncated: list[str] = []
    """Each with the time and what it lacks, though nothing said that it failed."""
    by_version: dict[str, int] = {}
    """Answers by their system_fingerprint."""
    by_second: list[int] = []
    """Answers in each second since the start."""
    slowest: float = 0
    seconds: float = 0
    ended: bool = False

    @property
    def sent(self) -> int:
        """Return how many requests have ended, in any way."""
        return self.answered + len(self.failures) + len(self.truncated)

    @property
    def rate(self) -> float:
        """Return the answers per second."""
        return self.answered / self.seconds if self.seconds else 0

    @property
    def longest_silence(self) -> int:
        """Return the most seconds in a row without an answer, between the first and the last."""
        return max(
            map(len, "".join(" "[: not n] or "x" for n in self.by_second).strip().split("x")), default=0
        )


class Asking:
    """The workers, in a process of their own."""

    def __init__(self, address: str, model: str, per_second: float) -> None:
        import openai  # noqa: PLC0415 - the tests, which start this, need not load it

        self._model = model
        self._pause = 1 / per_second
        self._client = openai.AsyncOpenAI(
            base_url=f"{address}/v1",
            api_key="none",
            max_retries=0,
            timeout=TIMEOUT,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, verify=False),
        )
        self._kinds = cycle(KINDS)
        self._stopping = asyncio.Event()
        self._by_version: Counter[str] = Counter()
        self._by_second: Counter[int] = Counter()
        self.counts = Counts()

    async def run(self, workers: int, out: Path) -> None:
        """Ask until the first SIGTERM; the file is kept up to date."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._began = self._next = time.monotonic()
        asking = asyncio.gather(*(self._ask_on() for _ in range(workers)))
        while not asking.done():
            await asyncio.wait([asking], timeout=EVERY)
            self._write(out, ended=False)
        await asking
        self._write(out, ended=True)

    async def _ask_on(self) -> None:
        while await self._turn():
            kind, began = next(self._kinds), time.monotonic()
            try:
                answered = await (self._streamed(kind) if kind.streamed else self._whole(kind))
            except Exception as error:  # whatever it is, somebody has no answer
                self.counts.failures.append(f"{time.strftime(TIME)} {kind}: {_said(error)}")
                continue
            self._count(kind, answered, time.monotonic())
            self.counts.slowest = max(self.counts.slowest, time.monotonic() - began)

    async def _turn(self) -> bool:
        """Wait until it is time for the next request; whether there is one."""
        now = time.monotonic()
        turn = self._next = max(now, self._next)
        self._next += self._pause
        if turn > now:
            await asyncio.sleep(turn - now)
        return not self._stopping.is_set()

    async def _whole(self, kind: Kind) -> Answered:
        answer = await self._create(kind)
        usage = answer.usage and answer.usage.completion_tokens
        return Answered(answer.system_fingerprint or "", [one.finish_reason for one in answer.choices], usage)

    async def _streamed(self, kind: Kind) -> Answered:
        fingerprint, reasons, usage = "", [], None
        async for chunk in await self._create(kind, stream=True, stream_options={"include_usage": True}):
            fingerprint = chunk.system_fingerprint or fingerprint
            reasons += [one.finish_reason for one in chunk.choices if one.finish_reason]
            usage = chunk.usage.completion_tokens if chunk.usage else usage
        return Answered(fingerprint, reasons, usage)

    async def _create(self, kind: Kind, **options: Any) -> Any:
        asked = {
            "model": self._model,
            "max_tokens": kind.tokens,
            "extra_body": {"ignore_eos": True},
            **options,
        }
        if kind.chat:
            return await self._client.chat.completions.create(messages=MESSAGES, **asked)
        return await self._client.completions.create(prompt=PROMPT, **asked)

    def _count(self, kind: Kind, answered: Answered, now: float) -> None:
        if len(answered.reasons) != 1 or answered.tokens != kind.tokens:
            self.counts.truncated.append(f"{time.strftime(TIME)} {kind}: {answered}")
            return
        self.counts.answered += 1
        self._by_version[answered.fingerprint] += 1
        self._by_second[int(now - self._began)] += 1

    def _write(self, out: Path, ended: bool) -> None:
        counts = self.counts
        counts.seconds = time.monotonic() - self._began
        counts.by_version = dict(self._by_version)
        counts.by_second = [self._by_second[second] for second in range(max(self._by_second, default=-1) + 1)]
        counts.ended = ended
        new = out.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(counts))
        new.replace(out)


def _said(error: BaseException) -> str:
    """Say an error with what it came from: openai's own says little of a connection."""
    return f"{error!r}" + (f", from {_said(error.__cause__)}" if error.__cause__ else "")


@dataclass
class Load:
    """The same as a context: it asks from when it is entered, and is awaited when it is left."""

    address: str
    folder: Path
    """The folder of its file and its log."""
    workers: int = 20
    per_second: float = 45
    model: str = "chat"

    def __enter__(self) -> Load:
        name = f"load-{self.address.rpartition(':')[2].replace('/', '-')}"
        self._out = self.folder / f"{name}.json"
        self._out.unlink(missing_ok=True)
        words = ["--workers", str(self.workers), "--per-second", str(self.per_second), "--model", self.model]
        command = [
            sys.executable,
            "-m",
            "vllmjobs_sandbox.traffic.load",
            self.address,
            "--out",
            str(self._out),
            *words,
        ]
        env = {**os.environ, "PYTHONPATH": str(SOURCES)}
        self._process = start(name, command, self.folder / f"{name}.log", env)
        try:
            self._process.wait_until(self._out.exists, BEGUN, "it has begun")
        except SandboxError:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.popen.terminate()
        code = self._process.popen.wait(TIMEOUT + 10)
        if code:
            raise SandboxError(f"the load ended with exit code {code}\n{self._process.evidence()}")

    def seen(self) -> Counts:
        """Return what became of the requests so far, of all when it has been left."""
        return msgspec.json.decode(self._out.read_bytes(), type=Counts)

    def wait_for(self, answered: int, seconds: float) -> Counts:
        """Wait until so many more are answered than are now."""
        goal = self.seen().answered + answered
        wait_until(lambda: self.seen().answered >= goal, seconds, f"{answered} more are answered")
        return self.seen()


def main() -> None:
    """Ask, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("address", help="such as http://127.0.0.1:9999; /v1 comes after it")
    parser.add_argument("--model", default="chat")
    parser.add_argument("--workers", type=int, default=20, help="at most so many at the same time")
    parser.add_argument("--per-second", type=float, default=45, help="at most so many begin")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    async def run() -> None:
        await Asking(asked.address, asked.model, asked.per_second).run(asked.workers, asked.out)

    asyncio.run(run())


if __name__ == "__main__":
    main()
