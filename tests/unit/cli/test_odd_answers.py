"""Every command that talks to a server, with every odd answer: an error in words, and never a traceback."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from click.testing import CliRunner, Result

from vllmjobs.cli import main
from vllmjobs.cluster.answers import EndingAdapter
from vllmjobs_sandbox.fakes.listening import saying
from vllmjobs_sandbox.fakes.odd import ODD_BODIES

DEV = ["dev"]
COMMANDS = {
    "status": ["status", *DEV],
    "status --json": ["status", *DEV, "--json"],
    "history": ["history", *DEV],
    "history --json": ["history", *DEV, "--json"],
    "logs": ["logs", *DEV],
    "plan": ["plan", *DEV],
    "gpus": ["gpus", "--nomad"],
    "approve": ["approve", *DEV, "--set", "approvals=1"],
    "approve --list": ["approve", *DEV, "--set", "approvals=1", "--list"],
    "deploy": ["deploy", *DEV, "--timeout", "100ms"],
    "deploy --detach": ["deploy", *DEV, "--timeout", "100ms", "--detach"],
    "promote": ["promote", *DEV, "--timeout", "100ms"],
    "abort": ["abort", *DEV, "--timeout", "100ms"],
    "rollback": ["rollback", *DEV, "--timeout", "100ms"],
}
# What a real Nomad 1.11.3 and Consul 1.19.2 have answered, by what they were asked.
RECORDED: dict[str, Any] = json.loads(Path("tests/unit/cluster/recorded.json").read_text())
Run = Callable[[str], Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command of `COMMANDS`; nothing is asked twice."""
    for module in ("nomad", "consul"):
        monkeypatch.setattr(f"vllmjobs.cluster.{module}.retry", lambda call, *_: call())
    for module in ("deploy.release", "rollout.decide"):
        monkeypatch.setattr(f"vllmjobs.{module}.LAST_TRIES_S", 0.2)
    monkeypatch.setattr("vllmjobs.deploy.follow.RETRY_S", 0.1)
    monkeypatch.setattr("vllmjobs.rollout.observe.POLL_S", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:9")
    monkeypatch.setenv("NOMAD_TOKEN", "t")
    return lambda name: CliRunner().invoke(main, COMMANDS[name])


def ends_in_words(result: Result) -> None:
    """Fail where a command did not end by itself, with one of its exit codes."""
    if result.exception and not isinstance(result.exception, SystemExit):
        raise AssertionError(result.output) from result.exception
    assert result.exit_code in range(5)


def some(every: list[Any], count: int, long: bool) -> list[Any]:
    """Return all with --long, else so many, the same in each run."""
    return every if long else random.Random(7).sample(every, min(count, len(every)))


@pytest.mark.parametrize("odd", ODD_BODIES)
def test_a_nomad_that_answers_oddly_is_named_with_the_way_out(
    odd: str, run: Run, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    with saying(ODD_BODIES[odd]) as address:
        monkeypatch.setenv("NOMAD_ADDR", address)
        for name in some(list(COMMANDS), 3, long):
            result = run(name)
            ends_in_words(result)
            assert result.exit_code == 1 or (name, odd) in FINE, result.output
            assert address in result.output or name in NO_SUCH_JOB, (name, result.output)


# The body is an empty list: a cluster without nodes.
FINE = [("gpus", odd) for odd in ("empty-list", "odd-length", "odd-header")]
# These say that there is no such job, where Nomad says so.
NO_SUCH_JOB = ("promote", "abort", "rollback")


# How what was asked is named in RECORDED.
NAMES = {
    r"^((?:job|node|health/service)/)[^/]+": r"\1ID",
    r"^deployment/(promote|fail)/.*": "deployment/ACTION/ID",
    r"^deployment/[^/]+$": "deployment/ID",
    r"^var/.*": "var/PATH",
}


class Recorded:
    """A Nomad, a Consul and a balancer that answer what was recorded, but for what a test lays over it."""

    def __init__(self) -> None:
        self.over: dict[str, Any] = {}
        self.asked: set[str] = set()

    def send(
        self, adapter: EndingAdapter, request: requests.PreparedRequest, *_: Any, **__: Any
    ) -> requests.Response:
        response = requests.Response()
        response.request, response.url = request, request.url or ""
        response.headers.update({"X-Nomad-Index": "7", "X-Consul-Index": "7"})
        response.status_code, response._content = self.answer(request.method or "", response.url)
        return response

    def answer(self, method: str, url: str) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        path = re.sub(r"^/(v1/)?", "", urlsplit(url).path)
        is_absent = "-fabio" in path and "health" not in path and method == "GET"
        for pattern, name in NAMES.items():
            path = re.sub(pattern, name, path)
        key = f"{method} {path}"
        self.asked.add(key)
        if is_absent or key not in RECORDED:
            return 404, b"variable not found" if path == "var/PATH" else b"job not found"
        return 200, json.dumps(self.over.get(key, RECORDED[key])).encode()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()

    def send(*args: Any, **kwargs: Any) -> requests.Response:  # a function, to be bound to its adapter
        return recorded.send(*args, **kwargs)

    monkeypatch.setattr(EndingAdapter, "send", send)
    return recorded


@pytest.mark.parametrize("name", COMMANDS)
def test_what_was_recorded_is_well(name: str, run: Run, recorded: Recorded) -> None:
    result = run(name)
    ends_in_words(result)
    assert "HTTP API" not in result.output


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value in a JSON value."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*place, key))


GONE = object()
OTHERS: tuple[Any, ...] = (
    GONE,
    None,
    "x",
    "",
    7,
    -1,
    0.5,
    True,
    [],
    [None],
    ["x"],
    [{}],
    {},
    {"x": None},
    {"x": {"y": [7]}},
)


def changed(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    """Return a JSON value in which another stands at a place, or nothing."""
    if not place:
        return None if other is GONE else other
    value = copy.deepcopy(value)
    at = value
    for key in place[:-1]:
        at = at[key]
    if other is GONE:
        del at[place[-1]]
    else:
        at[place[-1]] = other
    return value


def test_whatever_one_value_of_an_answer_is_a_command_ends_in_words(
    run: Run, recorded: Recorded, long: bool
) -> None:
    """About 20,000 places and values with --long, which takes an hour of a core."""
    asks: dict[str, list[str]] = {}
    for name in COMMANDS:
        recorded.asked.clear()
        run(name)
        for key in recorded.asked & RECORDED.keys():
            asks.setdefault(key, []).append(name)
    every = [(key, place, other) for key in asks for place in places(RECORDED[key]) for other in OTHERS]
    for number, (key, place, other) in enumerate(some(every, 60, long)):
        recorded.over = {key: changed(RECORDED[key], place, other)}
        name = asks[key][number % len(asks[key])]
        try:
            ends_in_words(run(name))
        except AssertionError as error:
            shown = "nothing" if other is GONE else json.dumps(other)
            raise AssertionError(f"{name}: {shown} at {place} of {key}: {error}") from error
