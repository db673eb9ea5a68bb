"""The faults of benchmarks/soak.py that want a supervisor of their own: it ends of them, or needs GPUs."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from soak_load import Load
from timing import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from vllmjobs.supervisor.core.gpu_verdicts import XIDS
from vllmjobs.supervisor.core.model import GAVE_UP, GPU_FATAL
from vllmjobs_sandbox.cluster.ports import take_block
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import ENGINE, Supervised, marked
from vllmjobs_sandbox.gpus.live import GIB, Live, library, uuid

SECONDS = 90.0
HANGS = "hang:/"  # while there is this folder: for good
LIMITS = {"load": 30.0, "hang": 15.0, "drain": 20.0}
NEVER_READY = {"VLLMJOBS_STANDIN_FAILURE": "never-ready"}
FAILS = {"VLLMJOBS_STANDIN_FAILURE": "exit-1-before-ready"}
SLOW = {"VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "5"}
LONG = 400  # tokens: two seconds
STORM = ["sh", "-c", "yes 'a line of text that says nothing' & exec \"$@\"", "sh", *ENGINE]


class Stage:
    """Where they take place, one after the other."""

    def __init__(self, folder: Path, load: Load, chance: random.Random) -> None:
        self.folder, self.load, self.chance = folder, load, chance
        self._library: Path | None = None

    @contextmanager
    def supervised(self, engines: int = 1, **how: Any) -> Iterator[Supervised]:
        """A supervisor that leaves nothing behind."""
        block = take_block()
        limits = LIMITS | how.pop("limits", {})
        try:
            with TemporaryDirectory(dir=self.folder) as folder:
                with Supervised(Path(folder), block, engines, limits=limits, **how) as one:
                    yield one
                assert not (left := marked(one)), f"left behind: {left}"
        finally:
            block.release()

    @contextmanager
    def on_gpus(self, engines: int = 1, clocks: str = "0") -> Iterator[tuple[Supervised, Live]]:
        """With a GPU for each engine, all ready unless NVML hangs from the start."""
        if self._library is None:
            self._library = library(self.folder)
        uuids = [uuid(number) for number in range(engines)]
        with TemporaryDirectory(dir=self.folder) as folder:
            live = Live(self._library, Path(folder) / "live", uuids)
            env = live.env | {"GPU0_CLOCKS": clocks}
            with self.supervised(engines, env=env, gpus=[[one] for one in uuids]) as one:
                if clocks != HANGS:
                    ready(one, engines)
                yield one, live

    @contextmanager
    def undisturbed(self, one: Supervised, number: int, what: str) -> Iterator[None]:
        """No request to this engine may fail meanwhile, nor just after."""
        with self.load.of(f"chat-{number}, {what}", one.ports[number]):
            yield
            for _ in range(3):
                assert one.complete(number).status_code == 200

    def xid(self, kind: str) -> int:
        """One of a class, for a GPU whose engine has no other."""
        return self.chance.choice([code for code, (_, of_one, _) in XIDS.items() if of_one == kind])


def ready(one: Supervised, engines: int = 1, count: int = 1) -> None:
    for number in range(engines):
        one.wait_for("instance_ready", f"chat-{number}", count)


def stopped_while(phase: str, stage: Stage) -> None:
    """SIGTERM in one of its phases."""
    with stage.supervised(env=NEVER_READY if phase == "loading" else {}) as one:
        if phase == "starting":
            wait_until(lambda: one.get("/live")[0] == 200, SECONDS, "it answers")
        elif phase == "loading":
            one.wait_until_phase("starting")
        else:
            ready(one)
        one.stop()
        assert one.end(SECONDS) == 0


def stopped_amid_an_answer(stage: Stage) -> None:
    """It drains, and the answer ends whole."""
    with stage.supervised() as one, ThreadPoolExecutor(1) as pool:
        ready(one)
        answer = pool.submit(one.complete, max_tokens=LONG, seconds=SECONDS)
        wait_until(lambda: one.instance()["unanswered"], SECONDS, "it is asked")
        one.stop()
        status = answer.result().status_code
        stage.load.answers["answered" if status == 200 else "failed without a fault"] += 1
        assert status == 200, f"the answer was cut: {status}"
        assert one.end(SECONDS) == 0


def stopped_twice(stage: Stage) -> None:
    """The second SIGTERM ends the drain, and cuts an answer that would take minutes."""
    with stage.supervised(env=SLOW, limits={"drain": 300.0}) as one, ThreadPoolExecutor(1) as pool:
        ready(one)
        answer = pool.submit(one.complete, max_tokens=1000, seconds=SECONDS)
        wait_until(lambda: one.instance()["unanswered"], SECONDS, "it is asked")
        one.stop()
        one.wait_until_phase("leaving")
        one.stop()
        assert one.end(SECONDS) == 0
        assert answer.exception(), "the answer was not cut"
        stage.load.answers["failed amid a fault"] += 1


def port_taken(stage: Stage) -> None:
    """By another program, between two lives: it is started when the port is free."""
    patient = {"backoff": 3.0, "backoff_most": 3.0, "restarts": 100, "restarts_never_ready": 100}
    with stage.supervised(limits=patient) as one:
        ready(one)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            os.kill(one.pid(), signal.SIGKILL)
            wait_until(lambda: took(other, one.ports[0]), SECONDS, "it is taken", (OSError,))
            one.wait_for("instance_not_started")
        ready(one, count=2)


def full_disk(stage: Stage) -> None:
    """Each line of the log is an ENOSPC."""
    with Path("/dev/full").open("wb") as full, stage.supervised(stdout=full.fileno()) as one:
        one.wait_until_ready()
        with stage.undisturbed(one, 0, "disk full"):
            pass
        one.stop()
        assert one.end(SECONDS) == 0


def blocked_stdout(stage: Stage) -> None:
    """Nobody reads what it says, and its engine says much."""
    read, write = os.pipe()
    try:
        with stage.supervised(commands=[STORM], stdout=write, log_rate=0) as one:
            one.wait_until_ready()
            with stage.undisturbed(one, 0, "stdout blocked"):
                wait_until(lambda: dropped(one) > 0, SECONDS, "lines are dropped")
            one.stop()
            assert one.end(SECONDS) == 0
    finally:
        os.close(read)
        os.close(write)


def crash_loop(stage: Stage) -> None:
    """Its budget is used up."""
    with stage.supervised(env=FAILS) as one:
        assert one.end(SECONDS) == GAVE_UP
        assert len(one.said("instance_started")) == 3


def eight_deaths(stage: Stage) -> None:
    """At once."""
    with stage.supervised(engines=8, env={"VLLMJOBS_STANDIN_LOAD_SECONDS": "0"}) as one:
        ready(one, 8)
        pids = [one.pid(f"chat-{number}") for number in range(8)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ready(one, 8, count=2)


def harmless_xid(stage: Stage) -> None:
    """It is logged, as is one of a link that only this engine has."""
    with stage.on_gpus() as (one, live), stage.undisturbed(one, 0, "harmless XID"):
        live.xid(uuid(0), stage.xid("log"))
        one.wait_for("gpu_log")
        live.xid(uuid(0), stage.xid("degrade"))
        one.wait_for("gpu_degrade")


def xid_of_the_program(stage: Stage) -> None:
    """Its engine fails of it, and is started again."""
    with stage.on_gpus() as (one, live):
        live.xid(uuid(0), stage.xid("restart"))
        one.wait_for("gpu_watch")
        os.kill(one.pid(), signal.SIGABRT)
        ready(one, count=2)


def fatal_xid(stage: Stage) -> None:
    """Of one of two GPUs: the other engine serves on."""
    with stage.on_gpus(2) as (two, live):
        with stage.undisturbed(two, 1, "fatal XID of the other GPU"):
            live.xid(uuid(0), stage.xid("fatal"))
            two.wait_until_phase("given_up", "chat-0")
        live.xid(uuid(1), stage.xid("fatal"))
        assert two.end(SECONDS) == GPU_FATAL


def gpu_lost(stage: Stage) -> None:
    """It says so itself."""
    with stage.on_gpus() as (one, live):
        live.happens("GPU0=!15")
        assert one.end(SECONDS) == GPU_FATAL


def nvml_hangs(stage: Stage) -> None:
    """Nobody is disturbed."""
    with stage.on_gpus() as (one, live), stage.undisturbed(one, 0, "NVML hangs"):
        live.happens(f"GPU0_CLOCKS={HANGS}")
        one.wait_for("gpu_watch")


def nvml_never_answers(stage: Stage) -> None:
    """The third time all of it ends: a first look has 30 s."""
    with stage.on_gpus(clocks=HANGS) as (one, _):
        assert one.end(2 * SECONDS) == GPU_FATAL
        assert len(one.said("gpu_watch")) == 2


def memory_not_freed(stage: Stage) -> None:
    """It is not started before its memory is free."""
    with stage.on_gpus() as (one, live):
        live.happens(f"GPU0_USED={70 * GIB}")
        wait_until(lambda: used(one) == 70 * GIB, SECONDS, "a look has shown it")
        os.kill(one.pid(), signal.SIGKILL)
        one.wait_for("instance_failed")
        one.wait_until_phase("clearing")
        time.sleep(stage.chance.uniform(1, 3))
        assert one.instance()["phase"] == "clearing"
        live.happens("GPU0_USED=0")
        ready(one, count=2)


def took(other: socket.socket, port: int) -> bool:
    other.bind(("127.0.0.1", port))
    other.listen()
    return True


def dropped(one: Supervised) -> float:
    page = httpx.get(f"{one.admin}/metrics", trust_env=False, timeout=SECONDS).text
    name = 'vllmjobs_supervisor_log_lines_dropped_total{instance="",stream="output"} '
    return sum(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


def used(one: Supervised) -> int:
    (gpu,) = one.get("/health")[1]["memory_usage"]["gpus"]
    return int(gpu["used_bytes"] or 0)


SCENES: dict[str, Callable[[Stage], None]] = {
    **{
        f"SIGTERM while {phase}": partial(stopped_while, phase)
        for phase in ("starting", "loading", "serving")
    },
    "SIGTERM amid an answer": stopped_amid_an_answer,
    "SIGTERM while draining": stopped_twice,
    "port taken": port_taken,
    "ENOSPC": full_disk,
    "stdout blocked": blocked_stdout,
    "crash loop": crash_loop,
    "8 deaths at once": eight_deaths,
    "XID: log, degrade": harmless_xid,
    "XID: restart": xid_of_the_program,
    "XID: fatal": fatal_xid,
    "GPU lost": gpu_lost,
    "NVML hangs": nvml_hangs,
    "NVML hangs for good": nvml_never_answers,
    "GPU memory not freed": memory_not_freed,
}
