"""What is kept of a version in the cluster, for `history`, for `status`, and to go on after a crash."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from msgspec.structs import replace

from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy import records
from vllmjobs.rollout.model import End, Entry, Fail, Observation


def who(releases: Deployments) -> str:
    """The name of the ACL token in use; without ACLs, or where the token has no name, user@host."""
    with suppress(NomadError):
        token = releases.token()
        if token and token.name:
            return token.name
    with suppress(KeyError, OSError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


def iso(at: datetime) -> str:
    """A moment as `Event.at` has it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    """This moment, as `Event.at`."""
    return iso(datetime.now(UTC))


class Record:
    """The entry of one version. A token that may not write it is told of once, and fails nothing."""

    def __init__(
        self, releases: Deployments, where: Where, entry: Entry, warn: Callable[[str], None]
    ) -> None:
        self._releases, self._where, self._warn = releases, where, warn
        self._is_kept = True
        self.entry = entry

    def keep(self) -> None:
        """Write it as it is."""
        if not self._is_kept:
            return
        try:
            records.write(self._releases, self._where, self.entry)
        except NomadError as error:
            self._is_kept = False
            self._warn(f"no history is kept: {error}")

    def judged(self, seen: Observation) -> None:
        """Keep new verdicts: a step's first, and those with another result than the one before."""
        verdicts = {name: group.verdict for name, group in seen.groups.items() if group.verdict}
        steps = {name: seen.groups[name].step for name in verdicts}
        old = {
            name: (self.entry.steps.get(name), verdict.result)
            for name, verdict in self.entry.verdicts.items()
        }
        new = {name: (steps[name], verdict.result) for name, verdict in verdicts.items()}
        if any(old.get(name) != said for name, said in new.items()):
            self.entry = replace(
                self.entry,
                verdicts=self.entry.verdicts | verdicts,
                steps=self.entry.steps | steps,
            )
            self.keep()

    def failing(self, action: Fail) -> None:
        """Keep why the deployment is failed, before it is."""
        self.entry = replace(self.entry, outcome=action.outcome, reason=action.reason)
        self.keep()

    def ended(self, end: End) -> None:
        """Keep how it ended."""
        self.entry = replace(self.entry, outcome=end.outcome, reason=end.reason)
        self.keep()
