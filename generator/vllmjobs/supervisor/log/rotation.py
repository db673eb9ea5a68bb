"""The rotation of a log file, with names as logrotate gives them: log.jsonl becomes log.jsonl.1."""

import os
import stat
from contextlib import suppress
from typing import NamedTuple

from vllmjobs.supervisor.core.model import LogEvent


class RotatedLog(NamedTuple):
    """A log file, and when it is rotated."""

    path: str
    most: int  # the bytes after which a new file is begun
    kept: int  # the number of old files


class Rotation:
    """The log file behind a descriptor; nothing is rotated where the descriptor leads elsewhere."""

    def __init__(self, log: RotatedLog, fd: int = 1) -> None:
        """Rotate `log` while it is the file of `fd`, and of stderr where that is the same."""
        self._log, self._fd = log, fd

    @property
    def is_due(self) -> bool:
        """Tell whether the file is full."""
        found = os.fstat(self._fd)
        return found.st_size >= self._log.most and self._is_ours(found)

    def turn(self) -> LogEvent | None:
        """Begin with a new file; return an event where that fails, and the old one is written on."""
        path, kept = self._log.path, self._log.kept
        try:
            for number in range(kept - 1, 0, -1):
                with suppress(FileNotFoundError):
                    os.replace(f"{path}.{number}", f"{path}.{number + 1}")  # noqa: PTH105
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            new = os.open(f"{path}.new", flags, 0o600)
            try:
                is_stderr = self._is_ours(os.fstat(2))
                os.replace(path, f"{path}.1")  # noqa: PTH105
                os.replace(f"{path}.new", path)  # noqa: PTH105
                for fd in (self._fd, 2) if is_stderr else (self._fd,):
                    os.dup2(new, fd)
            finally:
                os.close(new)
        except OSError as error:
            with suppress(OSError):
                os.unlink(f"{path}.new")  # noqa: PTH108
            return LogEvent("log_not_rotated", "WARNING", fields={"reason": str(error)})
        return None

    def _is_ours(self, found: os.stat_result) -> bool:
        with suppress(FileNotFoundError):
            there = os.lstat(self._log.path)
            return stat.S_ISREG(there.st_mode) and os.path.samestat(found, there)
        return False
