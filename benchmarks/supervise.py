"""vllmjobs-supervise beside supervisord, circus, s6, runit and tini: the same children, one after the other.

    .venv/bin/python benchmarks/supervise.py [--runs N] [--kills N] [--seconds N]

As root, on Debian. The children are benchmarks/child.c, built with gcc; the others come from PyPI and Debian
into a cache. Ours is told to restart without its pause; before SIGTERM it looks once more whether an idle
child is idle, which is part of its figure. × is beside the best of the others that restart anything. Zombies
are counted below each as PID 1 of a namespace of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import supervisors
from supervisors import OTHERS, Commands, Supervisor, ours
from timing import ROOT, cpu, goal, ranged, resident

sys.path.insert(0, str(ROOT / "tests"))
from vllmjobs.supervisor.tree import Process, by_parent, descent, processes
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.gpus import nvml

CHILDREN = 8
PORT = 9880
RATE = 100_000  # lines a second
ZOMBIES = 1000
SECONDS = 60.0
SOURCE = Path(__file__).with_name("child.c")


class Run:
    """One supervisor with its children, while it runs."""

    def __init__(
        self, folder: Path, what: Supervisor, commands: Commands, logs: bool, before: Sequence[str]
    ) -> None:
        told = what.tell(folder, commands, logs)
        self.log, self._is_alone = told.log or folder / "out", not before
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*before, *told.command],
                env={**supervisors.environment(), **told.env},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def tree(self) -> dict[int, Process]:
        """Of all that runs, without an `unshare` before it."""
        seen = processes()
        found = list(descent(by_parent(seen), self.process.pid))
        return {pid: seen[pid] for pid in found[0 if self._is_alone else 1 :] if pid in seen}

    def supervising(self) -> list[int]:
        """The processes that supervise."""
        return [pid for pid, one in self.tree().items() if one.is_alive and _name(pid) not in ("child", "sh")]

    def end(self) -> None:
        """Kill what is left."""
        for pid in [*self.tree(), self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(
    what: Supervisor, commands: Commands, logs: bool = False, before: Sequence[str] = ()
) -> Iterator[Run]:
    """Start it in a folder of its own; nothing is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), what, commands, logs, before)
        try:
            yield run
        finally:
            run.end()


class Serving:
    """Eight children that serve, and when each was started."""

    def __init__(self, child: Path, folder: Path) -> None:
        self.stamps = folder / "stamps"
        self.stamps.unlink(missing_ok=True)
        ports = range(PORT, PORT + CHILDREN)
        self.commands = {f"chat-{port}": [str(child), "serve", str(port), str(self.stamps)] for port in ports}

    def starts(self) -> list[tuple[str, int, int]]:
        """Port, pid and nanoseconds of each."""
        lines = self.stamps.read_text().splitlines() if self.stamps.exists() else []
        return [(port, int(pid), int(at)) for port, pid, at in map(str.split, lines)]

    def wait(self, what: Supervisor) -> list[int]:
        """Wait until all run, and ours calls them ready; return their pids."""
        wait_until(lambda: len(self.starts()) >= CHILDREN, SECONDS, f"{what.name} has started its children")
        if what.admin:
            wait_until(lambda: _is_ready(what.admin), SECONDS, "it is ready", (OSError,))
        return list({port: pid for port, pid, _ in self.starts()}.values())


class Stop(NamedTuple):
    """In milliseconds, from the signal."""

    children: float
    """To the last child gone."""
    itself: float


def stop(run: Run, what: Supervisor, pids: Sequence[int]) -> Stop:
    """Ask for the end of all of it."""
    poll = select.poll()
    supervising = run.supervising()
    waited = {os.pidfd_open(pid): pid for pid in [*pids, *supervising]}
    for watched in waited:
        poll.register(watched, select.POLLIN)
    gone: dict[int, float] = {}
    began = time.perf_counter()
    run.process.send_signal(what.stop)
    while len(gone) < len(waited):
        found = poll.poll(SECONDS * 1000)
        if not found:
            sys.exit(f"{what.name} does not stop")
        for watched, _ in found:
            gone[waited[watched]] = (time.perf_counter() - began) * 1000
            poll.unregister(watched)
            os.close(watched)
    return Stop(max(gone[pid] for pid in pids), max(gone[pid] for pid in supervising))


def restart(serving: Serving) -> float:
    """Kill a child, at any moment of the supervisor's round; milliseconds until another runs in its place."""
    before = serving.starts()
    victim = random.choice(before[-CHILDREN:])[0]
    pid = [pid for port, pid, _ in before if port == victim][-1]
    began = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    after = wait_until(lambda: serving.starts()[len(before) :], SECONDS, "it is started again")
    return (after[0][2] - began) / 1e6


def stops_and_restarts(child: Path, folder: Path, runs: int, kills: int) -> None:
    """Memory, stop and restart, with eight children."""
    stopped: dict[str, list[Stop]] = {}
    restarted: dict[str, list[float]] = {}
    memory: dict[str, tuple[float, float]] = {}
    everyone = [ours(), *OTHERS]
    for number in range(runs):
        for what in everyone:
            serving = Serving(child, folder)
            with running(what, serving.commands) as run:
                pids = serving.wait(what)
                if number == 0:
                    time.sleep(2)  # to come to rest
                    memory[what.name] = resident(run.supervising())
                if number == 0 and what.restarts:
                    restarted[what.name] = []
                    for _ in range(kills):
                        time.sleep(random.uniform(1.2, 1.8))  # s6 and runit punish whoever ran less than 1 s
                        restarted[what.name].append(restart(serving))
                    pids = serving.wait(what)
                stopped.setdefault(what.name, []).append(stop(run, what, pids))
    print(f"## {CHILDREN} children: memory, stop, restart\n")
    print("| | RSS MiB | PSS MiB | TERM to last child gone, ms | × | itself gone, ms | restart, ms | × |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    peers = [what.name for what in everyone if what.restarts and what.admin is None]
    best_stop = min(statistics.median(one.children for one in stopped[name]) for name in peers)
    best_restart = min(statistics.median(restarted[name]) for name in peers)
    for what in everyone:
        children = [one.children for one in stopped[what.name]]
        itself = [one.itself for one in stopped[what.name]]
        again = restarted.get(what.name)
        print(
            f"| {what.name} | {memory[what.name][0]:.1f} | {memory[what.name][1]:.1f} "
            f"| {ranged(children)} | {statistics.median(children) / best_stop:.1f} | {ranged(itself)} "
            + (
                f"| {ranged(again)} | {statistics.median(again) / best_restart:.1f} |"
                if again
                else "| – | – |"
            )
        )
    mine = everyone[0].name
    stop_ratio = statistics.median(one.children for one in stopped[mine]) / best_stop
    restart_ratio = statistics.median(restarted[mine]) / best_restart
    supervisord = memory[OTHERS[0].name][0]
    print()
    goal(
        "RSS below supervisord's",
        memory[mine][0] < supervisord,
        f"{memory[mine][0]:.1f} and {supervisord:.1f} MiB",
    )
    goal("stop within twice the best", stop_ratio <= 2, f"{stop_ratio:.1f} times")
    goal("restart within twice the best", restart_ratio <= 2, f"{restart_ratio:.1f} times")
    print()


def gpus(child: Path, folder: Path) -> None:
    """What the process that watches GPUs adds."""
    what, serving = ours(gpu="0", library=nvml.build(folder / "nvml")), Serving(child, folder)
    with running(what, serving.commands) as run:
        serving.wait(what)
        time.sleep(2)
        watch = [pid for pid in run.supervising() if pid != run.process.pid]
        itself, watching = resident([run.process.pid]), resident(watch)
    print("## With a GPU (a stand-in for NVML)\n\n| process | RSS MiB | PSS MiB |\n|---|---:|---:|")
    print(f"| vllmjobs-supervise | {itself[0]:.1f} | {itself[1]:.1f} |")
    print(f"| vllmjobs.supervisor.gpu.watch | {watching[0]:.1f} | {watching[1]:.1f} |\n")


def floods(child: Path, folder: Path, seconds: int) -> None:
    """One child that says much."""
    everyone: list[tuple[str, Supervisor]] = [
        ("vllmjobs-supervise, --log-rate 0", ours()),
        ("vllmjobs-supervise, as it is by default", ours(log_rate=2000)),
        *((f"{what.name}{HOW.get(what.name, '')}", what) for what in OTHERS),
    ]
    print(f"## {RATE:,} lines a second for {seconds} s\n")
    print("| | took, s | longest write, ms | CPU s | lines kept | lines missing | RSS MiB after |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, what in everyone:
        report = folder / "report"
        report.unlink(missing_ok=True)
        lines = RATE * seconds
        command = [str(child), "flood", str(lines), str(RATE), str(report)]
        with running(what, {"chat": command}, logs=True) as run:
            wait_until(report.exists, SECONDS * 3, "all is written")
            took, longest = map(float, report.read_text().split())
            kept = settled(lambda run=run: said(run.log))  # type: ignore[misc]
            used = sum(map(cpu, run.supervising()))
            memory = resident(run.supervising())[0]
        print(
            f"| {name} | {took:.2f} | {longest * 1000:.0f} | {used:.2f} "
            f"| {kept:,} | {lines - kept:,} | {memory:.1f} |"
        )
    print()


HOW = {"s6 2.11": ", s6-log", "runit 2.1": ", svlogd", "tini 0.19": ", which passes stdout on"}


def zombies(child: Path, runs: int) -> None:
    """A thousand ended processes whose parent ends, below a PID 1."""
    print(f"## {ZOMBIES:,} zombies, as PID 1\n")
    print("| | reaped | until the last, ms | CPU s |\n|---|---:|---:|---:|")
    for what in [ours(), *OTHERS]:
        times, left, used = [], 0, []
        for _ in range(runs):
            command = [str(child), "zombies", str(ZOMBIES)]
            unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
            with running(what, {"chat": command}, before=unshare) as run:

                def ended(run: Run = run) -> dict[int, Process]:
                    found = {pid: one for pid, one in run.tree().items() if not one.is_alive}
                    return found if len(found) >= ZOMBIES else {}

                found = wait_until(ended, SECONDS, "they have ended")
                parents = [one.parent for one in found.values()]
                supervising = run.supervising()
                before = sum(map(cpu, supervising))
                began = time.perf_counter()
                os.kill(max(parents, key=parents.count), signal.SIGKILL)
                rest = list(found)
                while rest and time.perf_counter() - began < 3:
                    time.sleep(0.0002)
                    rest = [pid for pid in rest if Path(f"/proc/{pid}").exists()]
                times.append((time.perf_counter() - began) * 1000)
                left = max(left, len(rest))
                used.append(sum(map(cpu, supervising)) - before)
        until = "never" if left else ranged(times)
        print(f"| {what.name} | {ZOMBIES - left} | {until} | {statistics.median(used):.2f} |")
    print()


def said(log: Path) -> int:
    """How many of the child's lines are in a log, or a folder of them."""
    files = [log] if log.is_file() else list(log.glob("*"))
    return sum(file.read_bytes().count(b"generation throughput") for file in files if file.is_file())


def settled(count: Callable[[], int]) -> int:
    """Wait until it does not change any more."""
    last = -1
    while (now := count()) != last:
        last = now
        time.sleep(0.5)
    return now


def _is_ready(port: int | None) -> bool:
    try:
        return bool(urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).status == 200)
    except HTTPError:
        return False


def _name(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="stops of each")
    parser.add_argument("--kills", type=int, default=10, help="restarts of each")
    parser.add_argument("--seconds", type=int, default=5, help="of the flood")
    asked = parser.parse_args()
    if os.geteuid():
        sys.exit("root only: s6 needs a mount, and PID 1 a namespace")
    supervisors.install()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["gcc", "-O2", "-o", folder / "child", SOURCE], check=True)
        stops_and_restarts(folder / "child", folder, asked.runs, asked.kills)
        gpus(folder / "child", folder)
        floods(folder / "child", folder, asked.seconds)
        zombies(folder / "child", max(1, asked.runs // 2))


if __name__ == "__main__":
    main()
