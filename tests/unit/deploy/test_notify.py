"""Hooks: what they get, and that none of them holds up or fails a release."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.deploy.notify import WAITING, Notifier
from vllmjobs.rollout.model import Notification
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.fakes.listening import listening

SECRET = "/services/T0/B0/correct-horse"  # what Slack's webhooks look like
SOON = 10.0  # seconds


def event(text: str = "promoted", number: int = 0) -> Notification:
    return Notification(
        at="2026-11-23T21:04:05.678Z", kind="promoted", text=text, job="vllm-prod", version=number
    )


@dataclass
class Server:
    """Answers with these statuses, of which the last is repeated."""

    statuses: list[int] = field(default_factory=lambda: [200])
    got: list[dict[str, Any]] = field(default_factory=list)
    types: list[str | None] = field(default_factory=list)
    answer: threading.Event = field(default_factory=threading.Event)
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = server.statuses[min(len(server.got), len(server.statuses) - 1)]
            server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            server.types.append(self.headers["Content-Type"])
            server.answer.wait(SOON)
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as server.address:
        yield server
        server.answer.set()


def notified(
    hook: str, *events: Notification, close: float = SOON, limit: float = SOON
) -> tuple[list[str], list[str]]:
    """Return the warnings about a hook while it runs, and the lines at the end."""
    warnings: list[str] = []
    notifier = Notifier([hook], warnings.append, pauses=(0, 0), limit=limit)
    for one in events or (event(),):
        notifier.send(one)
    return warnings, notifier.close(close)


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["version"] for line in path.read_text().splitlines()]


# What a hook gets


def test_a_webhook_gets_each_event_as_json_in_order(server: Server) -> None:
    assert notified(server.address + SECRET, *(event(number=number) for number in range(20))) == ([], [])
    assert [got["version"] for got in server.got] == list(range(20))
    assert server.got[0] == {
        "at": "2026-11-23T21:04:05.678Z", "kind": "promoted", "text": "promoted", "job": "vllm-prod",
        "group": None, "version": 0, "deployment": None, "data": {},
    }  # fmt: skip
    assert set(server.types) == {"application/json"}


def test_a_command_gets_each_event_on_its_standard_input_in_order(tmp_path: Path) -> None:
    events = [event(number=number) for number in range(5)]
    assert notified(f"cat >> {tmp_path}/events; echo >> {tmp_path}/events", *events) == ([], [])
    assert numbers(tmp_path / "events") == list(range(5))


def test_a_command_need_not_read_an_event_however_long() -> None:
    assert notified("true", event("a" * 1_000_000)) == ([], [])


def test_what_looks_like_a_secret_is_not_passed_on(server: Server) -> None:
    notified(server.address, event("the token hf_abcdefghijklmnopqrstuvwxyz is wrong"))
    assert server.got[0]["text"] == "the token … is wrong"


# What goes wrong


def test_what_passes_is_tried_three_times(server: Server) -> None:
    server.statuses = [500, 503, 200]
    assert notified(server.address) == ([], [])
    assert len(server.got) == 3


@pytest.mark.parametrize(
    ("status", "times", "why"),
    [(500, 3, "500 Internal Server Error"), (404, 1, "404 Not Found"), (302, 1, "302 Found")],
)
def test_the_first_failure_is_said_once_and_the_number_at_the_end(
    server: Server, status: int, times: int, why: str
) -> None:
    server.statuses = [status]
    assert notified(server.address + SECRET, event(), event()) == (
        [f"--notify {server.address}/…: answers {why}; the release goes on"],
        [f"--notify {server.address}/…: 2 of 2 events did not arrive"],
    )
    assert len(server.got) == 2 * times


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    warnings, _ = notified(f"http://ann:correct-horse@127.0.0.1:{port}{SECRET}")
    assert warnings == [f"--notify http://127.0.0.1:{port}/…: cannot be reached; the release goes on"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("TOKEN=correct-horse false --token correct-horse", "false: exit code 1"),
        ("echo one >&2; echo 'no route to https://a.example/correct-horse' >&2; exit 3",
         "echo: exit code 3: no route to https://a.example/…"),
        ("./notify.sh here", "notify.sh: exit code 127"),
        ("kill -9 $$", "kill: ended by signal 9"),
        ("echo 'open", "echo: exit code 2"),
    ],
)  # fmt: skip
def test_a_command_that_fails_is_told_by_its_program_alone(command: str, why: str) -> None:
    warnings, missed = notified(command)
    assert warnings[0].startswith(f"--notify {why}")
    assert (len(warnings), len(missed)) == (1, 1)
    assert "correct-horse" not in f"{warnings}{missed}"


@pytest.mark.parametrize("hook", ["http://", "https://[::1/a", "http://a b/correct-horse", "http://\0"])
def test_an_address_that_is_none_is_told_without_its_path(hook: str) -> None:
    warnings, missed = notified(hook)
    assert len(warnings) == len(missed) == 1
    assert "correct-horse" not in f"{warnings}{missed}"


def test_a_command_that_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    command = f"mkfifo {fifo}; (exec 3<>{fifo}; echo up > {tmp_path}/up; read line <&3) & wait"
    warnings, missed = notified(command, limit=1)
    assert warnings == ["--notify mkfifo: has not ended within 1 s, and was killed; the release goes on"]
    assert missed == ["--notify mkfifo: 1 of 1 events did not arrive"]
    assert (tmp_path / "up").exists()
    wait_until(lambda: not _has_readers(fifo), SOON, "its children are gone")


def _has_readers(fifo: Path) -> bool:
    links = (link for process in Path("/proc").glob("[0-9]*") for link in _files(process))
    return any(link == fifo for link in links)


def _files(process: Path) -> list[Path]:
    try:
        return [link.readlink() for link in (process / "fd").iterdir()]
    except OSError:  # it has ended meanwhile
        return []


# Nothing waits for a hook


def test_a_hook_that_does_not_answer_holds_up_neither_the_release_nor_another_hook(
    server: Server, tmp_path: Path
) -> None:
    server.answer.clear()
    notifier = Notifier([server.address, f"cat >> {tmp_path}/events; echo >> {tmp_path}/events"], print)
    began = time.monotonic()
    for number in range(3):
        notifier.send(event(number=number))
    wait_until(
        lambda: (tmp_path / "events").exists() and len(numbers(tmp_path / "events")) == 3,
        SOON,
        "the other hook has its events",
        ignoring=(json.JSONDecodeError,),
    )
    assert notifier.close(0.2) == [f"--notify {server.address}/…: 3 of 3 events did not arrive"]
    assert time.monotonic() - began < SOON


def test_what_still_runs_at_the_end_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    notifier = Notifier([f"mkfifo {fifo}; exec 3<>{fifo}; echo up > {tmp_path}/up; read line <&3"], print)
    notifier.send(event())
    wait_until((tmp_path / "up").exists, SOON, "the command runs")
    assert notifier.close(0) == ["--notify mkfifo: 1 of 1 events did not arrive"]
    wait_until(lambda: not _has_readers(fifo), SOON, "it is gone")


def test_events_that_would_wait_for_ever_are_dropped_and_counted(server: Server) -> None:
    server.answer.clear()
    notifier = Notifier([server.address], print)
    notifier.send(event())
    wait_until(lambda: bool(server.got), SOON, "the first is on its way")
    for _ in range(WAITING + 5):
        notifier.send(event())
    server.answer.set()
    assert notifier.close(6 * SOON) == [
        f"--notify {server.address}/…: 5 of {WAITING + 6} events did not arrive"
    ]


def test_a_warning_that_cannot_be_printed_stops_nothing(server: Server) -> None:
    server.statuses = [404, 200]

    def closed_terminal(_: str) -> None:
        raise BrokenPipeError

    notifier = Notifier([server.address], closed_terminal)
    for _ in range(2):
        notifier.send(event())
    assert notifier.close(SOON) == [f"--notify {server.address}/…: 1 of 2 events did not arrive"]


def test_a_command_gets_no_tokens_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ("NOMAD_TOKEN", "CONSUL_HTTP_TOKEN", "VLLM_API_KEY", "GITHUB_PAT", "VAULT_SECRET_ID")
    for name in tokens:
        monkeypatch.setenv(name, "correct-horse")
    monkeypatch.setenv("SETTING", "ghp_" + "a1B2" * 9)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://ann:correct-horse@127.0.0.1:8500")
    monkeypatch.setenv("VLLMJOBS_NOTIFY", "https://hooks.example.com/correct-horse")
    monkeypatch.setenv("VLLMJOBS_NOTIFY_TOKEN", "its-own")
    monkeypatch.setenv("NOMAD_NAMESPACE", "llm")
    assert notified(f"env >{tmp_path}/env") == ([], [])
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert "correct-horse" not in str(given)
    assert "SETTING" not in given
    assert (given["VLLMJOBS_NOTIFY_TOKEN"], given["NOMAD_NAMESPACE"]) == ("its-own", "llm")
    assert given["PATH"]


def test_an_event_with_a_key_in_it_stays_json(tmp_path: Path) -> None:
    key = "-----BEGIN PRIVATE " + "KEY-----\nMIIE"
    assert notified(f"cat >{tmp_path}/event", event(f"the words were {key}")) == ([], [])
    assert json.loads((tmp_path / "event").read_text())["text"] == "the words were …"
