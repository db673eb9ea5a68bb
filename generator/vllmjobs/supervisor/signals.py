"""The signals of the supervisor, taken in the event loop; no number of them freezes or misses one.

asyncio's own `add_signal_handler` knows a signal by the byte that CPython writes to a socket. When that is
full the byte is lost, and CPython 3.11 calls `Py_AddPendingCall` in the signal handler to say so, which waits
for a lock for ever if it interrupts the holder (Modules/signalmodule.c, trip_signal). Here the byte only
wakes the loop: what has come is counted by a handler in Python, which CPython calls however full it is.
"""

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

AT_ONCE = 3  # signals of one number that are told apart before the loop takes them: the third SIGTERM kills


class Signals:
    """The handlers of signals, from now until `close`."""

    def __init__(self, handlers: Mapping[int, Callable[[], object]]) -> None:
        """Call `handlers` in the running loop, by the number of the signal."""
        self._loop = asyncio.get_running_loop()
        self._handlers = dict(handlers)
        self._came: Counter[int] = Counter()
        self._ours, self._kernels = socket.socketpair()
        for end in (self._ours, self._kernels):
            end.setblocking(False)
        self._loop.add_reader(self._ours, self._empty)
        signal.set_wakeup_fd(self._kernels.fileno(), warn_on_full_buffer=False)
        for number in self._handlers:
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)

    def close(self) -> None:
        """Take no more signals: those that still come do nothing."""
        self._handlers.clear()
        signal.set_wakeup_fd(-1)
        self._loop.remove_reader(self._ours)
        self._ours.close()
        self._kernels.close()

    def _note(self, number: int, _: FrameType | None) -> None:
        """Count a signal; called between any two instructions, also of this class."""
        if number in self._handlers and self._came[number] < AT_ONCE:
            self._came[number] += 1
            self._loop.call_soon_threadsafe(self._take, number)

    def _take(self, number: int) -> None:
        self._came[number] -= 1
        if number in self._handlers:
            self._handlers[number]()

    def _empty(self) -> None:
        with suppress(BlockingIOError):
            self._ours.recv(1 << 16)
