"""Tells what happens: a line each on stdout, or JSON; to hooks; and on a terminal, a table that lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from vllmjobs.deploy.notify import Notifier
from vllmjobs.deploy.record_keeper import now
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.rollout.events import Happening, Seen
from vllmjobs.rollout.model import Event, Group

_WARNING = (
    "unhealthy",
    "restarted",
    "failed",
    "lost",
    "unknown",
    "failing",
    "reverted",
    "refused",
    "warning",
)


FLUSH_S = 15.0  # seconds at the end for hooks that are slow


class Reporter:
    """Of one release after the other; a context, as its table and its hooks have an end."""

    def __init__(
        self,
        in_json: bool,
        hooks: Sequence[str] = (),
        console: Console | None = None,
        to_stderr: bool = False,
    ) -> None:
        """With a `console`, which is a terminal, a table shows how things are.

        Lines go to stdout, or where that is for an answer, to stderr.
        """
        self._in_json, self._console, self._to_stderr = in_json, console, to_stderr
        self._notifier = Notifier(hooks, _warn)
        self._live: Live | None = None
        self.job = ""
        self.version: int | None = None
        self.deployment: str | None = None
        self.is_way_back = False

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._notifier.close(FLUSH_S)

    def begin(self, job: str, version: int | None, is_way_back: bool = False) -> None:
        """What follows is about that version of that job."""
        self.job, self.version, self.deployment = job, version, None
        self.is_way_back = is_way_back

    def warn(self, text: str) -> None:
        """Tell what is not as it should be, and fails nothing."""
        self.tell(Happening("warning", text))

    def tell(self, happening: Happening) -> None:
        """Tell one thing that happened."""
        event = Event(
            at=now(),
            kind=happening.kind,
            text=without_secrets(happening.text),
            job=self.job,
            group=happening.group,
            version=self.version,
            deployment=self.deployment,
            data=happening.data,
        )
        self._notifier.send(event)
        if self._in_json:
            click.echo(without_secrets(msgspec.json.encode(event).decode()))
        elif event.kind != "measured":
            self._line(f"{datetime.fromisoformat(event.at).astimezone():%H:%M:%S}", event)

    def answer(self, text: str) -> None:
        """Print what a script asked for, alone on its line; in JSON, an event has it."""
        if not self._in_json:
            click.echo(text)

    def show(self, seen: Seen, reason: str) -> None:
        """Let the table, where there is one, say how things are."""
        if self._console is None or self._in_json:
            return
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        self._live.update(_table(f"{self.job} version {self.version}: {reason}", seen))

    def _line(self, clock: str, event: Event) -> None:
        place = f"{event.job}{f'/{event.group}' if event.group else ''}"
        if self._live:
            style = "yellow" if event.kind in _WARNING else None
            self._live.console.print(
                f"{clock} {place}: {event.text}", style=style, markup=False, highlight=False
            )
        else:
            click.echo(f"{clock} {place}: {event.text}", err=self._to_stderr)

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def _warn(line: str) -> None:
    click.echo(line, err=True)


def _table(title: str, seen: Seen) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("group", "old", "new", "canaries", "step", "verdict"):
        table.add_column(column)
    for name, group in seen[0].groups.items():
        table.add_row(name, *_cells(group))
    return table


def _cells(group: Group) -> tuple[str, ...]:
    verdict = group.verdict
    return (
        f"{group.old_healthy} serving",
        f"{group.healthy}/{group.desired_total} healthy",
        f"{group.healthy_canaries}/{group.desired_canaries}{' promoted' if group.promoted else ''}",
        f"{group.step + 1}{'' if group.routed else ' (being routed)'}",
        f"{verdict.result}, {verdict.canary_requests} requests: {verdict.reason}" if verdict else "",
    )
