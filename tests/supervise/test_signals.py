"""Signals that come to the supervisor: what is passed on, and what is not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllmjobs.supervisor.signals import Signals
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import SECONDS, Supervise, Supervised

LISTENING = """
import signal
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        signal.signal(number, lambda number, _: print(signal.Signals(number).name, flush=True))
print("listening", flush=True)
while True:
    signal.pause()
"""


def hears(one: Supervised, instance: str, message: str) -> None:
    """Wait until a child has said so."""
    said = {"instance": instance, "message": message}
    wait_until(
        lambda: any(said.items() <= line.items() for line in list(one.events)),
        SECONDS,
        f"{instance} says {message}",
        evidence=one.evidence,
    )


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"])
def test_every_child_is_told(supervise: Supervise, name: str) -> None:
    two = supervise(engines=2, commands=[[sys.executable, "-c", LISTENING]] * 2)
    for instance in ("chat-0", "chat-1"):
        hears(two, instance, "listening")
    two.process.send_signal(signal.Signals[name])
    for instance in ("chat-0", "chat-1"):
        hears(two, instance, name)
    assert two.said("stopping") == two.said("instance_failed") == []


def test_a_terminal_that_is_closed_stops_a_box_and_lets_the_answers_end(
    supervise: Supervise, tmp_path: Path
) -> None:
    """The shell sends SIGHUP, and the kernel another one: that is no hurry."""
    one = supervise(admin_path=str(tmp_path / "admin.sock"), limits={"drain": 30})
    one.wait_until_ready()
    with one.begun(400) as answer:  # 2 s
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("instance_leaves")
        one.process.send_signal(signal.SIGHUP)
        assert answer.tokens() == 400
    assert one.end() == 0
    assert one.said("instance_failed") == one.said("stop_hurried") == []


def test_a_signal_is_heard_however_many_others_came_before(capfd: pytest.CaptureFixture[str]) -> None:
    """Far more than asyncio's own socket has bytes for, while the loop is busy."""
    heard: list[str] = []

    async def busy() -> None:
        signals = Signals(
            {signal.SIGUSR1: lambda: heard.append("storm"), signal.SIGUSR2: lambda: heard.append("stop")}
        )
        for _ in range(10_000):
            os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.sleep(0)
        signals.close()
        os.kill(os.getpid(), signal.SIGUSR1)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        asyncio.run(busy())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == ["storm"] * 3 + ["stop"] * 2
    assert capfd.readouterr().err == ""


STORM = """
import os, sys, time
pid, number, seconds = map(int, sys.argv[1:])
end = time.monotonic() + seconds
while time.monotonic() < end:
    for _ in range(1000):
        os.kill(pid, number)
"""


def test_a_storm_of_signals_freezes_nothing(supervise: Supervise, long: bool) -> None:
    """A process of the same user, such as an engine, can send one; `--long`: as long as it once took."""
    one = supervise(admin_path=None)
    one.wait_until_ready()
    seconds = 30 if long else 3
    storms = [
        subprocess.Popen([sys.executable, "-c", STORM, str(one.process.pid), str(int(number)), str(seconds)])
        for number in (signal.SIGWINCH, signal.SIGCHLD)
    ]
    asked = 0
    while any(storm.poll() is None for storm in storms):
        asked += one.get("/live")[0] == 200
        time.sleep(0.1)
    assert asked
    assert one.complete().status_code == 200
    one.stop()
    assert one.end() == 0
    assert (one.errors, one.said("instance_failed"), one.said("internal_error")) == ("", [], [])
