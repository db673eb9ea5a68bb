"""The output, which never makes anybody wait: what its reader does not take is dropped and counted.

`O_NONBLOCK` belongs to the open file, which others may hold too (a shell and its terminal, both ends of
`2>&1`), so it is not set on it: a pipe, FIFO or terminal is opened anew through /proc, a socket is asked
each time with MSG_DONTWAIT, and a file on disk does not block. Only where the way through /proc is barred (a
pipe of another user, a FIFO without a reader at the start) is the flag set, and taken back by `close`.
"""

import os
import select
import socket
import stat
import time
from asyncio import AbstractEventLoop

from vllmjobs.supervisor.log.lines import event

MOST = 4 * 1024 * 1024  # bytes that wait for the reader
AT_ONCE = 64 * 1024  # bytes of one write: what a pipe holds


class Output:
    """The lines to a file descriptor. No method raises for what the other end does.

    With a `loop`, waiting lines go on as soon as there is room; without one, the caller calls `on_writable`.
    """

    def __init__(self, fd: int = 1, loop: AbstractEventLoop | None = None, most: int = MOST) -> None:
        """Write to `fd`, which stays open; keep at most `most` bytes."""
        self.dropped = 0  # the number of lines that were not written, in all
        self.wants_write = False
        self._fd, self._loop, self._most = fd, loop, most
        self._socket: socket.socket | None = None
        self._is_own, self._was_blocking = False, False
        self._open()
        self._waiting = bytearray()
        self._is_torn = False
        self._unreported = 0
        self._notice = 0  # dropped lines that the record at the head of what waits counts, until it is out

    def write(self, lines: list[bytes]) -> None:
        r"""Take whole lines, each with its `\n`: written now, kept, or dropped and counted.

        After a drop nothing is taken until all that waits is written: one gap, and a record in its place.
        """
        if not self.wants_write:
            self._push()
        if self._unreported and (self._waiting or not self._report_drops()):
            self._drop(len(lines))
            return
        for index, line in enumerate(lines):
            if len(self._waiting) + len(line) > self._most and not self._made_room():
                self._drop(len(lines) - index)
                return
            self._waiting += line
        if not self.wants_write:
            self._push()

    @property
    def is_whole(self) -> bool:
        """Tell whether all lines are written, and the last to its end."""
        return not self._waiting and not self._is_torn

    def on_writable(self) -> None:
        """Write on what waits."""
        self._push()
        if self._unreported and not self._waiting:
            self._report_drops()

    def close(self, seconds: float) -> None:
        """Write what can be written in that time, which blocks; what is left is counted. `fd` stays open."""
        give_up = time.monotonic() + seconds
        poll = select.poll()
        self._push()
        if self.wants_write:
            poll.register(self._fd, select.POLLOUT)
        while self.wants_write and (left := give_up - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self.on_writable()
        self._is_torn = False  # it is not finished any more
        self._lose()
        self._wait(False)
        if self._socket:
            self._socket.close()
        elif self._is_own:
            os.close(self._fd)
        elif self._was_blocking:
            os.set_blocking(self._fd, True)
        self._fd = -1

    def _open(self) -> None:
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError:  # closed: each write will say so
            return
        if stat.S_ISREG(mode):
            return
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._fd))
            self._fd = self._socket.fileno()
            return
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._fd = os.open(f"/proc/self/fd/{self._fd}", flags)
            self._is_own = True
        except OSError:
            self._was_blocking = os.get_blocking(self._fd)
            os.set_blocking(self._fd, False)

    def _push(self) -> None:
        while self._waiting:
            data = self._waiting[:AT_ONCE]
            try:
                written = (
                    self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self._fd, data)
                )
            except BlockingIOError:
                self._wait(True)
                return
            except OSError:
                # The rest of a line that was begun stays: a file on which there is room again goes on where
                # it stopped, and so does a FIFO (Nomad's) that is read again, which kept what was written.
                self._lose()
                self._wait(False)  # a pipe without a reader is always "writable"
                return
            del self._waiting[:written]
            self._is_torn = data[written - 1] != ord("\n")
            self._notice = 0
        self._wait(False)

    def _made_room(self) -> bool:
        if not self.wants_write:
            self._push()
        return not self._waiting

    def _report_drops(self) -> bool:
        """Write how many lines were dropped, as soon as nothing waits; return whether it was written."""
        unreported, self._unreported = self._unreported, 0
        fields = {"dropped": unreported, "reason": "output_blocked"}
        self._waiting += event("lines_dropped", "WARNING", time.time(), None, fields)
        self._notice = unreported
        self._push()
        return not self._unreported

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _lose(self) -> None:
        """Drop what waits, but for the rest of a line that was begun."""
        torn = self._waiting.find(b"\n") + 1 if self._is_torn else 0
        lost = self._waiting.count(b"\n", torn)
        del self._waiting[torn:]
        self._is_torn = torn > 0
        if self._notice:  # it was the first of them
            self._unreported += self._notice
            lost -= 1
            self._notice = 0
        self._drop(lost)

    def _wait(self, wants: bool) -> None:
        if self._loop and wants != self.wants_write:
            if wants:
                self._loop.add_writer(self._fd, self.on_writable)
            else:
                self._loop.remove_writer(self._fd)
        self.wants_write = wants
