"""Buckets on loopback: as much of S3 as backups ask for; bodies are held to the checksum that was signed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vllmjobs_sandbox.fakes.listening import listening


class S3:
    """A store of objects by their path, `/bucket/key`, each with the digest that came with it."""

    def __init__(self) -> None:
        self.address = ""
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.busy = 0
        """The number of requests that are answered with 503 first."""

    @contextmanager
    def running(self) -> Iterator[S3]:
        """Listen until the context is left."""
        with listening(partial(_Answers, self)) as self.address:
            yield self


class _Answers(BaseHTTPRequestHandler):
    """The answers of the bucket's service."""

    protocol_version = "HTTP/1.1"

    def __init__(self, s3: S3, *args: Any) -> None:
        self.s3 = s3
        super().__init__(*args)

    def handle_one(self) -> None:
        s3, asked = self.s3, urlsplit(self.path)
        path, query = unquote(asked.path), parse_qs(asked.query, keep_blank_values=True)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        digest, signed = hashlib.sha256(body).hexdigest(), self.headers.get("Authorization", "")
        meta = self.headers.get("x-amz-meta-sha256", "")
        if s3.busy:
            s3.busy -= 1
            self._send(503, b"<Code>SlowDown</Code>")
        elif not signed.startswith("AWS4-HMAC-SHA256 Credential=id/"):
            self._send(403, b"<Code>InvalidAccessKeyId</Code>")
        elif self.headers["x-amz-content-sha256"] != digest:
            self._send(400, b"<Code>XAmzContentSHA256Mismatch</Code>")
        elif self.command == "POST" and "uploads" in query:
            s3.parts[path] = {}
            s3.objects[f"upload {path}"] = b"", meta
            self._send(200, b"<Result><UploadId>one</UploadId></Result>")
        elif self.command == "POST":
            parts = s3.parts.pop(path)
            s3.objects[path] = b"".join(parts[n] for n in sorted(parts)), s3.objects.pop(f"upload {path}")[1]
            self._send(200, b"<Result><ETag>whole</ETag></Result>")
        elif self.command == "PUT" and "partNumber" in query:
            s3.parts[path][int(query["partNumber"][0])] = body
            self._send(200, b"", {"ETag": digest})
        elif self.command == "PUT":
            s3.objects[path] = body, meta
            self._send(200, b"", {"ETag": digest})
        elif path in s3.objects:
            self._send(200, s3.objects[path][0], {"x-amz-meta-sha256": s3.objects[path][1]})
        else:
            self._send(404, b"<Code>NoSuchKey</Code>")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
