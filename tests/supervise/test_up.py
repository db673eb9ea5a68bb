"""`vllmjobs up` and its kin: an environment, or an .env file, on this machine with a real nginx."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from vllmjobs_sandbox.cluster import nginx
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import packaged
from vllmjobs_sandbox.engine.machine import SECONDS, Machine
from vllmjobs_sandbox.traffic.load import Load


def test_an_environment_is_up_when_its_model_answers(machine: Machine) -> None:
    machine.environment()
    said = machine.done("up", "one", "--detach")
    assert f"chat-0: chat on no GPU, port {machine.base}" in said
    assert "vllm-one is ready; its log is " in said
    assert machine.complete().json()["usage"]["completion_tokens"] == 2
    assert machine.ask("/health", machine.admin).json() == {
        "chat": {"stable": 2, "canary": 0, "canary_weight": 0}
    }
    assert "vllm-one is stopped" in machine.done("down", "one")
    with pytest.raises(httpx.ConnectError):
        machine.ask("/health", machine.admin)
    assert "vllm-one is not up on this machine" in machine.done("down", "one")


def test_each_server_has_a_route_of_its_own(one: Machine) -> None:
    for number in range(2):
        assert one.complete(f"/v1/chat-{number}/completions").status_code == 200
    assert one.complete("/v1/chat-2/completions").status_code == 404


def test_status_shows_the_servers_of_this_machine(one: Machine) -> None:
    shown = one.run("status", "one")
    assert shown.returncode == 0, shown.stderr
    first, *rows = shown.stdout.splitlines()
    assert re.fullmatch(r"vllm-one on this machine: ok, up for \d+s", first)
    assert [row.split()[:2] for row in rows] == [[name, "ready"] for name in ("chat-0", "chat-1", "nginx")]
    assert json.loads(one.run("status", "one", "--json").stdout)["status"] == "ok"


def test_logs_are_those_of_a_model_a_server_or_all(one: Machine) -> None:
    def shown(*words: str) -> list[str]:
        ended = one.run("logs", "one", *words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    assert {line.split(" | ")[0] for line in shown("chat", "-n", "500")} == {"chat-0", "chat-1"}
    assert {line.split(" | ")[0] for line in shown("nginx", "-n", "500")} == {"nginx"}
    assert len(shown("-n", "3")) == 3
    ready = [line for line in shown("chat-1", "-n", "500") if "instance_ready" in line]
    assert re.fullmatch(r"chat-1 \| \S+Z INFO instance_ready load_seconds=[\d.]+", ready[0])
    assert "has no server code; it has chat-0, chat-1, nginx" in one.run("logs", "one", "code").stderr


def test_logs_go_on_with_what_comes(one: Machine) -> None:
    following = subprocess.Popen(
        ["vllmjobs", "logs", "one", "nginx", "-f", "-n", "0"],
        cwd=one.folder,
        env=one.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout
        asked = threading.Event()

        def ask() -> None:
            while not asked.wait(0.2):
                one.complete()

        with ThreadPoolExecutor() as pool:
            pool.submit(ask)
            line = following.stdout.readline()
            asked.set()
        assert line.startswith("nginx | ")
        assert "POST /v1/completions" in line
    finally:
        following.send_signal(signal.SIGINT)
        assert following.wait(SECONDS) == 0


def test_it_is_not_started_twice(one: Machine) -> None:
    again = one.run("up", "one", "-d")
    assert again.returncode == 1
    assert "vllm-one is up already; vllmjobs down one stops it" in again.stderr
    assert one.complete().status_code == 200


def test_a_folder_whose_name_is_too_long_for_a_socket_is_named(machine: Machine) -> None:
    machine.environment()
    ended = machine.run("up", "one", "-d", "--state", "x" * 110)
    assert ended.returncode == 1
    assert "admin.sock is too long for a socket; give --state a shorter folder" in ended.stderr


def test_another_of_the_same_name_in_another_folder_is_another(
    one: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = Machine(tmp_path_factory.mktemp("m"))
    try:
        pid = one.pid("chat-0")
        second.up()
        assert one.pid("chat-0") == pid
        second.done("down", "one")
        assert one.complete().status_code == 200
    finally:
        second.end()


def test_one_servers_death_is_not_the_others(one: Machine) -> None:
    pid, other = one.pid("chat-0"), one.pid("chat-1")
    os.kill(pid, signal.SIGKILL)
    assert [one.complete().status_code for _ in range(10)] == [200] * 10
    wait_until(lambda: one.pid("chat-0") != pid, SECONDS, "it is started again", ignoring=(KeyError,))
    assert one.pid("chat-1") == other


def test_health_is_503_while_no_server_is_ready(machine: Machine) -> None:
    machine.up(("replicas: 2", "replicas: 1"))
    os.kill(machine.pid("chat-0"), signal.SIGKILL)
    wait_until(lambda: machine.ask("/health", machine.admin).status_code == 503, SECONDS, "nobody is ready")
    assert machine.complete().json()["error"]["code"] == 503
    wait_until(
        lambda: machine.ask("/health", machine.admin).status_code == 200, SECONDS, "one is ready again"
    )


def test_servers_are_restarted_one_after_the_other_and_no_request_fails(one: Machine, tmp_path: Path) -> None:
    with Load(f"http://127.0.0.1:{one.port}", tmp_path, workers=10, per_second=30) as load:
        load.wait_for(30, SECONDS)
        assert one.done("restart", "one", "chat") == "chat-0 is ready again\nchat-1 is ready again\n"
        load.wait_for(30, SECONDS)
    assert (load.seen().failures, load.seen().truncated) == ([], [])


def test_a_server_that_is_not_there_is_named(one: Machine) -> None:
    ended = one.run("restart", "one", "code")
    assert ended.returncode == 1
    assert "vllm-one has no server code; it has chat-0, chat-1" in ended.stderr


def test_one_that_does_not_get_up_says_why(machine: Machine) -> None:
    machine.environment(("[stand-in-engine, serve]", "[no-such-engine]"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert "vllm-one ended with exit code 1; the end of " in ended.stderr
    assert "no-such-engine: not found on its PATH" in ended.stderr


def test_a_server_that_is_given_up_is_named_and_the_others_run_on(machine: Machine) -> None:
    code = (
        "  code: {{model: b/small, entrypoint: [no-such-engine], route: {{path: /code/v1/, strip: /code}}}}\n"
    )
    machine.environment(("models:\n", f"models:\n{code}"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert "code-0 was given up: exit code 127\n" in ended.stderr
    assert "the others run on: vllmjobs down one stops them" in ended.stderr
    wait_until(lambda: machine.complete().status_code == 200, SECONDS, "chat serves")


def test_a_port_that_is_taken_is_named(machine: Machine) -> None:
    with socket.create_server(("0.0.0.0", machine.port)):
        machine.environment()
        ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert f"bind() to 0.0.0.0:{machine.port} failed" in ended.stderr


def test_a_missing_nginx_is_named(machine: Machine) -> None:
    machine.environment(("kind: nginx,", "kind: nginx, driver: raw_exec, command: no-such-nginx,"))
    ended = machine.run("up", "one")
    assert ended.returncode == 1
    assert "no-such-nginx is not on PATH; install it (Debian: nginx-light)" in ended.stderr


@pytest.mark.parametrize(
    ("program", "status"), [(lambda: packaged("nginx"), 200), (nginx.of_wheel, 404)], ids=["debian", "wheel"]
)
def test_metrics_are_shown_by_an_nginx_that_counts_its_connections(
    machine: Machine, program: Callable[[], Path], status: int
) -> None:
    """One that does not would not start with them; `balancer.metrics: true` says that it is to."""
    link = machine.folder / "bin" / "nginx"
    link.unlink()
    link.symlink_to(program())
    machine.up()
    answer = machine.ask("/metrics", machine.admin)
    assert (answer.status_code, "nginx_connections_active 1\n" in answer.text) == (status, status == 200)
    assert machine.ask("/metrics").status_code == 404
    machine.done("down", "one")


def test_metrics_that_nginx_does_not_have_are_an_error_when_they_are_asked_for(machine: Machine) -> None:
    link = machine.folder / "bin" / "nginx"
    link.unlink()
    link.symlink_to(nginx.of_wheel())
    machine.environment(("kind: nginx,", "kind: nginx, metrics: true,"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert 'unknown "connections_active" variable' in ended.stderr


class TestStop:
    """Of a box that answers four requests for 2,000 tokens: 10 s of work."""

    def test_down_lets_answers_end(self, one: Machine) -> None:
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(one.complete, max_tokens=2000) for _ in range(4)]
            one.wait_until_busy(4)
            one.done("down", "one")
            assert [answer.result().json()["usage"]["completion_tokens"] for answer in asked] == [2000] * 4

    def wait_for_phase(self, machine: Machine, phase: str) -> None:
        wait_until(
            lambda: any(one["phase"] == phase for one in machine.instances().values()),
            SECONDS,
            f"one is {phase}",
        )

    @pytest.mark.parametrize("times, tokens, whole", [(1, 2500, True), (2, 4000, False), (3, 4000, False)])
    def test_ctrl_c_drains_once_and_not_twice(
        self, machine: Machine, times: int, tokens: int, whole: bool
    ) -> None:
        longer = "nomad: {{max_kill_timeout: 10m}}\nbalancer:"
        machine.environment(("longest_stream: 10s", "longest_stream: 60s"), ("balancer:", longer))
        process = machine.start("up", "one")
        answers = (httpx.HTTPError, FileNotFoundError)
        wait_until(lambda: machine.complete().status_code == 200, SECONDS, "it answers", ignoring=answers)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(machine.complete, max_tokens=tokens)
            machine.wait_until_busy(1)
            for number in range(times):
                process.send_signal(signal.SIGINT)
                if number + 1 < times:
                    self.wait_for_phase(machine, ("leaving", "terminating")[number])
            assert process.wait(SECONDS) == 0
            try:
                answer = asked.result()
                got = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == tokens
            except httpx.HTTPError:
                got = False
        assert got is whole
