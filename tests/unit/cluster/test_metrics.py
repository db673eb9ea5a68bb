"""Instances and a Prometheus are asked over HTTP; each that does not answer well is told in words."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from math import inf
from threading import Event
from typing import Any
from urllib.parse import parse_qs

import pytest

from vllmjobs.cluster.metrics import MetricsError, PrometheusApi, probe, scrape
from vllmjobs.rollout.samples import SERIES, Sample
from vllmjobs.supervisor.core.asking import ServerFacts
from vllmjobs_sandbox.fakes.listening import listening

PAGE = 'vllm:num_requests_waiting{engine="0",model_name="chat"} 3.0\n'
Answer = tuple[int, str] | Event
Answers = Callable[[str, dict[str, str], str], Answer]
Serve = Callable[[Answers], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that answer (path, headers, body) with a status and a body; each one's `host:port`."""
    servers = ExitStack()
    silent: list[Event] = []

    def new(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
                answer = answers(self.path, dict(self.headers), body)
                if isinstance(answer, Event):
                    silent.append(answer)
                    answer.wait()
                    return
                status, text = answer
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        return servers.enter_context(listening(Handler)).removeprefix("http://")

    with servers:
        yield new
        for event in silent:
            event.set()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is taken, where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(autouse=True)
def a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one that goes nowhere: it must not be asked for what is on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def always(status: int, body: str = "") -> Answers:
    return lambda path, headers, body_: (status, body)


# Scraping


def test_each_instance_is_scraped_and_each_that_cannot_be_is_told(serve: Serve, nobody: str) -> None:
    well, other = serve(always(200, PAGE)), serve(always(200, "<html>"))
    starting, hung = serve(always(503)), serve(lambda *_: Event())
    found = scrape([well, other, starting, hung, nobody], timeout=2)
    assert isinstance(sample := found.pop(well), Sample)
    assert sample.gauges == {"queue": 3.0}
    assert {address: str(said) for address, said in found.items()} == {
        other: f"http://{other}/metrics is no page of vLLM's metrics",
        starting: f"http://{starting}/metrics answers 503 Service Unavailable",
        hung: f"http://{hung}/metrics does not answer within 2 s",
        nobody: f"http://{nobody}/metrics cannot be reached: nothing listens there, or the connection broke",
    }


def test_metrics_may_be_on_another_path(serve: Serve) -> None:
    address = serve(lambda path, *_: (200, PAGE) if path == "/chat/metrics" else (404, ""))
    assert isinstance(scrape([address], 5, "/chat/metrics")[address], Sample)


def test_nothing_to_scrape_is_nothing_found() -> None:
    assert scrape([], 1) == {}


# Prometheus


def prometheus(serve: Serve, status: int, answer: Any) -> PrometheusApi:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return PrometheusApi(f"http://{serve(always(status, text))}", timeout=20)


def test_one_query_asks_for_all_instances_and_series(serve: Serve) -> None:
    asked: list[tuple[str, str]] = []
    result = [
        {"metric": {"__name__": "vllm:num_requests_waiting", "pod": "a-1.b:80"}, "value": [1, "2"]},
        {
            "metric": {
                "__name__": "http_requests_total",
                "handler": "/v1/completions",
                "status": "2xx",
                "pod": "[::1]:80",
            },
            "value": [1, "7"],
        },
    ]

    def answer(path: str, _: dict[str, str], body: str) -> Answer:
        asked.append((path, parse_qs(body)["query"][0]))
        return 200, json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})

    found = PrometheusApi(f"http://{serve(answer)}/prom/", "pod").samples(
        ["a-1.b:80", "[::1]:80", "[::1]:80"]
    )
    assert found["a-1.b:80"].gauges == {"queue": 2.0}
    assert found["[::1]:80"].counts["requests"] == {inf: 7.0}
    [(path, query)] = asked
    assert path == "/prom/api/v1/query"
    assert query == f'{{__name__=~"{"|".join(SERIES)}",pod=~"\\\\[::1\\\\]:80|a-1\\\\.b:80"}}'


def test_without_instances_prometheus_is_not_asked() -> None:
    assert PrometheusApi("http://127.0.0.1:1").samples([]) == {}


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (
            400,
            {"status": "error", "errorType": "bad_data", "error": "parse error: unexpected end"},
            "answers 400 Bad Request: parse error: unexpected end",
        ),
        (
            401,
            "Unauthorized",
            "answers 401 Unauthorized, and not what a Prometheus answers "
            "(it is no JSON (JSON is malformed: invalid character (byte 0))); is it a Prometheus?",
        ),
        (
            200,
            "<html>Grafana</html>",
            "answers 200 OK, and not what a Prometheus answers "
            "(it is no JSON (JSON is malformed: invalid character (byte 0))); is it a Prometheus?",
        ),
        (
            404,
            {"message": "no route"},
            "answers 404 Not Found, and not what a Prometheus answers "
            "(Object missing required field `status`); is it a Prometheus?",
        ),
        (200, [1], "(Expected `object`, got `array`); is it a Prometheus?"),
        (
            200,
            {"status": "success", "data": {}},
            "(Object missing required field `result` - at `$.data`); is it a Prometheus?",
        ),
        (
            200,
            {"status": "success", "data": {"result": [{"metric": {"__name__": "up"}, "value": [1, "1"]}]}},
            ": its answer is no instant vector of metrics by instance: KeyError('instance')",
        ),
    ],
)
def test_a_prometheus_that_answers_otherwise_is_told_in_words(
    serve: Serve, status: int, answer: Any, said: str
) -> None:
    with pytest.raises(MetricsError) as refused:
        prometheus(serve, status, answer).samples(["a:1"])
    assert str(refused.value).endswith(said)
    assert "/api/v1/query" in str(refused.value)


def test_a_password_in_its_address_is_used_and_not_told(serve: Serve, nobody: str) -> None:
    seen: list[str] = []

    def answer(_: str, headers: dict[str, str], __: str) -> Answer:
        seen.append(headers["Authorization"])
        return 403, "no"

    for address in (serve(answer), nobody):
        with pytest.raises(MetricsError) as refused:
            PrometheusApi(f"http://reader:hunter2@{address}").samples(["a:1"])
        assert str(refused.value).startswith(f"http://{address}/api/v1/query ")
    assert seen == ["Basic cmVhZGVyOmh1bnRlcjI="]


def test_a_label_that_none_can_be_is_refused() -> None:
    with pytest.raises(MetricsError, match="'my label' cannot be the name of a label"):
        PrometheusApi("http://127.0.0.1:1", "my label")


# Probing


CARDS = '{"data": [{"id": "chat", "root": "org/model"}]}'
TOKEN = '{"choices": [{"text": "a"}]}'


def test_a_probe_is_one_token_after_it_was_asked_what_answers(serve: Serve) -> None:
    asked: list[Any] = []

    def answer(path: str, headers: dict[str, str], body: str) -> Answer:
        asked.append((path, headers.get("Authorization"), json.loads(body or "null")))
        pages = {"/v1/models": CARDS, "/v1/completions": TOKEN}
        return (200, pages[path]) if path in pages else (404, "")

    known: dict[str, ServerFacts] = {}
    address = serve(answer)
    assert probe(address, "chat", 5, "secret", "org/model", known) is None
    key, wanted = "Bearer secret", {"model": "chat", "max_tokens": 1, "prompt": "1"}
    found_out = [(path, key, None) for path in ("/is_sleeping", "/v1/models", "/openapi.json")]
    assert asked == [*found_out, ("/v1/completions", key, wanted)]
    assert probe(address, "chat", 5, "secret", "org/model", known) is None
    assert asked[4:] == [("/v1/completions", key, wanted)]


@pytest.mark.parametrize("status", [200, 500, 503])
def test_an_answer_that_the_metrics_tell_of_is_enough(serve: Serve, status: int) -> None:
    assert probe(serve(always(status)), "chat", 5) is None


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", TOKEN), ("/v1/audio/transcriptions", '{"text": ""}')]
)
def test_a_model_is_asked_for_what_it_is_for(serve: Serve, path: str, body: str, status: int) -> None:
    refusal = '{"error": {"message": "does not support Completions API"}}'
    address = serve(lambda asked, *_: (200, body) if asked == path else (status, refusal))
    assert probe(address, "chat", 5) is None


def test_a_server_that_sleeps_or_serves_another_model_is_sent_nothing(serve: Serve) -> None:
    asked: list[str] = []

    def serving(pages: dict[str, str]) -> str:
        def answer(path: str, *_: object) -> Answer:
            asked.append(path)
            return (200, pages[path]) if path in pages else (404, "")

        return serve(answer)

    asleep, other = serving({"/is_sleeping": '{"is_sleeping": true}'}), serving({"/v1/models": CARDS})
    assert probe(asleep, "chat", 5) == f"http://{asleep}/is_sleeping says that it sleeps"
    assert probe(other, "chat", 5, model="org/other") == (
        f"http://{other}/v1/models: it serves another model: chat is org/model, but org/other was asked for"
    )
    assert asked == ["/is_sleeping", "/is_sleeping", "/v1/models"]


def test_why_an_instance_cannot_be_probed_is_said(serve: Serve, nobody: str) -> None:
    missing = serve(always(404, '{"error": {"message": "The model `x` does not exist."}}'))
    guarded, hung = serve(always(401)), serve(lambda *_: Event())
    strange = serve(always(418, "teapot"))
    found = {one: probe(one, "x", 2) for one in (missing, guarded, hung, nobody, strange)}
    assert found == {
        missing: f"http://{missing}/v1/completions answered 404: "
        '{"error": {"message": "The model `x` does not exist."}}',
        guarded: f"http://{guarded}/v1/completions answered 401: set VLLM_API_KEY to its key",
        hung: f"http://{hung}/v1/models: does not answer within 2 s",
        nobody: f"http://{nobody}/v1/models: cannot be reached: nothing listens there, "
        "or the connection broke",
        strange: f"http://{strange}/v1/completions answered 418: teapot",
    }
    said = probe(guarded, "x", 5, "wrong")
    assert said == f"http://{guarded}/v1/completions answered 401: VLLM_API_KEY is not its key"
