"""The pretended engine: a step loop that hands each running sequence the tokens that are due.

As in vLLM, one step serves all running sequences, at most `--max-num-seqs` run, the others wait, and
several tokens can share a chunk when the process falls behind: count `usage`, not chunks.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

from vllmjobs_sandbox.engine.core import Core
from vllmjobs_sandbox.engine.flags import Flags
from vllmjobs_sandbox.engine.knobs import Knobs
from vllmjobs_sandbox.engine.metrics import Metrics
from vllmjobs_sandbox.engine.text import BLOCK, PrefixCache, seed

LONGEST_STEP = 0.01  # seconds, so that a slow engine still starts new work at once


class EngineDeadError(RuntimeError):
    """The engine process is gone; nothing is answered any more."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


class Output(NamedTuple):
    """The tokens that one step brought one sequence."""

    sequence: "Sequence"
    start: int
    added: int
    finish_reason: str | None


@dataclass(eq=False)
class Sequence:
    """One choice of one request: what it asks for, and how far it is."""

    index: int
    prompt: list[str]
    limit: int
    finish_reason: str  # when `limit` is reached
    seed: int
    outbox: "asyncio.Queue[Output | EngineDeadError]"
    arrived: float
    scheduled: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    generated: int = 0


class Engine:
    """Takes requests and answers them in time, unless a failure mode says otherwise."""

    def __init__(self, flags: Flags, knobs: Knobs, metrics: Metrics, core: Core | None = None) -> None:
        self._knobs = knobs
        self._core = core
        self._metrics = metrics
        self._max_running = flags.max_num_seqs
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}
        self._prefixes = PrefixCache(knobs.kv_tokens // BLOCK)
        self._work = asyncio.Event()
        self._accepted = 0
        self.draining = False
        self.died = asyncio.Event()
        metrics.watch(lambda: len(self._running), lambda: len(self._waiting), self._kv_usage)

    @property
    def busy(self) -> bool:
        """Tell whether any request is unanswered."""
        return bool(self._running or self._waiting)

    def submit(self, prompts: list[list[str]], n: int, max_tokens: int, ignore_eos: bool) -> list[Sequence]:
        """Queue n sequences for each prompt; raise what vLLM would raise."""
        if self.died.is_set():
            raise EngineDeadError
        if self.draining:
            # Measured on 0.32.0, with the words of concurrent.futures.
            raise RuntimeError("cannot schedule new futures after shutdown")
        accepted, self._accepted = self._accepted, self._accepted + 1
        failure = self._knobs.failure
        if failure.exit_0_after is not None and accepted >= failure.exit_0_after:
            self.die()
            raise EngineDeadError
        if int(self._accepted * failure.error_rate) > int(accepted * failure.error_rate):
            self._metrics.failed()
            raise RuntimeError(f"stand-in: error-rate={failure.error_rate:g}")
        if failure.dies_of is not None and any(failure.dies_of in prompt for prompt in prompts):
            os._exit(1)  # as a fault in a kernel does it: the connection breaks, and no answer is given
        own_end = None if ignore_eos else self._knobs.answer_tokens
        limit, reason = (max_tokens, "length")
        if own_end is not None and own_end < max_tokens:
            limit, reason = own_end, "stop"
        outbox: asyncio.Queue[Output | EngineDeadError] = asyncio.Queue()
        now = time.monotonic()
        sequences = [
            Sequence(i * n + j, prompt, limit, reason, seed(prompt, j), outbox, now)
            for i, prompt in enumerate(prompts)
            for j in range(n)
        ]
        self._waiting.extend(sequences)
        self._work.set()
        return sequences

    async def outputs(self, sequences: list[Sequence]) -> AsyncIterator[Output]:
        """Yield what the steps bring until all have finished; a client that leaves aborts the rest."""
        unfinished = len(sequences)
        try:
            while unfinished:
                output = await sequences[0].outbox.get()
                if isinstance(output, EngineDeadError):
                    raise output
                unfinished -= output.finish_reason is not None
                yield output
        finally:
            for sequence in sequences:
                self._abort(sequence)

    async def run(self) -> None:
        """Step until its core is gone; sleeps while there is no work."""
        pause = min(1 / self._knobs.tokens_per_second, LONGEST_STEP)
        while True:
            await self._work.wait()
            if self._core and not await self._core.step():
                return self.die()
            self._step(time.monotonic())
            await asyncio.sleep(pause)
            if not self.busy:
                self._work.clear()

    def _step(self, now: float) -> None:
        while self._waiting and len(self._running) < self._max_running:
            sequence = self._waiting.popleft()
            sequence.scheduled = now
            self._running[sequence] = None
        hang_after = self._knobs.failure.hang_after
        if hang_after is not None and self._accepted > hang_after:
            return  # a hung collective: requests run, counters stand still (vllm-project/vllm#45094)
        tokens = sum(self._advance(sequence, now) for sequence in list(self._running))
        if tokens:
            self._metrics.step_tokens.observe(tokens)

    def _advance(self, sequence: Sequence, now: float) -> int:
        """Give a sequence what is due; how many tokens, prefill included, that took."""
        metrics, prefill = self._metrics, 0
        if not sequence.generated:
            if now < sequence.scheduled + self._knobs.failure.slow_first_token:
                return 0
            sequence.first_at = now
            count, prefill = 1, len(sequence.prompt)
            metrics.first_token.observe(now - sequence.arrived)
            metrics.prompt_tokens.inc(prefill)
            metrics.prefix_queries.inc(prefill)
            metrics.prefix_hits.inc(self._prefixes.hits(sequence.prompt))
        else:
            due = 1 + int((now - sequence.first_at) * self._knobs.tokens_per_second)
            count = min(due, sequence.limit) - sequence.generated
            if count <= 0:
                return 0
            metrics.inter_token.observe((now - sequence.last_at) / count)
        start, sequence.generated, sequence.last_at = sequence.generated, sequence.generated + count, now
        metrics.generation_tokens.inc(count)
        reason = sequence.finish_reason if sequence.generated >= sequence.limit else None
        if reason:
            del self._running[sequence]
            metrics.finished(sequence, reason)
            metrics.preemptions.inc(self._knobs.failure.preempts)
        sequence.outbox.put_nowait(Output(sequence, start, count, reason))
        return prefill + count

    def _abort(self, sequence: Sequence) -> None:
        if sequence in self._running:
            del self._running[sequence]
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            return
        self._metrics.finished(sequence, "abort")

    def die(self) -> None:
        """End as vLLM's engine process does: active requests fail (vllm-project/vllm#48966)."""
        for sequence in (*self._running, *self._waiting):
            sequence.outbox.put_nowait(EngineDeadError())
            self._metrics.finished(sequence, "error")
        self._running.clear()
        self._waiting.clear()
        self.died.set()

    def _kv_usage(self) -> float:
        held = sum(len(sequence.prompt) + sequence.generated for sequence in self._running)
        return min(1.0, held / self._knobs.kv_tokens)
