"""Everything that a sandbox leaves on the machine, and its removal: at its end, or at the next one's start.

Its processes carry the sandbox's folder in their environment, which Nomad hands on to executors and
tasks; so they are found however they came to be orphans, and nobody else's process is taken for one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from vllmjobs_sandbox.cluster import ports
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import TimedOutError, end, wait_until

MARK = "VLLMJOBS_SANDBOX"
PREFIX = "vllmjobs-sandbox-"
CGROUPS = Path("/sys/fs/cgroup")
TASKS = CGROUPS / "cpu" / "nomad"  # with cgroup 1; cgroup 2 has nomad.slice, which weighs as much as a user's
USUAL_WEIGHT, WEIGHT = 1024, 10 * 1024


def folder_of(parent: Path, block: ports.Block) -> Path:
    """Name the folder after the block: who holds the one owns the other."""
    return parent / f"{PREFIX}{block.first}"


def clear(parent: Path) -> list[Path]:
    """Remove what dead sandboxes have left under a folder; say which. Live ones hold their lock."""
    removed = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        number = folder.name.removeprefix(PREFIX)
        if not (number.isdigit() and folder.is_dir() and folder.stat().st_uid == os.geteuid()):
            continue
        if block := ports.lock(int(number)):
            try:
                remove(folder)
            finally:
                block.release()
            removed.append(folder)
    return removed


def remove(folder: Path, keep_files: bool = False) -> None:
    """Remove a sandbox: its processes, its mounts, its cgroups and, unless asked otherwise, its files."""
    end(lambda: processes(folder))
    unmount(folder)
    _remove_cgroups(folder)
    if not keep_files:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise SandboxError(f"{folder} cannot be removed; see what holds it with: fuser -vm {folder}")


def processes(folder: Path) -> list[int]:
    """Find the sandbox's processes, and their children: nginx overwrites its own environment."""
    mark = f"{MARK}={folder}".encode()
    parents: dict[int, int] = {}
    marked = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(entry.name)] = int(parent)
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                marked.add(int(entry.name))
    found = set(marked)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def unmount(folder: Path) -> None:
    """Unmount the `secrets` and `private` folders that Nomad has left; the innermost first."""
    for point in reversed(mounts(folder)):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def mounts(folder: Path) -> list[str]:
    """List the mount points under a folder, as the kernel has them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    return [point for point in points if point.startswith(f"{folder}/")]


def weigh_tasks() -> None:
    """Let the tasks of all sandboxes weigh as much as ten processes.

    Nomad puts the tasks of all its agents into one cgroup. With cgroup 1 the kernel weighs it like any single
    process beside it. So on a busy machine all engines together had the time of one test's process: they
    started late, and their checks failed.
    """
    with suppress(OSError):  # there is no such group, or it belongs to root
        (TASKS / "cpu.shares").write_text(str(WEIGHT))


def _remove_cgroups(folder: Path) -> None:
    """Remove those of its tasks. Nomad's own stay: all its agents share them, whatever cgroup_parent says."""
    logs = (log.read_text(errors="replace") for log in folder.glob("nomad-*.log"))
    allocations = {found for log in logs for found in re.findall(r"alloc_id=([0-9a-f-]{36})", log)}

    def left() -> list[Path]:
        tops = (*CGROUPS.glob("nomad*"), *CGROUPS.glob("*/nomad*"))  # cgroup 2; controllers of cgroup 1
        groups = [Path(group) for top in tops for group, _, _ in os.walk(top, topdown=False)]
        return [group for group in groups if group.name.partition(".")[0] in allocations]

    def removed() -> bool:
        for group in left():
            with suppress(OSError):
                group.rmdir()
        return not left()

    with suppress(TimedOutError):  # a process that has ended holds its group until init has seen it
        wait_until(removed, 3, "the cgroups are removed")
    with suppress(OSError):
        if not any(part.is_dir() for part in TASKS.iterdir()):
            (TASKS / "cpu.shares").write_text(str(USUAL_WEIGHT))
