"""One retry for every client: a call is repeated after pauses, where its failure may pass by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from vllmjobs.cluster.reasons import FailedError, Failure

T = TypeVar("T")


def retry(
    call: Callable[[], T],
    pauses: Iterable[float],
    delay: Callable[[Failure, float], float | None],
    sleep: Callable[[float], None],
) -> T:
    """Return what a call returns; each time that it raises `FailedError`, pause and call again.

    There is one attempt more than `pauses`, which are in seconds. `delay` turns a failure and the pause that
    would follow it into the seconds to sleep, or None where another attempt is of no use: the failure is then
    raised, as is that of the last attempt.
    """
    for pause in pauses:
        try:
            return call()
        except FailedError as error:
            seconds = delay(error.failure, pause)
            if seconds is None:
                raise
        sleep(seconds)
    return call()
