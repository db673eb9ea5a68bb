"""Probes: real requests for one token, in the background, where there are too few others."""

import threading
from collections import Counter
from collections.abc import Callable

from vllmjobs.cluster import metrics

TIMEOUT_S = 30.0
AT_ONCE = 16
UNANSWERED = 3  # in a row: one may meet a kernel that is compiled


class Prober:
    """The sender of probes. It counts those that had no answer."""

    def __init__(self, key: str | None, warn: Callable[[str], None]) -> None:
        """`key` is for servers with --api-key; `warn` is called once for each server that cannot be asked."""
        self._key, self._warn = key, warn
        self._lock, self._slots = threading.Lock(), threading.Semaphore(AT_ONCE)
        self._open: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._is_closed = False

    def send(self, address: str, served_name: str, count: int) -> None:
        """Ask an instance so many times more, unless as many requests are open."""
        with self._lock:
            fresh = count - self._open[address]
            self._open[address] += max(0, fresh)
        for _ in range(fresh):
            # Nobody waits at the end for one that has no answer, as for those of a pool.
            threading.Thread(target=self._ask, args=(address, served_name), daemon=True).start()

    def unanswered(self, address: str) -> int:
        """Return the count of probes in a row that had no answer though the instance took the request."""
        return self._unanswered[address]

    def close(self) -> None:
        """Send no more, and wait for none."""
        self._is_closed = True

    def _ask(self, address: str, served_name: str) -> None:
        with self._slots:
            why = None if self._is_closed else metrics.probe(address, served_name, TIMEOUT_S, self._key)
        with self._lock:
            self._open[address] -= 1
            is_silent = why is not None and metrics.UNANSWERED in why
            self._unanswered[address] = self._unanswered[address] + 1 if is_silent else 0
            is_news = why is not None and address not in self._warned and not self._is_closed
            self._warned.add(address) if is_news else None
        if is_news:
            self._warn(f"probe: {why}")
