"""The HTTP/1.1 client of the supervisor: one request on a connection of its own."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ssl import SSLContext

MOST = 2 << 20  # bytes of an answer: a page of metrics has up to half a megabyte
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1", "[::]": "::1"}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a server: a host and a port, or a unix socket."""

    host: str = ""  # an IP address, which costs no thread to look up; a wildcard stands for the loopback
    port: int = 0
    socket: str | None = None  # the path of a unix socket, instead of the host and the port
    tls: bool = False  # True if it has a certificate, which is not checked
    token: str | None = field(default=None, repr=False)  # the bearer token to send


class Response(NamedTuple):
    """The answer of a server."""

    status: int
    phrase: str  # the status in words, such as Not Found
    body: bytes


async def request(
    address: ServerAddress,
    method: str,
    path: str,
    content: bytes | None = None,
    content_type: str = "application/json",
) -> Response:
    """Send one request, and read the answer whole; the connection is closed however it ends.

    Raises `OSError` where there is no connection, `ValueError` where the answer is not whole, not HTTP or too
    long, and `ImportError` for TLS without Python's ssl.
    """
    host = LOOPBACK.get(address.host, address.host)
    if address.socket is not None:
        reader, writer = await asyncio.open_unix_connection(address.socket)
    else:
        tls = _unchecked() if address.tls else None
        reader, writer = await asyncio.open_connection(host, address.port, ssl=tls)
    try:
        writer.write(_request(address, host, method, path, content, content_type))
        return await _response(reader)
    except EOFError as error:
        raise ValueError("the connection ended before the answer did") from error
    except asyncio.LimitOverrunError as error:
        raise ValueError("the head of the answer is too long") from error
    finally:
        writer.transport.abort()


def _request(
    address: ServerAddress, host: str, method: str, path: str, content: bytes | None, content_type: str
) -> bytes:
    name = f"[{host}]" if ":" in host else host
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {'localhost' if address.socket else f'{name}:{address.port}'}",
        "User-Agent: vllmjobs-supervisor",
        "Connection: close",
    ]
    if content is not None:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(content)}"]
    if address.token is not None:  # a file's last newline ends no header
        lines.append(f"Authorization: Bearer {address.token.strip()}")
    return "\r\n".join([*lines, "", ""]).encode() + (content or b"")


async def _response(reader: asyncio.StreamReader) -> Response:
    status = 100
    while 100 <= status < 200:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        if not (match := re.match(rb"HTTP/1\.[01] (\d{3})(?: (.*)|\Z)", first)):
            raise ValueError("the answer is not HTTP/1")
        status, phrase = int(match[1]), (match[2] or b"").decode(errors="replace")
    parts = [line.partition(b":") for line in lines]
    headers = {name.strip().lower(): value.strip() for name, _, value in parts}
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return Response(status, phrase, await _chunks(reader))
    if (length := headers.get(b"content-length")) is not None:
        return Response(status, phrase, await reader.readexactly(_size(length, 10)))
    body = bytearray()
    while part := await reader.read(1 << 16):
        body += part
        _within(len(body))
    return Response(status, phrase, bytes(body))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := _size((await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip(), 16):
        _within(len(body) + size)
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk has no end")
    return bytes(body)  # trailers are left to the close


def _size(text: bytes, base: int) -> int:
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise ValueError(f"a size in the answer is {text[:20]!r}")
    return _within(int(text, base))


def _within(size: int) -> int:
    if size > MOST:
        raise ValueError(f"the answer has more than {MOST} bytes")
    return size


def _unchecked() -> "SSLContext":
    # Where no child has TLS, asyncio can be kept from importing it, which saves 4 MB. The certificate is for
    # others: this is the loopback.
    import ssl  # noqa: PLC0415

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
