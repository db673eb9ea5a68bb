"""The balancer in front of the engines: it reads from a file which engines are ready, anew on SIGHUP."""

import os
import signal
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from vllmjobs.supervisor.core.engines import Engine, PoolText, upstreams_text
from vllmjobs.supervisor.core.model import Log, LogEvent


class Front:
    """The balancer in front, which is told who is ready; where there is none, nothing is done."""

    def __init__(self, path: str | None, send: Callable[[str, int], None], log: Log) -> None:
        """Write to the file at `path`; `send` sends a signal to a child."""
        self._path, self._send, self._log = path, send, log
        self._written: str | None = None
        self._is_current = True  # True if the balancer has read its files since they were last written

    def follow(self, pools: Iterable[PoolText], engines: Collection[Engine], ready: Collection[str]) -> None:
        """Write which engines are ready, and let a ready balancer read what is new."""
        lines = [engine.line for engine in engines if engine.name in ready and engine.line]
        self._write(upstreams_text(pools, lines))
        for engine in engines:
            if engine.is_front and engine.name in ready and not self._is_current:
                self._send(engine.name, signal.SIGHUP)
                self._is_current = True

    def configuration_changed(self) -> None:
        """Let the balancer read its own configuration again, at the next `follow`."""
        self._is_current = False

    def _write(self, text: str) -> None:
        """Replace the file as a whole, if it would change; what cannot be written is tried again."""
        if self._path is None or text == self._written:
            return
        try:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._path}.new")  # noqa: PTH108 (pathlib takes 0.7 MB)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(f"{self._path}.new", flags, 0o600), "w") as file:
                file.write(text)
            os.replace(f"{self._path}.new", self._path)  # noqa: PTH105
        except OSError as error:
            self._log(LogEvent("upstreams_not_written", "ERROR", fields={"reason": str(error)}))
        else:
            self._written, self._is_current = text, False
