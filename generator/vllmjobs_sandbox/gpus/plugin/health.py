"""The health file: a test writes it, the plugin follows it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from vllmjobs_sandbox.gpus.plugin.devices import Health, HealthFileError, read_health

_log = logging.getLogger(__name__)


class HealthFile:
    """Reads the file whenever asked; its content is compared, since two writes can share one mtime."""

    def __init__(self, path: str, known: Collection[str]) -> None:
        self._path = path
        self._known = known
        self._seen: str | None = None
        self.health: Mapping[str, Health] = {}

    def read(self) -> bool:
        """Read it again and say whether it is new. What cannot be read leaves the last good state."""
        if not self._path:
            return False
        try:
            text = Path(self._path).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = "{}"
        except (OSError, ValueError) as error:
            self._once(f"cannot be read: {error}")
            return False
        if text == self._seen:
            return False
        try:
            health = read_health(text)
        except HealthFileError as error:
            self._once(str(error), text)
            return False
        self._seen = text
        if strangers := sorted(set(health) - set(self._known)):
            _log.warning(
                "%s names devices that this node does not have: %s", self._path, ", ".join(strangers)
            )
        self.health = health
        return True

    def _once(self, problem: str, text: str | None = None) -> None:
        """Warn of a problem once, however often the file is read."""
        seen = problem if text is None else text
        if seen != self._seen:
            _log.warning("%s is ignored, the last good state stays: %s", self._path, problem)
        self._seen = seen
