"""Engines behind a balancer on one box: a real nginx, which is told who is ready."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from vllmjobs_sandbox.cluster import nginx
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import SECONDS, Supervise, Supervised
from vllmjobs_sandbox.traffic.load import Load
from vllmjobs_sandbox.traffic.requests import begun


@pytest.fixture
def fronted(supervise: Supervise, tmp_path: Path) -> Supervised:
    """Two engines behind nginx, all of them ready, and no worker of nginx left that knows of none."""
    box = supervise(
        engines=2,
        nginx=nginx.at_hand()[0],
        admin_path=str(tmp_path / "admin.sock"),
        limits={"leave": 1.0, "drain": 30.0},
    )
    for name in ("chat-0", "chat-1", "nginx"):
        box.wait_for("instance_ready", name)
    box.wait_until_ready()
    wait_until(lambda: complete(box, 1).status_code == 200, SECONDS, "nginx has read of an engine")
    # After a reload, old workers and new ones take requests for 100 ms (ngx_master_process_cycle).
    wait_until(lambda: len(workers(box)) == 2, SECONDS, "the old workers have gone")
    return box


def test_engines_are_restarted_one_after_the_other_and_no_request_fails(
    fronted: Supervised, tmp_path: Path
) -> None:
    with Load(fronted.front, tmp_path, workers=10, per_second=30) as load:
        load.wait_for(30, SECONDS)
        for number in range(2):
            name = f"chat-{number}"
            assert fronted.ask(f"/restart/{name}")[0] == 202
            fronted.wait_for("instance_ready", name, count=2)
            load.wait_for(30, SECONDS)
    assert (load.seen().failures, load.seen().truncated) == ([], [])


def test_a_stop_lets_the_answers_end_before_nginx_goes(fronted: Supervised) -> None:
    url = f"{fronted.front}/v1/completions"
    with ExitStack() as stack:
        answers = [stack.enter_context(begun(url, 600)) for _ in range(4)]  # 3 s
        fronted.stop()
        assert [answer.tokens() for answer in answers] == [600] * 4
    assert fronted.end() == 0
    stopped = [said["instance"] for said in fronted.said("instance_stopped")]
    assert stopped[-1] == "nginx"


def test_an_nginx_that_dies_is_started_again(fronted: Supervised) -> None:
    os.kill(fronted.pid("nginx"), signal.SIGKILL)
    fronted.wait_for("instance_ready", "nginx", count=2)
    assert complete(fronted, 2).status_code == 200


def workers(box: Supervised) -> list[str]:
    """The worker processes of nginx: two, and during a reload those before."""
    command = ["pgrep", "--parent", str(box.pid("nginx"))]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def complete(box: Supervised, max_tokens: int) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=SECONDS) as client:
        asked = {"model": "chat", "prompt": "Why?", "max_tokens": max_tokens, "ignore_eos": True}
        return client.post(f"{box.front}/v1/completions", json=asked)
