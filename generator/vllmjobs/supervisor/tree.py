"""The processes of this machine as /proc shows them: who descends from whom, and whose mark each carries.

Fields as in proc_pid_stat(5). What vanishes while it is read, or belongs to others (`hidepid`), is left out.
"""

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
    started: int  # the time of its start, in clock ticks after boot
    is_alive: bool  # True if anything of it runs


def processes() -> dict[int, Process]:
    """Return all visible processes by pid. Raises `OSError` where /proc cannot be read: some may run."""
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    scan = {pid: one for pid in pids if (one := process(pid))}
    # A parent that was read after its child, and was gone by then: the child has another one now.
    lost = [one.pid for one in scan.values() if one.parent and one.parent not in scan]
    return scan | {pid: one for pid in lost if (one := process(pid))}


def process(pid: int) -> Process | None:
    """Return the process of that pid, if there is a visible one."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    # The name, in parentheses, may hold blanks and parentheses itself.
    state, parent, group, session, *rest = stat[stat.rindex(b")") + 2 :].split(b" ", 20)
    # The first thread of an engine may be a zombie while another hangs in the driver and holds the GPU.
    is_alive = state not in (b"Z", b"X") or int(rest[13]) > 1
    return Process(pid, int(parent), int(group), int(session), int(rest[15]), is_alive)


def own_children() -> set[int]:
    """Return the children of this process, ended ones too, in a moment: where Linux has CONFIG_PROC_CHILDREN.

    One that is forked or ends meanwhile may be missing, but never twice in a row.
    """
    threads = _listed("/proc/self/task")
    return {int(pid) for thread in threads for pid in _read(f"/proc/self/task/{thread}/children").split()}


def by_parent(scan: Mapping[int, Process]) -> dict[int, list[int]]:
    """Return the children of each process."""
    children: dict[int, list[int]] = {}
    for one in scan.values():
        children.setdefault(one.parent, []).append(one.pid)
    return children


def descent(children: Mapping[int, Iterable[int]], pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    todo = [pid]
    while todo:
        yield (one := todo.pop())
        todo += children.get(one, ())


def ancestors(scan: Mapping[int, Process], pid: int) -> set[int]:
    """Return a process and all above it."""
    above: set[int] = set()
    while pid in scan and pid not in above:
        above.add(pid)
        pid = scan[pid].parent
    return above


def instance_of(pid: int, identity: str) -> str | None:
    """Return the child whose mark a process carries, if the mark is that of this supervisor."""
    environ = b"\0" + _read(f"/proc/{pid}/environ")
    return _variable(environ, INSTANCE) if _variable(environ, SUPERVISOR) == identity else None


def _variable(environ: bytes, name: str) -> str | None:
    _, is_set, rest = environ.partition(f"\0{name}=".encode())
    return os.fsdecode(rest.partition(b"\0")[0]) if is_set else None


def _listed(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries]


def _read(path: str) -> bytes:
    """Read a file of /proc; empty if its process is gone or another user's."""
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
