"""The logs of many allocations as one, each line with the group and the allocation that it is from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Literal, NamedTuple

from vllmjobs.cluster.deployments import Json, NomadError, Releases, Where
from vllmjobs.gpus.cards import ENDED

Kind = Literal["stdout", "stderr"]
Which = Literal["canary", "stable"]
TASK = "vllm"
POLL = 2.0  # seconds between two looks for allocations that came or went
_LINE = 256  # bytes that a line may have, for a first guess at where the last ones begin
_GUESSES = 4  # each twice as long


class Source(NamedTuple):
    """One log."""

    group: str
    allocation: str
    kind: Kind

    def line(self, text: bytes) -> str:
        """A line of it, as it is shown."""
        return f"{self.group} {self.allocation[:8]} | {text.decode(errors='replace')}"


def chosen(allocations: Iterable[Json], group: str | None, which: Which | None) -> list[Json]:
    """Those that run; of a group where none does, the last that did. The oldest first.

    Whether one is a canary, Nomad says until it is promoted.
    """
    found = [
        one
        for one in allocations
        if group in (None, one["TaskGroup"])
        and which in (None, "canary" if (one.get("DeploymentStatus") or {}).get("Canary") else "stable")
    ]
    found.sort(key=lambda one: (one["TaskGroup"], one["CreateIndex"]))
    alive = [one for one in found if one["ClientStatus"] not in ENDED]
    last = {one["TaskGroup"]: one for one in found}
    running = {one["TaskGroup"] for one in alive}
    return sorted(
        [*alive, *(one for name, one in last.items() if name not in running)],
        key=lambda one: (one["TaskGroup"], one["CreateIndex"]),
    )


def tails(
    releases: Releases, where: Where, allocations: Iterable[Json], kinds: Iterable[Kind], lines: int
) -> Iterator[str]:
    """The last lines of each log, one log after the other; of one that cannot be read, why."""
    for one in allocations:
        for kind in kinds:
            source = Source(one["TaskGroup"], one["ID"], kind)
            try:
                yield from map(source.line, _tail(releases, where, source, lines))
            except NomadError as error:
                yield source.line(f"({error})".encode())


def _tail(releases: Releases, where: Where, source: Source, lines: int) -> list[bytes]:
    text, window = b"", max(lines, 1) * _LINE
    for _ in range(_GUESSES):
        text = b"".join(
            releases.logs(source.allocation, TASK, source.kind, where, offset=window, origin="end")
        )
        if len(text) < window or text.count(b"\n") > lines:
            break
        window *= 2
    return text.splitlines()[-lines:] if lines else []


def follow(
    releases: Releases,
    where: Where,
    choose: Callable[[list[Json]], list[Json]],
    kinds: tuple[Kind, ...],
    lines: int,
    warn: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """The last lines of each log and then what comes, also of allocations that come; without an end.

    A log that breaks off, as when a server restarts, goes on at what is written then.
    """
    heard: SimpleQueue[str] = SimpleQueue()
    readers: dict[Source, _Reader] = {}
    known: set[Source] | None = None  # None before the first look
    said, next_look = "", clock()
    while True:
        if clock() >= next_look:
            try:
                chosen = choose(releases.allocations(where))
            except NomadError as error:
                if str(error) != said:
                    said = str(error)
                    warn(said)
            else:
                said = ""
                alive = [one for one in chosen if one["ClientStatus"] not in ENDED]
                there = {Source(one["TaskGroup"], one["ID"], kind) for one in alive for kind in kinds}
                for source in [one for one in readers if one not in there or not readers[one].is_alive()]:
                    readers.pop(source).told_to_end.set()
                for source in sorted(there - readers.keys()):
                    backlog = lines if known is None else 0 if source in known else None
                    readers[source] = _Reader(releases, where, source, backlog, heard)
                known = (known or set()) | there
            next_look = clock() + POLL
        with suppress(Empty):
            yield heard.get(timeout=max(next_look - clock(), 0))


class _Reader(Thread):
    """Follows one log until it is told to end, which it sees within a second; or until it cannot."""

    def __init__(
        self, releases: Releases, where: Where, source: Source, backlog: int | None, heard: SimpleQueue[str]
    ) -> None:
        """With a backlog, that many lines of before; with None, all of them."""
        super().__init__(daemon=True)
        self._releases, self._where, self._source = releases, where, source
        self._backlog, self._heard = backlog, heard
        self.told_to_end = Event()
        self.start()

    def run(self) -> None:
        """See `Thread.run`."""
        window = 0 if self._backlog is None else self._backlog * _LINE
        pieces = self._releases.logs(
            self._source.allocation,
            TASK,
            self._source.kind,
            self._where,
            follow=True,
            offset=window,
            origin="start" if self._backlog is None else "end",
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
                        self._heard.put(self._source.line(line))
                if self.told_to_end.is_set() and not piece:
                    return
        except NomadError:
            return  # not started yet, or the server restarts: it is looked for again
        finally:
            if rest:
                self._heard.put(self._source.line(rest))
            pieces.close()
