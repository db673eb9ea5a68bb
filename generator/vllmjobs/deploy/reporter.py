"""The reports of a release: lines or JSON on stdout, hooks, and on a terminal, a table that lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from vllmjobs.deploy.notify import Notifier
from vllmjobs.deploy.records import now
from vllmjobs.environment.secrets import blotted, without_secrets
from vllmjobs.rollout.events import Event, Snapshot
from vllmjobs.rollout.model import GroupState, Notification
from vllmjobs.terminal.live import LiveTable
from vllmjobs.terminal.printing import show, show_json, tell
from vllmjobs.text.english import counted
from vllmjobs.text.visible import one_line, visible

_WARNING = (
    "unhealthy", "restarted", "failed", "lost", "unknown", "failing", "reverted", "refused", "warning",
)  # fmt: skip
HEADS = ("group", "old", "new", "canaries", "step", "verdict")
FLUSH_S = 15.0  # seconds at the end for hooks that are slow
HASTY_FLUSH_S = 1.0  # the same after an interrupt


class Reporter:
    """The reporter of one release after the other; a context, as its table and its hooks have an end."""

    def __init__(
        self,
        in_json: bool,
        hooks: Sequence[str] = (),
        table: LiveTable | None = None,
        to_stderr: bool = False,
    ) -> None:
        """A `table`, on a terminal, shows the groups.

        Lines go to stdout, or with `to_stderr`, where stdout is for an answer, to stderr.
        """
        self._in_json, self._table, self._to_stderr = in_json, table, to_stderr
        self._notifier = Notifier(hooks, tell)
        self.job = ""
        self.version: int | None = None
        self.deployment: str | None = None
        self.is_way_back = False
        self.flush_s = FLUSH_S

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._table:
            self._table.stop()
        self._notifier.close(self.flush_s)

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
            text=visible(without_secrets(one_line(event.text))),
            job=self.job,
            group=event.group,
            version=self.version,
            deployment=self.deployment,
            data=event.data,
        )
        self._notifier.send(notification)
        if self._in_json:
            show_json(msgspec.json.encode(blotted(msgspec.to_builtins(notification))).decode() + "\n")
        elif event.kind != "measured":
            self._line(notification)

    def answer(self, text: str) -> None:
        """Print the answer that a script waits for, alone on its line; in JSON, an event has it."""
        if not self._in_json:
            show(f"{text}\n")

    def show(self, snapshot: Snapshot, reason: str) -> None:
        """Update the table, where there is one."""
        if self._table and not self._in_json:
            rows = ([name, *_cells(group)] for name, group in snapshot.observation.groups.items())
            self._table.update(f"{self.job} version {self.version}: {reason}", HEADS, rows)

    def _line(self, notification: Notification) -> None:
        clock = f"{datetime.fromisoformat(notification.at).astimezone():%H:%M:%S}"
        place = f"{notification.job}{f'/{notification.group}' if notification.group else ''}"
        line = f"{clock} {place}: {notification.text}"
        if self._table and self._table.is_shown:
            self._table.print(line, "yellow" if notification.kind in _WARNING else "")
        else:
            show(f"{one_line(line)}\n", err=self._to_stderr)


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
