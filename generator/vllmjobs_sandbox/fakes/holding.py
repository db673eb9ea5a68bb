"""A proxy between a command and Nomad that holds one kind of request until the test lets it go.

A signal to the command at one of its events would be a race: by then, its next request may have left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.fakes.listening import listening

COMES = 90.0  # seconds
ALIVE = 5.0  # seconds between two signs of life: the command waits 30 s for an answer
REGISTRATION = "/v1/jobs"
PROMOTION = "/v1/deployment/promote/.+"
FAILURE = "/v1/deployment/fail/.+"
HOPS = ("connection", "content-length", "transfer-encoding")  # of one connection: RFC 9110, 7.6.1


class Held:
    """The requests of a kind; all others are passed on at once."""

    def __init__(self, nomad: str, path: str) -> None:
        self.nomad, self.path = nomad, path
        self.env: dict[str, str] = {}
        """The variables that send a command through the proxy."""
        self.came, self.goes = Event(), Event()

    def wait(self, evidence: Callable[[], str]) -> None:
        """Wait until one is held: Nomad has not seen it, and the command waits for the answer."""
        wait_until(self.came.is_set, COMES, f"it writes to {self.path}", evidence=evidence)

    def let_go(self) -> None:
        """Pass on the request that is held, and those that come after it."""
        self.goes.set()


@contextmanager
def holding(nomad: str, path: str) -> Iterator[Held]:
    """Stand before Nomad at this address; hold what is written to this path, a regular expression."""
    held = Held(nomad, path)
    with listening(partial(_PassesOn, held)) as address:
        held.env["NOMAD_ADDR"] = address
        yield held


class _PassesOn(BaseHTTPRequestHandler):
    """A handler that passes each request on, and holds those of one kind."""

    protocol_version = "HTTP/1.1"

    def __init__(self, held: Held, *args: Any) -> None:
        self.held = held
        super().__init__(*args)

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command != "GET" and re.fullmatch(self.held.path, urlsplit(self.path).path):
            self.held.came.set()
            while not self.held.goes.wait(ALIVE):
                self.send_response_only(100)
                self.end_headers()
        # Without a timeout: a blocking query is answered after minutes.
        nomad = HTTPConnection(urlsplit(self.held.nomad).netloc)
        nomad.request(self.command, self.path, body or None, dict(self.headers))
        answer = nomad.getresponse()
        content = answer.read()
        nomad.close()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOPS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass
