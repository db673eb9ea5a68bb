"""A hub on loopback: what huggingface_hub asks of HF_ENDPOINT, for one model of a few files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from vllmjobs_sandbox.fakes.listening import listening

LFS = (".safetensors", ".bin")


class Hub:
    """A hub whose files may change with a new commit; `downloads` are the names that it sent, in order."""

    def __init__(self, model: str, token: str, files: dict[str, bytes]) -> None:
        self.model = model
        self.token = token
        self.address = ""
        self.files = files
        self.sends: dict[str, bytes] = {}
        """Content that is sent in place of the file of that name."""
        self.downloads: list[str] = []

    @property
    def commit(self) -> str:
        """Return the commit that the files make."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    @contextmanager
    def running(self) -> Iterator[Hub]:
        """Listen until the context is left."""
        with listening(partial(_Answers, self)) as self.address:
            yield self

    def info(self) -> dict[str, Any]:
        """Return what the hub answers about the model."""
        siblings = [self._sibling(name) for name in self.files]
        return {"id": self.model, "sha": self.commit, "siblings": siblings}

    def tree(self) -> list[dict[str, Any]]:
        """Return the files of the model, as the hub lists them."""
        return [
            {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": one["blobId"]}
            | ({"lfs": one["lfs"] | {"oid": one["lfs"]["sha256"]}} if "lfs" in one else {})
            for one in self.info()["siblings"]
        ]

    def etag(self, name: str) -> str:
        """Return the ETag of a file."""
        one = self._sibling(name)
        etag: str = one["lfs"]["sha256"] if "lfs" in one else one["blobId"]
        return etag

    def _sibling(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _git(data)}
        if PurePath(name).suffix in LFS:
            pointer = b"a pointer"
            one |= {"blobId": _git(pointer)}
            one["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 9}
        return one


class _Answers(BaseHTTPRequestHandler):
    """The answers of the hub."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        api, files = f"/api/models/{hub.model}/", f"/{hub.model}/resolve/{hub.commit}/"
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(HTTPStatus.UNAUTHORIZED, b"{}", {"X-Error-Message": "Access is restricted."})
        elif path in (f"{api}revision/main", f"{api}revision/{hub.commit}"):
            self._send(HTTPStatus.OK, json.dumps(hub.info()).encode())
        elif path == f"{api}tree/{hub.commit}":
            self._send(HTTPStatus.OK, json.dumps(hub.tree()).encode())
        elif (name := path.removeprefix(files)) in hub.files:
            data = hub.sends.get(name, hub.files[name])
            if self.command == "GET":
                hub.downloads.append(name)
            self._send(HTTPStatus.OK, data, {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": hub.commit})
        else:
            self._send(HTTPStatus.NOT_FOUND, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
