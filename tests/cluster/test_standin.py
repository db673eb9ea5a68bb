"""The stand-in engine behaves as vLLM was measured to: real processes, real clients."""

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.programs import ROOM
from vllmjobs_sandbox.engine import knobs

LAUNCHER = ROOM / "engine" / "bin" / "stand-in-engine"
QUICK = {
    "LOAD_SECONDS": 0,
    "EXIT_SECONDS": 0,
    "LINGER_SECONDS": 0,
    "DEATH_SECONDS": 0,
    "TOKENS_PER_SECOND": 1000,
}
DEADLINE = 15.0  # seconds, for what takes a moment on a busy machine

Start = Callable[..., "StandIn"]
T = TypeVar("T")

PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and cheaper than httpx's own
HTTP: Json = {"timeout": DEADLINE, "verify": PLAIN_HTTP}


def until(condition: Callable[[], T | None]) -> T:
    """Wait for a condition; what it returned."""
    give_up = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)
    return found


@dataclass
class StandIn:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, **HTTP, **options)

    def complete(self, key: str = "", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        whole = {"prompt": "a b c", **body}
        return httpx.post(f"{self.url}/v1/completions", json=whole, headers=headers, **HTTP)

    @contextmanager
    def stream(self, **body: Any) -> Iterator[Iterator[Json]]:
        """A streamed completion whose first chunk has come; yields the chunks after it, [DONE] as {}."""
        whole = {"prompt": "a b c", "stream": True, "ignore_eos": True, **body}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=whole, **HTTP) as response:
            assert response.status_code == 200, response.read()
            lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            chunks = ({} if line == "[DONE]" else json.loads(line) for line in lines)
            next(chunks)
            yield chunks

    def metric(self, name: str, **labels: str) -> float:
        lines = (line for line in self.get("/metrics").text.splitlines() if line.startswith(name))
        return sum(
            sample.value
            for family in text_string_to_metric_families("\n".join(lines))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @contextmanager
    def asked(self) -> Iterator[socket.socket]:
        """A completion that was asked for, on a connection whose answer nobody has read."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b'content-length: 15\r\n\r\n{"prompt": "x"}'
            )
            yield connection

    def refuses(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED

    def healthy(self) -> bool:
        return not self.refuses() and self.get("/health").status_code == 200

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Starts stand-ins on ports of their own, and kills them at the end."""
    started: list[StandIn] = []
    ports: list[socket.socket] = []

    def start(
        *args: str,
        ready: bool = True,
        port: int | None = None,
        env: dict[str, str] | None = None,
        **own: object,
    ) -> StandIn:
        if port is None:
            # Kept bound, so that nobody else gets it in between: one of those with SO_REUSEADDR may listen.
            ports.append(held := socket.socket())
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        told = QUICK | own
        environ = os.environ | {knobs.PREFIX + name: str(value) for name, value in told.items()}
        log = folder / f"{port}-{len(started)}.log"
        command = [str(LAUNCHER), "serve", "tiny/llama", "--host", "127.0.0.1", "--port", str(port), *args]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command, env=environ | (env or {}), stdout=subprocess.DEVNULL, stderr=stderr
            )
        started.append(standin := StandIn(process, port, log))
        if ready:
            until(lambda: standin.healthy() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
        return standin

    try:
        yield start
    finally:
        for standin in started:
            standin.process.kill()
            standin.process.wait()
        for held in ports:
            held.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in that behaves, shared by the tests that only ask."""
    with starting(tmp_path_factory.mktemp("plain")) as one:
        yield one("--served-model-name", "chat", "also-chat", "--max-model-len", "512")


# Start


def test_while_the_model_loads_the_port_is_bound_but_refuses(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = start(port=port, ready=False, LOAD_SECONDS=0.5)
    until(lambda: "Starting to load" in engine.log.read_text())
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    assert engine.refuses()
    until(engine.healthy)


def test_a_port_that_another_program_holds_ends_the_start_with_exit_1(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        engine = start(port=other.getsockname()[1], ready=False)
        assert engine.exit_code() == 1
    assert "Address already in use" in engine.log.read_text()


def test_the_log_lists_every_flag_in_vllms_style_and_no_secret(start: Start) -> None:
    secrets = {"HF_TOKEN": "hf_environment", "VLLM_API_KEY": "key_environment"}
    engine = start("--enforce-eager", "--kv-cache-dtype=fp8", "--hf_token", "hf_flag", env=secrets)
    log = engine.log.read_text()
    assert "'enforce-eager': ''" in log
    assert "'kv-cache-dtype': 'fp8'" in log
    assert log.startswith("INFO ")
    assert "hf_" not in log
    assert "key_" not in log


def test_without_the_checkouts_virtualenv_the_launcher_takes_python3(tmp_path: Path) -> None:
    package = tmp_path / "generator" / "vllmjobs_sandbox"
    shutil.copytree(ROOM, package)
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho from-path >&2\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    launcher = package / "engine" / "bin" / "stand-in-engine"
    path = f"{python.parent}:{os.environ['PATH']}"
    ran = subprocess.run([launcher], env={"PATH": path}, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (
        2,
        "from-path\nstand-in-engine: which model? stand-in-engine serve MODEL [--port N] ...\n",
    )


def test_a_wrong_knob_is_exit_2(start: Start) -> None:
    engine = start(ready=False, FAILURE="nonsense")
    assert engine.exit_code() == 2
    assert engine.log.read_text().count("\n") == 1


# Answers


def test_health_and_ping_are_200_without_a_body(plain: StandIn) -> None:
    assert [(plain.get(path).status_code, plain.get(path).content) for path in ("/health", "/ping")] == [
        (200, b""),
        (200, b""),
    ]


def test_models_lists_each_served_name_of_the_same_root(plain: StandIn) -> None:
    cards = plain.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["chat", "also-chat"]
    assert {(card["root"], card["owned_by"], card["max_model_len"]) for card in cards} == {
        ("tiny/llama", "vllm", 512)
    }
    assert [card.id for card in plain.client().models.list()] == ["chat", "also-chat"]


def test_the_openai_client_gets_completions_and_chats(plain: StandIn) -> None:
    client = plain.client()
    completion = client.completions.create(model="chat", prompt="one two three", max_tokens=5)
    chat = client.chat.completions.create(
        model="also-chat", messages=[{"role": "user", "content": "one two"}], max_completion_tokens=7
    )
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 5)
    assert len(completion.choices[0].text.split()) == 5
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (3, 7, 10)
    assert len((chat.choices[0].message.content or "").split()) == 7
    assert (chat.model, chat.choices[0].finish_reason) == ("also-chat", "length")


def test_the_openai_client_streams_the_same_text_with_usage_at_the_end(plain: StandIn) -> None:
    client = plain.client()
    completed = client.completions.create(model="chat", prompt="tell", max_tokens=12).choices[0].text
    pieces = list(
        client.completions.create(
            model="chat", prompt="tell", max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == completed
    assert pieces[-2].choices[0].finish_reason == "length"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == 12


def test_the_asynchronous_openai_client_streams_chats(plain: StandIn) -> None:
    async def chat() -> tuple[str, str | None, int]:
        async with openai.AsyncOpenAI(base_url=f"{plain.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="chat",
                messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
                max_tokens=9,
                stream=True,
                stream_options={"include_usage": True},
            )
            said, reason, counted = "", None, 0
            async for piece in stream:
                for choice in piece.choices:
                    said += choice.delta.content or ""
                    reason = choice.finish_reason or reason
                counted = piece.usage.completion_tokens if piece.usage else counted
            return said, reason, counted

    said, reason, counted = asyncio.run(chat())
    assert (len(said.split()), reason, counted) == (9, "length", 9)


def test_an_answer_stops_by_itself_or_at_max_tokens(plain: StandIn) -> None:
    def ends(**body: Any) -> tuple[str, int]:
        answer = plain.complete(**body).json()
        return answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]

    assert ends() == ("length", 16)  # OpenAI's default of max_tokens
    assert ends(max_tokens=100) == ("stop", 64)
    assert ends(max_tokens=100, ignore_eos=True) == ("length", 100)


def test_several_prompts_and_choices_are_answered_in_one_request(plain: StandIn) -> None:
    answer = plain.complete(prompt=["a b", "c"], n=2, max_tokens=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    assert plain.complete(prompt=[7, 8, 9, 10]).json()["usage"]["prompt_tokens"] == 4


def test_the_text_depends_on_the_prompt_alone_and_the_fingerprint_on_the_version(
    plain: StandIn, guarded: StandIn
) -> None:
    old, new = plain.complete().json(), guarded.complete(key="sesame").json()
    assert old["choices"][0]["text"] == new["choices"][0]["text"]
    assert old["choices"][0]["text"] != plain.complete(prompt="other").json()["choices"][0]["text"]
    assert old["system_fingerprint"] == "stand-in max_model_len=512"
    assert new["system_fingerprint"] == "stand-in max_model_len=1024"


def test_a_wrong_model_name_is_404_in_vllms_words(plain: StandIn) -> None:
    with pytest.raises(openai.NotFoundError):
        plain.client().completions.create(model="gpt", prompt="x")
    assert plain.complete(model="gpt").json() == {
        "error": {
            "message": "The model `gpt` does not exist. Valid aliases: chat, also-chat.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }


def test_more_than_the_context_is_400_and_an_answer_is_shortened_to_it(plain: StandIn) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens"):
        plain.client().completions.create(model="chat", prompt="x " * 513, max_tokens=1)
    answer = plain.complete(prompt="x " * 500, max_tokens=13, ignore_eos=True).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (12, "length")


@pytest.mark.parametrize(
    "body",
    ["{", "[]", "{}", '{"prompt": ""}', '{"prompt": "x", "max_tokens": 0}', '{"prompt": "x", "n": "many"}'],
)
def test_a_malformed_request_is_400_in_openais_form(plain: StandIn, body: str) -> None:
    headers = {"content-type": "application/json"}
    refused = httpx.post(f"{plain.url}/v1/completions", content=body, headers=headers, **HTTP)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, 400)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in with an API key, which soon closes idle connections, and of another version than `plain`."""
    with starting(tmp_path_factory.mktemp("guarded")) as one:
        yield one(
            "--max-model-len", "1K", env={"VLLM_API_KEY": "sesame", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "1"}
        )


def test_the_api_key_guards_v1_alone(guarded: StandIn) -> None:
    engine = guarded
    assert engine.get("/v1/models").status_code == 401
    assert engine.get("/v1/models", headers={"authorization": "Bearer sesam"}).status_code == 401
    assert engine.get("/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 200
    assert {engine.get(path).status_code for path in ("/health", "/ping", "/metrics")} == {200}


def test_an_idle_connection_is_closed_after_vllms_keep_alive_timeout(guarded: StandIn) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=DEADLINE) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        since = time.monotonic()
        assert idle.recv(4096) == b""
    assert 0.8 < time.monotonic() - since < 4  # vLLM's default would be 5


def test_it_starts_with_little_work_and_runs_hundreds_of_streams_in_little_memory(start: Start) -> None:
    engine = start("--max-num-seqs", "1024", "--disable-uvicorn-access-log", TOKENS_PER_SECOND=25)
    user, system = Path(f"/proc/{engine.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    assert (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") < 2  # seconds of a core
    body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 50, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"

    async def one() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        writer.write(f"{head}content-type: application/json\r\n\r\n{body}".encode())
        answer = await reader.read()
        writer.close()
        return b"data: [DONE]" in answer

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(one() for _ in range(300)))

    assert asyncio.run(all_of_them()) == [True] * 300
    assert engine.metric("vllm:generation_tokens_total") == 300 * 50
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 64 * 1024


# Metrics


def test_metrics_have_vllms_names_types_and_labels(plain: StandIn) -> None:
    plain.complete()
    families = {family.name: family for family in text_string_to_metric_families(plain.get("/metrics").text)}
    kinds = {
        "gauge": "num_requests_running num_requests_waiting kv_cache_usage_perc",
        "counter": "num_preemptions prompt_tokens generation_tokens request_success prefix_cache_queries "
        "prefix_cache_hits admission_rejections",
        "histogram": "time_to_first_token_seconds inter_token_latency_seconds iteration_tokens_total "
        "request_time_per_output_token_seconds e2e_request_latency_seconds request_queue_time_seconds",
    }
    for kind, names in kinds.items():
        for name in names.split():
            family = families[f"vllm:{name}"]
            assert family.type == kind
            for sample in family.samples:
                assert sample.labels["model_name"] == "chat"
                assert sample.labels.get("engine") == (None if name == "admission_rejections" else "0")


def test_histograms_have_vllms_buckets(plain: StandIn) -> None:
    page = plain.get("/metrics").text
    for name, bound in {
        "time_to_first_token_seconds": "2560.0",
        "inter_token_latency_seconds": "0.075",
        "iteration_tokens_total": "16384.0",
        "e2e_request_latency_seconds": "7680.0",
    }.items():
        assert f'vllm:{name}_bucket{{engine="0",le="{bound}",model_name="chat"}}' in page


def test_counters_follow_the_requests(start: Start) -> None:
    engine = start()
    prompt = "word " * 40
    engine.complete(prompt=prompt, max_tokens=10)
    engine.complete(prompt=prompt, max_tokens=100)
    engine.complete(model="wrong")
    read = {
        name: engine.metric(f"vllm:{name}")
        for name in ("prompt_tokens_total", "generation_tokens_total", "iteration_tokens_total_sum")
    }
    assert read == {
        "prompt_tokens_total": 80,
        "generation_tokens_total": 74,
        "iteration_tokens_total_sum": 154,
    }
    assert engine.metric("vllm:time_to_first_token_seconds_count") == 2
    assert engine.metric("vllm:request_success_total", finished_reason="length") == 1
    assert engine.metric("vllm:request_success_total", finished_reason="stop") == 1
    assert engine.metric("vllm:prefix_cache_queries_total") == 80
    assert engine.metric("vllm:prefix_cache_hits_total") == 32  # whole blocks of 16
    assert engine.metric("http_requests_total", handler="/v1/completions", status="2xx") == 2
    assert engine.metric("http_requests_total", handler="/v1/completions", status="4xx") == 1


def test_requests_above_max_num_seqs_wait_and_a_client_that_leaves_is_aborted(start: Start) -> None:
    engine = start("--max-num-seqs", "1", "--max-model-len", "100k", KV_TOKENS=1000)
    with engine.stream(max_tokens=50_000):
        with engine.asked():
            until(lambda: engine.metric("vllm:num_requests_waiting") == 1)
            assert engine.metric("vllm:num_requests_running") == 1
            assert 0 < engine.metric("vllm:kv_cache_usage_perc") <= 1
        until(lambda: engine.metric("vllm:num_requests_waiting") == 0)
    until(lambda: engine.metric("vllm:num_requests_running") == 0)
    assert engine.metric("vllm:request_success_total", finished_reason="abort") == 2
    assert engine.metric("vllm:kv_cache_usage_perc") == 0


# Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_a_shutdown_timeout_it_hangs_until_its_clients_leave(
    start: Start, number: signal.Signals
) -> None:
    engine = start(LINGER_SECONDS=60)
    with engine.stream(max_tokens=400):
        engine.process.send_signal(number)
        until(engine.refuses)
        with pytest.raises(subprocess.TimeoutExpired):
            engine.process.wait(0.5)
    assert engine.exit_code() == 0


def test_a_stream_without_a_shutdown_timeout_is_cut_in_the_end(start: Start) -> None:
    engine = start(LINGER_SECONDS=1)
    with engine.stream(max_tokens=400) as chunks:
        engine.process.terminate()
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
    assert engine.exit_code() == 0


def test_without_requests_in_flight_it_leaves_at_once(start: Start) -> None:
    engine = start(LINGER_SECONDS=60, EXIT_SECONDS=60)
    with httpx.Client(**HTTP) as kept_alive:
        kept_alive.get(f"{engine.url}/health")
        engine.process.terminate()
        assert engine.exit_code() == 0


def test_with_a_shutdown_timeout_streams_end_whole_while_new_requests_get_500(start: Start) -> None:
    engine = start("--shutdown-timeout", "60", TOKENS_PER_SECOND=100, EXIT_SECONDS=0.4)
    with engine.stream(max_tokens=60, stream_options={"include_usage": True}) as chunks:
        engine.process.terminate()
        refused = until(lambda: answer if (answer := engine.complete()).status_code != 200 else None)
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            500,
            "cannot schedule new futures after shutdown",
        )
        assert {engine.get(path).status_code for path in ("/health", "/v1/models", "/metrics")} == {200}
        assert engine.metric("vllm:num_requests_running") == 1
        *_, last, done = chunks
        assert (last["usage"]["completion_tokens"], done) == (60, {})
    until(lambda: engine.metric("vllm:num_requests_running") == 0)
    assert engine.exit_code() == 0


def test_what_outlasts_the_shutdown_timeout_is_cut(start: Start) -> None:
    engine = start("--shutdown-timeout", "1")
    with engine.stream(max_tokens=4000) as chunks:
        since = time.monotonic()
        engine.process.terminate()
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
        assert time.monotonic() - since > 0.9
    assert engine.exit_code() == 0


def test_a_second_signal_while_draining_is_ignored(start: Start) -> None:
    engine = start("--shutdown-timeout", "60", TOKENS_PER_SECOND=100)
    with engine.stream(max_tokens=60) as chunks:
        engine.process.terminate()
        until(lambda: "Draining" in engine.log.read_text())
        engine.process.terminate()
        until(lambda: "again" in engine.log.read_text())
        assert list(chunks)[-1] == {}
    assert engine.exit_code() == 0


def test_a_signal_while_loading_ends_it_at_once(start: Start) -> None:
    engine = start(ready=False, LOAD_SECONDS=600)
    until(lambda: "Starting to load" in engine.log.read_text())
    engine.process.terminate()
    assert engine.exit_code() == 0


# Failures


def test_exit_1_before_ready_is_a_load_that_fails(start: Start) -> None:
    engine = start(ready=False, FAILURE="exit-1-before-ready")
    assert engine.exit_code() == 1
    assert engine.refuses()


def test_never_ready_loads_for_ever(start: Start) -> None:
    engine = start(ready=False, FAILURE="never-ready")
    until(lambda: "Starting to load" in engine.log.read_text())
    with pytest.raises(subprocess.TimeoutExpired):
        engine.process.wait(0.3)
    assert engine.refuses()


def test_after_an_engine_death_health_is_503_and_the_exit_code_0(start: Start) -> None:
    engine = start(FAILURE="exit-0-after=1", DEATH_SECONDS=0.6)
    with engine.stream(max_tokens=4000) as chunks:
        assert engine.complete().status_code == 500
        assert engine.get("/health").status_code == 503
        *_, broken, done = chunks
        assert (broken["error"]["code"], done) == (500, {})
    assert engine.exit_code() == 0


def test_error_rate_fails_that_share_of_completions(start: Start) -> None:
    engine = start(FAILURE="error-rate=0.25")
    assert [engine.complete(max_tokens=1).status_code for _ in range(8)] == [200, 200, 200, 500] * 2
    assert engine.metric("vllm:request_success_total", finished_reason="error") == 2
    assert engine.metric("http_requests_total", status="5xx") == 2


def test_a_hung_engine_is_healthy_with_frozen_counters(start: Start) -> None:
    engine = start(FAILURE="hang-after=1")
    heartbeat = "vllm:iteration_tokens_total_count"
    assert engine.complete(max_tokens=4).status_code == 200
    with engine.asked() as never:
        until(lambda: engine.metric("vllm:num_requests_running") == 1)
        before = engine.metric(heartbeat)
        never.settimeout(0.3)
        with pytest.raises(TimeoutError):
            never.recv(1)
        assert engine.get("/health").status_code == 200
        assert engine.metric(heartbeat) == before > 0


def test_slow_health_and_slow_first_token_take_their_time(start: Start) -> None:
    engine = start(FAILURE="slow-health=0.3, slow-first-token=0.3")
    moments = [time.monotonic()]
    engine.get("/health")
    moments.append(time.monotonic())
    engine.complete(max_tokens=1)
    moments.append(time.monotonic())
    assert all(after - before >= 0.3 for before, after in pairwise(moments))
    assert engine.metric("vllm:time_to_first_token_seconds_sum") >= 0.3


def test_ignore_term_leaves_only_kill(start: Start) -> None:
    engine = start(FAILURE="ignore-term")
    engine.process.terminate()
    until(lambda: "SIGTERM ignored" in engine.log.read_text())
    assert engine.complete(max_tokens=1).status_code == 200
