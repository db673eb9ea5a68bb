"""Every fault at random, under load: four stand-in engines, one supervisor, and what must hold all along.

Faults that end a supervisor or need GPUs have one of their own, beside it: soak_scenes.py.

    .venv/bin/python benchmarks/soak.py [--seconds 600] [--engines 4] [--seed N]

Ends with exit code 1 and the list of what did not hold. The supervisor itself is killed in the first half
only, so that the second is one life, long enough to see its memory grow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
from soak_lives import BESIDE, LOADING, MODES, READY, SERVING, live
from soak_load import Load
from soak_scenes import SCENES, Stage
from timing import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from vllmjobs.supervisor.tree import INSTANCE, processes
from vllmjobs_sandbox.cluster.ports import Block, take_block
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import Supervised, marked

CLIENTS = 2  # of each engine
BOUND = 120.0  # seconds until an engine is back: a load of 20 and a hang of 8, on cores that all share
REST = (2.0, 6.0)  # seconds of an engine between two faults, in which no request may fail
KILL_AFTER = 20.0  # seconds: it takes as many until all are back
GROWTH = 4.0  # MiB of the supervisor
MIB = 2**20
LIMITS = {"load": 20.0, "hang": 8.0, "term": 2.0, "drain": 3.0, "backoff": 0.1, "backoff_most": 0.4} | {
    "restarts": 10**6, "restarts_never_ready": 10**6,
}  # fmt: skip
SIGNALS = {
    "kill -9 of the API server": ("", signal.SIGKILL),
    "kill -9 of EngineCore": ("EngineCore", signal.SIGKILL),
    "kill -9 of a worker": ("Worker", signal.SIGKILL),
    "SIGSTOP of the API server": ("", signal.SIGSTOP),
    "SIGSTOP of a worker": ("Worker", signal.SIGSTOP),
    "SIGTERM of a stranger": ("", signal.SIGTERM),
}
RESTART = "restart asked for"
KINDS = [*SIGNALS, RESTART, *LOADING, *READY, *MODES, *BESIDE]
SUPERVISOR = "SIGKILL of the supervisor"
LONG = {"NVML hangs for good": 150.0}
"""Seconds of scenes that no short run has time for."""


class Soaked(Supervised):
    """With no more of its log in memory than events, and a last line that may be half of one."""

    odd = 0
    """Lines that are no JSON."""

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                self.odd += 1
            else:
                if said.get("event", "lines_dropped") != "lines_dropped":
                    self.events.append(said)


class Soak:
    """All of it, while it lasts."""

    def __init__(self, folder: Path, block: Block, engines: int, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.names = [f"chat-{number}" for number in range(engines)]
        commands = [[sys.executable, __file__, "--engine", str(folder / name)] for name in self.names]
        self.supervised = Soaked(
            folder, block, engines, commands=commands, limits=LIMITS, admin_path=str(folder / "admin"),
            env={"VLLMJOBS_STANDIN_WORKERS": "1"},
        )  # fmt: skip
        self.load = Load()
        self.broken = self.load.broken
        """What did not hold."""
        self.stage = Stage(folder, self.load, random.Random(chance.random()))
        self.lasted: dict[str, list[float]] = {}
        """Seconds until the engine was back, or the scene was over, by fault."""
        self.kills = 0
        self.memory: list[float] = []
        """MiB of the supervisor in its last life, as sampled."""
        self.over = threading.Event()

    def fault(self, name: str, kind: str) -> None:
        """One fault of one engine, until it is back."""
        with self.trying(f"{name}, {kind}", kind), self.load.disturbing(name):
            before = self.supervised.pid(name)
            self.begin(name, kind)
            self.wait_for(name, "", before)
        self.over.wait(self.chance.uniform(*REST))

    @contextmanager
    def trying(self, what: str, kind: str) -> Iterator[None]:
        """Note how long it took, or what did not hold."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            said = str(error).splitlines() or [repr(error)]
            self.broken.append(f"{what}: {said[0]}")
        self.lasted.setdefault(kind, []).append(time.monotonic() - began)

    def begin(self, name: str, kind: str) -> None:
        """Bring it about."""
        if kind in SIGNALS:
            process, number = SIGNALS[kind]
            self.signal(name, number, process)
        elif kind == RESTART:
            self.restart(name)
        elif kind in READY:
            self.next_life(name, kind)
            self.signal(name, signal.SIGUSR1)
        elif kind in SERVING:
            self.next_life(name, kind)
            before = self.processes_of(name)
            self.restart(name)
            if gone := self.processes_of(name) & before:
                self.broken.append(f"{name}, {kind}: {gone} outlived their engine")
        else:
            self.next_life(name, kind)

    def scenes(self, seconds: float) -> None:
        """One after the other, each kind as often as the others."""
        give_up = time.monotonic() + seconds
        for kind in in_turn(SCENES, self.stage.chance):
            left = give_up - time.monotonic()
            if left <= 0:
                return
            if LONG.get(kind, 0.0) < left:
                with self.trying(kind, kind):
                    SCENES[kind](self.stage)

    def kill_supervisor(self) -> None:
        """End it as the kernel does when memory is short, and start it again."""
        self.kills += 1
        self.supervised.process.kill()
        self.supervised.process.wait()
        self.memory.clear()
        self.supervised.start()
        for name in self.names:
            self.wait_for(name, None)

    def signal(self, name: str, number: int, process: str = "") -> None:
        """To the engine's own process, or to one below it."""
        pids = [self.supervised.pid(name)]
        if process:
            word = f"\0{process}\0".encode()
            pids = [pid for pid, _ in self.processes_of(name) if word in read(f"/proc/{pid}/cmdline")]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def next_life(self, name: str, kind: str) -> None:
        """End this life; the next is of that kind, and begins to serve unless it cannot."""
        told = self.folder / f"{name}.next"
        told.write_text(kind)
        self.signal(name, signal.SIGKILL)
        if kind in SERVING:
            # A kill of the supervisor may cut it short, and another life follow.
            wait_until(lambda: not told.exists(), BOUND, f"{name} is started")
            self.wait_for(name, None)

    def restart(self, name: str) -> None:
        """Ask for it, until the engine that is there has another pid."""
        before = self.supervised.pid(name)

        def is_another() -> bool:
            return self.supervised.instance(name).get("pid") not in (None, before)

        def is_asked() -> bool:
            return self.supervised.ask(f"/restart/{name}")[0] == 202 or is_another()

        wait_until(is_asked, BOUND, f"{name} takes a restart", ignoring=(httpx.TransportError,))
        wait_until(is_another, BOUND, f"another {name} runs")

    def wait_for(self, name: str, kind: str | None, before: int | None = None) -> None:
        """Wait until it is ready in a life of a kind, "" for a good one, None for any; of another pid."""

        def found() -> bool:
            one = self.supervised.instance(name)
            life = self.folder / f"{name}.life"
            pid, _, of = life.read_text().partition(" ") if life.exists() else ("", "", "")
            is_it = str(one.get("pid")) == pid != str(before)
            return is_it and one["phase"] == "ready" and kind in (None, of)

        wait_until(found, BOUND, f"{name} is back")

    def processes_of(self, name: str) -> set[tuple[int, int]]:
        """All that carry the engine's mark, with their start."""
        seen, mark = processes(), f"{INSTANCE}={name}\0".encode()
        ours = [seen[pid] for pid in marked(self.supervised) if pid in seen]
        with_name = [one for one in ours if one.is_alive and mark in environ(one.pid)]
        return {(one.pid, one.started) for one in with_name}

    def watch(self) -> None:
        """See all along that no two engines share a port, and that /ready is true."""
        while not self.over.wait(0.1):
            seen = processes()
            for name in self.names:
                wanted = f"--port\0{self.supervised.ports[self.names.index(name)]}\0".encode()
                leaders = [one.pid for one in seen.values() if one.is_alive and one.session == one.pid]
                running = [pid for pid in leaders if wanted in read(f"/proc/{pid}/cmdline")]
                if len(running) > 1:
                    self.broken.append(f"{name} runs {len(running)} times: {running}")
            status, shown = self.supervised.get("/ready")
            if status and (status == 200) != any(shown["instances"].values()):
                self.broken.append(f"/ready answers {status}, {shown}")
            if status and (used := self.supervised.get("/health")[1].get("memory_usage")):
                self.memory.append(used["rss_bytes"] / MIB)


def environ(pid: int) -> bytes:
    return read(f"/proc/{pid}/environ")


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def in_turn(kinds: Iterable[str], chance: random.Random) -> Iterator[str]:
    """At random, without end, each as often as the others."""
    while True:
        yield from chance.sample(list(kinds), len(list(kinds)))


def run(soak: Soak, seconds: float) -> None:
    """Faults at random for a time: at most one of each engine at once, and a scene beside them."""
    kinds = in_turn(KINDS, soak.chance)
    at_work: dict[str, Future[None]] = {}
    next_kill = max(KILL_AFTER, seconds / 8)
    with ExitStack() as stack, ThreadPoolExecutor(len(soak.names) + 2) as pool:
        for name in soak.names:
            soak.wait_for(name, "")
        for name, port in zip(soak.names, soak.supervised.ports, strict=True):
            stack.enter_context(soak.load.of(name, port, CLIENTS))
        watching, scenes = pool.submit(soak.watch), pool.submit(soak.scenes, seconds)
        began = time.monotonic()
        try:
            while (passed := time.monotonic() - began) < seconds:
                if passed >= next_kill and passed < seconds / 2:
                    next_kill = passed + seconds / 8
                    with soak.load.disturbing(*soak.names), soak.trying(SUPERVISOR, SUPERVISOR):
                        soak.kill_supervisor()
                if free := [name for name in soak.names if name not in at_work or at_work[name].done()]:
                    name = soak.chance.choice(free)
                    at_work[name] = pool.submit(soak.fault, name, next(kinds))
                time.sleep(soak.chance.uniform(0.2, 2.0))
            for work in (*at_work.values(), scenes):
                work.result()
        finally:
            soak.over.set()
        watching.result()


def report(soak: Soak, code: int) -> None:
    """Print what was found; exit 1 where something did not hold."""
    print("| fault | times | over after, s: median | most |\n|---|---:|---:|---:|")
    for kind, times in sorted(soak.lasted.items()):
        print(f"| {kind} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |")
    if missing := {*KINDS, *SCENES, SUPERVISOR} - soak.lasted.keys():
        print(f"\nnot tried, there was no time: {', '.join(sorted(missing))}")
    print(f"\nrequests: {dict(soak.load.answers)}")
    rest = soak.memory[len(soak.memory) // 10 :] or [0.0]
    print(f"RSS of the supervisor's last life: {rest[0]:.1f} to {rest[-1]:.1f} MiB, at most {max(rest):.1f}")
    if max(rest) - rest[0] > GROWTH:
        soak.broken.append(f"the supervisor grew by {max(rest) - rest[0]:.1f} MiB")
    if soak.supervised.odd > soak.kills:
        soak.broken.append(f"{soak.supervised.odd} lines are no JSON, after {soak.kills} kills")
    if soak.supervised.errors:
        soak.broken.append(f"it says on stderr: {soak.supervised.errors[-2000:]}")
    if code:
        soak.broken.append(f"it ended with exit code {code}")
    if left := marked(soak.supervised):
        soak.broken.append(f"left behind: {left}")
    for line in soak.broken:
        print(f"BROKEN: {line}")
    sys.exit(1 if soak.broken else 0)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    asked, rest = parser.parse_known_args()
    if asked.engine:
        live(Path(asked.engine), rest)
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    print(f"{asked.seconds:g} seconds, --seed {seed}\n", flush=True)
    block = take_block()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), block, asked.engines, random.Random(seed))
        with soak.supervised:
            run(soak, asked.seconds)
            soak.supervised.stop()
            code = soak.supervised.end()
        report(soak, code)
    block.release()


if __name__ == "__main__":
    main()
