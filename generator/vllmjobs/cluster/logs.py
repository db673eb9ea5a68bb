"""The logs of many allocations as one, each line with the group and the allocation that it is from."""

import base64
import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Literal, NamedTuple

import requests
from nomad.api.exceptions import BaseNomadException

from vllmjobs.cluster.answers import LITTLE, pieces, shaped
from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.nomad import NomadApi, Where, in_namespace, segment
from vllmjobs.cluster.shapes import LogFrame
from vllmjobs.text.json import Json
from vllmjobs.text.states import ENDED

LogType = Literal["stdout", "stderr"]
Side = Literal["canary", "stable"]
Origin = Literal["start", "end"]
TASK = "vllm"
POLL = 2.0  # seconds between two looks for allocations that came or went
_LINE = 256  # bytes that a line may have, for a first guess at where the last ones begin
_GUESSES = 4  # each twice as long
_HEARTBEAT = 30.0  # seconds; Nomad sends one a second (client/fs_endpoint.go)


class TaskLogs:
    """The logs of a cluster's tasks."""

    def __init__(self, nomad: NomadApi) -> None:
        self._nomad = nomad

    def read(
        self,
        allocation_id: str,
        task: str,
        kind: LogType,
        where: Where,
        *,
        follow: bool = False,
        offset: int = 0,
        origin: Origin = "start",
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
                yield from _frames(pieces(answer), None if follow else self._nomad.timeout[1])
            except (requests.RequestException, ValueError, RecursionError) as error:
                message = f"the log of allocation {allocation_id[:8]} broke off, or is none ({error})"
                raise NomadError(f"{self._nomad.address}: {message}") from error


class Source(NamedTuple):
    """One log, by its group, its allocation and its kind."""

    group: str
    allocation: str
    kind: LogType

    def line(self, text: bytes) -> str:
        """Return a line of the log, as it is shown."""
        return f"{self.group} {self.allocation[:8]} | {text.decode(errors='replace')}"


def select(allocations: Iterable[Json], group: str | None, side: Side | None) -> list[Json]:
    """Return the allocations that run, and of a group where none does, the last that did; the oldest first.

    Nomad tells which ones are canaries until they are promoted.
    """
    selected: dict[str, list[Json]] = {}
    for one in sorted(allocations, key=lambda one: (one["TaskGroup"], one["CreateIndex"])):
        is_canary = (one.get("DeploymentStatus") or {}).get("Canary")
        if group in (None, one["TaskGroup"]) and side in (None, "canary" if is_canary else "stable"):
            selected.setdefault(one["TaskGroup"], []).append(one)
    alive = {name: [one for one in own if one["ClientStatus"] not in ENDED] for name, own in selected.items()}
    return [one for name, own in selected.items() for one in alive[name] or own[-1:]]


def last_lines(
    logs: TaskLogs, where: Where, allocations: Iterable[Json], kinds: Iterable[LogType], count: int
) -> Iterator[str]:
    """Yield the last lines of each log, one log after the other; for one that cannot be read, the reason."""
    for one in allocations:
        for kind in kinds:
            source = Source(one["TaskGroup"], one["ID"], kind)
            try:
                yield from map(source.line, _tail(logs, where, source, count))
            except NomadError as error:
                yield source.line(f"({error})".encode())


def _tail(logs: TaskLogs, where: Where, source: Source, count: int) -> list[bytes]:
    text, window = b"", max(count, 1) * _LINE
    for _ in range(_GUESSES):
        text = b"".join(logs.read(source.allocation, TASK, source.kind, where, offset=window, origin="end"))
        if len(text) < window or text.count(b"\n") > count:
            break
        window *= 2
    return text.splitlines()[-count:] if count else []


def follow_logs(
    logs: TaskLogs,
    where: Where,
    allocations: Callable[[], list[Json]],
    kinds: tuple[LogType, ...],
    count: int,
    warn: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """Yield the last lines of each log and then what comes, also of allocations that come; without an end.

    `allocations` reads those whose logs are wanted. A log that breaks off, as when a server restarts, goes on
    at what is written then.
    """
    lines: SimpleQueue[str] = SimpleQueue()
    readers: dict[Source, _Reader] = {}
    known: set[Source] | None = None  # None before the first poll
    warning, next_poll = "", clock()
    while True:
        if clock() >= next_poll:
            try:
                wanted = allocations()
            except NomadError as error:
                if str(error) != warning:
                    warning = str(error)
                    warn(warning)
            else:
                warning = ""
                alive = [one for one in wanted if one["ClientStatus"] not in ENDED]
                sources = {Source(one["TaskGroup"], one["ID"], kind) for one in alive for kind in kinds}
                for source in [one for one in readers if one not in sources or not readers[one].is_alive()]:
                    readers.pop(source).is_to_end.set()
                for source in sorted(sources - readers.keys()):
                    backlog = count if known is None else 0 if source in known else None
                    readers[source] = _Reader(logs, where, source, backlog, lines)
                known = (known or set()) | sources
            next_poll = clock() + POLL
        with suppress(Empty):
            yield lines.get(timeout=max(next_poll - clock(), 0))


class _Reader(Thread):
    """A thread that follows one log until it fails, or is to end, which it notices within a second."""

    def __init__(
        self, logs: TaskLogs, where: Where, source: Source, backlog: int | None, lines: SimpleQueue[str]
    ) -> None:
        """Start to read; with a backlog, that many lines of before; with None, all of them."""
        super().__init__(daemon=True)
        self._logs, self._where, self._source = logs, where, source
        self._backlog, self._lines = backlog, lines
        self.is_to_end = Event()
        self.start()

    def run(self) -> None:
        """See `Thread.run`."""
        window = 0 if self._backlog is None else self._backlog * _LINE
        _, allocation, kind = self._source
        origin: Origin = "start" if self._backlog is None else "end"
        pieces = self._logs.read(
            allocation, TASK, kind, self._where, follow=True, offset=window, origin=origin
        )
        rest, is_held, received = b"", bool(window), 0
        try:
            for piece in pieces:
                rest += piece
                received += len(piece)
                # What was there before comes first, and may begin before the lines that are wanted.
                is_held = is_held and bool(piece) and received < window
                if not is_held:
                    *whole, rest = rest.split(b"\n")
                    if window and self._backlog:
                        whole, window = whole[-self._backlog :], 0
                    for line in whole:
                        self._lines.put(self._source.line(line))
                if self.is_to_end.is_set() and not piece:
                    return
        except NomadError:
            return  # not started yet, or the server restarts: the next poll starts another reader
        finally:
            if rest:
                self._lines.put(self._source.line(rest))
            pieces.close()


def _frames(pieces: Iterator[bytes], seconds: float | None) -> Iterator[bytes]:
    """Yield the data of frames, JSON objects one after the other; b"" for a heartbeat, which has none.

    Raises `ValueError` for anything else, for a frame that does not end, and after so many seconds for all of
    them, where they are to have an end.
    """
    decoder = json.JSONDecoder()
    text, begun = "", time.monotonic()
    until = math.inf if seconds is None else begun + seconds
    for piece in pieces:
        text += piece.decode()  # base64 within ASCII
        now = time.monotonic()
        while text := text.lstrip():
            try:
                frame, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break  # the rest is on its way
            text, begun = text[end:], now
            yield base64.b64decode(shaped(frame, LogFrame).get("Data") or b"")
        if len(text) > LITTLE or now > min(until, begun + _HEARTBEAT):
            raise ValueError("it does not end")
