"""`vllmjobs up` and its kin: an environment on this machine with a real nginx.

The tests that take `one` live through its life in their order, to its `down`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from vllmjobs_sandbox.cluster import nginx
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import packaged
from vllmjobs_sandbox.engine.machine import SECONDS, Machine
from vllmjobs_sandbox.traffic.load import Load
from vllmjobs_sandbox.traffic.requests import ENDLESS

# The engine starts once the file GO is there.
HELD = """[sh, -c, 'until test -e "$GO"; do sleep 0.1; done; exec stand-in-engine "$@"', sh, serve]"""


def test_an_environment_is_up_when_its_model_answers(one: Machine, said: str) -> None:
    assert f"chat-0: chat on no GPU, port {one.base}" in said
    assert "vllm-one is ready; its log is " in said
    assert one.complete().json()["usage"]["completion_tokens"] == 2
    assert one.ask("/health", one.admin).json() == {"chat": {"stable": 2, "canary": 0, "canary_weight": 0}}


def test_what_up_writes_is_for_this_user_alone(one: Machine) -> None:
    state = one.folder / "state"
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in [state, *state.rglob("*")]}
    temporary = {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"}  # nginx makes them for its own workers
    ours = {path: bits for path, bits in modes.items() if path.name not in temporary | {"nginx.pid"}}
    assert {path.name for path in ours} > {"supervise.json", "log.jsonl", "upstreams.conf", "admin.sock"}
    assert {path: bits for path, bits in ours.items() if bits != (0o700 if path.is_dir() else 0o600)} == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to others")
def test_a_folder_of_another_user_is_refused_and_nothing_in_it_followed(machine: Machine) -> None:
    machine.environment()
    victim, state = machine.folder / "victim", machine.folder / "others" / "st"
    victim.write_text("mine")
    (state / "nginx").mkdir(parents=True)
    (state / "nginx" / "nginx.conf").symlink_to(victim)
    for path in (state, state / "nginx"):
        os.chown(path, 65534, 65534)
    ended = machine.run("up", "one", "-d", "--state", str(state))
    assert ended.returncode == 1
    assert ended.stderr.endswith(
        f"{state} is a folder of nobody (mode 0755); give --state a folder of yours\n"
    )
    assert victim.read_text() == "mine"


def test_each_server_has_a_route_of_its_own(one: Machine) -> None:
    for number in range(2):
        assert one.complete(f"/v1/chat-{number}/completions").status_code == 200
    assert one.complete("/v1/chat-2/completions").status_code == 404


def test_status_shows_the_servers_of_this_machine(one: Machine) -> None:
    shown = one.run("status", "one")
    assert shown.returncode == 0, shown.stderr
    first, *rows = shown.stdout.splitlines()
    assert re.fullmatch(r"vllm-one on this machine: ok, up for (\d+m)?\d+s", first)
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


def test_a_server_that_is_not_there_is_named(one: Machine) -> None:
    ended = one.run("restart", "one", "code")
    assert ended.returncode == 1
    assert "vllm-one has no server code; it has chat-0, chat-1" in ended.stderr


def test_another_of_the_same_name_in_another_folder_is_another(one: Machine, machine: Machine) -> None:
    pid = one.pid("chat-0")
    machine.up(("replicas: 2", "replicas: 1"))
    assert one.pid("chat-0") == pid
    machine.done("down", "one")
    assert one.complete().status_code == 200


def test_servers_are_restarted_one_after_the_other_and_no_request_fails(one: Machine, tmp_path: Path) -> None:
    with Load(f"http://127.0.0.1:{one.port}", tmp_path, workers=10, per_second=30) as load:
        load.wait_for(30, SECONDS)
        assert one.done("restart", "one", "chat") == "chat-0 is ready again\nchat-1 is ready again\n"
        load.wait_for(30, SECONDS)
    assert (load.seen().failures, load.seen().truncated) == ([], [])


def test_one_servers_death_is_not_the_others(one: Machine) -> None:
    pid, other = one.pid("chat-0"), one.pid("chat-1")
    os.kill(pid, signal.SIGKILL)
    assert [one.complete().status_code for _ in range(10)] == [200] * 10
    wait_until(lambda: one.pid("chat-0") not in (0, pid), SECONDS, "it is started again")
    assert one.pid("chat-1") == other


def test_down_lets_answers_end(one: Machine) -> None:
    with ExitStack() as stack:
        begun = [stack.enter_context(one.begun(800)) for _ in range(4)]  # 4 s
        stopping = one.start("down", "one")
        assert [answer.tokens() for answer in begun] == [800] * 4
    assert stopping.wait(SECONDS) == 0
    assert (one.folder / "started.log").read_text() == "vllm-one is stopped\n"
    with pytest.raises(httpx.ConnectError):
        one.ask("/health", one.admin)
    assert "vllm-one is not up on this machine" in one.done("down", "one")


def test_a_folder_whose_name_is_too_long_for_a_socket_is_named(machine: Machine) -> None:
    machine.environment()
    ended = machine.run("up", "one", "-d", "--state", "x" * 110)
    assert ended.returncode == 1
    assert "admin.sock is too long for a socket; give --state a shorter folder" in ended.stderr


def test_one_that_does_not_get_up_says_why(machine: Machine) -> None:
    machine.environment(("[stand-in-engine, serve]", "[no-such-engine]"), ("replicas: 2", "replicas: 1"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert "vllm-one ended with exit code 1; the end of " in ended.stderr
    assert "no-such-engine: not found on its PATH" in ended.stderr


def test_a_server_that_is_given_up_is_named_and_the_others_run_on(machine: Machine) -> None:
    code = (
        "  code: {{model: b/small, entrypoint: [no-such-engine], route: {{path: /code/v1/, strip: /code}}}}\n"
    )
    machine.environment(("models:\n", f"models:\n{code}"), ("replicas: 2", "replicas: 1"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert "code-0 was given up: exit code 127\n" in ended.stderr
    assert "the others keep running: vllmjobs down one stops them" in ended.stderr
    machine.wait_until_it_answers()


def test_a_port_that_is_taken_is_named(machine: Machine) -> None:
    with socket.create_server(("0.0.0.0", machine.port)):
        machine.environment(("[stand-in-engine, serve]", "[sh, -c, sleep 600]"))
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
    machine.up(("replicas: 2", "replicas: 1"))
    answer = machine.ask("/metrics", machine.admin)
    assert (answer.status_code, "nginx_connections_active 1\n" in answer.text) == (status, status == 200)
    assert machine.ask("/metrics").status_code == 404


def test_metrics_that_nginx_does_not_have_are_an_error_when_they_are_asked_for(machine: Machine) -> None:
    link = machine.folder / "bin" / "nginx"
    link.unlink()
    link.symlink_to(nginx.of_wheel())
    machine.environment(("kind: nginx,", "kind: nginx, metrics: true,"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert 'unknown "connections_active" variable' in ended.stderr


@pytest.fixture(scope="class")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """`up one`, whose log is shown: one server behind nginx, which starts once the file GO is there."""
    machine = Machine(tmp_path_factory.mktemp("m"))
    machine.env["GO"] = str(machine.folder / "go")
    patient = "nomad: {{max_kill_timeout: 10m}}\nbalancer:"
    machine.environment(
        ("[stand-in-engine, serve]", HELD), ("replicas: 2", "replicas: 1"),
        ("longest_stream: 10s", "longest_stream: 60s"), ("balancer:", patient),
    )  # fmt: skip
    machine.start("up", "one")
    yield machine
    machine.end()


class TestAnUpThatIsShown:
    """In the order of its life, to its Ctrl-C."""

    def test_says_503_while_the_model_loads_and_then_200(self, shown: Machine) -> None:
        shown.wait_until_nobody_is_ready()
        refused = shown.complete()
        assert refused.status_code == refused.json()["error"]["code"] == 503
        assert refused.json()["error"]["message"].startswith("No instance of this model is ready.")
        Path(shown.env["GO"]).touch()
        shown.wait_until_it_answers()
        answer = shown.ask("/health", shown.admin)
        assert (answer.status_code, answer.json()["chat"]["stable"]) == (200, 1)

    def test_health_is_503_while_no_server_is_ready(self, shown: Machine) -> None:
        Path(shown.env["GO"]).unlink()
        os.kill(shown.pid("chat-0"), signal.SIGKILL)
        shown.wait_until_nobody_is_ready()
        assert shown.complete().status_code == 503
        Path(shown.env["GO"]).touch()
        shown.wait_until_it_answers()
        assert shown.ask("/health", shown.admin).status_code == 200

    def test_lets_answers_end_after_one_ctrl_c(self, shown: Machine) -> None:
        (process,) = shown.started
        with shown.begun(400) as answer:  # 2 s
            process.send_signal(signal.SIGINT)
            assert answer.tokens() == 400
        assert process.wait(SECONDS) == 0
        assert not shown.logged("stop_hurried")


def test_more_ctrl_c_end_the_drain_and_then_kill(machine: Machine) -> None:
    # The engine waits for its client after SIGTERM, so that the third Ctrl-C finds it there.
    machine.env |= {"VLLMJOBS_STANDIN_LINGER_SECONDS": "60", "VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "10"}
    patient = "nomad: {{max_kill_timeout: 10m}}\nbalancer:"
    machine.environment(
        ("replicas: 2", "replicas: 1"), ("longest_stream: 10s", "longest_stream: 60s"), ("balancer:", patient)
    )
    process = machine.start("up", "one")
    machine.wait_until_it_answers()
    with machine.begun(ENDLESS) as answer:
        for event in ("instance_leaves", "instance_drained", "instance_killed"):
            process.send_signal(signal.SIGINT)
            wait_until(lambda event=event: machine.logged(event), SECONDS, f"it says {event}")  # type: ignore[misc]
        assert process.wait(SECONDS) == 0
        assert answer.tokens() is None
    assert machine.logged("instance_killed")[0]["reason"] == "a stop was asked for three times"
