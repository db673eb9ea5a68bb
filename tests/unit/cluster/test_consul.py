"""Consul, as it is reached and as it answers: what is asked again, and what a person is told."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.balancers.instances import ServiceInstance
from vllmjobs.cluster.consul import PAUSES, ConsulApi, ConsulError, Key
from vllmjobs_sandbox.fakes.listening import listening

Answer = tuple[int, str, dict[str, str]]
INDEX = {"X-Consul-Index": "7"}
NO_LEADER: Answer = (500, "No cluster leader", {})
DENIED: Answer = (
    403,
    "Permission denied: token with AccessorID '00' lacks permission 'key:write' on \"a\"",
    {},
)
TLS = {"CONSUL_HTTP_ADDR": "https://c:1"}
HIDDEN = {**INDEX, "X-Consul-Results-Filtered-By-ACLs": "true"}
KEYS = json.dumps([{"Key": "a/b", "Value": b64encode(b"1\xc3\xa9").decode(), "Flags": 8, "ModifyIndex": 41}])
INSTANCE: dict[str, Any] = {
    "Node": {"Node": "gpu-1", "Address": "10.0.0.1"},
    "Service": {"ID": "i1", "Address": "", "Port": 8000, "Tags": ["vllm"]},
    "Checks": [{"Status": "passing"}, {"Status": "passing"}],
}


@dataclass
class Script:
    """A server's answers in their order, of which the last is repeated; and what it was asked."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    address: str = ""

    def consul(self, *answers: Answer, **environ: str) -> ConsulApi:
        self.answers = list(answers)
        return ConsulApi(
            {"CONSUL_HTTP_ADDR": self.address, **environ}, timeout=(2, 20), sleep=self.pauses.append
        )


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            status, text, headers = script.answers[min(len(script.asked), len(script.answers) - 1)]
            script.asked.append(f"{self.command} {self.path} {body}".strip())
            script.tokens.append(self.headers["X-Consul-Token"])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as address:
        script.address = address.removeprefix("http://")
        yield script


def test_keys_are_read_with_their_flags_and_index(server: Script) -> None:
    assert server.consul((200, KEYS, INDEX)).read("a/") == {"a/b": Key("1é", 8, 41)}
    assert server.consul((404, "", INDEX)).read("a/") == {}
    assert server.asked == ["GET /v1/kv/a/?recurse=1&consistent="] * 2


def test_a_key_is_written_and_removed_over_what_was_read(server: Script) -> None:
    consul = server.consul((200, "true", {}), (200, "true", {}), (200, "false", {}))
    assert consul.put("a/b", "é", flags=8)
    assert consul.put("a/b", "2", flags=8, index=0)
    assert not consul.delete("a/b", index=41)
    assert server.asked == [
        "PUT /v1/kv/a/b?flags=8&consistent= é",
        "PUT /v1/kv/a/b?cas=0&flags=8&consistent= 2",
        "DELETE /v1/kv/a/b?cas=41&consistent=",
    ]  # fmt: skip


def test_an_instance_is_well_when_all_checks_are_and_may_have_its_nodes_address(server: Script) -> None:
    ill = {**INSTANCE, "Service": {**INSTANCE["Service"], "Address": "10.0.0.2", "Tags": None}}
    ill["Checks"] = [{"Status": "passing"}, {"Status": "warning"}]
    portless = {**INSTANCE, "Service": {"ID": "i2", "Address": "", "Tags": []}}
    assert server.consul((200, json.dumps([INSTANCE, ill, portless]), INDEX)).instances("chat") == [
        ServiceInstance("i1", "gpu-1", "10.0.0.1", 8000, ("vllm",), True),
        ServiceInstance("i1", "gpu-1", "10.0.0.2", 8000, (), False),
        ServiceInstance("i2", "gpu-1", "10.0.0.1", 0, (), True),
    ]


def test_a_new_leader_reads_its_log_before_it_answers(server: Script) -> None:
    consul = server.consul((200, "{}", INDEX), (200, "[]", INDEX))
    consul.services()
    consul.instances("chat")
    assert server.asked == ["GET /v1/catalog/services?consistent=", "GET /v1/health/service/chat?consistent="]


def test_without_a_leader_it_is_asked_again_and_again_for_half_a_minute(server: Script) -> None:
    assert server.consul(NO_LEADER, NO_LEADER, (200, KEYS, INDEX)).read("a/")
    assert server.pauses == list(PAUSES[:2])
    server.pauses.clear()
    with pytest.raises(ConsulError, match="No cluster leader; do enough of its servers run"):
        server.consul(NO_LEADER).put("a", "1")
    assert server.pauses == list(PAUSES)
    assert sum(PAUSES) == 30


def test_an_agent_that_has_answered_and_is_gone_is_waited_for() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None:
            pass

    pauses: list[float] = []
    again = ExitStack()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            again.enter_context(listening(Handler, int(address.rpartition(":")[2])))

    with listening(Handler) as address:
        consul = ConsulApi({"CONSUL_HTTP_ADDR": address}, timeout=(2, 2), sleep=sleep)
        assert consul.put("a", "1")
    with again:
        assert consul.put("a", "2")
    assert pauses == list(PAUSES[:3])
    with pytest.raises(
        ConsulError, match=r"Connection refused\); is CONSUL_HTTP_ADDR right, and Consul running"
    ):
        ConsulApi({"CONSUL_HTTP_ADDR": address}, sleep=pauses.append).read("a")
    assert len(pauses) == 3, "nobody has ever answered there: it was not asked again"


@pytest.mark.parametrize(
    ("answer", "token", "said"),
    [
        (DENIED, "t", 'denied; the policies of CONSUL_HTTP_TOKEN lack key "a" { policy = "write" }'),
        (DENIED, "", 'set CONSUL_HTTP_TOKEN to a token with the policy key "a" { policy = "write" }'),
        ((403, "ACL not found", {}), "t", "CONSUL_HTTP_TOKEN is not, or no longer, a token of this cluster"),
        ((200, "<html>", {}), "", "answers, but not as Consul's HTTP API does; is CONSUL_HTTP_ADDR right?"),
        (
            (401, "", {"WWW-Authenticate": "Basic"}), "",
            "401 Unauthorized: a proxy wants a name and a password; set CONSUL_HTTP_AUTH to NAME:PASSWORD",
        ),
        ((400, 'Invalid query parameter: "ns"', {}), "", '400: Invalid query parameter: "ns"'),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_in_one_line(server: Script, answer: Answer, token: str, said: str) -> None:
    with pytest.raises(ConsulError) as error:
        server.consul(answer, CONSUL_HTTP_TOKEN=token).put("a", "1")
    assert str(error.value).startswith(f"http://{server.address}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not server.pauses


def test_an_answer_of_which_all_is_hidden_is_not_taken_for_nothing(server: Script) -> None:
    with pytest.raises(ConsulError, match=r'service "chat" \{ policy = "read" \} and node_prefix ""'):
        server.consul((200, "[]", HIDDEN)).instances("chat")
    with pytest.raises(ConsulError, match=r'key_prefix "a/" \{ policy = "read" \}'):
        server.consul((404, "", HIDDEN)).read("a/")
    with pytest.raises(ConsulError, match=r'service_prefix "" \{ policy = "read" \}'):
        server.consul((200, "{}", HIDDEN)).services()
    assert server.consul((200, KEYS, HIDDEN)).read("a/"), "a part of it may be all that the token needs"


def test_the_token_of_a_file_wins_unless_it_is_empty(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of-the-process")  # py-consul reads it by itself
    (tmp_path / "token").write_text("of-the-file\n")
    (tmp_path / "empty").write_text("\n")
    answer = (200, "true", INDEX)
    server.consul(answer).put("a", "1")
    server.consul(answer, CONSUL_HTTP_TOKEN="given").put("a", "1")
    for name in ("token", "empty"):
        file = str(tmp_path / name)
        server.consul(answer, CONSUL_HTTP_TOKEN="given", CONSUL_HTTP_TOKEN_FILE=file).put("a", "1")
    assert server.tokens == [None, "given", "of-the-file", "given"]
    with pytest.raises(ConsulError, match=r"CONSUL_HTTP_TOKEN_FILE is .*/none: No such file"):
        server.consul(answer, CONSUL_HTTP_TOKEN_FILE=str(tmp_path / "none"))


def test_the_namespace_and_partition_are_sent(server: Script) -> None:
    server.consul((200, "true", {}), CONSUL_NAMESPACE="ai", CONSUL_PARTITION="eu").put("a", "1")
    assert server.asked == ["PUT /v1/kv/a?flags=0&consistent=&ns=ai&partition=eu 1"]


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "http://127.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "consul:8500"}, "http://consul:8500"),
        ({"CONSUL_HTTP_ADDR": "https://consul:8501"}, "https://consul:8501"),
        ({"CONSUL_HTTP_ADDR": "http://consul:8501", "CONSUL_HTTP_SSL": "true"}, "https://consul:8501"),
        ({"CONSUL_HTTP_SSL": "1"}, "https://127.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "unix:///run/consul.sock", "CONSUL_HTTP_SSL": "1"}, "unix:///run/consul.sock"),
        ({"CONSUL_HTTP_ADDR": "http://me:secret@consul:8500"}, "http://consul:8500"),
    ],
)
def test_the_address_is_read_as_the_consul_command_does(environ: dict[str, str], address: str) -> None:
    assert ConsulApi(environ).address == address


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CONSUL_HTTP_ADDR": "ftp://c"}, "CONSUL_HTTP_ADDR is 'ftp://c', but must be like http://127.0.0.1:8500"),
        ({**TLS, "CONSUL_CACERT": "/none.pem"}, "CONSUL_CACERT is /none.pem: No such file"),
        ({**TLS, "CONSUL_CLIENT_KEY": "k"}, "CONSUL_CLIENT_KEY is k, but CONSUL_CLIENT_CERT,"),
        ({**TLS, "CONSUL_CAPATH": __file__}, f"CONSUL_CAPATH is {__file__}: "),
        ({"CONSUL_HTTP_TOKEN": "a b"}, "CONSUL_HTTP_TOKEN has a blank"),
    ],
)  # fmt: skip
def test_a_way_that_cannot_be_gone_is_said_in_consuls_words(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConsulError) as error:
        ConsulApi(environ)
    assert str(error.value).startswith(said)


def test_no_proxy_is_asked_for_what_is_on_this_machine(
    server: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert server.consul((200, KEYS, INDEX)).read("a/")
