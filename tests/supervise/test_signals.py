"""Signals that come to the supervisor: what is passed on, and what is not."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

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
