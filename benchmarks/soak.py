"""Every fault at random, under load: four stand-in engines, one supervisor, and what must hold all along.

    .venv/bin/python benchmarks/soak.py [--minutes 10] [--seed N]

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
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from timing import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from sandbox.ports import Block, take_block
from sandbox.process import wait_until
from sandbox.supervised import ENGINE, Supervised, marked
from vllmjobs.supervisor.tree import INSTANCE, processes

ENGINES = 4
CLIENTS = 2  # of each engine
BOUND = 45.0  # seconds until an engine is back: a load of 6 and a hang of 4, on two cores that all share
GROWTH = 4.0  # MiB of the supervisor
MIB = 2**20
LIMITS = {"load": 6.0, "hang": 4.0, "term": 2.0, "drain": 3.0, "backoff": 0.1, "backoff_most": 0.4} | {
    "restarts": 10**6, "restarts_never_ready": 10**6,
}  # fmt: skip
FAMILY = ROOT / "tests/supervise/programs/family.py"
# What an engine does in its next life: modes of the stand-in, or a shell's line before it.
LIVES = {
    "exit 0": "exit-0-after=5",
    "exit 1 while loading": "exit-1-before-ready",
    "load without end": "never-ready",
    "hang, /health well": "hang-after=5",
    "/health frozen": "slow-health=600",
    "SIGTERM ignored": "ignore-term",
}
HIDING = " & ".join(
    f"{sys.executable} {FAMILY} {kind}" for kind in ("daemon", "stubborn", "session", "nameless", "zombies")
)
FLOOD = "yes 'a line of text that says nothing' | head -n 300000"


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

    def __init__(self, folder: Path, block: Block, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.names = [f"chat-{number}" for number in range(ENGINES)]
        commands = [[sys.executable, __file__, "--engine", str(folder / name)] for name in self.names]
        self.supervised = Soaked(
            folder, block, ENGINES, commands=commands, limits=LIMITS, admin_path=str(folder / "admin")
        )
        self.broken: list[str] = []
        """What did not hold."""
        self.back: dict[str, list[float]] = {}
        """Seconds until the engine was back, by fault."""
        self.answers: Counter[str] = Counter()
        self.lasting: Counter[str] = Counter()
        """How many faults an engine has now."""
        self.begun: Counter[str] = Counter()
        """How many it has had."""
        self.lock = threading.Lock()
        self.kills = 0
        self.memory: list[float] = []
        """MiB of the supervisor in its last life, as sampled."""
        self.over = threading.Event()

    def fault(self, name: str, kind: str) -> None:
        """One fault of one engine, until it is back."""
        began = time.monotonic()
        with self.disturbing(name):
            try:
                before = self.supervised.pid(name)
                self.begin(name, kind)
                self.wait_for(name, "", before)
            except Exception as error:
                self.broken.append(f"{name}, {kind}: {str(error).splitlines()[0]}")
        self.back.setdefault(kind, []).append(time.monotonic() - began)

    def begin(self, name: str, kind: str) -> None:
        """Bring it about."""
        match kind:
            case "kill -9":
                self.signal(name, signal.SIGKILL)
            case "SIGTERM of a stranger":
                self.signal(name, signal.SIGTERM)
            case "SIGSTOP":
                self.signal(name, signal.SIGSTOP)
            case "restart asked for":
                self.restart(name)
            case "flood of lines":
                self.next_life(name, kind)
                self.restart(name)
            case "children that hide" | "SIGTERM ignored":
                self.next_life(name, kind)
                before = self.processes_of(name)
                self.restart(name)
                gone = self.processes_of(name) & before
                if gone:
                    self.broken.append(f"{name}, {kind}: {gone} outlived their engine")
            case _:
                self.next_life(name, kind)

    def kill_supervisor(self) -> None:
        """End it as the kernel does when memory is short, and start it again."""
        began = time.monotonic()
        self.kills += 1
        self.supervised.process.kill()
        self.supervised.process.wait()
        self.memory.clear()
        self.supervised.start()
        for name in self.names:
            self.wait_for(name, None)
        self.back.setdefault("supervisor: kill -9", []).append(time.monotonic() - began)

    def signal(self, name: str, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.supervised.pid(name), number)

    def next_life(self, name: str, kind: str) -> None:
        """End this life; the next is of that kind, and begins to serve unless it cannot."""
        told = self.folder / f"{name}.next"
        told.write_text(kind)
        self.signal(name, signal.SIGKILL)
        if kind in ("children that hide", "SIGTERM ignored", "flood of lines"):
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

    @contextmanager
    def disturbing(self, *names: str) -> Iterator[None]:
        """While it lasts, requests to these engines may fail."""
        with self.lock:
            self.lasting.update(names)
            self.begun.update(names)
        try:
            yield
        finally:
            with self.lock:
                self.lasting.subtract(names)

    def ask(self, number: int) -> None:
        """One client of one engine, until the end."""
        name, url = self.names[number], f"http://127.0.0.1:{self.supervised.ports[number]}/v1/completions"
        with httpx.Client(trust_env=False, timeout=BOUND) as client:
            while not self.over.wait(0.05):
                with self.lock:
                    is_calm, before = not self.lasting[name], self.begun[name]
                asked = {"model": "chat", "prompt": "Why?", "max_tokens": 8, "ignore_eos": True}
                try:
                    is_well = client.post(url, json=asked).status_code == 200
                except httpx.TransportError:
                    is_well = False
                self.answers["answered" if is_well else "failed amid a fault"] += 1
                if not is_well and is_calm and before == self.begun[name]:
                    self.answers["failed without one"] += 1
                    self.broken.append(f"{name}: a request failed without a fault")

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


def engine(place: Path, port: list[str]) -> None:
    """What the supervisor starts: it becomes a stand-in that does what its next life is to be."""
    told = Path(f"{place}.next")
    kind = told.read_text() if told.exists() else ""
    told.unlink(missing_ok=True)
    Path(f"{place}.life").write_text(f"{os.getpid()} {kind}")
    if mode := LIVES.get(kind):
        os.environ["VLLMJOBS_STANDIN_FAILURE"] = mode
    os.environ["VLLMJOBS_STANDIN_DEATH_SECONDS"] = "0"
    if line := {"children that hide": HIDING, "flood of lines": FLOOD}.get(kind):
        subprocess.Popen(["sh", "-c", f"{line} & wait"])
    os.execv(ENGINE[0], [*ENGINE, *port])


def environ(pid: int) -> bytes:
    return read(f"/proc/{pid}/environ")


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def run(soak: Soak, seconds: float) -> None:
    """Faults at random for a time, at most one of each engine at once."""
    kinds = [
        "kill -9", "SIGTERM of a stranger", "SIGSTOP", "restart asked for", "flood of lines",
        "children that hide", *LIVES,
    ]  # fmt: skip
    at_work: dict[str, Future[None]] = {}
    next_kill = seconds / 8
    with ThreadPoolExecutor(2 * ENGINES * CLIENTS) as pool:
        for name in soak.names:
            soak.wait_for(name, "")
        helping = [pool.submit(soak.watch)]
        helping += [pool.submit(soak.ask, number) for number in range(ENGINES) for _ in range(CLIENTS)]
        began = time.monotonic()
        try:
            while (passed := time.monotonic() - began) < seconds:
                if passed >= next_kill and passed < seconds / 2:
                    next_kill = passed + seconds / 8
                    with soak.disturbing(*soak.names):
                        soak.kill_supervisor()
                if free := [name for name in soak.names if name not in at_work or at_work[name].done()]:
                    name, kind = soak.chance.choice(free), soak.chance.choice(kinds)
                    at_work[name] = pool.submit(soak.fault, name, kind)
                time.sleep(soak.chance.uniform(0.2, 2.0))
            for fault in at_work.values():
                fault.result()
        finally:
            soak.over.set()
    for one in helping:
        one.result()


def report(soak: Soak, code: int) -> None:
    """Print what was found; exit 1 where something did not hold."""
    print("| fault | times | back after, s: median | most |\n|---|---:|---:|---:|")
    for kind, times in sorted(soak.back.items()):
        print(f"| {kind} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |")
    print(f"\nrequests: {dict(soak.answers)}")
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
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    asked, rest = parser.parse_known_args()
    if asked.engine:
        engine(Path(asked.engine), rest)
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    print(f"{asked.minutes:g} minutes, --seed {seed}\n", flush=True)
    block = take_block()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), block, random.Random(seed))
        with soak.supervised:
            run(soak, asked.minutes * 60)
            soak.supervised.stop()
            code = soak.supervised.end()
        report(soak, code)
    block.release()


if __name__ == "__main__":
    main()
