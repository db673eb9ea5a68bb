"""Requests as clients send them, through a balancer or straight to an engine."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import httpx

from vllmjobs_sandbox.cluster.errors import SandboxError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

TIMEOUT = 30.0
ENDLESS = 4000
"""The tokens that the stand-in's context holds: at 10 a second, more than any test waits for."""
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a canary release?"}]


@dataclass(frozen=True)
class Answer:
    """A streamed chat completion: its pieces as they came, and who gave it."""

    pieces: list[str]
    fingerprint: str
    first_after: float
    seconds: float

    @property
    def tokens(self) -> int:
        """The number of its tokens, each a word: on a busy machine several come in one piece."""
        return len("".join(self.pieces).split())


def http() -> httpx.Client:
    """Return a client for loopback: no proxy, no certificates to load."""
    return httpx.Client(timeout=TIMEOUT, trust_env=False, verify=False)


def ask(address: str, model: str = "chat", max_tokens: int = 64) -> Answer:
    """Stream a chat completion with the `openai` client."""
    import openai  # noqa: PLC0415 - it takes two seconds of a core, and most tests need no more than `http`

    began = time.monotonic()
    first, pieces, fingerprint = 0.0, [], ""
    local = openai.DefaultHttpxClient(trust_env=False, verify=False)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, http_client=local) as client:
        stream = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=max_tokens, stream=True
        )
        for chunk in stream:
            fingerprint = chunk.system_fingerprint or fingerprint
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                first = first or time.monotonic() - began
                pieces.append(piece)
    return Answer(pieces, fingerprint, first, time.monotonic() - began)


@dataclass(frozen=True)
class Begun:
    """A streamed completion whose first token is here."""

    _lines: Iterator[str]

    def tokens(self) -> int | None:
        """Read the rest; return the number of all its tokens, or None for an answer that was cut."""
        try:
            *_, usage, end = [line for line in self._lines if line]
        except (httpx.TransportError, ValueError):
            return None
        counted: int | None = (
            json.loads(usage.removeprefix("data: ")).get("usage", {}).get("completion_tokens")
        )
        return counted if end == "data: [DONE]" else None


@contextmanager
def begun(url: str, max_tokens: int, model: str = "chat", seconds: float = TIMEOUT) -> Iterator[Begun]:
    """Ask for a completion, and wait for its first token; raise `SandboxError` for an answer without one."""
    asked = {"model": model, "prompt": "Why?", "max_tokens": max_tokens, "ignore_eos": True}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    with http() as client, client.stream("POST", url, json=asked, timeout=seconds) as answer:
        lines = answer.iter_lines()
        first = next(lines, "")
        if answer.status_code != httpx.codes.OK or not first.startswith("data: {"):
            raise SandboxError(f"{url} answered {answer.status_code}: {first}")
        yield Begun(lines)


def versions(address: str, requests: int) -> Counter[int]:
    """Ask for the list of models again and again, and count the answers by their max_model_len."""
    with http() as client:
        return Counter(version(client, address) for _ in range(requests))


def version(client: httpx.Client, address: str) -> int:
    """Say which max_model_len answers there."""
    answer = client.get(f"{address}/v1/models")
    answer.raise_for_status()
    return int(answer.json()["data"][0]["max_model_len"])


@dataclass
class Trickle:
    """A few requests a second in the background: a context that counts answers and failures."""

    address: str
    per_second: float = 5
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Trickle:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"model": "chat", "messages": QUESTION, "max_tokens": 32}
        with http() as client:
            while not self._stopping.wait(1 / self.per_second):
                try:
                    answer = client.post(f"{self.address}/v1/chat/completions", json=body)
                    answer.raise_for_status()
                    self.answered += 1
                except httpx.HTTPError as error:
                    self.failures.append(f"{time.strftime('%X')} {error!r}")
