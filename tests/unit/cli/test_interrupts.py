"""The first Ctrl-C or SIGTERM ends a command, also while a server does not end its answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest

from unit.cli.test_odd_answers import RECORDED, Recorded
from vllmjobs_sandbox.fakes.listening import listening, saying
from vllmjobs_sandbox.fakes.odd import ENDLESS

SOON = 30.0  # seconds, where without an end it would be a hundred times as many
# Each answer may take its time, so that only the signal ends the command.
PATIENT = """
from vllmjobs.cli import main
from vllmjobs.cluster.answers import EndingAdapter
send = EndingAdapter.send
EndingAdapter.send = lambda self, request, stream=False, timeout=None, *others, **named: send(
    self, request, stream, (5, 3000), *others, **named
)
main()
"""
ANALYSIS = "models.chat.rollout.analysis"
DEPLOY = ["deploy", "dev", "--job", "vllm", "--set", f"{ANALYSIS}={{interval: 1s, window: 3s, probe: false}}"]
NO_BALANCER = ["--set", "balancer.kind=none"]


class Odd:
    """A server that begins to answer, and does not end."""

    def __init__(self, stack: ExitStack, how: str) -> None:
        self.is_asked = Event()

        def say(connection: socket.socket, request: bytes) -> None:
            self.is_asked.set()
            ENDLESS[how](connection, request)

        self.address = stack.enter_context(saying(say))

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0


def with_address(value: Any, port: int) -> Any:
    """Return a recorded answer in which every port is this one."""
    if isinstance(value, list):
        return [with_address(one, port) for one in value]
    if not isinstance(value, dict):
        return value
    ports = {key: port for key in ("Port", "Value") if isinstance(value.get(key), int)}
    return {key: with_address(one, port) for key, one in value.items()} | ports


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, recorded: Recorded) -> str:
    """Serve what was recorded, with a plan that changes nothing: a release under way is gone on with."""
    recorded.over.setdefault("POST job/ID/plan", {"Diff": {"Type": "None"}, "JobModifyIndex": 28})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = recorded.answer(self.command, self.path)
            self.send_response(status)
            self.send_header("X-Nomad-Index", "7")
            self.send_header("X-Consul-Index", "7")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    return stack.enter_context(listening(Handler))


def ends_at(number: int, odd: Odd, words: list[str], environ: dict[str, str], tmp_path: Path) -> str:
    """Run a command until it asks the odd server, send the signal, and return what it has printed."""
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "CONSUL_HTTP_ADDR": "http://127.0.0.1:9", **environ}
    command = [sys.executable, "-c", PATIENT, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert odd.is_asked.wait(SOON), f"{words} did not come to ask"
            process.send_signal(number)
            said, _ = process.communicate(timeout=SOON)
        finally:
            process.kill()
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "drips"), (signal.SIGTERM, "silent")])
def test_while_an_instance_does_not_end_its_metrics_deploy_ends_and_says_how_to_go_on(
    number: int, how: str, stack: ExitStack, tmp_path: Path
) -> None:
    engine, recorded = Odd(stack, how), Recorded()
    recorded.over["GET allocations"] = with_address(RECORDED["GET allocations"], engine.port)
    environ = {"NOMAD_ADDR": serve(stack, recorded)}
    said = ends_at(number, engine, [*DEPLOY, *NO_BALANCER], environ, tmp_path)
    assert "the release is left as it is: `vllmjobs deploy dev" in said
    assert "`vllmjobs promote dev" in said


def test_while_a_prometheus_does_not_end_its_answer_deploy_ends(stack: ExitStack, tmp_path: Path) -> None:
    odd = Odd(stack, "drips")
    of_prometheus = ["--set", f"{ANALYSIS}.prometheus={json.dumps({'address': odd.address})}"]
    environ = {"NOMAD_ADDR": serve(stack, Recorded())}
    said = ends_at(signal.SIGTERM, odd, [*DEPLOY, *NO_BALANCER, *of_prometheus], environ, tmp_path)
    assert "the release is left as it is" in said


def test_while_a_balancer_does_not_end_its_answer_deploy_ends(stack: ExitStack, tmp_path: Path) -> None:
    odd, address = Odd(stack, "drips-its-head"), serve(stack, Recorded())
    words = [*DEPLOY, "--set", f"balancer.admin_port={odd.port}"]
    said = ends_at(signal.SIGINT, odd, words, {"NOMAD_ADDR": address, "CONSUL_HTTP_ADDR": address}, tmp_path)
    assert "the release is left as it is" in said


def test_while_consul_is_silent_deploy_ends(stack: ExitStack, tmp_path: Path) -> None:
    odd = Odd(stack, "silent")
    environ = {"NOMAD_ADDR": serve(stack, Recorded()), "CONSUL_HTTP_ADDR": odd.address}
    assert "the release is left as it is" in ends_at(signal.SIGTERM, odd, DEPLOY, environ, tmp_path)


def test_while_a_webhook_is_silent_deploy_ends(stack: ExitStack, tmp_path: Path) -> None:
    hook, engine, recorded = Odd(stack, "silent"), Odd(stack, "drips"), Recorded()
    recorded.over["GET allocations"] = with_address(RECORDED["GET allocations"], engine.port)
    words = [*DEPLOY, *NO_BALANCER, "--notify", hook.address]
    said = ends_at(signal.SIGINT, hook, words, {"NOMAD_ADDR": serve(stack, recorded)}, tmp_path)
    assert "the release is left as it is" in said


@pytest.mark.parametrize("command", ["status", "plan", "logs"])
def test_while_nomad_does_not_end_its_answer_each_command_ends(
    command: str, stack: ExitStack, tmp_path: Path
) -> None:
    odd = Odd(stack, "drips")
    number = signal.SIGTERM if command == "plan" else signal.SIGINT
    ends_at(number, odd, [command, "dev", *NO_BALANCER], {"NOMAD_ADDR": odd.address}, tmp_path)
