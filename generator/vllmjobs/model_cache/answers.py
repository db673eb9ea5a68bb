"""Answers of a store, by Python alone: each piece comes in time, a text is short, no redirect is followed."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Timer
from typing import Any
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

WAIT_S = 60.0  # for the head of an answer, for each piece of a file, and for a whole text
PIECE = 1 << 20  # bytes
LONGEST_TEXT = 8 << 20  # bytes; a manifest has some hundred lines


class _TimelyResponse(HTTPResponse):
    """An answer whose head comes in time, or its connection is shut."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._socket, self._is_late = sock, False

    def begin(self) -> None:
        timer = Timer(WAIT_S, self._end)
        timer.daemon = True
        timer.start()
        try:
            super().begin()
        finally:
            timer.cancel()
            if self._is_late:
                raise TimeoutError(f"the head of the answer did not come within {WAIT_S:g} s")

    def _end(self) -> None:
        self._is_late = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _Timely(HTTPConnection):
    """A connection with such answers."""

    response_class = _TimelyResponse


class _TimelyTls(HTTPSConnection):
    """A connection with such answers, with TLS."""

    response_class = _TimelyResponse


class _Http(HTTPHandler):
    """The opener of http addresses."""

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Timely, req)


class _Https(HTTPSHandler):
    """The opener of https addresses."""

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_TimelyTls, req)


class _Stay(HTTPRedirectHandler):
    """Redirects are errors: a signature is for one server."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = build_opener(_Http, _Https, _Stay)


def pieces(answer: Any) -> Iterator[bytes]:
    """Yield the body of an answer.

    Raises `OSError` or `HTTPException` for a piece that takes too long, and for no length, or less than it.
    """
    if answer.length is None:
        raise HTTPException("it does not say how long the file is")
    until, received = time.monotonic() + WAIT_S, 0
    while piece := answer.read1(PIECE):
        yield piece
        received += len(piece)
        if received >= PIECE:
            until, received = time.monotonic() + WAIT_S, 0
        elif time.monotonic() > until:
            raise TimeoutError(f"less than a MiB came within {WAIT_S:g} s")
    if answer.length:
        raise HTTPException(f"{answer.length} bytes of the file are missing")


def text(answer: Any) -> bytes:
    """Return the body of a short answer; raises `OSError` for one that does not end, in time or in size."""
    until, body = time.monotonic() + WAIT_S, bytearray()
    while piece := answer.read1(PIECE):
        body += piece
        if len(body) > LONGEST_TEXT or time.monotonic() > until:
            raise OSError(f"the answer does not end: {len(body)} bytes came")
    return bytes(body)
