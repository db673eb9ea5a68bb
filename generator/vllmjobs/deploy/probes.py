"""Real requests for one token where there are too few others, in the background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from vllmjobs import metrics

TIMEOUT_S = 30.0
AT_ONCE = 16
UNANSWERED = 3  # in a row: one may meet a kernel that is compiled


class Prober:
    """Sends probes, and keeps count of those that had no answer."""

    def __init__(self, key: str | None, warn: Callable[[str], None]) -> None:
        """`key` is for servers with --api-key; `warn` is told why one could not be asked, once for each."""
        self._key, self._warn = key, warn
        self._pool = ThreadPoolExecutor(AT_ONCE, "probe")
        self._open: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._warned: set[str] = set()

    def send(self, address: str, served_name: str, count: int) -> None:
        """Ask an instance so many times more, unless as many questions are open."""
        for _ in range(count - self._open[address]):
            self._open[address] += 1
            asked = self._pool.submit(metrics.probe, address, served_name, TIMEOUT_S, self._key)
            asked.add_done_callback(partial(self._answered, address))

    def unanswered(self, address: str) -> int:
        """How many probes in a row had no answer."""
        return self._unanswered[address]

    def close(self) -> None:
        """Send no more, and wait for none."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answered(self, address: str, asked: Future[str | None]) -> None:
        self._open[address] -= 1
        if asked.cancelled():
            return
        why = asked.result()
        self._unanswered[address] = self._unanswered[address] + 1 if why else 0
        if why and address not in self._warned:
            self._warned.add(address)
            self._warn(f"probe: {why}")
