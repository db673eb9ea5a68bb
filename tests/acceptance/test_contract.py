"""The stand-in engine against real vLLM: the same requests, the same signals, the same deaths.

What differs on purpose is listed in `generator/vllmjobs_sandbox/engine/__init__.py`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from acceptance.conversation import CASES, written_down
from vllmjobs_sandbox.cluster import ports, process
from vllmjobs_sandbox.cluster.process import Process, wait_until
from vllmjobs_sandbox.cluster.programs import ROOM
from vllmjobs_sandbox.engine import real
from vllmjobs_sandbox.engine.knobs import PREFIX
from vllmjobs_sandbox.engine.real import model

pytestmark = pytest.mark.timeout(1800)
START, ANSWER, END = 600.0, 60.0, 300.0  # seconds; beside other tests, a start of vLLM was seen to take 300
SILENCE = 10.0  # seconds without a word, after which a stream counts as left
TOKENS = 4000  # more than anybody waits for
LONG: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": TOKENS, "ignore_eos": True}
DRAIN = ("--shutdown-timeout", "120")
KINDS = ["stand-in", "vllm"]
LAUNCHER = ROOM / "engine" / "bin" / "stand-in-engine"

Start = Callable[..., "Server"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try both kinds; by default, only the stand-in where other tests of real vLLM show the same of it."""
    if "kind" in metafunc.fixturenames:
        is_shown = metafunc.function in SHOWN and not metafunc.config.getoption("--long")
        metafunc.parametrize("kind", KINDS[:1] if is_shown else KINDS)


@dataclass
class Server:
    """A server of either kind."""

    kind: str
    process: Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def refuses(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0

    def ready(self) -> "Server":
        self.process.wait_until(
            lambda: self.status("/health") == 200, START, f"{self.kind} is ready", (httpx.TransportError,)
        )
        return self

    def status(self, path: str) -> int:
        return self.get(path).status_code

    def get(self, path: str) -> httpx.Response:
        """Ask without certificates: to load them takes longer than the pause between two looks."""
        return httpx.get(self.url + path, timeout=ANSWER, trust_env=False, verify=False)

    def complete(self, patience: float = ANSWER, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json={"prompt": [5], **body}, timeout=patience)

    @contextmanager
    def stream(self, silence: float = ANSWER, tokens: int = TOKENS) -> Iterator[Iterator[Any]]:
        """A long stream whose first chunk has come; the chunks after it, None for [DONE]."""
        asked = LONG | {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        url = f"{self.url}/v1/completions"
        with httpx.stream("POST", url, json=asked, timeout=httpx.Timeout(ANSWER, read=silence)) as response:
            assert response.status_code == 200
            lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            chunks = (None if line == "[DONE]" else json.loads(line) for line in lines)
            next(chunks)
            yield chunks

    def metrics(self) -> dict[str, Any]:
        page = self.get("/metrics").text
        return {family.name: family for family in text_string_to_metric_families(page)}

    def running(self) -> float:
        return float(sum(sample.value for sample in self.metrics()["vllm:num_requests_running"].samples))

    def exit_code(self) -> int:
        return self.process.popen.wait(END)

    def kill_engine(self) -> None:
        """Kill the engine, and leave the API server; the stand-in's dies of the third request."""
        if self.kind == "stand-in":
            assert self.complete().status_code == 500
            return
        os.kill(real.engine_core(self.port), signal.SIGKILL)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def start(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers, and ends what is left of them."""
    logs, block, started = tmp_path_factory.mktemp("logs"), ports.take_block(), []

    def start(kind: str, *args: str, model: Path = tiny, **knobs: object) -> Server:
        port = block.take()
        program = LAUNCHER if kind == "stand-in" else real.folder() / "bin/vllm"
        told = {"LOAD_SECONDS": 1, "LINGER_SECONDS": 600, "TOKENS_PER_SECOND": 500} | knobs
        environ = {**real.environ(), **{PREFIX + name: str(value) for name, value in told.items()}}
        command = [program, "serve", model, *real.ARGUMENTS, "--served-model-name", "chat",
                   "--host", "127.0.0.1", "--port", str(port), *args]  # fmt: skip
        begun = process.start(
            f"{kind} on {port}", list(map(str, command)), logs / f"{kind}-{port}.log", environ
        )
        started.append(begun)
        return Server(kind, begun, port)

    yield start
    process.stop(started)
    for one in started:
        process.end(lambda pid=one.popen.pid: session(pid))  # type: ignore[misc]
    block.release()


def session(pid: int) -> list[int]:
    """The processes that a server has left behind."""
    found = subprocess.run(["pgrep", "--session", str(pid)], stdout=subprocess.PIPE, text=True, check=False)
    return list(map(int, found.stdout.split()))


# Requests


@pytest.fixture(scope="module")
def both(start: Start) -> list[Server]:
    """One of each, until the test of the drain ends them; the stand-in takes 10 s for a long stream."""
    return [server.ready() for server in [start(kind, *DRAIN, TOKENS_PER_SECOND=50) for kind in KINDS]]


@pytest.mark.parametrize("name", CASES)
def test_the_stand_in_answers_as_vllm_does(both: list[Server], name: str) -> None:
    standin, vllm = (written_down(CASES[name], CASES[name].ask(server.url)) for server in both)
    assert standin == vllm


def test_the_stand_ins_metrics_are_vllms(both: list[Server]) -> None:
    for server in both:
        server.complete(max_tokens=3)
    standin, vllm = (server.metrics() for server in both)
    ours = {name: shape(family) for name, family in standin.items() if re.match("vllm:|http_", name)}
    assert len(ours) > 15
    assert ours == {name: shape(vllm[name]) for name in ours}


def shape(family: Any) -> Any:
    """A metric without its numbers."""
    return family.type, {(sample.name, *sorted(sample.labels.items())) for sample in family.samples}


# The end of this life, so it comes after all that asks `both`.


@pytest.mark.parametrize("index", range(len(KINDS)), ids=KINDS)
def test_a_drain_ends_what_runs_refuses_what_is_new_and_shows_nothing_of_it(
    both: list[Server], index: int
) -> None:
    server = both[index]
    with server.stream(tokens=real.LONG) as chunks:
        # The first chunk is there before the gauge.
        wait_until(lambda: server.running() == 1, ANSWER, "the request counts as running")
        server.process.popen.terminate()
        refused = wait_until(lambda: refusal(server), ANSWER, "it refuses new requests", (httpx.ReadTimeout,))
        assert (refused.status_code, refused.json()) == (500, {
            "error": {
                "message": "cannot schedule new futures after shutdown",
                "type": "InternalServerError",
                "param": None,
                "code": 500,
            }
        })  # fmt: skip
        server.process.popen.terminate()  # a second signal changes nothing
        assert {server.status(path) for path in ("/health", "/v1/models", "/metrics")} == {200}
        *_, usage, done = chunks
    assert (usage["usage"]["completion_tokens"], done) == (real.LONG, None)
    assert server.exit_code() == 0


def refusal(server: Server) -> httpx.Response | None:
    """What a new request gets, in words: token ids are nobody's in vLLM, and never answered."""
    answer = server.complete(2, prompt="x", max_tokens=1)
    return answer if answer.status_code != 200 else None


# Other lives


@pytest.fixture(scope="module")
def abrupt(start: Start) -> list[Server]:
    """One of each without a shutdown timeout; vLLM is told to stop while its engine loads."""
    standin = start("stand-in")
    assert standin.refuses()  # while it loads
    vllm = loading(start, "vllm")
    assert vllm.refuses()
    vllm.process.popen.terminate()
    return [standin.ready(), vllm.ready()]


def test_a_stop_while_its_engine_loads_is_lost_on_vllm(abrupt: list[Server]) -> None:
    """It serves as if nothing had been said, until the next test tells it once more."""
    assert abrupt[1].complete(max_tokens=1).status_code == 200


@pytest.mark.parametrize("index", range(len(KINDS)), ids=KINDS)
def test_without_a_shutdown_timeout_a_stream_is_left_unfinished(abrupt: list[Server], index: int) -> None:
    server = abrupt[index]
    seen: list[Any] = []
    with server.stream(silence=SILENCE) as chunks:
        server.process.popen.terminate()
        with suppress(httpx.ReadTimeout):
            seen.extend(chunks)
        # By chance, vLLM tells its clients (an abort, an error), or is faster gone; then they wait, and the
        # process for them.
        assert reasons(seen) in ([], ["abort"], ["error"])
        wait_until(server.refuses, ANSWER, "its port is closed")
        assert (server.process.exit_code is None) or reasons(seen) == ["abort"]
    assert server.exit_code() == 0
    nothing_is_left(server)


def test_what_outlasts_the_shutdown_timeout_is_left_unfinished(start: Start, kind: str) -> None:
    server = start(kind, "--shutdown-timeout", "2").ready()
    seen: list[Any] = []
    with server.stream(silence=SILENCE) as chunks:
        since = time.monotonic()
        server.process.popen.terminate()
        # vLLM falls silent or puts an error into the stream; the stand-in breaks the connection.
        with suppress(httpx.ReadTimeout, httpx.RemoteProtocolError):
            seen.extend(chunks)
        assert time.monotonic() - since > 2
        assert reasons(seen) in ([], ["error"])
        wait_until(server.refuses, ANSWER, "its port is closed")
    assert server.exit_code() == 0
    nothing_is_left(server)


def reasons(chunks: list[Any]) -> list[str]:
    """Why the choices of a stream have ended, also in an error."""
    said = [chunk for chunk in chunks if chunk]
    choices = [choice for chunk in said for choice in chunk.get("choices", ())]
    found = [reason for choice in choices if (reason := choice["finish_reason"])]
    return [*found, *("error" for chunk in said if "error" in chunk)]


def test_a_port_that_somebody_has_is_an_end_before_the_load(start: Start, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(kind, "--port", str(taken.getsockname()[1]))
        assert server.exit_code() == 1
    said = server.process.log.read_text()
    assert "Address already in use" in said
    assert "Starting to load model" not in said


def loading(start: Start, kind: str) -> Server:
    """One that waits for its engine."""
    server = start(kind, LOAD_SECONDS=600, WORKERS=1)
    server.process.wait_until(
        lambda: "Starting to load model" in server.process.log.read_text(), START, f"{kind} loads"
    )
    return server


def test_a_stop_while_the_model_loads_ends_the_stand_in_at_once(start: Start) -> None:
    server = loading(start, "stand-in")
    server.process.popen.terminate()
    assert server.exit_code() == 0
    assert server.refuses()
    nothing_is_left(server)


def nothing_is_left(server: Server) -> None:
    """Python's own tracker of semaphores ends a moment after its process."""
    wait_until(lambda: not session(server.process.popen.pid), ANSWER, "nothing of it is left")


def test_when_the_engine_is_killed_requests_get_500_and_the_server_exits_with_0(
    start: Start, kind: str
) -> None:
    server = start(kind, FAILURE="exit-0-after=2").ready()
    with ThreadPoolExecutor() as clients:
        # Both at once: a request may keep vLLM, on two cores, from looking at any other before it has ended.
        whole = clients.submit(server.complete, **LONG)
        with server.stream() as chunks:
            server.kill_engine()
            *_, broken, done = chunks
        assert (broken, done) == (DEAD, None)
        assert (whole.result().status_code, whole.result().json()) == (500, DEAD)
        assert gone_or_503(server)
    wait_until(server.refuses, END, "its port is closed")
    assert server.exit_code() == 0


DEAD = {
    "error": {
        "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
}


def gone_or_503(server: Server) -> bool:
    """Whether nobody takes it for healthy; vLLM closes the port a moment after it answered 503."""
    try:
        return server.status("/health") == 503
    except httpx.TransportError:
        return True


def test_a_model_can_be_healthy_and_kill_its_engine_at_the_first_request(
    start: Start, kind: str, tmp_path: Path
) -> None:
    server = start(kind, model=model.make(tmp_path / "narrow", head_dim=16), FAILURE="exit-0-after=0").ready()
    answer = server.complete()
    assert (answer.status_code, answer.json()) == (500, DEAD)
    assert server.exit_code() == 0


# A stop that leaves a stream unfinished; and in test_real_cluster.py, a model that kills its engine.
SHOWN = (
    test_what_outlasts_the_shutdown_timeout_is_left_unfinished,
    test_a_model_can_be_healthy_and_kill_its_engine_at_the_first_request,
)
