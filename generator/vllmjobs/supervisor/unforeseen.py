"""The failures that nobody foresaw: events of the log like all others, and no flood of them."""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from vllmjobs.supervisor.core.model import Log, LogEvent

QUIET_S = 60.0  # between two events of the same failure
KINDS = 64  # failures that are told apart; what comes beyond them counts as one
FRAMES = 5  # of a traceback


class Unforeseen:
    """The handler of a loop's exceptions (`loop.set_exception_handler`)."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        """Log to `log`; `clock` is in seconds."""
        self._log, self._clock = log, clock
        self._said: dict[
            str, tuple[float, int]
        ] = {}  # when each was last logged, and how often it came since

    def __call__(self, _: AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what asyncio tells: the first of its kind, and then one a minute with their number."""
        error, what = context.get("exception"), str(context.get("message", ""))
        kind = f"{what} {type(error).__name__}"
        kind = kind if kind in self._said or len(self._said) < KINDS else ""
        at, more = self._said.get(kind, (-QUIET_S, 0))
        if self._clock() - at < QUIET_S:
            self._said[kind] = at, more + 1
            return
        self._said[kind] = self._clock(), 0
        fields: dict[str, Any] = {
            "what": what,
            "reason": repr(error) if error else "",
            "where": places(error),
        }
        self._log(LogEvent("internal_error", "ERROR", fields=fields | ({"more": more} if more else {})))


def places(error: BaseException | None) -> list[str]:
    """Return the last frames of a traceback as `file.py:line function`, the deepest last."""
    found, frame = [], error.__traceback__ if error else None
    while frame:
        code = frame.tb_frame.f_code
        found.append(f"{code.co_filename.rpartition('/')[2]}:{frame.tb_lineno} {code.co_name}")
        frame = frame.tb_next
    return found[-FRAMES:]
