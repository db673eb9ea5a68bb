"""The load of benchmarks/soak.py: clients, and which of their requests failed that did not have to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

PAUSE = 0.2  # seconds between two requests of a client
PATIENCE = 60.0


class Load:
    """All clients. A request may fail when a fault of its engine lasted or began meanwhile."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.broken: list[str] = []
        """What did not hold."""
        self._lasting: Counter[str] = Counter()
        """How many faults an engine has now."""
        self._begun: Counter[str] = Counter()
        """How many it has had."""
        self._lock = threading.Lock()

    @contextmanager
    def disturbing(self, *names: str) -> Iterator[None]:
        """While it lasts, requests to these engines may fail."""
        with self._lock:
            self._lasting.update(names)
            self._begun.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._lasting.subtract(names)

    @contextmanager
    def of(self, name: str, port: int, clients: int = 1) -> Iterator[None]:
        """Ask an engine while it lasts."""
        over = threading.Event()
        asking = [threading.Thread(target=self._ask, args=(name, port, over)) for _ in range(clients)]
        for one in asking:
            one.start()
        try:
            yield
        finally:
            over.set()
            for one in asking:
                one.join()

    def _ask(self, name: str, port: int, over: threading.Event) -> None:
        url = f"http://127.0.0.1:{port}/v1/completions"
        asked = {"model": "chat", "prompt": "Why?", "max_tokens": 8, "ignore_eos": True}
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
            while not over.wait(PAUSE):
                with self._lock:
                    is_calm, before = not self._lasting[name], self._begun[name]
                try:
                    failed = (
                        "" if (status := client.post(url, json=asked).status_code) == 200 else str(status)
                    )
                except httpx.TransportError as error:
                    failed = type(error).__name__
                with self._lock:
                    has_to = not is_calm or before != self._begun[name]
                    what = "failed amid a fault" if has_to else "failed without a fault"
                    self.answers[what if failed else "answered"] += 1
                    if failed and not has_to:
                        self.broken.append(f"{name}: a request failed without a fault: {failed}")
