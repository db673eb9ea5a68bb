"""Odd answers: what a server of others may send in place of the JSON, or the page, that it was asked for."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Callable

OK = b"HTTP/1.1 200 OK\r\n"
OddAnswer = Callable[[socket.socket, bytes], None]


def whole(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> OddAnswer:
    """Return what answers with a body of its length."""
    head = b"HTTP/1.1 %b\r\n%bX-Consul-Index: 7\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return lambda connection, _: connection.sendall(head % (status, headers, len(body)) + body)


def repeated(head: bytes, piece: bytes, pause: float = 0.0) -> OddAnswer:
    """Return what sends a head, and then a piece again and again."""

    def say(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return say


def cut(sent: bytes) -> OddAnswer:
    """Return what sends this, and closes the connection."""
    return lambda connection, _: connection.sendall(sent)


def silent(sent: bytes) -> OddAnswer:
    """Return what sends this, and then nothing until the other side has had enough."""

    def say(connection: socket.socket, _: bytes) -> None:
        connection.sendall(sent)
        connection.recv(1)

    return say


BOMB = gzip.compress(bytes(96 << 20), 1)

# What comes whole, and is odd.
ODD_BODIES: dict[str, OddAnswer] = {
    "nothing": whole(b""),
    "null": whole(b"null"),
    "true": whole(b"true"),
    "number": whole(b"7"),
    "text": whole(b'"yes"'),
    "empty-list": whole(b"[]"),
    "empty-map": whole(b"{}"),
    "list-of-null": whole(b"[null]"),
    "list-of-lists": whole(b"[[[]]]"),
    "list-of-empty-maps": whole(b"[{}]"),
    "map-of-null": whole(b'{"ID": null, "Items": null, "Members": null, "result": null}'),
    "wrong-types": whole(b'[{"ID": 7, "Version": "x", "TaskGroup": [], "Node": 7, "Key": {}, "Value": 7}]'),
    "deep": whole(b"[" * 100_000 + b"]" * 100_000),
    "deep-map": whole(b'{"ID":' * 100_000 + b"1" + b"}" * 100_000),
    "long-number": whole(b'{"Version": ' + b"1" * 5000 + b"}"),
    "long-number-alone": whole(b"1" * 5000),
    "nan": whole(b"NaN"),
    "infinity": whole(b'[{"CreateIndex": Infinity}]'),
    "huge-float": whole(b'{"Version": 1e999}'),
    "half-a-pair": whole(b'{"ID": "\\ud800"}'),
    "not-utf-8": whole(b'{"ID": "\xff\xfe"}'),
    "utf-16": whole('{"ID": "x"}'.encode("utf-16")),
    "login-page": whole(b"<!doctype html><title>Log in</title>", headers=b"Content-Type: text/html\r\n"),
    "two-values": whole(b"{}{}"),
    "no-content": cut(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "redirect-to-itself": whole(b"", b"302 Found", b"Location: /\r\n"),
    "odd-index": whole(b"[]", headers=b"X-Nomad-Index: ten\r\n"),
    "bad-gzip": whole(b"no gzip", headers=b"Content-Encoding: gzip\r\n"),
    "cut-chunk": cut(OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\n[{"),
    "odd-chunk": cut(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n"),
    "cut-body": cut(OK + b"Content-Length: 100\r\n\r\n[{"),
    "odd-length": cut(OK + b"Content-Length: -7\r\n\r\n[]"),
    "two-lengths": cut(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]]"),
    "odd-status": cut(b"HTTP/1.1 999999 \r\n\r\n[]"),
    "no-http": cut(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "closed": cut(b""),
    "odd-header": cut(OK + b"\xff\xfe\r\n : \r\nContent-Length: 2\r\n\r\n[]"),
    "long-header": cut(OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n[]"),
    "many-headers": cut(OK + b"A: b\r\n" * 200 + b"\r\n[]"),
    "refused": whole(b"\xff" * 1000, b"400 Bad Request"),
    "deep-error": whole(b"[" * 100_000, b"500 Internal Server Error"),
}
# What does not end, or is far too much.
ENDLESS: dict[str, OddAnswer] = {
    "silent": silent(b""),
    "drips": repeated(OK + b"\r\n", b"#", 0.05),
    "drips-its-head": repeated(b"", b"H", 0.05),
    "drips-headers": repeated(OK, b"A: b\r\n", 0.1),
    "drips-a-chunks-size": repeated(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0", 0.05),
    "drips-chunks": repeated(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.05),
    "continues": repeated(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "stops-in-the-middle": silent(OK + b"\r\n[{"),
    "floods": repeated(OK + b"\r\n", b"vllm:x 1\n" * 40_000),
    "floods-a-chunk": repeated(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n", b" " * 400_000),
    "bomb": whole(BOMB, headers=b"Content-Encoding: gzip\r\n"),
}
