"""The reports of a release: lines or JSON on stdout, hooks, and on a terminal, a table that lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from vllmjobs.deploy.notify import Notifier
from vllmjobs.deploy.records import now
from vllmjobs.environment.secrets import blotted, without_secrets
from vllmjobs.rollout.events import Event, Snapshot
from vllmjobs.rollout.model import GroupState, Notification
from vllmjobs.text.english import counted

_WARNING = (
    "unhealthy", "restarted", "failed", "lost", "unknown", "failing", "reverted", "refused", "warning",
)  # fmt: skip
FLUSH_S = 15.0  # seconds at the end for hooks that are slow


class Reporter:
    """The reporter of one release after the other; a context, as its table and its hooks have an end."""

    def __init__(
        self,
        in_json: bool,
        hooks: Sequence[str] = (),
        console: Console | None = None,
        to_stderr: bool = False,
    ) -> None:
        """A `console`, which is a terminal, gets a table of the groups.

        Lines go to stdout, or with `to_stderr`, where stdout is for an answer, to stderr.
        """
        self._in_json, self._console, self._to_stderr = in_json, console, to_stderr
        self._notifier = Notifier(hooks, lambda line: click.echo(line, err=True))
        self._live: Live | None = None
        self.job = ""
        self.version: int | None = None
        self.deployment: str | None = None
        self.is_way_back = False

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._notifier.close(FLUSH_S)

    def begin(self, job: str, version: int | None, is_way_back: bool = False) -> None:
        """Begin with that version of that job: events from now on are about it."""
        self.job, self.version, self.deployment = job, version, None
        self.is_way_back = is_way_back

    def warn(self, text: str) -> None:
        """Tell of something that is not as it should be, and fails nothing."""
        self.tell(Event("warning", text))

    def tell(self, event: Event) -> None:
        """Tell one event."""
        notification = Notification(
            at=now(),
            kind=event.kind,
            text=without_secrets(event.text),
            job=self.job,
            group=event.group,
            version=self.version,
            deployment=self.deployment,
            data=event.data,
        )
        self._notifier.send(notification)
        if self._in_json:
            click.echo(msgspec.json.encode(blotted(msgspec.to_builtins(notification))).decode())
        elif event.kind != "measured":
            self._line(notification)

    def answer(self, text: str) -> None:
        """Print the answer that a script waits for, alone on its line; in JSON, an event has it."""
        if not self._in_json:
            click.echo(text)

    def show(self, snapshot: Snapshot, reason: str) -> None:
        """Update the table, where there is one."""
        if self._console is None or self._in_json:
            return
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        self._live.update(_table(f"{self.job} version {self.version}: {reason}", snapshot))

    def _line(self, notification: Notification) -> None:
        clock = f"{datetime.fromisoformat(notification.at).astimezone():%H:%M:%S}"
        place = f"{notification.job}{f'/{notification.group}' if notification.group else ''}"
        line = f"{clock} {place}: {notification.text}"
        if self._live:
            style = "yellow" if notification.kind in _WARNING else None
            self._live.console.print(line, style=style, markup=False, highlight=False)
        else:
            click.echo(line, err=self._to_stderr)


def _table(title: str, snapshot: Snapshot) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("group", "old", "new", "canaries", "step", "verdict"):
        table.add_column(column)
    for name, group in snapshot.observation.groups.items():
        table.add_row(name, *_cells(group))
    return table


def _cells(group: GroupState) -> tuple[str, ...]:
    verdict = group.verdict
    return (
        f"{group.old_healthy} serving",
        f"{group.healthy}/{group.desired_total} healthy",
        f"{group.healthy_canaries}/{group.desired_canaries}{' promoted' if group.promoted else ''}",
        f"{group.step + 1}{'' if group.routed else ' (being routed)'}",
        f"{verdict.result}, {counted(verdict.canary_requests, 'request')}: {verdict.reason}"
        if verdict
        else "",
    )
