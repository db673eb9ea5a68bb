"""The records of a job's releases: one Nomad Variable for each job, one item for each version.

`history` and `status` show them, and a run that was killed goes on with them.
"""

import getpass
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.nomad import Where
from vllmjobs.environment.secrets import blotted
from vllmjobs.rollout.gates import in_force
from vllmjobs.rollout.model import End, Fail, Observation, Record

PATH = "vllmjobs/releases"
KEPT = 20  # versions, where Nomad keeps six of the job by default
# Bytes, of the 64 KiB that Nomad allows (nomad/structs/variables.go), names of items included.
LARGEST = 60_000
_KEY = re.compile(r"v\d+")


class RecordKeeper:
    """The writer of one version's record; a token that may not is warned of once, and fails nothing."""

    def __init__(
        self, deployments: Deployments, where: Where, record: Record, warn: Callable[[str], None]
    ) -> None:
        self._deployments, self._where, self._warn = deployments, where, warn
        self._is_writable = True
        self.record = record

    def keep(self) -> None:
        """Write the record as it is."""
        if not self._is_writable:
            return
        try:
            write(self._deployments, self._where, self.record)
        except NomadError as error:
            self._is_writable = False
            self._warn(f"this release is not recorded in the history: {error}")

    def judged(self, observation: Observation) -> None:
        """Record new verdicts: a step's first one, and one with another result than the one before."""
        groups, record = observation.groups, self.record
        verdicts = {name: group.verdict for name, group in groups.items() if group.verdict}
        steps = {name: groups[name].step for name in verdicts}
        old = {name: (record.steps.get(name), verdict.result) for name, verdict in record.verdicts.items()}
        if any(old.get(name) != (steps[name], verdict.result) for name, verdict in verdicts.items()):
            self.record = replace(record, verdicts=record.verdicts | verdicts, steps=record.steps | steps)
            self.keep()

    def ends(self, end: End | Fail) -> None:
        """Record how the release ended; before its deployment is failed, why that is done."""
        self.record = replace(self.record, outcome=end.outcome, reason=end.reason)
        self.keep()


def read(deployments: Deployments, where: Where) -> list[Record]:
    """Return the records of a job, the newest first, without items that cannot be read as one.

    Raises `NomadError`; needs read on the variable `vllmjobs/releases/JOB`.
    """
    items, _ = deployments.variable(f"{PATH}/{where.id}", where)
    return _records(items)


def write(deployments: Deployments, where: Where, record: Record) -> None:
    """Write a record in place of the one of its version; the oldest make room.

    A record that brings no rules of the gates, such as that of a way back, keeps those in force, and one
    that does not tell its job's life belongs to the newest. A write whose answer was lost is repeated: it
    has the same content. Raises `NomadError`; a `ForbiddenError` without read and write on the variable
    `vllmjobs/releases/JOB`.
    """

    def with_record(items: dict[str, str]) -> dict[str, str]:
        others = [one for one in _records(items) if one.version != record.version]
        rules = record.rules or next(iter(in_force(others)), None)
        kept = replace(record, rules=rules, life=record.life or (others[0].life if others else 0))
        foreign = {key: text for key, text in items.items() if not _KEY.fullmatch(key)}
        return {**foreign, **_items((kept, *others))}

    deployments.update_variable(f"{PATH}/{where.id}", where, with_record)


def new_record(deployments: Deployments, version: int, reason: str = "", is_way_back: bool = False) -> Record:
    """Return the record of a release that begins now, by the person whose token it is."""
    return Record(version=version, at=now(), by=who(deployments), reason=reason, is_way_back=is_way_back)


def who(deployments: Deployments) -> str:
    """Return the name of the ACL token in use; without ACLs, or where the token has no name, user@host."""
    with suppress(NomadError):
        token = deployments.token()
        if token and token.name:
            return token.name
    with suppress(KeyError, OSError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


def iso(at: datetime) -> str:
    """Write a moment in the form of `Notification.at`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    """Return this moment in the form of `Notification.at`."""
    return iso(datetime.now(UTC))


def _records(items: dict[str, str]) -> list[Record]:
    records = []
    for key, text in items.items():
        if _KEY.fullmatch(key):
            with suppress(msgspec.MsgspecError):  # another release of vllmjobs wrote it
                records.append(msgspec.json.decode(text, type=Record))
    return sorted(records, key=_age, reverse=True)


def _age(record: Record) -> tuple[int, int]:
    return record.life, record.version


def _items(records: Iterable[Record]) -> dict[str, str]:
    """Return the newest records as items. To be small enough, the oldest lose their numbers, and then go."""
    newest = sorted(records, key=_age, reverse=True)[:KEPT]
    items = {f"v{one.version}": _encode(one) for one in newest}
    for one in reversed(newest):
        if _size(items) <= LARGEST:
            break
        verdicts = {group: replace(verdict, numbers=()) for group, verdict in one.verdicts.items()}
        items[f"v{one.version}"] = _encode(replace(one, verdicts=verdicts))
    for one in reversed(newest[1:]):
        if _size(items) <= LARGEST:
            break
        del items[f"v{one.version}"]
    return items


def _encode(record: Record) -> str:
    """Write a record less what looks like a secret in its words: all who may read the Variable read them."""
    return msgspec.json.encode(blotted(msgspec.to_builtins(record))).decode()


def _size(items: dict[str, str]) -> int:
    return sum(len(key.encode()) + len(text.encode()) for key, text in items.items())
