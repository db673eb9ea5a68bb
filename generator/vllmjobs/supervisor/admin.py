"""The admin port: a strict HTTP/1.1 server of a few paths, with one request on each connection.

It decides nothing: `routes` maps "GET /health" to a function. A key that ends in a slash, "GET /ready/",
takes one more word of the path, which the function is called with; the others are called with the body.
"""

import asyncio
import errno
import json
import os
import re
import resource
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

HEAD = 8192  # bytes of a request's head, and of its body
BODY = 1 << 20  # bytes of a body on the unix socket, which takes secrets: Linux's variables have 128 KiB each
MOST = 64  # connections
AT_ONCE = 8  # the part of `MOST` that is taken before the others are read: a storm cuts none of them off
AGAIN_S = 0.02  # until connections are taken again, after there was no file descriptor for one
SECONDS = 5.0  # for a request to come whole, and for an answer to be taken
LINGER = 1 << 20  # bytes of a refused request that are read, so that its sender gets to read why

METRICS = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format

Reply = tuple[int, Mapping[str, Any] | str]  # a status and JSON, or a page of metrics
Routes = Mapping[str, Callable[[str], Reply]]

REASONS = {
    200: "OK", 202: "Accepted", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 413: "Content Too Large",
    414: "URI Too Long", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip


class AdminError(Exception):
    """The admin port cannot be opened: the address, the reason and the way out, in one line."""


class _RefusedError(Exception):
    """A request that is not answered but refused, with the status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Request(NamedTuple):
    """One request, read whole."""

    method: str
    path: str
    is_from_a_page: bool  # True if a browser sent it for a web page, which may be anyone's
    body: str


class Admin:
    """The server; `start` it, and `close` it last of all, since /ready says 503 while all else ends."""

    def __init__(self, routes: Routes, host: str = "", port: int = 0, path: str | None = None) -> None:
        """Listen on a host, all IPv4 and IPv6 addresses when empty, or else on a unix socket at `path`."""
        self._routes = routes
        self._host, self._path = host, path
        self.port = port  # the one that it listens on, where 0 was asked for
        self.connections: dict[socket.socket, asyncio.Task[None]] = {}
        """The open connections, the oldest first."""
        self._listener: socket.socket | None = None
        self._most = _most()

    async def start(self) -> None:
        """Listen; raises `AdminError`."""
        self._loop = asyncio.get_running_loop()
        self._listener = _listen(self._host, self.port) if self._path is None else _listen_at(self._path)
        if self._path is None:
            self.port = self._listener.getsockname()[1]
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    async def close(self) -> None:
        """Leave the address; connections are cut."""
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        serving = set(self.connections.values())
        for connection in list(self.connections):
            self._cut(connection)
        if serving:
            await asyncio.wait(serving)
        if self._path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108

    def _accept(self, listener: socket.socket) -> None:
        """Take a few of the connections that wait; the oldest makes room.

        asyncio's own server takes a hundred before it reads from one, and logs a hundred errors when there
        is no file descriptor left.
        """
        for _ in range(max(1, self._most // AT_ONCE)):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no file descriptor: the probes of the engines need some, too
                self._loop.remove_reader(listener)
                self._loop.call_later(AGAIN_S, self._accept_again)
                self._most = max(1, len(self.connections) // 2)
                self._make_room(self._most)
                self._loop.call_exception_handler({"message": "the admin port", "exception": error})
                return
            connection.setblocking(False)
            self._make_room(self._most - 1)
            task = self.connections[connection] = self._loop.create_task(self._serve(connection))
            task.add_done_callback(partial(self._let_go, connection))

    def _accept_again(self) -> None:
        if self._listener:
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _make_room(self, most: int) -> None:
        """Cut the oldest connections, until there are so many at most."""
        for connection in list(self.connections)[: max(0, len(self.connections) - most)]:
            self._cut(connection)

    def _cut(self, connection: socket.socket) -> None:
        self.connections.pop(connection).cancel()

    def _let_go(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self.connections.pop(connection, None)
        connection.close()
        if not task.cancelled() and (error := task.exception()):
            self._loop.call_exception_handler({"message": "the admin port", "exception": error})

    async def _serve(self, connection: socket.socket) -> None:
        with suppress(TimeoutError, OSError, EOFError):
            reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD)
            try:
                await self._answer(reader, writer)
                async with asyncio.timeout(SECONDS):
                    writer.close()
                    await writer.wait_closed()
            finally:
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader, HEAD if self._path is None else BODY)
        except _RefusedError as refused:
            await _write(writer, (refused.status, {"error": str(refused)}))
            await _linger(reader, writer)
            return
        if request is None:
            return
        reply = self._reply(request)
        allow = ", ".join(self._methods(request.path)) if reply[0] == 405 else ""
        await _write(writer, reply, request.method == "HEAD", allow)

    def _reply(self, request: _Request) -> Reply:
        path = request.path
        methods = self._methods(path)
        if not methods:
            return 404, {"error": f"no such path: {path}", "paths": sorted(self._routes)}
        if request.method not in methods:
            return 405, {"error": f"{path} takes {', '.join(methods)}"}
        if request.method == "POST" and request.is_from_a_page:
            return 403, {"error": "web pages may not ask for this"}
        key, name = _key("GET" if request.method == "HEAD" else request.method, path, self._routes)
        try:
            return self._routes[key](name or request.body)
        except Exception as error:  # the port answers on, whatever one path has wrong
            return 500, {"error": type(error).__name__}

    def _methods(self, path: str) -> list[str]:
        methods = [verb for verb in ("GET", "POST") if _key(verb, path, self._routes)[0] in self._routes]
        return ["GET", "HEAD", *methods[1:]] if "GET" in methods else methods


def _key(method: str, path: str, routes: Routes) -> tuple[str, str]:
    """Return the key of a path in the routes, and the word that the path has more."""
    if f"{method} {path}" in routes and not path.endswith("/"):
        return f"{method} {path}", ""
    start, _, name = path.rpartition("/")
    return (f"{method} {start}/", name) if name else ("", "")


async def _read(reader: asyncio.StreamReader, most: int) -> _Request | None:
    """Read a request whole, with a body of at most so many bytes; None when the client is silent."""
    line = b""
    try:
        async with asyncio.timeout(SECONDS):
            try:
                line = await reader.readuntil(b"\r\n")
            except asyncio.LimitOverrunError:
                raise _RefusedError(414, f"a request line has at most {HEAD} bytes") from None
            return await _read_on(reader, line, most)
    except TimeoutError:
        if not line:
            return None
        raise _RefusedError(408, f"a request must arrive within {SECONDS:g} seconds") from None


async def _read_on(reader: asyncio.StreamReader, line: bytes, most: int) -> _Request:
    first = re.fullmatch(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/(\d)\.(\d)\r\n", line)
    if not first:
        raise _RefusedError(400, "a request line is METHOD /path HTTP/1.1")
    if first[3] != b"1":
        raise _RefusedError(505, "only HTTP/1 requests are answered")
    headers = await _headers(reader, HEAD - len(line))
    if first[4] != b"0" and b"host" not in headers:
        raise _RefusedError(400, "a Host header is missing")
    if b"transfer-encoding" in headers:
        raise _RefusedError(400, "no path takes a chunked body")
    length = headers.get(b"content-length", b"0")
    if not re.fullmatch(rb"\d{1,9}", length):
        raise _RefusedError(400, "Content-Length is not a number")
    if int(length) > most:
        raise _RefusedError(413, f"a body has at most {most} bytes")
    body = (await reader.readexactly(int(length))).decode(errors="replace")
    path = first[2].decode("ascii").partition("?")[0]
    return _Request(first[1].decode("ascii"), path, b"origin" in headers, body)


async def _headers(reader: asyncio.StreamReader, room: int) -> dict[bytes, bytes]:
    """Read the headers, in small letters."""
    headers: dict[bytes, bytes] = {}
    while True:
        try:
            line = await reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError:
            line = b" " * (HEAD + 1)
        room -= len(line)
        if room < 0:
            raise _RefusedError(431, f"a request's head has at most {HEAD} bytes")
        if line == b"\r\n":
            return headers
        name, _, value = line[:-2].lower().partition(b":")
        is_twice = name in headers and name in (b"content-length", b"host")
        if is_twice or not _NAME.fullmatch(name) or _CONTROL.search(value):
            raise _RefusedError(400, "a header is NAME: VALUE, and Host and Content-Length come once")
        headers[name] = value.strip(b" \t")


_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(rb"[\0\r\n]")


async def _write(writer: asyncio.StreamWriter, reply: Reply, is_head: bool = False, allow: str = "") -> None:
    status, body = reply
    kind, text = (METRICS, body) if isinstance(body, str) else ("application/json", json.dumps(body) + "\n")
    content = text.encode()
    lines = [
        f"HTTP/1.1 {status} {REASONS.get(status, '')}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if allow:
        lines.append(f"Allow: {allow}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if is_head else content))
    async with asyncio.timeout(SECONDS):
        await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read on for a while: a socket that is closed with unread bytes resets, and takes the answer along."""
    if writer.can_write_eof():
        writer.write_eof()
    left = LINGER
    async with asyncio.timeout(SECONDS):
        while left > 0 and (part := await reader.read(1 << 16)):
            left -= len(part)


def _most() -> int:
    """Return how many connections may be open: where files are few, a quarter of them."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // 4))


def _listen(host: str, port: int) -> socket.socket:
    is_any = host in ("", "::") and socket.has_dualstack_ipv6()
    host = "::" if is_any else host or "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST, dualstack_ipv6=is_any)
    except OSError as error:
        raise _cannot(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", error) from None


def _listen_at(path: str) -> socket.socket:
    """Listen on a unix socket for this user only; one that an earlier supervisor left is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        if _is_left_over(path):
            os.unlink(path)  # noqa: PTH108
        listener.bind(path)
        listener.listen(MOST)
    except OSError as error:
        listener.close()
        raise _cannot(path, error) from None
    finally:
        os.umask(before)
    return listener


def _is_left_over(path: str) -> bool:
    """Tell whether the path is a socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as knock:
            knock.setblocking(False)
            return knock.connect_ex(path) == errno.ECONNREFUSED
    except FileNotFoundError:
        return False


def _cannot(address: str, error: OSError) -> AdminError:
    reason, way_out = {
        errno.EADDRINUSE: ("is taken by another program", "end that program, or choose another"),
        errno.EADDRNOTAVAIL: ("is no address of this machine", "choose one of `ip addr`, or 0.0.0.0 for all"),
        errno.EACCES: ("is not allowed for this user", "choose a port above 1023, or a path of this user"),
    }.get(error.errno or 0, (f"cannot be opened: {error.strerror or error}", "choose another"))
    where = "" if address.startswith("/") else " with --admin-host and --admin-port"
    return AdminError(f"the admin address {address} {reason}; {way_out}{where}")
