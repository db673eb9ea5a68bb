"""What is remembered of a job's releases: one Nomad Variable for each job, one item for each version."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import Where
from vllmjobs.rollout.model import Entry

PATH = "vllmjobs/releases"
KEPT = 20  # versions, where Nomad keeps six of the job by default
LARGEST = (
    60_000  # bytes, of the 64 KiB that Nomad allows (nomad/structs/variables.go), names of items included
)
_KEY = re.compile(r"v\d+")


def read(releases: Deployments, where: Where) -> list[Entry]:
    """The records of a job, the newest version first; what cannot be read as one is left out.

    Raises `NomadError`; needs read on the variable `vllmjobs/releases/JOB`.
    """
    items, _ = releases.variable(f"{PATH}/{where.id}", where)
    return _entries(items)


def write(releases: Deployments, where: Where, entry: Entry) -> None:
    """Record a version, in place of what was recorded of it; the oldest make room.

    A write of which the answer was lost is repeated: it says the same. Raises `NomadError`; a
    `ForbiddenError` without read and write on the variable `vllmjobs/releases/JOB`.
    """

    def with_entry(items: dict[str, str]) -> dict[str, str]:
        others = (one for one in _entries(items) if one.version != entry.version)
        foreign = {key: text for key, text in items.items() if not _KEY.fullmatch(key)}
        return {**foreign, **_items((entry, *others))}

    releases.update_variable(f"{PATH}/{where.id}", where, with_entry)


def _entries(items: dict[str, str]) -> list[Entry]:
    found = []
    for key, text in items.items():
        if _KEY.fullmatch(key):
            try:
                found.append(msgspec.json.decode(text, type=Entry))
            except msgspec.MsgspecError:  # of another vllmjobs
                continue
    return sorted(found, key=lambda one: one.version, reverse=True)


def _items(entries: Iterable[Entry]) -> dict[str, str]:
    """The newest as items; to be small enough, the oldest of them lose their numbers, and then go."""
    newest = sorted(entries, key=lambda one: one.version, reverse=True)[:KEPT]
    items = {f"v{one.version}": msgspec.json.encode(one).decode() for one in newest}
    for one in reversed(newest):
        if _size(items) <= LARGEST:
            break
        verdicts = {
            group: msgspec.structs.replace(verdict, numbers=()) for group, verdict in one.verdicts.items()
        }
        items[f"v{one.version}"] = msgspec.json.encode(
            msgspec.structs.replace(one, verdicts=verdicts)
        ).decode()
    for one in reversed(newest[1:]):
        if _size(items) <= LARGEST:
            break
        del items[f"v{one.version}"]
    return items


def _size(items: dict[str, str]) -> int:
    return sum(len(key.encode()) + len(text.encode()) for key, text in items.items())
