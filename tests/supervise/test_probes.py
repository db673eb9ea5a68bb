"""The probes of an engine: the stand-in for the ways of vLLM, raw sockets for what is no answer at all."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.supervisor.core import asking, engines
from vllmjobs.supervisor.core.model import Probed
from vllmjobs.supervisor.core.progress import ProbeResult, progressed
from vllmjobs.supervisor.http_client import LOOPBACK
from vllmjobs.supervisor.probes import Timeouts, probe
from vllmjobs_sandbox.cluster import process
from vllmjobs_sandbox.cluster.programs import ROOM
from vllmjobs_sandbox.engine import knobs

LAUNCHER = ROOM / "engine" / "bin" / "stand-in-engine"
QUICK = {"LOAD_SECONDS": 0, "EXIT_SECONDS": 0, "LINGER_SECONDS": 0, "TOKENS_PER_SECOND": 100}
PATIENT = Timeouts(health=10, metrics=10, completion=10)
TERSE = Timeouts(health=10, metrics=10, completion=0.3)
SHORT = Timeouts(health=0.3, metrics=0.3, completion=0.3)

Start = Callable[..., "Engine"]


class Engine:
    """A stand-in engine that runs."""

    def __init__(self, running: process.Process, port: int) -> None:
        self.process = running
        self.port = port
        self.target = engines.Engine("chat-0", (), {}, port=port)

    def probe(
        self, before: ProbeResult | None = None, timeouts: Timeouts = PATIENT
    ) -> tuple[ProbeResult, Probed]:
        return asyncio.run(probe(self.target, before, timeouts))

    def until(
        self,
        condition: Callable[[ProbeResult, Probed], bool],
        timeouts: Timeouts = PATIENT,
        last: ProbeResult | None = None,
    ) -> ProbeResult:
        """Probe again and again until it shows this; the last sample."""

        def shown() -> ProbeResult | None:
            nonlocal last
            last, seen = self.probe(last, timeouts)
            return last if condition(last, seen) else None

        return self.process.wait_until(shown, 15, "a probe shows it")

    def until_it_serves(self) -> ProbeResult:
        return self.until(lambda _, seen: seen.serves)

    @contextmanager
    def asked(self, tokens: int = 2000) -> Iterator[socket.socket]:
        """With a long completion on its way, which nobody reads."""
        body = json.dumps({"prompt": "x", "max_tokens": tokens, "ignore_eos": True}).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            yield connection


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    engines: list[Engine] = []

    def start(*flags: str, **own: object) -> Engine:
        with socket.socket() as held:
            # Shared with the stand-in, which sets the same, so that nobody else gets it in between.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            env = os.environ | {knobs.PREFIX + name: str(value) for name, value in (QUICK | own).items()}
            command = [
                str(LAUNCHER),
                "serve",
                "tiny/llama",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                *flags,
            ]
            log = folder / f"{port}.log"
            running = process.start("stand-in", command, log, env)
            engines.append(Engine(running, port))
            running.wait_until(lambda: "Starting to load" in log.read_text(), 15, "the port is bound")
        return engines[-1]

    try:
        yield start
    finally:
        for engine in engines:
            engine.process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One that behaves, and serves."""
    with starting(tmp_path_factory.mktemp("plain")) as one:
        engine = one("--served-model-name", "chat")
        engine.until_it_serves()
        yield engine


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# An engine that serves


def test_an_engine_serves_once_a_completion_has_come(plain: Engine) -> None:
    sample, seen = plain.probe()
    assert seen == Probed("chat-0", serves=True, progress=True, unanswered=0)
    assert (sample.completion, sample.facts.name, sample.facts.path) == (
        "answered",
        "chat",
        "/v1/completions",
    )


def test_an_idle_engine_is_not_asked_for_a_token_at_each_probe(plain: Engine) -> None:
    first, _ = plain.probe()
    second, _ = plain.probe(first)  # the tokens of the probe before show that it got on
    third, seen = plain.probe(second)
    assert (second.completion, third.completion) == (None, None)
    assert second.tokens == third.tokens
    assert seen == Probed("chat-0", serves=True, progress=True, unanswered=0)


def test_an_engine_that_is_idle_for_long_is_asked_again(plain: Engine) -> None:
    first, _ = plain.probe()
    second, _ = plain.probe(first)
    third, _ = plain.probe(second, Timeouts(10, 10, 10, idle=0))
    assert (third.completion, third.proved_at > second.proved_at) == ("answered", True)


def test_an_engine_under_load_shows_it_by_its_tokens(plain: Engine) -> None:
    before, _ = plain.probe()
    with plain.asked():
        busy = plain.until(lambda sample, _: sample.unanswered == 1, last=before)
        grown = plain.until(lambda sample, _: (sample.tokens or 0) > (busy.tokens or 0), last=busy)
    assert grown.completion is None
    assert progressed(busy, grown)


def test_no_proxy_of_the_environment_is_used(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert plain.probe()[1].serves


def test_no_probe_leaves_a_connection_open(plain: Engine) -> None:
    async def probes_twice() -> None:
        await probe(plain.target, None, PATIENT)
        await asyncio.sleep(0)
        before = open_files()
        sample, _ = await probe(plain.target, None, PATIENT)
        await probe(plain.target, sample, Timeouts(0, 0, 0))
        await asyncio.sleep(0)
        assert open_files() == before

    asyncio.run(probes_twice())


def test_an_api_key_is_sent_and_a_wrong_one_never_serves(start: Start) -> None:
    engine = start("--api-key", "sesame")
    engine.target = replace(engine.target, api_key="sesame\n")
    engine.until_it_serves()
    wrong = replace(engine.target, api_key="other", served_name="tiny/llama")
    sample, seen = asyncio.run(probe(wrong, None, PATIENT))
    assert (seen.serves, sample.completion, sample.reason) == (
        False,
        "refused",
        '/v1/completions answered 401: {"error":"Unauthorized"}',
    )
    assert "other" not in repr(wrong)


# An engine that does not


def test_an_engine_that_loads_refuses_connections(start: Start) -> None:
    sample, seen = start(FAILURE="never-ready").probe()
    assert seen == Probed("chat-0", serves=False, progress=False, unanswered=None)
    assert (sample.health, sample.reason) == (None, "nothing listens there yet")


def test_a_hung_engine_that_is_healthy_makes_no_progress(start: Start) -> None:
    engine = start(FAILURE="hang-after=1")  # the first is the probe's own
    ready = engine.until_it_serves()
    with engine.asked():
        busy = engine.until(lambda sample, _: sample.unanswered == 1, TERSE, ready)
        sample, seen = engine.probe(busy, TERSE)
    assert (sample.health, sample.tokens, sample.completion) == (200, busy.tokens, "silent")
    assert (seen.serves, seen.progress) == (True, False)


def test_an_engine_that_hangs_while_it_looks_idle_is_found_out_by_a_completion(start: Start) -> None:
    engine = start(FAILURE="hang-after=1")
    before, _ = engine.probe(engine.until_it_serves())
    idle, seen = engine.probe(before, TERSE)
    assert (idle.completion, seen.progress, seen.unanswered) == (None, True, 0)
    for _ in range(2):  # nor do the requests that it gave up count as answered
        idle, seen = engine.probe(idle, Timeouts(10, 10, 0.3, idle=0))
        assert (idle.completion, seen.progress) == ("silent", False)


def test_an_engine_that_hangs_at_once_never_serves(start: Start) -> None:
    engine = start(FAILURE="hang")
    sample = engine.until(lambda sample, _: sample.health == 200, TERSE)
    assert (sample.completion, sample.has_served) == ("silent", False)
    assert sample.reason == "/v1/completions: no answer within 0.3 s"


def test_a_saturated_health_is_no_hang_while_tokens_are_counted(start: Start) -> None:
    engine = start(FAILURE="slow-health=1")
    ready = engine.until_it_serves()
    with engine.asked():
        busy, _ = engine.probe(ready)
        grown, seen = engine.probe(busy, Timeouts(health=0.3))
    assert (grown.health, grown.completion, seen.progress, seen.serves) == (None, None, True, False)


def test_a_stopped_process_makes_no_progress(start: Start) -> None:
    engine = start()
    ready = engine.until_it_serves()
    os.kill(engine.process.popen.pid, signal.SIGSTOP)
    sample, seen = engine.probe(ready, SHORT)
    assert seen == Probed("chat-0", serves=False, progress=False, unanswered=None)
    os.kill(engine.process.popen.pid, signal.SIGCONT)
    assert engine.probe(sample)[1].progress


def test_an_engine_that_drains_says_what_is_unanswered(start: Start) -> None:
    engine = start("--shutdown-timeout", "60")
    ready = engine.until_it_serves()
    with engine.asked():
        busy = engine.until(lambda sample, _: sample.unanswered == 1, last=ready)
        engine.process.popen.terminate()
        log = engine.process.log
        engine.process.wait_until(lambda: "Draining" in log.read_text(), 10, "it drains")
        draining = engine.until(lambda _, seen: seen.progress and seen.unanswered == 1, last=busy)
    assert (draining.health, draining.unanswered, ready.unanswered) == (200, 1, 0)


# Other servers


def served(
    answer: Callable[[bytes, bytes], bytes], timeouts: Timeouts = PATIENT, **options: Any
) -> tuple[ProbeResult, Probed]:
    """Probe a server that sends these bytes for a path and a body, and then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(length[0][15:])) if length else b""
        writer.write(answer(head.split()[1], body))
        writer.close()

    return with_server(serve, timeouts, **options)


def with_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    timeouts: Timeouts = PATIENT,
    served_name: str | None = "m",
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> tuple[ProbeResult, Probed]:
    async def run() -> tuple[ProbeResult, Probed]:
        async with await asyncio.start_server(serve, LOOPBACK.get(host, host), 0, ssl=tls) as server:
            port = server.sockets[0].getsockname()[1]
            target = engines.Engine("chat-0", (), {}, host, port, served_name, tls=tls is not None)
            return await probe(target, None, timeouts)

    return asyncio.run(run())


def whole(status: int, body: object) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


PAGE = b"vllm:num_requests_running 0\nvllm:generation_tokens_total 5\n"
TOKEN = {"choices": [{"text": "a"}]}


@pytest.mark.parametrize("refusal", asking.UNSUPPORTED)
@pytest.mark.parametrize(
    ("answers", "body"),
    [
        ("/v1/chat/completions", TOKEN), ("/v1/embeddings", {"data": [{}]}), ("/pooling", {"data": [{}]}),
        ("/classify", {"data": [{}]}), ("/score", {"data": [{}]}),
        ("/v1/audio/transcriptions", {"text": ""}),
    ],
)  # fmt: skip
def test_a_model_that_does_not_complete_is_asked_for_what_it_does(
    answers: str, body: object, refusal: int
) -> None:
    asked: list[str] = []

    def answer(path: bytes, _: bytes) -> bytes:
        asked.append(path.decode())
        if path == b"/metrics":
            return whole(200, PAGE)
        return whole(200, body) if path in (b"/health", answers.encode()) else whole(refusal, {})

    sample, seen = served(answer)
    assert (sample.facts.path, seen.serves, seen.is_unprobed) == (answers, True, False)
    assert asked[2:] == ["/is_sleeping", "/v1/models", "/openapi.json", *asking.PATHS][: len(asked) - 2]


def test_a_completion_asks_the_first_served_name_for_one_token() -> None:
    asked: list[bytes] = []

    def answer(path: bytes, body: bytes) -> bytes:
        asked.append(body)
        return whole(200, {"data": [{"id": "first"}, {"id": "second"}]} if path == b"/v1/models" else TOKEN)

    sample, _ = served(answer, served_name=None)
    assert sample.facts.name == "first"
    assert json.loads(asked[-1]) == {"model": "first", "prompt": "1", "max_tokens": 1}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"choices": []}', b'{"data": {"a": 1}}', b"\xff"]
)
def test_an_answer_without_a_token_is_none(body: bytes) -> None:
    sample, seen = served(lambda path, _: whole(200, body if path.startswith(b"/v1") else PAGE))
    assert (sample.completion, seen.serves) == ("refused", False)
    sample, seen = served(
        lambda path, _: whole(200, body if path.startswith(b"/v1") else PAGE), served_name=None
    )
    assert (sample.completion, seen.serves, sample.facts.name) == ("refused", False, None)


def test_an_engine_whose_completions_fail_never_serves() -> None:
    sample, seen = served(lambda path, _: whole(500 if path.startswith(b"/v1") else 200, PAGE))
    said = "/v1/completions answered 500: vllm:num_requests_running 0 vllm:generation_tokens_total 5"
    assert (sample.reason, seen.reason, seen.serves) == (said, said, False)


def test_without_metrics_a_completion_is_the_only_sign() -> None:
    sample, seen = served(lambda path, _: whole(404 if path == b"/metrics" else 200, TOKEN))
    assert (sample.tokens, seen.unanswered, seen.progress) == (None, None, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost", "", "::", "::1"])
def test_a_wildcard_address_is_asked_on_the_loopback_of_its_family(host: str) -> None:
    assert served(lambda *_: whole(200, TOKEN), host=host)[1].serves


def test_an_engine_with_a_certificate_is_asked_over_tls(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subject = ["-subj", "/CN=chat.example", "-keyout", key, "-out", certificate]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    sample, seen = served(lambda *_: whole(200, TOKEN), tls=context)
    assert (seen.serves, sample.completion) == (True, "answered")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        CHUNKED + b"5;x=y\r\nvllm:\r\n%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(PAGE) - 5, PAGE[5:]),
        b"HTTP/1.0 200 OK\r\n\r\n" + PAGE,
        b"HTTP/1.1 200\r\n\r\n" + PAGE,
        b"HTTP/1.1 100 Continue\r\n\r\n" + whole(200, PAGE),
    ],
    ids=["chunks", "until the close", "no reason", "after a 100"],
)
def test_an_answer_has_a_length_or_chunks_or_lasts_until_the_close(sent: bytes) -> None:
    sample, _ = served(lambda path, _: sent if path == b"/metrics" else whole(503, b""))
    assert (sample.tokens, sample.unanswered) == (5, 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\xff garbage\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + PAGE,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + PAGE,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + PAGE,
        CHUNKED + b"50\r\n" + PAGE,
        CHUNKED + b"zz\r\n" + PAGE,
        CHUNKED + b"5\r\nvllm:no end",
        CHUNKED + b"ffffffff\r\n" + PAGE,
        CHUNKED + b"10000\r\n" + b"a" * 65536 + b"\r\n" + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 40,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * (3 << 20),
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * (1 << 20),
    ],
    ids=[
        "nothing", "garbage", "no status", "half a head", "too short", "negative", "too long", "half a chunk",
        "no size", "chunk without end", "huge chunk", "too many chunks", "no end", "huge head",
    ],
)  # fmt: skip
def test_half_an_answer_is_no_answer(sent: bytes) -> None:
    sample, seen = served(lambda *_: sent)
    assert seen == Probed("chat-0", serves=False, progress=False, unanswered=None)
    assert sample.health is None
    assert sample.reason.startswith("no complete answer: ")


def test_an_answer_that_never_ends_is_given_up_in_time() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while not reader.at_eof() and not writer.transport.is_closing():
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(0.01)

    sample, seen = with_server(serve, SHORT)
    assert (sample.reason, seen.progress) == ("no answer within 0.3 s", False)
