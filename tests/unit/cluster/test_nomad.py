"""A server that misbehaves: when `Cluster` asks again, when it gives up, and what it says."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import ForbiddenError, InvalidJobError, NomadError
from vllmjobs.cluster.nomad import LONGEST_PAUSE, PAUSES, NomadApi
from vllmjobs_sandbox.fakes.listening import listening

JOB = {"ID": "chat", "Namespace": "default", "Region": "global", "Type": "service", "TaskGroups": []}
REGISTERED = {**JOB, "Version": 1, "JobModifyIndex": 7, "SubmitTime": 0, "Stable": True, "Stop": False}
DEPLOYMENT = {"ID": "1a", "JobVersion": 1, "Status": "running", "StatusDescription": "", "CreateIndex": 7}
PLAN = {"Diff": {"Type": "None"}, "JobModifyIndex": 7}
ATTEMPTS = len(PAUSES) + 1
NO_NOMAD = "answers, but not as Nomad's HTTP API does; is NOMAD_ADDR right?"
NO_JSON = "answers, but not as Nomad's HTTP API does (job/chat/plan: {}); is NOMAD_ADDR right?"
CUT = "the connection was cut before the answer was complete; is NOMAD_ADDR right?"
NO_LEADER = (500, "No cluster leader")


def timeout(answers: Iterable[Any]) -> tuple[float, float]:
    """Wait briefly where nothing will come, and long where a busy machine may be slow to answer."""
    return 2, 0.5 if says_nothing in answers else 20


@dataclass
class Script:
    """A server's answers in their order, of which the last is repeated; and what it was asked."""

    answers: list[tuple[int, str] | tuple[int, str, dict[str, str]] | Callable[[Any], None]] = field(
        default_factory=list
    )
    asked: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    address: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def cluster(self, *answers: Any, **environ: str) -> Cluster:
        self.answers = list(answers)
        environ = {"NOMAD_ADDR": self.address, **environ}
        return Cluster(NomadApi(environ, timeout=timeout(answers), sleep=self.pauses.append))


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = script.answers[min(len(script.asked), len(script.answers) - 1)]
            script.asked.append(f"{self.command} {self.path}")
            script.authorizations.append(self.headers["Authorization"])
            if callable(answer):
                answer(self)
                return
            status, body, *headers = answer
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    with listening(Handler) as script.address:
        yield script


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(NomadError) as error:
        call()
    return str(error.value).partition(": ")[2]


def says_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.recv(1)  # until the other side has had enough


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def hangs_up_in_the_middle(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"Job')
    handler.close_connection = True


def speaks_another_language(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.close_connection = True


# What may pass is asked again


@pytest.mark.parametrize(
    "fault",
    [NO_LEADER, (500, "Not ready to serve consistent reads"), (429, "slow down"), (502, ""), (503, ""),
     (504, ""), says_nothing, hangs_up, hangs_up_in_the_middle],
    ids=lambda fault: getattr(fault, "__name__", str(fault)),
)  # fmt: skip
@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda cluster: cluster.job("chat"), REGISTERED),
        (lambda cluster: cluster.deployment("chat"), DEPLOYMENT),
        (lambda cluster: cluster.parse("job"), JOB),
        (lambda cluster: cluster.plan(JOB), PLAN),
    ],
    ids=["job", "deployment", "parse", "plan"],
)
def test_a_read_is_asked_again_and_a_parse_and_a_plan_which_change_nothing(
    server: Script, fault: Any, ask: Callable[[Cluster], object], answer: dict[str, Any]
) -> None:
    assert ask(server.cluster(fault, fault, (200, json.dumps(answer)))) == answer
    assert len(server.asked) == 3
    assert len(set(server.asked)) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (NO_LEADER, "500: No cluster leader; do enough of its servers run, and reach each other?"),
        ((429, "slow down"), "too many requests (429: slow down); try again later"),
        (
            (502, "<html><h1>502 Bad Gateway</h1>"),
            "502: Bad Gateway; does Nomad run behind this proxy or load balancer?",
        ),
        ((503, ""), "503: Service Unavailable; does Nomad run behind this proxy or load balancer?"),
        (says_nothing, "no answer within 0.5 s"),
        (hangs_up, CUT),
        (hangs_up_in_the_middle, CUT),
    ],
)
def test_after_some_attempts_it_is_told(server: Script, fault: Any, said: str) -> None:
    cluster = server.cluster(fault)
    assert refusal(lambda: cluster.plan(JOB)) == said
    assert len(server.asked) == ATTEMPTS


def test_the_pauses_grow_and_end(server: Script) -> None:
    cluster = server.cluster(NO_LEADER)
    refusal(lambda: cluster.job("chat"))
    for slept, pause in zip(server.pauses, PAUSES, strict=True):
        assert pause / 2 <= slept <= pause
    assert sum(PAUSES) <= 20


@pytest.mark.parametrize(
    ("asked", "slept"),
    [("7", 7), ("86400", LONGEST_PAUSE), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-5", None)],
)
def test_a_server_that_names_a_pause_gets_it_within_reason(
    server: Script, asked: str, slept: float | None
) -> None:
    server.cluster((429, "", {"Retry-After": asked}), (200, json.dumps(REGISTERED))).job("chat")
    assert server.pauses == [slept] or (slept is None and server.pauses[0] <= PAUSES[0])


# What does not pass is told at once


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (200, "<html>"),
            NO_JSON.format("it is no JSON (JSON is malformed: invalid character (byte 0))"),
        ),
        ((200, "[]"), NO_JSON.format("Expected `object`, got `array`")),
        ((200, "null"), NO_JSON.format("Expected `object`, got `null`")),
        (
            (200, '{"Diff": {"Type": 7}}'),
            NO_JSON.format("Expected `str`, got `int` - at `$.Diff.Type`"),
        ),
        ((404, "page not found"), NO_NOMAD),
        (
            (302, "", {"Location": "/login"}),
            NO_JSON.format("it is no JSON (Input data was truncated)"),
        ),
        ((403, "<html>go away"), "403: Forbidden"),
        (
            (401, "", {"WWW-Authenticate": "Basic"}),
            "401 Unauthorized: a proxy wants a name and a password; set NOMAD_HTTP_AUTH to NAME:PASSWORD",
        ),
        ((500, "out of\nmemory"), "500: out of memory"),
        ((400, "a token: hf_" + "a" * 30), "400: a token: …"),
        ((500, "x" * 1000), "500: " + "x" * 300),
        (speaks_another_language, "answers, but not in HTTP; is NOMAD_ADDR right?"),
    ],
)  # fmt: skip
def test_what_asking_again_does_not_mend_is_asked_once(server: Script, answer: Any, said: str) -> None:
    cluster = server.cluster(answer)
    assert refusal(lambda: cluster.plan(JOB)) == said
    assert len(server.asked) == 1


def test_a_job_that_is_not_there_is_none_and_a_page_that_is_not_there_no_nomad(server: Script) -> None:
    assert server.cluster((404, "job not found")).job("chat") is None
    assert "is NOMAD_ADDR right?" in refusal(lambda: server.cluster((404, "")).job("chat"))


def test_a_password_in_the_address_is_sent_before_that_of_nomad_http_auth_and_not_shown(
    server: Script,
) -> None:
    with_password = server.address.replace("://", "://me:secret@")
    for address in (server.address, with_password):
        cluster = server.cluster((500, "no"), NOMAD_ADDR=address, NOMAD_HTTP_AUTH="you:key")
        with pytest.raises(NomadError) as error:
            cluster.job("chat")
    assert str(error.value) == f"{server.address}: 500: no"
    assert server.authorizations == [
        f"Basic {b64encode(pair).decode()}" for pair in (b"you:key", b"me:secret")
    ]
    with pytest.raises(NomadError) as error:
        Cluster(NomadApi({"NOMAD_ADDR": "ftp://me:secret@host"}))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("token", ["secret\n", "sec ret", "sécret"])
def test_a_token_with_what_no_token_has_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(NomadError) as error:
        Cluster(NomadApi({"NOMAD_TOKEN": token}))
    assert str(error.value) == "NOMAD_TOKEN has a blank, a line break or another character that no token has"


def test_a_workload_identity_is_not_called_unknown(server: Script) -> None:
    cluster = server.cluster((403, "Permission denied"), NOMAD_TOKEN="eyJh.eyJi.c")
    assert refusal(lambda: cluster.job("chat")) == (
        "Permission denied; NOMAD_TOKEN, a workload identity, lacks the ACL capability "
        'read-job in namespace "default", or has expired'
    )
    assert len(server.asked) == 1


def test_a_server_that_ends_while_it_is_asked_about_the_token_leaves_it_unblamed(server: Script) -> None:
    cluster = server.cluster((403, "Permission denied"), hangs_up, NOMAD_TOKEN="abc")
    with pytest.raises(ForbiddenError) as error:
        cluster.job("chat")
    assert str(error.value).endswith('NOMAD_TOKEN lacks the ACL capability read-job in namespace "default"')


# A server that is too old

UNEXPECTED = (
    "Failed to parse job: input.hcl:4,3-12: Unsupported argument; "
    'An argument named "node_pool" is not expected here.'
)


def members(*builds: str, region: str = "global") -> str:
    there = [{"Name": build, "Tags": {"build": build, "region": region}} for build in builds]
    elsewhere = {"Name": "far", "Tags": {"build": "0.9.1", "region": "mars"}}
    return json.dumps({"ServerRegion": region, "Members": [*there, elsewhere]})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, members("1.8.0", "1.5.6+ent", "1.10.0-beta.1")), ", and this is 1.5.6"),
        ((403, "Permission denied"), ""),
        ((500, "no"), ""),
    ],
)
def test_a_name_that_an_older_nomad_does_not_know_is_said_to_need_a_newer_one(
    server: Script, answer: Any, said: str
) -> None:
    cluster = server.cluster((400, UNEXPECTED), answer)
    with pytest.raises(InvalidJobError) as error:
        cluster.parse("job")
    assert str(error.value).splitlines() == [
        f"{server.address}: the job cannot be read; input.hcl is what `vllmjobs render` prints:",
        '  input.hcl:4,3-12: Unsupported argument; An argument named "node_pool" is not expected here.',
        f"  node_pool needs Nomad 1.6.0 or newer{said}",
    ]


def test_of_a_nomad_that_is_new_enough_nothing_is_said(server: Script) -> None:
    cluster = server.cluster((400, UNEXPECTED), (200, members("1.6.0")))
    assert "needs Nomad" not in refusal(lambda: cluster.parse("job"))


# What is asked


def query(asked: str) -> dict[str, str]:
    found = parse_qs(urlsplit(asked).query, keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}


@pytest.mark.parametrize(
    ("environ", "job", "sent"),
    [
        ({}, {}, {"namespace": "default", "region": ""}),
        ({"NOMAD_NAMESPACE": "team", "NOMAD_REGION": "eu"}, {}, {"namespace": "team", "region": "eu"}),
        (
            {"NOMAD_NAMESPACE": "team", "NOMAD_REGION": "eu"},
            {"Namespace": "own", "Region": "us"},
            {"namespace": "own", "region": "us"},
        ),
        # Which, to a plan, is whatever region the agent is in.
        ({"NOMAD_REGION": "eu"}, {"Region": "global"}, {"namespace": "default", "region": ""}),
    ],
)
def test_a_job_is_planned_and_read_where_it_says_and_else_where_the_environment_says(
    server: Script, environ: dict[str, str], job: dict[str, str], sent: dict[str, str]
) -> None:
    canonical = json.dumps({**JOB, "ID": "a/b c", **job})
    stated = json.dumps({"Namespace": None, "Region": None, "ID": "a/b c", **job})
    others = [(200, json.dumps(answer)) for answer in (PLAN, REGISTERED, DEPLOYMENT)]
    cluster = server.cluster((200, canonical), *([(200, stated)] if environ else []), *others, **environ)
    parsed = cluster.parse("job")
    cluster.plan(parsed)
    cluster.job(parsed["ID"], parsed["Namespace"], parsed["Region"])
    cluster.deployment(parsed["ID"], parsed["Namespace"], parsed["Region"])
    *_, planned, read, deployed = server.asked
    assert planned.startswith("POST /v1/job/a%2Fb%20c/plan?")
    assert read.startswith("GET /v1/job/a%2Fb%20c?")
    assert deployed.startswith("GET /v1/job/a%2Fb%20c/deployment?")
    for asked in (planned, read, deployed):
        assert query(asked) == sent
