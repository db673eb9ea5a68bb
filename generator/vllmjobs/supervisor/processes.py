"""The supervisor's real processes: started, reaped, and killed to the last of their trees.

As the child subreaper (prctl(2)) the supervisor becomes the parent of every orphan that its children leave,
so all that descends from it is theirs, however they forked. Nothing here waits.
"""

import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vllmjobs.supervisor import tree
from vllmjobs.supervisor.tree import Process

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PIPE = 1 << 20  # bytes: /proc/sys/fs/pipe-max-size, the most that anyone may ask for
ROUNDS = 20  # of killing what was forked meanwhile
LOOKS, QUIET_LOOKS = 300, 3  # at our own children, a tenth of a millisecond each; those that show nobody new
DEFAULTS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class ProcessError(Exception):
    """A thing that this system does not let a supervisor do."""


class StartError(ProcessError):
    """A child that could not be started."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be started: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Program:
    """The program that is started for a child."""

    name: str  # the child, such as chat-0
    command: tuple[str, ...]
    env: Mapping[str, str]  # the whole environment; a command without a slash is searched on its PATH
    forks: bool = True  # True if it starts processes itself, so that an orphan may be one of them
    stdin: bool = False  # True if its stdin is a pipe of ours; else it has none


@dataclass(frozen=True)
class Started:
    """A child and the ends of its pipes that are ours to read and to close; neither blocks."""

    pid: int
    stdout: int
    stderr: int
    stdin: int | None = None


@dataclass(frozen=True)
class Ended:
    """A process that was reaped."""

    name: str | None  # the name of the child; None for an orphan
    pid: int
    status: int  # the exit code, or the negative number of the signal


class Processes:
    """The children of one supervisor."""

    def __init__(self, identity: str) -> None:
        """Mark all that is started with `identity`: another life of this supervisor has it, nobody else.

        Raises `ProcessError` where the system has no child subreaper.
        """
        self.identity = identity
        self.reaped = 0  # the number of orphans that were reaped
        self._children: dict[str, int] = {}  # pids not yet reaped: nobody else can get such a pid until then
        self._names: dict[int, str] = {}
        self._sessions: dict[int, str] = {}
        self._known: dict[int, tuple[int, str]] = {}  # of the last scan: when each started, and whose it is
        self._forking: set[str] = set()
        self._mine: tuple[str | None, ...] = ()  # whose processes the last `_tree` counted
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.prctl(PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        except (OSError, AttributeError) as error:
            raise ProcessError(f"Linux 3.4 or newer is needed (child subreaper): {error}") from error
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else the kernel reaps in our place
        # An entry point that ended in `exec` may have children: they became ours, but are not to be killed.
        self._before = {(one.pid, one.started) for one in _scan().values() if one.parent == os.getpid()}

    def start(self, program: Program) -> Started:
        """Start a child in a session of its own, with every signal at its default and none blocked.

        Raises `StartError` where that is impossible; then nothing is left of it.
        """
        if program.name in self._children:
            raise StartError(program.name, f"it runs already, as process {self._children[program.name]}")
        marks = {tree.SUPERVISOR: self.identity, tree.INSTANCE: program.name}
        # Unless told not to, setproctitle writes vLLM's titles (VLLM::EngineCore) over /proc/PID/environ.
        env = {"SPT_NOENV": "1", **program.env, **marks}
        pipes: list[int] = []
        try:
            for _ in range(2):
                pipes += os.pipe()
                with suppress(OSError):  # beyond pipe-user-pages-soft; a smaller one does
                    fcntl.fcntl(pipes[-1], fcntl.F_SETPIPE_SZ, PIPE)
            if program.stdin:
                pipes += reversed(os.pipe())
            pid = _spawn(program.command, env, pipes[1:6:2])
        except (OSError, ValueError) as error:
            for end in pipes:
                os.close(end)
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise StartError(program.name, f"{program.command[0]}: {why}") from error
        for end in pipes[1::2]:
            os.close(end)
        for end in pipes[::2]:
            os.set_blocking(end, False)
        self._children[program.name] = pid
        self._names[pid] = self._sessions[pid] = program.name
        if program.forks:
            self._forking.add(program.name)
        return Started(pid, *pipes[::2])

    def reap(self) -> list[Ended]:
        """Reap all that has ended; orphans are counted. Nobody else in this process may reap."""
        ended: list[Ended] = []
        with suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = reaped
                name = self._names.pop(pid, None)
                if name is None:
                    self.reaped += 1
                else:
                    del self._children[name]
                ended.append(Ended(name, pid, os.waitstatus_to_exitcode(status)))
        return ended

    def terminate(self, name: str, number: int = signal.SIGTERM) -> None:
        """Send a signal to the child's own process, if it is not reaped yet."""
        if pid := self._children.get(name):
            with suppress(PermissionError):  # it became another user
                os.kill(pid, number)

    def tree(self, name: str) -> set[int]:
        """Return all of the child that runs: its descent, and what that left behind.

        Raises `ProcessError` without /proc.

        An orphan is known by its session, by an earlier scan (so it pays to scan now and then), or by its
        mark; one that shows none of these counts to the last child that anything is left of.
        """
        return self._tree(name)[1]

    def kill(self, name: str) -> set[int]:
        """Send SIGKILL to all of the tree, until a scan shows nobody new.

        Returns what still runs then: it is dying, which takes an engine its time, hangs in the kernel, or
        forks and ends faster than it can be killed. Ask again until it is empty.
        """
        return self._kill(lambda: self._tree(name)) | self._chase()

    def leftovers(self) -> dict[str, set[int]]:
        """Return by child what an earlier life of this supervisor left. Raises `ProcessError` without /proc.

        There must be no other living supervisor of this identity: its children would be taken for leftovers.
        """
        left: dict[str, set[int]] = {}
        for pid, name in self._leftovers()[1].items():
            left.setdefault(name, set()).add(pid)
        return left

    def kill_leftovers(self) -> set[int]:
        """Send SIGKILL to all leftovers; return what `kill` returns."""
        return self._kill(self._leftovers)

    def _tree(self, name: str) -> tuple[dict[int, Process], set[int]]:
        """Return all processes, and those of the child."""
        scan = _scan()
        owners = self._owners(scan)
        running = {pid: owner for pid, owner in owners.items() if scan[pid].is_alive}
        others = self._forking & {*self._children, *running.values()} - {name, None}
        self._mine = (name,) if others else (name, None)
        return scan, {pid for pid, owner in running.items() if owner in self._mine}

    def _chase(self) -> set[int]:
        """Kill what no scan sees, because it forks and ends within one: it is, or is about to be, our child.

        Whose it is was found out by the last `_tree`. Returns who was there at the last look.
        """
        passed: set[int] = set(self._names)  # ended and not yet reaped, so that nobody else gets their pids
        there: set[int] = set()
        quiet = 0
        for _ in range(LOOKS):
            there = tree.own_children() - passed
            for pid in there:
                one = tree.process(pid)
                is_mine = one and (pid, one.started) not in self._before and self._owner(one) in self._mine
                if one is None or not one.is_alive or not is_mine:
                    passed.add(pid)
                else:
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
            quiet = 0 if there else quiet + 1
            if quiet == QUIET_LOOKS:
                break
        return there

    def _owners(self, scan: dict[int, Process]) -> dict[int, str | None]:
        """Return the owner of each of our descendants; remembered for the next scan."""
        children = tree.by_parent(scan)
        owners: dict[int, str | None] = {}
        for root in children.get(os.getpid(), ()):
            if (root, scan[root].started) not in self._before:
                name = self._owner(scan[root])
                owners |= dict.fromkeys(tree.descent(children, root), name)
        self._known = {pid: (scan[pid].started, name) for pid, name in owners.items() if name is not None}
        # No pid is given out again while it names a session, so what is in use is still the same.
        used = {scan[pid].session for pid in owners} | self._names.keys()
        self._sessions = {sid: name for sid, name in self._sessions.items() if sid in used}
        return owners

    def _owner(self, child: Process) -> str | None:
        """Return the owner of a process whose parent we are: one that we started, or an orphan."""
        known = self._names.get(child.pid) or self._sessions.get(child.session)
        if known:
            return known
        started, name = self._known.get(child.pid, (None, None))
        return name if started == child.started else tree.instance_of(child.pid, self.identity)

    def _leftovers(self) -> tuple[dict[int, Process], dict[int, str]]:
        """Return all processes, and whose those are that run, carry our mark and are not of our own life."""
        scan = _scan()
        children = tree.by_parent(scan)
        ours = {*tree.descent(children, os.getpid()), *tree.ancestors(scan, os.getpid())}
        others = scan.keys() - ours
        marked = {pid: name for pid in others if (name := tree.instance_of(pid, self.identity)) is not None}
        sessions: dict[int, str] = {}
        for pid, name in marked.items():
            leader = scan.get(session := scan[pid].session)
            # One that is led by somebody without a mark is not theirs: it was there before.
            if session and (session in marked or leader is None or not leader.is_alive):
                sessions[session] = name
        roots = {pid: sessions[one.session] for pid, one in scan.items() if one.session in sessions} | marked
        owners: dict[int, str] = {}
        for root, name in roots.items():
            owners |= dict.fromkeys(tree.descent(children, root), name)
        owned = (owners | marked).items()
        return scan, {pid: name for pid, name in owned if pid in others and scan[pid].is_alive}

    def _kill(self, find: Callable[[], tuple[dict[int, Process], Collection[int]]]) -> set[int]:
        killed: set[tuple[int, int]] = set()
        victims: Collection[int] = ()
        for _ in range(ROUNDS):
            scan, victims = find()
            new = [scan[pid] for pid in victims if (pid, scan[pid].started) not in killed]
            if not new:
                break
            killed |= {(one.pid, one.started) for one in new}
            # A whole group at once: none of it can fork away meanwhile. Never 0 (in /proc, a group from
            # outside of this container; to kill(2), our own) nor 1 (to kill(2), everybody).
            mixed = {0, 1, *(one.group for pid, one in scan.items() if one.is_alive and pid not in victims)}
            for target in {one.pid if one.group in mixed else -one.group for one in new}:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(target, signal.SIGKILL)
        return set(victims)


def _scan() -> dict[int, Process]:
    try:
        return tree.processes()
    except OSError as error:
        raise ProcessError(f"/proc cannot be read: {error}") from error


def _spawn(command: tuple[str, ...], env: Mapping[str, str], ends: Sequence[int]) -> int:
    """Start the command from its PATH; return its pid. `ends` are its stdout, stderr and perhaps stdin."""
    stdin: tuple[object, ...] = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    if len(ends) > 2:
        stdin = (os.POSIX_SPAWN_DUP2, ends[2], 0)
    path = env.get("PATH", os.defpath)
    if "/" in command[0]:
        places = [command[0]]
        missed = OSError(errno.ENOENT, "this program, or the interpreter that it names, does not exist")
    else:
        places = [f"{folder or '.'}/{command[0]}" for folder in path.split(":")]
        missed = OSError(errno.ENOENT, f"not found on its PATH, {path}")
    for place in places:
        try:
            return os.posix_spawn(
                place,
                command,
                env,
                file_actions=[stdin, (os.POSIX_SPAWN_DUP2, ends[0], 1), (os.POSIX_SPAWN_DUP2, ends[1], 2)],
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULTS,
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:  # as execvp(3) has it: another folder may hold one that can be run
            missed = error
    raise missed
