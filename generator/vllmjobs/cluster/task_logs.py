"""The logs of tasks, wherever they run."""

import base64
import json
from collections.abc import Generator, Iterator
from typing import Literal

import requests
from nomad.api.exceptions import BaseNomadException

from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.nomad import Nomad, Where, in_namespace, segment

_HEARTBEAT = 30.0  # seconds; Nomad sends one a second (client/fs_endpoint.go)


class TaskLogs:
    """The logs of a cluster's tasks."""

    def __init__(self, nomad: Nomad) -> None:
        self._nomad = nomad

    def read(
        self,
        allocation_id: str,
        task: str,
        kind: Literal["stdout", "stderr"],
        where: Where,
        *,
        follow: bool = False,
        offset: int = 0,
        origin: Literal["start", "end"] = "start",
    ) -> Generator[bytes]:
        """Yield what a task of an allocation has written.

        It begins `offset` bytes after the start or before the end. With `follow`, it goes on with what comes,
        and yields an empty piece each second in which nothing does, so that the one who reads can stop; it
        does not end with the task. Raises `NomadError`, also where the task has not started, or its node is
        not connected; asked once. Needs read-logs or read-fs (api-docs/client, Stream Logs; a node that is
        not the one asked is asked by the servers).
        """
        scope = self._nomad.scope(where.namespace, where.region)
        params = {
            **scope, "task": task, "type": kind, "follow": follow, "offset": offset, "origin": origin,
            "plain": False,
        }  # fmt: skip
        try:
            answer = self._nomad.api.client.stream_logs.request(
                segment(allocation_id), params=params, method="get", stream=True,
                timeout=(self._nomad.timeout[0], _HEARTBEAT),
            )  # fmt: skip
        except BaseNomadException as error:
            if isinstance(error.nomad_resp, requests.Response) and error.nomad_resp.status_code == 404:
                reason = error.nomad_resp.text.strip()  # client/fs_endpoint.go, command/agent/fs_endpoint.go
                raise NomadError(f"{self._nomad.address}: no log of {allocation_id[:8]}: {reason}") from error
            raise self._nomad.refusal(f"read-logs {in_namespace(scope)}", error.nomad_resp) from error
        with answer:
            try:
                yield from _frames(answer.iter_content(None))
            except (requests.RequestException, ValueError) as error:
                message = f"the log of allocation {allocation_id[:8]} broke off"
                raise NomadError(f"{self._nomad.address}: {message}") from error


def _frames(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the data of frames, JSON objects one after the other; b"" for a heartbeat, which has none."""
    decoder = json.JSONDecoder()
    text = ""
    for piece in pieces:
        text += piece.decode()  # base64 within ASCII
        while text := text.lstrip():
            try:
                frame, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break  # the rest is on its way
            text = text[end:]
            yield base64.b64decode(frame.get("Data") or b"")
