"""The supervisor's side of the watching process: from the bytes that it writes to events, by a clock."""

from __future__ import annotations

from vllmjobs.supervisor.core.gpu_events import GpuReading, NoDriver, Written, from_line

HANG = 10.0  # the seconds without a line after which it hangs: it writes one for every GPU every 5 s
FIRST = 30.0
"""The seconds to the first line: where nothing keeps the driver loaded, the first to ask waits for it."""
LONGEST = 65536  # bytes of a line


class GpuReader:
    """The readings and the deadline of one supervisor's watching processes, one after another.

    One that hangs is ended with SIGTERM: SIGKILL does not end a process that waits in the driver any sooner,
    and one that is killed amid a call may leave the driver worse. Then `started` begins with another.
    """

    def __init__(self, now: float) -> None:
        self.readings: dict[str, GpuReading] = {}  # the last reading of each GPU; `at` is the clock of `feed`
        self.is_over = False  # True if there is nothing to watch: no other process need be started
        self._held = b""
        self.due = now + FIRST  # when the process hangs, if nothing is fed before

    def started(self, now: float) -> None:
        """Begin with another process."""
        self._held = b""
        self.due = now + (HANG if self.readings else FIRST)

    def feed(self, data: bytes, now: float) -> list[Written]:
        """Take what was read; return the events of its whole lines. Lines of anything else are left out."""
        *lines, self._held = (self._held + data).split(b"\n")
        self._held = self._held[:LONGEST]
        if lines:
            self.due = now + HANG
        events = [event for line in lines if (event := from_line(line, now))]
        for event in events:
            if isinstance(event, GpuReading):
                self.readings[event.gpu] = event
            self.is_over = isinstance(event, NoDriver)
        return events

    def is_hung(self, now: float) -> bool:
        """Tell whether a line is overdue: then this is `Hung`, and another process is to be started."""
        return not self.is_over and now >= self.due
