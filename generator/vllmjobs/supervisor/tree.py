"""The processes of this machine as /proc shows them: who descends from whom, and whose mark each carries.

Fields as in proc_pid_stat(5). What vanishes while it is read, or belongs to others (`hidepid`), is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

SUPERVISOR = "VLLMJOBS_SUPERVISOR"
INSTANCE = "VLLMJOBS_INSTANCE"


class Process(NamedTuple):
    """One process. Its pid may come again; its pid and start together do not."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    """Clock ticks after boot."""
    is_alive: bool
    """Whether anything of it runs."""


def processes() -> dict[int, Process]:
    """All that can be seen, by pid; OSError where /proc cannot be read, which is not the same as nobody."""
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    found = {pid: one for pid in pids if (one := process(pid))}
    # A parent that was read after its child, and was gone by then: the child has another one now.
    lost = [one.pid for one in found.values() if one.parent and one.parent not in found]
    return found | {pid: one for pid in lost if (one := process(pid))}


def process(pid: int) -> Process | None:
    """The process of that pid, if there is one that can be seen."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    # The name, in parentheses, may hold blanks and parentheses itself.
    state, parent, group, session, *rest = stat[stat.rindex(b")") + 2 :].split(b" ", 20)
    # The first thread of an engine may be a zombie while another hangs in the driver and holds the GPU.
    is_alive = state not in (b"Z", b"X") or int(rest[13]) > 1
    return Process(pid, int(parent), int(group), int(session), int(rest[15]), is_alive)


def by_parent(seen: Mapping[int, Process]) -> dict[int, list[int]]:
    """The children of each."""
    children: dict[int, list[int]] = {}
    for one in seen.values():
        children.setdefault(one.parent, []).append(one.pid)
    return children


def descent(children: Mapping[int, Iterable[int]], pid: int) -> Iterator[int]:
    """That process and all below it."""
    todo = [pid]
    while todo:
        yield (one := todo.pop())
        todo += children.get(one, ())


def ancestors(seen: Mapping[int, Process], pid: int) -> set[int]:
    """That process and all above it."""
    found: set[int] = set()
    while pid in seen and pid not in found:
        found.add(pid)
        pid = seen[pid].parent
    return found


def instance_of(pid: int, identity: str) -> str | None:
    """The instance whose mark a process carries, if the mark is that of this supervisor."""
    environ = b"\0" + _read(f"/proc/{pid}/environ")
    return _variable(environ, INSTANCE) if _variable(environ, SUPERVISOR) == identity else None


def _variable(environ: bytes, name: str) -> str | None:
    _, found, rest = environ.partition(f"\0{name}=".encode())
    return os.fsdecode(rest.partition(b"\0")[0]) if found else None


def _read(path: str) -> bytes:
    """A file of /proc, empty if its process is gone or another user's."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            parts = []
            while part := os.read(file, 65536):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(file)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
