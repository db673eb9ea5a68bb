"""The supervisor's processes, with real ones: how they start, how they end, and that none of them is left."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.supervisor.tree import Process, ancestors, by_parent, descent, instance_of, process, processes
from vllmjobs_sandbox.cluster.process import wait_until

PROGRAMS = Path(__file__).with_name("programs")
FAMILY = [sys.executable, "-IS", str(PROGRAMS / "family.py")]
PATH = {"PATH": os.environ["PATH"]}
SECONDS = 20.0


class Supervisor:
    """One in a process of its own; its methods are those of `Processes`."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.popen = subprocess.Popen(
            [sys.executable, PROGRAMS / "driver.py", identity],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, method: str, *arguments: Any) -> Any:
        assert self.popen.stdin and self.popen.stdout
        print(json.dumps([method, *arguments]), file=self.popen.stdin, flush=True)
        answer = self.popen.stdout.readline()
        assert answer, f"the driver ended with {self.popen.wait()}"
        return json.loads(answer)

    def start(self, name: str, *command: str, env: dict[str, str] = PATH, forks: bool = True) -> int:
        started = self("start", name, command, env, forks)
        assert isinstance(started, int), started
        return started

    def family(self, name: str, kind: str) -> tuple[int, int]:
        """The pids of a child and of the last of its offspring."""
        pid = self.start(name, *FAMILY, kind)
        return pid, int(wait_until(lambda: self("read", name, 0), SECONDS, f"{kind} is up"))

    def output(self, name: str, which: int = 0) -> str:
        """All that a child that ends has written."""
        parts: list[str] = []

        def is_at_end() -> bool:
            while part := self("read", name, which):
                parts.append(part)
            return part is not None

        wait_until(is_at_end, SECONDS, "its pipe ends")
        return "".join(parts)

    def ended(self, name: str) -> int:
        """The status of a child, once it ends."""

        def status() -> list[int] | None:
            return [status for one, _, status in self("reap") if one == name] or None

        return wait_until(status, SECONDS, f"{name} ends")[0]

    def clear(self, name: str) -> None:
        """Kill all of a child."""

        def nothing() -> bool:
            left = self("kill", name)
            self("reap")
            return not left

        wait_until(nothing, SECONDS, f"nothing of {name} is left")

    def close(self, *kill: int) -> None:
        for number in kill:
            self.popen.send_signal(number)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()
        self.popen.wait(SECONDS)


@pytest.fixture
def identity() -> Iterator[str]:
    """One that no other test has; at the end nothing carries it."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    left = {pid for pid in processes() if instance_of(pid, name) is not None}
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def supervisor(identity: str) -> Iterator[Supervisor]:
    one = Supervisor(identity)
    yield one
    for name in ("chat-0", "chat-1", "watch"):
        one.clear(name)
    one.close()


def is_gone(pid: int) -> bool:
    found = process(pid)
    return found is None or not found.is_alive


# How they start and end.


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 137", 137), ("kill -9 $$", -9), ("kill $$", -15)],
)
def test_a_child_ends_with_its_exit_code_or_its_signal(
    supervisor: Supervisor, command: str, status: int
) -> None:
    pid = supervisor.start("chat-0", "sh", "-c", command)
    ended: list[Any] = wait_until(lambda: supervisor("reap"), SECONDS, "it ends")
    assert ended == [["chat-0", pid, status]]
    assert supervisor("reap") == []


def test_what_it_writes_comes_by_two_pipes(supervisor: Supervisor) -> None:
    supervisor.start("chat-0", "sh", "-c", "echo out; echo err >&2")
    assert supervisor.output("chat-0", 0) == "out\n"
    assert supervisor.output("chat-0", 1) == "err\n"


def test_a_child_that_writes_nothing_blocks_nobody(supervisor: Supervisor) -> None:
    supervisor.start("chat-0", "sleep", "600")
    assert supervisor("read", "chat-0", 0) is None


def test_its_environment_is_what_was_given_and_the_marks(supervisor: Supervisor) -> None:
    supervisor.start("chat-0", "env", env=PATH | {"HF_HOME": "/cache", "VLLMJOBS_INSTANCE": "another"})
    given = dict(line.split("=", 1) for line in supervisor.output("chat-0").splitlines())
    assert given == PATH | {
        "HF_HOME": "/cache",
        "VLLMJOBS_INSTANCE": "chat-0",
        "VLLMJOBS_SUPERVISOR": supervisor.identity,
        "SPT_NOENV": "1",  # else the titles that vLLM gives its processes would write over the marks
    }


def test_it_has_a_session_and_no_input_and_no_file_but_its_own(supervisor: Supervisor) -> None:
    supervisor.start("chat-1", "sleep", "600")
    pid = supervisor.start("chat-0", *FAMILY, "itself")
    wait_until(lambda: supervisor("read", "chat-0", 0), SECONDS, "it is up")
    child = process(pid)
    assert child and child.session == child.group == pid
    files = {file.name: str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    assert files.keys() == {"0", "1", "2"}
    assert files["0"] == "/dev/null"
    assert files["1"] != files["2"]


def test_signals_that_the_supervisor_ignores_or_blocks_reach_a_child(supervisor: Supervisor) -> None:
    supervisor.start("chat-0", "cat", "/proc/self/status")
    status = dict(line.split(":\t", 1) for line in supervisor.output("chat-0").splitlines() if ":\t" in line)
    theirs = sum(1 << number - 1 for number in signal.valid_signals())  # without the two that glibc keeps
    assert int(status["SigIgn"], 16) & theirs == int(status["SigBlk"], 16) == 0
    supervisor.start("chat-1", "sleep", "600")
    supervisor("terminate", "chat-1")
    assert supervisor.ended("chat-1") == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-engine", "not found on its PATH, {path}"),
        ("./no-such-engine", "this program, or the interpreter that it names, does not exist"),
        ("{path}/engine", "Permission denied"),
        ("engine", "Permission denied"),
        ("{path}/lost", "this program, or the interpreter that it names, does not exist"),
        ("{path}/engine/vllm", "this program, or the interpreter that it names, does not exist"),
        ("nul\0", "embedded null byte"),
    ],
)
def test_a_command_that_cannot_be_started_says_why_and_leaves_nothing(
    supervisor: Supervisor, tmp_path: Path, command: str, why: str
) -> None:
    (tmp_path / "engine").write_text("#!/bin/sh\n")
    (tmp_path / "lost").write_text("#!/no/such/interpreter\n")
    (tmp_path / "lost").chmod(0o755)
    command, why = command.format(path=tmp_path), why.format(path=tmp_path)
    first = supervisor("start", "chat-0", [command], {"PATH": str(tmp_path)})
    again = supervisor("start", "chat-0", [command], {"PATH": str(tmp_path)})
    assert first["error"] == f"chat-0 cannot be started: {command}: {why}"
    assert first == again  # as many open files as before
    assert supervisor("tree", "chat-0") == supervisor("reap") == []


def test_the_command_is_looked_for_on_the_path_of_the_child(supervisor: Supervisor, tmp_path: Path) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "engine").write_text("#!/bin/sh\necho here\n")
        (tmp_path / folder / "engine").chmod(mode)
    supervisor.start("chat-0", "engine", env={"PATH": f"{tmp_path}/none:{tmp_path}/first:{tmp_path}/second"})
    assert supervisor.output("chat-0") == "here\n"


def test_a_child_never_runs_twice(supervisor: Supervisor) -> None:
    pid = supervisor.start("chat-0", "sleep", "600")
    assert (
        f"it runs already, as process {pid}" in supervisor("start", "chat-0", ["sleep", "600"], PATH)["error"]
    )
    assert supervisor("tree", "chat-0") == [pid]


def test_a_signal_goes_to_the_process_of_the_child_alone(supervisor: Supervisor) -> None:
    pid, offspring = supervisor.family("chat-0", "session")
    supervisor("terminate", "chat-0")
    assert supervisor.ended("chat-0") == -signal.SIGTERM
    assert supervisor("signalled") == [[pid, signal.SIGTERM]]
    assert supervisor("tree", "chat-0") == [offspring]


def test_a_pid_that_was_reaped_is_never_signalled(supervisor: Supervisor) -> None:
    supervisor.start("chat-0", "true")
    assert supervisor.ended("chat-0") == 0
    supervisor("terminate", "chat-0")
    supervisor("kill", "chat-0")
    assert supervisor("signalled") == []


# That nothing is left.


@pytest.mark.parametrize("kind", ["stubborn", "session", "daemon", "nameless", "bare", "threads"])
@pytest.mark.parametrize("leads", [True, False], ids=["while the child runs", "after its end"])
def test_all_of_a_tree_is_killed(supervisor: Supervisor, kind: str, leads: bool) -> None:
    pid, offspring = supervisor.family("chat-0", kind)
    if not leads:
        supervisor("terminate", "chat-0")
        assert supervisor.ended("chat-0") == -signal.SIGTERM
    assert supervisor("tree", "chat-0") == sorted({offspring} | ({pid} if leads else set()))
    supervisor.clear("chat-0")
    assert is_gone(pid)
    assert is_gone(offspring)


def test_a_stopped_child_is_killed(supervisor: Supervisor) -> None:
    pid = supervisor.start("chat-0", "sleep", "600")
    supervisor("terminate", "chat-0", signal.SIGSTOP)
    status = Path(f"/proc/{pid}/status")
    wait_until(lambda: "T (stopped)" in status.read_text(), SECONDS, "it is stopped")
    supervisor("terminate", "chat-0")
    assert supervisor("kill", "chat-0") in ([], [pid])
    assert supervisor.ended("chat-0") == -signal.SIGKILL


def test_what_forks_without_end_is_killed(supervisor: Supervisor) -> None:
    supervisor.family("chat-0", "storm")
    wait_until(lambda: len(supervisor("tree", "chat-0")) > 6, SECONDS, "it forks")
    supervisor.clear("chat-0")
    assert supervisor("tree", "chat-0") == []


def is_held(lock: Path) -> bool:
    """Tell whether anybody is left who has inherited the lock."""
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("others", [[], ["chat-1"]], ids=["alone", "beside another"])
def test_what_is_another_process_each_moment_is_killed(
    supervisor: Supervisor, tmp_path: Path, others: list[str]
) -> None:
    """A scan of /proc does not see it: it has ended when the scan comes to it, and another is there."""
    pids = [supervisor.start(name, "sleep", "600") for name in others]
    lock = tmp_path / "lock"
    supervisor.start("chat-0", *FAMILY, "comet", str(lock))
    wait_until(lambda: supervisor("read", "chat-0", 0), SECONDS, "it forks")
    assert is_held(lock)
    supervisor.clear("chat-0")
    assert not is_held(lock)
    assert all(process(pid) for pid in pids)


def test_only_the_tree_of_that_child_is_killed(supervisor: Supervisor) -> None:
    for name in ("chat-0", "chat-1"):
        supervisor.family(name, "daemon")
    before = supervisor("tree", "chat-1")
    assert len(before) == 2
    supervisor.clear("chat-0")
    assert supervisor("tree", "chat-1") == before


def test_who_was_seen_in_a_tree_is_known_by_it_afterwards(supervisor: Supervisor) -> None:
    """No session, no mark and no parent tell whose it is: an earlier scan does."""
    supervisor.start("chat-1", "sleep", "600")
    child, offspring = supervisor.family("chat-0", "lineage")
    found = process(offspring)
    assert found
    assert supervisor("tree", "chat-0") == sorted([child, found.parent, offspring])
    os.kill(found.parent, signal.SIGUSR1)
    wait_until(lambda: is_gone(found.parent), SECONDS, "its parent is gone")
    assert supervisor("tree", "chat-0") == sorted([child, offspring])
    assert offspring not in supervisor("tree", "chat-1")


def test_an_orphan_of_unknown_origin_is_killed_with_the_last_of_the_children(supervisor: Supervisor) -> None:
    supervisor.start("watch", "sleep", "600", forks=False)
    supervisor.start("chat-1", "sleep", "600")
    _, offspring = supervisor.family("chat-0", "bare")
    supervisor.clear("chat-0")
    assert not is_gone(offspring)
    assert offspring not in supervisor("tree", "watch")
    assert offspring in supervisor("tree", "chat-1")
    supervisor.clear("chat-1")
    assert is_gone(offspring)


def test_what_an_entry_point_left_to_run_is_not_killed(identity: str) -> None:
    """`tail -f log & exec vllmjobs-supervise …`: the shell's children become ours."""
    script = 'sleep 600 >/dev/null & echo $! >&2; exec "$@"'
    driver = [sys.executable, str(PROGRAMS / "driver.py"), identity]
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *driver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as popen:
        assert popen.stdin and popen.stdout and popen.stderr
        sidecar = int(popen.stderr.readline())
        print(json.dumps(["kill", "chat-0"]), file=popen.stdin, flush=True)
        try:
            assert popen.stdout.readline() == "[]\n"
            assert not is_gone(sidecar)
        finally:
            os.kill(sidecar, signal.SIGKILL)
            popen.stdin.close()


def test_a_thousand_zombies_are_reaped(supervisor: Supervisor) -> None:
    pid = supervisor.start("chat-0", *FAMILY, "zombies")

    def reaped() -> bool:
        assert not [one for one in supervisor("reap") if one[0] is not None]
        return bool(supervisor("reaped") >= 1000)

    wait_until(reaped, SECONDS, "they are reaped")
    assert supervisor("reaped") == 1000
    assert [one for one in processes().values() if one.parent == supervisor.popen.pid] == [process(pid)]


# After the supervisor was killed.


@pytest.mark.parametrize("kind", ["stubborn", "session", "daemon", "nameless"])
def test_the_next_life_of_a_killed_supervisor_finds_and_kills_what_is_left(identity: str, kind: str) -> None:
    first = Supervisor(identity)
    pids = first.family("chat-0", kind)
    first.close(signal.SIGKILL)
    second = Supervisor(identity)
    own = second.start("chat-0", "sleep", "600")
    assert second("leftovers") == {"chat-0": sorted(pids)}
    wait_until(lambda: not second("kill_leftovers"), SECONDS, "they are gone")
    assert second("leftovers") == {}
    assert all(map(is_gone, pids))
    assert second("tree", "chat-0") == [own]
    second.clear("chat-0")
    second.close()


def test_what_is_left_without_an_environment_is_found_by_its_parent(identity: str) -> None:
    first = Supervisor(identity)
    pid, offspring = first.family("chat-0", "lineage")
    first.close(signal.SIGKILL)
    second = Supervisor(identity)
    assert {pid, offspring} < set(second("leftovers")["chat-0"])
    wait_until(lambda: not second("kill_leftovers"), SECONDS, "they are gone")
    assert is_gone(offspring)
    second.close()


def test_what_another_supervisor_left_is_left_alone(identity: str, supervisor: Supervisor) -> None:
    """Not even a name that begins alike is taken for ours."""
    pid = supervisor.start("chat-0", "sleep", "600")
    other = Supervisor(identity[:-1])
    assert other("leftovers") == {}
    assert other("kill_leftovers") == []
    assert other("tree", "chat-0") == []
    other.close()
    assert supervisor("tree", "chat-0") == [pid]


# How /proc is read.


def test_a_name_with_blanks_and_parentheses_is_read(supervisor: Supervisor) -> None:
    pid = supervisor.start("chat-0", sys.executable, "-c", rename("a) R 1 (b c)") + "; signal.pause()")
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "a) R 1 (b c)\n", SECONDS, "it has its name")
    found = process(pid)
    assert found and (found.parent, found.session) == (supervisor.popen.pid, pid)
    assert supervisor("tree", "chat-0") == [pid]


def rename(name: str) -> str:
    return f"import signal; open('/proc/self/comm', 'w').write({name!r})"


def test_who_is_gone_is_nobody() -> None:
    with subprocess.Popen(["true"]) as popen:
        popen.wait()
    assert process(popen.pid) is None
    assert instance_of(popen.pid, "any") is None


def test_a_zombie_is_not_alive(supervisor: Supervisor) -> None:
    pid = supervisor.start("chat-0", "true")
    wait_until(lambda: is_gone(pid), SECONDS, "it ends")
    assert process(pid)  # nobody has reaped it
    assert supervisor("tree", "chat-0") == []


def test_descent_and_ancestry() -> None:
    def one(pid: int, parent: int) -> Process:
        return Process(pid, parent, pid, pid, 0, True)

    seen = {pid: one(pid, parent) for pid, parent in [(1, 0), (5, 1), (3, 5), (9, 3), (7, 1)]}
    assert set(descent(by_parent(seen), 5)) == {5, 3, 9}
    assert ancestors(seen, 9) == {9, 3, 5, 1}
