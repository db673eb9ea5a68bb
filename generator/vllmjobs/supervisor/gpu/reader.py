"""The supervisor's side of the NVML process: from the bytes that it writes to observations, by a clock."""

from __future__ import annotations

import json
from typing import Any

from vllmjobs.supervisor.gpu.policy import Look, Lost, NoAccess, NoDriver, Observation, Unanswered, Xid

HANG = 10.0
"""Seconds without a line. It writes one for every GPU every 5 s."""
FIRST = 30.0
"""Seconds to the first line of all: where nothing keeps the driver loaded, the first to ask waits for it."""
LONGEST = 65536  # bytes of a line


class GpuReader:
    """What one supervisor has read of its NVML processes, one after another.

    One that hangs is ended with SIGTERM: SIGKILL does not end a process that waits in the driver any sooner,
    and one that is killed amid a call may leave the driver worse. Then `started` begins with another.
    """

    def __init__(self, now: float) -> None:
        self.looks: dict[str, Look] = {}
        """The last look at each GPU; `at` is the clock of `feed`."""
        self.is_over = False
        """Whether there is nothing to watch: no other process need be started."""
        self._held = b""
        self._due = now + FIRST

    def started(self, now: float) -> None:
        """Begin with another process."""
        self._held = b""
        self._due = now + (HANG if self.looks else FIRST)

    def feed(self, data: bytes, now: float) -> list[Observation]:
        """Take what was read; return what its whole lines say. Lines that say nothing known are left out."""
        *lines, self._held = (self._held + data).split(b"\n")
        self._held = self._held[:LONGEST]
        if lines:
            self._due = now + HANG
        observed = [seen for line in lines if (seen := _observation(line, now))]
        for seen in observed:
            if isinstance(seen, Look):
                self.looks[seen.gpu] = seen
            self.is_over = isinstance(seen, NoDriver)
        return observed

    def is_hung(self, now: float) -> bool:
        """Whether it owes a line: then this is `Hung`, and another is to be started."""
        return not self.is_over and now >= self._due

    @property
    def due(self) -> float:
        """When it hangs, if nothing is fed before."""
        return self._due


def _observation(line: bytes, now: float) -> Observation | None:
    try:
        said: dict[str, Any] = json.loads(line)
        match said.pop("kind"):
            case "seen":
                remapped = said.get("remapped") or {}
                ecc = said.get("ecc") or {}
                return Look(
                    gpu=said["gpu"],
                    at=now,
                    index=said["index"],
                    name=said["name"],
                    memory_used=said["memory_used"],
                    memory_total=said["memory_total"],
                    temperature=said["temperature"],
                    recovery_action=said["recovery_action"],
                    remap_pending=remapped.get("pending"),
                    remap_failed=remapped.get("failed"),
                    corrected_ecc=ecc.get("corrected"),
                    uncorrected_ecc=ecc.get("uncorrected"),
                    clocks_reasons=said["clocks_reasons"],
                    pids=None if said["pids"] is None else tuple(said["pids"]),
                )
            case "xid":
                return Xid(said["gpu"], said["code"])
            case "lost":
                return Lost(said["gpu"], said["reason"])
            case "unanswered":
                return Unanswered(said["gpu"], said["code"], said["reason"])
            case "no_driver":
                return NoDriver(said["reason"])
            case "no_access":
                return NoAccess(said["code"], said["reason"])
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # half a line of a process that was ended, or what a library printed
    return None
