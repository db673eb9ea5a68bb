"""The process that talks to NVML, and its reader: NVML is a real shared library, nvml_live.c."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pytest

from vllmjobs.supervisor.core.gpu_events import (
    HANG,
    GpuEvent,
    GpuReader,
    GpuReading,
    Lost,
    NoAccess,
    NoDriver,
    Unanswered,
    Xid,
)
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.gpus.nvml import build

WATCH = [sys.executable, "-m", "vllmjobs.supervisor.gpu.watch"]
GIB = 2**30
ALL_INSTANCES = 0xFFFFFFFF
Start = Callable[..., "Watched"]
T = TypeVar("T", GpuReading, Xid, Lost, Unanswered, NoDriver, NoAccess)


def uuid(number: int) -> str:
    return f"GPU-{number}0000000-1111-2222-3333-444444444444"


def h100(number: int, **more: object) -> dict[str, object]:
    said = {
        "NAME": "NVIDIA H100 80GB HBM3",
        "UUID": uuid(number),
        "MEMORY": 80 * GIB,
        "USED": 70 * GIB,
        "TEMPERATURE": 61,
        "REMAPPED": "2,1,1,0",
        "RECOVERY": 0,
        "UNCORRECTED": 3,
        "CLOCKS": 4,
        "EVENTS": 8,
        "COMPUTE": "17,18:1000",
        **more,
    }
    return {f"GPU{number}_{key}": value for key, value in said.items()}


class Watched:
    """A running gpu_watch, whose NVML can be told what happens."""

    def __init__(self, environ: dict[str, str], *gpus: str) -> None:
        self.process = subprocess.Popen(
            [*WATCH, *gpus], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, bufsize=0
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.live = environ["NVML_LIVE"]
        self.reader = GpuReader(time.monotonic())
        self.seen: list[GpuEvent] = []

    def happens(self, line: str) -> None:
        with open(self.live, "w") as live:  # noqa: PTH123 (a FIFO)
            live.write(f"{line}\n")

    def read_now(self) -> None:
        self.stdin.write(b"\n")

    def wait_for(self, kind: type[T]) -> T:
        """Wait for an observation of a kind; those before it are dropped."""

        def found() -> T | None:
            if select.select([self.stdout], [], [], 0)[0]:
                self.seen += self.reader.feed(os.read(self.stdout.fileno(), 65536), time.monotonic())
            while self.seen:
                if isinstance(first := self.seen.pop(0), kind):
                    return first
            return None

        return wait_until(found, 20, f"{kind.__name__} is observed")

    def exit_code(self) -> int:
        return self.process.wait(20)


@pytest.fixture
def start(library: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a gpu_watch with an NVML that says so."""
    started: list[Watched] = []
    live = tmp_path / "live"
    os.mkfifo(live)

    def with_answers(*gpus: str, driver: Path = library, **said: object) -> Watched:
        environ = {"LD_LIBRARY_PATH": str(driver), "NVML_LIVE": str(live)}
        started.append(Watched(environ | {name: str(value) for name, value in said.items()}, *gpus))
        return started[-1]

    yield with_answers
    for one in started:
        one.process.kill()
        one.process.wait()
        one.stdin.close()
        one.stdout.close()


def test_a_reading_tells_what_the_driver_does(start: Start) -> None:
    watch = start(NVML_GPUS=2, **h100(0), **h100(1, USED=GIB, COMPUTE=""))
    first, second = watch.wait_for(GpuReading), watch.wait_for(GpuReading)
    assert first == GpuReading(
        gpu=uuid(0),
        at=first.at,
        index=0,
        name="NVIDIA H100 80GB HBM3",
        memory_used=70 * GIB,
        memory_total=80 * GIB,
        temperature=61,
        recovery_action=0,
        remap_pending=True,
        remap_failed=False,
        corrected_ecc=None,
        uncorrected_ecc=3,
        clocks_reasons=4,
    )
    assert (second.index, second.memory_used) == (1, GIB)
    assert watch.reader.readings == {uuid(0): first, uuid(1): second}


def test_a_line_is_json_with_the_time_of_day(start: Start) -> None:
    watch = start(NVML_GPUS=1, **h100(0))
    line = json.loads(watch.stdout.readline())
    assert abs(line.pop("at") - time.time()) < 60
    assert line["kind"] == "reading"
    assert line.keys() == {"kind", *asdict(GpuReading(uuid(0)))} - {"at"}
    assert (line["remap_pending"], line["corrected_ecc"]) == (True, None)


def test_an_older_driver_leaves_values_out(start: Start, tmp_path: Path) -> None:
    watch = start(driver=build(tmp_path / "old", "-DOLD"), NVML_GPUS=1, **h100(0, RESERVED=GIB))
    reading = watch.wait_for(GpuReading)
    assert (reading.gpu, reading.memory_used, reading.temperature) == (uuid(0), 71 * GIB, 61)
    assert reading.clocks_reasons is None
    assert watch.process.poll() is None


def test_only_the_gpus_that_were_asked_for_are_watched(start: Start) -> None:
    three = {"NVML_GPUS": 3, **h100(0), **h100(1), **h100(2)}
    watch = start(uuid(2), "0", **three)
    assert [watch.wait_for(GpuReading).index for _ in range(2)] == [2, 0]


def test_a_gpu_that_is_not_there_is_no_lost_one(start: Start) -> None:
    watch = start("GPU-misspelt", "0", NVML_GPUS=1, **h100(0))
    assert watch.wait_for(Unanswered) == Unanswered("GPU-misspelt", 6, "Not Found")
    assert watch.wait_for(GpuReading)


def test_xids_come_at_once_and_in_order(start: Start) -> None:
    watch = start(NVML_GPUS=2, **h100(0), **h100(1))
    watch.wait_for(GpuReading)
    watch.happens(f"xid 1 31 {ALL_INSTANCES}\nxid 0 79 {ALL_INSTANCES}")
    assert watch.wait_for(Xid) == Xid(uuid(1), 31)
    assert watch.wait_for(Xid) == Xid(uuid(0), 79)


def test_an_xid_reaches_the_mig_instances_that_it_is_of(start: Start) -> None:
    mig = {
        "GPU0_MIG_PLACES": 7,
        "GPU0_MIG0_UUID": "MIG-a",
        "GPU0_MIG0_INSTANCE": 7,
        "GPU0_MIG0_MEMORY": 10 * GIB,
        "GPU0_MIG3_UUID": "MIG-b",
        "GPU0_MIG3_INSTANCE": 9,
    }
    watch = start(NVML_GPUS=1, **h100(0, MIG=1), **mig)
    small = watch.wait_for(GpuReading)
    # Its own memory; the temperature and the health of its GPU.
    assert (small.gpu, small.memory_total, small.temperature, small.remap_pending) == (
        "MIG-a", 10 * GIB, 61, True,
    )  # fmt: skip
    watch.wait_for(GpuReading)
    watch.happens("xid 0 94 9")
    assert watch.wait_for(Xid) == Xid("MIG-b", 94)
    watch.happens(f"xid 0 48 {ALL_INSTANCES}")
    assert [watch.wait_for(Xid), watch.wait_for(Xid)] == [Xid("MIG-a", 48), Xid("MIG-b", 48)]


def test_a_mig_instance_is_watched_by_its_uuid(start: Start) -> None:
    mig = {"GPU0_MIG0_UUID": "MIG-a", "GPU0_MIG0_INSTANCE": 7, "GPU0_MIG0_MEMORY": GIB}
    watch = start("MIG-a", NVML_GPUS=1, **h100(0), **mig)
    reading = watch.wait_for(GpuReading)
    assert (reading.gpu, reading.index, reading.memory_total, reading.recovery_action) == ("MIG-a", 0, GIB, 0)


@pytest.mark.parametrize(("code", "reason"), [(15, "GPU is lost"), (16, "GPU requires restart")])
def test_a_gpu_that_is_lost_while_it_is_watched_is_said(start: Start, code: int, reason: str) -> None:
    watch = start(NVML_GPUS=2, **h100(0), **h100(1))
    watch.wait_for(GpuReading)
    watch.happens(f"GPU0=!{code}")
    watch.read_now()
    assert watch.wait_for(Lost) == Lost(uuid(0), reason)
    assert watch.wait_for(GpuReading).gpu == uuid(1)


def test_a_gpu_that_was_lost_before_is_said(start: Start) -> None:
    watch = start(NVML_GPUS=1, GPU0_HANDLE="!15")
    assert watch.wait_for(Lost) == Lost("0", "GPU is lost")
    assert watch.exit_code() == 1


def test_an_unknown_error_is_not_a_lost_gpu(start: Start) -> None:
    watch = start(NVML_GPUS=1, **h100(0))
    watch.wait_for(GpuReading)
    watch.happens("GPU0_CLOCKS=!999")  # of one call, which other calls outweigh
    watch.read_now()
    assert watch.wait_for(GpuReading).clocks_reasons is None
    watch.happens("GPU0=!999")
    watch.read_now()
    assert watch.wait_for(Unanswered) == Unanswered(uuid(0), 999, "Unknown Error")


@pytest.mark.parametrize("code", [9, 18])
def test_without_a_driver_one_line_says_so(start: Start, code: int) -> None:
    watch = start(NVML_INIT=code)
    assert watch.wait_for(NoDriver).reason
    assert watch.exit_code() == 0
    assert watch.reader.is_over
    assert not watch.reader.is_hung(time.monotonic() + 3600)


def test_without_the_library_one_line_says_so(start: Start, tmp_path: Path) -> None:
    watch = start(driver=tmp_path)
    said = watch.wait_for(NoDriver)
    assert "Not Found" in said.reason
    assert (watch.exit_code(), watch.stdout.read()) == (0, b"")


def test_a_driver_without_a_gpu_says_so(start: Start) -> None:
    assert start(NVML_GPUS=0).wait_for(NoDriver) == NoDriver("the NVIDIA driver is loaded, but finds no GPU")


def test_a_container_that_lost_its_access_says_so(start: Start) -> None:
    watch = start(NVML_INIT=999)
    assert watch.wait_for(NoAccess) == NoAccess(999, "Unknown Error")
    assert watch.exit_code() == 1


def test_it_leaves_when_its_stdin_ends(start: Start) -> None:
    watch = start(NVML_GPUS=1, **h100(0))
    watch.wait_for(GpuReading)
    watch.stdin.close()
    assert watch.exit_code() == 0


def test_it_leaves_when_its_parent_is_another(library: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    os.mkfifo(live)
    environ = {"LD_LIBRARY_PATH": str(library), "NVML_LIVE": str(live), "NVML_GPUS": "1"}
    # A shell that starts it with the same pipes, says its pid, and ends once told to.
    shell = ["sh", "-c", '"$@" <&0 & echo $! >&2; read line', "sh", *WATCH]
    parent = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=environ, bufsize=0)  # fmt: skip
    assert parent.stdin
    assert parent.stdout
    assert parent.stderr
    pid = int(parent.stderr.readline())
    assert b"reading" in parent.stdout.readline()
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not cmdline(pid), 20, "it left")
    for pipe in (parent.stdin, parent.stdout, parent.stderr):
        pipe.close()


def cmdline(pid: int) -> bytes:
    """Empty for a zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def test_sigterm_ends_it_while_nvml_hangs(start: Start) -> None:
    watch = start(NVML_GPUS=1, **h100(0))
    watch.wait_for(GpuReading)
    watch.happens("GPU0_CLOCKS=hang:/")
    watch.read_now()
    wait_until(lambda: "pause" in wchan(watch.process.pid), 20, "it hangs", ignoring=(OSError,))
    assert not watch.reader.is_hung(time.monotonic())
    assert watch.reader.is_hung(time.monotonic() + HANG)
    watch.process.terminate()
    assert watch.exit_code() == -signal.SIGTERM


def wchan(pid: int) -> str:
    """The system call in which a process waits: 34 is pause on x86-64; arm64 has ppoll (73) for it."""
    number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return {"34": "pause", "73": "pause"}.get(number, number)
