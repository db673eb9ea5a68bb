"""What a client may do at a real nginx: which of vLLM's paths it reaches, and what a silent one holds."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vllmjobs.balancers.paths import passed, path_in_vllm
from vllmjobs.cli.common import Selection
from vllmjobs.environment.model import Route
from vllmjobs.project.templates import templates
from vllmjobs.render.job import render
from vllmjobs_sandbox.cluster import nginx, ports, process
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.traffic.requests import http

ENVIRONMENT = """
job: edge
balancer:
  {kind: nginx, driver: raw_exec, metrics: false, max_body: 60 MB, client_requests: 12, client_uploads: 8}
models:
  chat: {model: a/small, route: {path: /chat/v1/, strip: /chat}}
  all: {model: a/small, route: {path: /all/, strip: /all}}
  open: {model: a/small, route: {path: /open/, strip: /open, allow: [/tokenize, /v1/load_lora_adapter]}}
  pooling: {model: a/small, route: {path: /pooling}}
  rooted: {model: a/small, args: {root-path: /rooted}, route: {path: /rooted/v1/}}
  rest: {model: a/small, route: {path: /}}
"""
SECONDS = 30.0
HELD = "/v1/held"  # the path of requests that the instance holds
SILENCE = 1  # seconds that this nginx bears, for 15
# vLLM 0.33's paths that are no API (`grep -r "@router" vllm/entrypoints`), and three of it for operators.
OPERATORS = [
    "/metrics", "/docs", "/openapi.json", "/redoc", "/static/x.js", "/load", "/version", "/health", "/ping",
    "/server_info", "/kv_event_sources", "/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory",
    "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/start_profile",
    "/stop_profile", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/pause", "/resume", "/is_paused",
    "/abort_requests", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights",
    "/weight_checker", "/weight_info", "/get_world_size", "/fault_tolerance/apply", "/tokenizer_info",
    "/tokenize", "/detokenize", "/invocations", "/pooling", "/score", "/generative_scoring",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/inference/v1/abort_requests",
]  # fmt: skip


class Instance(ThreadingHTTPServer):
    """Stands in for vLLM: it notes the paths that it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.may_answer = threading.Event()  # to what is to be held


class Handler(BaseHTTPRequestHandler):
    server: Instance

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == HELD:
            self.server.may_answer.wait(SECONDS)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Edge:
    """The nginx of an environment, and the one instance of all its models."""

    def __init__(self, folder: Path, instance: Instance, port: int) -> None:
        self.folder, self.instance, self.port = folder, instance, port

    def ask(self, path: str, body: bytes = b"{}") -> int:
        with http() as client:
            return client.post(f"http://127.0.0.1:{self.port}{path}", content=body).status_code

    def begin(self, path: str, length: int, sent: int) -> socket.socket:
        """Begin a request with a body of which only so many bytes are sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        client.sendall(bytes(sent))
        return client

    def on_disk(self) -> int:
        """The bytes of all files that are open in nginx's folders, deleted ones too."""
        total = 0
        for child in nginx_processes(self.folder):
            for opened in (child / "fd").iterdir():
                if "/client_body/" in str(opened.readlink()):
                    total += opened.stat().st_size
        return total


def is_ended(client: socket.socket) -> bool:
    """Wait until the other side ends the connection, with a word or without one."""
    try:
        while client.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


def nginx_processes(folder: Path) -> list[Path]:
    master = (folder / "nginx.pid").read_text().strip()
    return [
        Path(f"/proc/{pid}") for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()
    ]


@pytest.fixture(scope="module", params=nginx.at_hand(), ids=lambda path: path.parts[1])
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder, block = tmp_path_factory.mktemp("edge"), ports.take_block()
    (folder / "edge.yaml").write_text(ENVIRONMENT)
    hcl = render(Selection(str(folder / "edge.yaml"), ()).environment, "nginx", templates(folder))
    found = re.search(r'"local/nginx.conf".*?<<EOF\n(.*?)\nEOF\n', hcl, re.DOTALL)
    assert found
    conf, port = found[1].replace("_timeout 15s;", f"_timeout {SILENCE}s;"), block.take()
    assert conf.count(f"_timeout {SILENCE}s;") == 2
    for name, taken in (("http", port), ("admin", block.take())):
        conf = conf.replace(f'{{{{ env "NOMAD_ADDR_{name}" }}}}', f"127.0.0.1:{taken}")
    (folder / "nginx.conf").write_text(conf)
    with Instance() as instance:
        threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.05}).start()
        models = ("chat", "all", "open", "pooling", "rooted", "rest")
        (folder / "upstreams.conf").write_text(
            f"upstream one {{ server 127.0.0.1:{instance.server_address[1]}; }}\n"
            + "".join(
                f'map "" $pool_{model} {{ default one; }}\nmap "" $instances_{model} {{ default 1; }}\n'
                for model in models
            )
        )
        command = [str(request.param), "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"]
        server = process.start("nginx", command, folder / "nginx.log", dict(os.environ))
        try:
            server.wait_until(lambda: bool(ports.listens(port)), SECONDS, "it listens")
            yield Edge(folder, instance, port)
        finally:
            process.stop([server])
            instance.shutdown()
            block.release()


class TestPaths:
    @pytest.mark.parametrize("route", ["", "/all", "/chat", "/rooted"])
    def test_those_of_vllms_operators_are_closed_under_every_route(self, edge: Edge, route: str) -> None:
        edge.instance.asked.clear()
        own = "/pooling" if not route else ""  # another model's, which names it
        refused = {path: edge.ask(f"{route}{path}") for path in OPERATORS if path != own}
        assert set(refused.values()) == {404}, refused
        assert edge.instance.asked == []

    @pytest.mark.parametrize("route", ["", "/all", "/chat", "/rooted"])
    @pytest.mark.parametrize(
        "way",
        [
            "/v1/../metrics", "/v1/..%2fmetrics", "/v1/%2e%2e/metrics", "/v1/%2e%2e%2fmetrics", "//metrics",
            "/v1/..;/metrics", "/v1/..%5cmetrics", "/v1//load_lora_adapter", "/v1/./load_lora_adapter",
            "/v1/%6coad_lora_adapter", "/v1/load_lora_adapter/", "/v1%2fload_lora_adapter", "/=whole/metrics",
            "/=streamed/metrics", "/v1/x/../../all/metrics", "/v1", "/rooted/v1/load_lora_adapter",
        ],
    )  # fmt: skip
    def test_no_spelling_of_a_path_opens_them(self, edge: Edge, route: str, way: str) -> None:
        edge.instance.asked.clear()
        status = edge.ask(f"{route}{way}")
        # Within /v1/, vLLM itself answers 404: there is no dot left to be resolved.
        within = [
            path for path in edge.instance.asked if re.fullmatch(r"(/rooted)?/v1/\.\.(;/|%5C)metrics", path)
        ]
        assert status == 404 or within == edge.instance.asked != []

    @pytest.mark.parametrize(
        ("path", "asked"),
        [
            ("/v1/models", "/v1/models"),
            ("/chat/v1/chat/completions?a=%2F", "/v1/chat/completions?a=%2F"),
            ("/all/v1/score", "/v1/score"),
            ("/all/v2/rerank", "/v2/rerank"),
            ("/all/inference/v1/generate", "/inference/v1/generate"),
            ("/all/cohere/v2/chat", "/cohere/v2/chat"),
            ("/open/tokenize", "/tokenize"),
            ("/open/v1/load_lora_adapter", "/v1/load_lora_adapter"),
            ("/pooling", "/pooling"),
            ("/rooted/v1/models", "/rooted/v1/models"),
        ],
    )
    def test_the_api_and_what_a_route_names_are_passed_on(self, edge: Edge, path: str, asked: str) -> None:
        edge.instance.asked.clear()
        assert edge.ask(path) == 200
        assert edge.ask(path, bytes(400_000)) == 200  # passed on as it comes
        assert edge.instance.asked == [asked, asked]

    def test_a_route_may_open_all_of_them(self) -> None:
        everything = re.compile(
            passed(Route(path="/", allow=["/"])).replace("?<", "?P<").replace(r"\z", r"\Z")
        )
        assert all(everything.match(path) for path in OPERATORS)

    @pytest.mark.parametrize(
        ("route", "in_vllm"),
        [
            (Route(path="/v1/"), "/v1"),
            (Route(path="/chat/v1/", strip="/chat"), "/v1"),
            (Route(path="/chat/v1/chat/", strip="/chat/"), "/v1/chat"),
            (Route(path="/chat/", strip="/chat"), ""),
            (Route(path="/"), ""),
            (Route(path="/", strip="/"), ""),
            (Route(path="/metrics"), "/metrics"),
            (Route(path="/chat/v1/"), "/chat/v1"),
        ],
    )
    def test_what_vllm_gets_of_a_route(self, route: Route, in_vllm: str) -> None:
        assert path_in_vllm(route) == in_vllm


class TestClients:
    def test_that_send_part_of_a_body_and_then_nothing_hold_no_disk_and_are_ended(self, edge: Edge) -> None:
        edge.instance.asked.clear()
        with ExitStack() as stack:
            clients = [
                stack.enter_context(edge.begin("/v1/completions", 50_000_000, 20_000_000)) for _ in range(8)
            ]
            asked = edge.instance.asked
            wait_until(lambda: asked.count("/v1/completions") == 8, SECONDS, "all are passed on at once")
            assert edge.on_disk() < 1_000_000
            for client in clients:
                assert is_ended(client)

    def test_that_say_nothing_at_all_are_ended(self, edge: Edge) -> None:
        with socket.create_connection(("127.0.0.1", edge.port), timeout=SECONDS) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            assert is_ended(client)

    @pytest.mark.parametrize(("length", "most"), [(400_000, 8), (1000, 12)], ids=["uploads", "requests"])
    def test_have_so_many_requests_at_once(self, edge: Edge, length: int, most: int) -> None:
        edge.instance.may_answer.clear()
        edge.instance.asked.clear()
        with ExitStack() as stack:

            def is_full() -> bool:
                stack.enter_context(edge.begin(HELD, length, length))
                return self.refused(edge, length)

            wait_until(is_full, SECONDS, "one more is refused")
            wait_until(lambda: edge.instance.asked.count(HELD) == most, SECONDS, "so many are held")
            edge.instance.may_answer.set()
        wait_until(lambda: not self.refused(edge, length), SECONDS, "they have left")

    def refused(self, edge: Edge, length: int) -> bool:
        with http() as client:
            answer = client.post(f"http://127.0.0.1:{edge.port}/v1/completions", content=bytes(length))
        if answer.status_code != 429:
            return False
        assert (answer.json()["error"]["type"], answer.headers["retry-after"]) == ("rate_limit_error", "5")
        return True

    def test_may_send_a_body_as_large_as_the_environment_says(self, edge: Edge) -> None:
        assert edge.ask("/v1/completions", bytes(60_000_000)) == 200
        with edge.begin("/v1/completions", 60_000_001, 0) as client:
            said = client.makefile("rb").read().partition(b"\r\n\r\n")[2]
        assert json.loads(said)["error"]["message"] == "The request is larger than 60 MB."
