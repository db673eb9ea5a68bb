"""Differences between two sets of jobs."""

from collections.abc import Mapping

from vllmjobs.changes.compare import compare
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.model import JobChange


def differences(
    before: Mapping[str, str], after: Mapping[str, str], as_one: bool = False, other: str = ""
) -> tuple[JobChange, ...]:
    """Return what differs between two sets of jobs, each HCL by its name; `other` is the older's in errors.

    See `compare` for `as_one`. Raises `JobspecError` for a template whose output is not one job.
    """
    changes: list[JobChange] = []
    for name in (*after, *(name for name in before if name not in after)):
        old, new = before.get(name), after.get(name)
        was = None if old is None else read(old, f"{other}job {name}, rendered")
        now = was if old == new else None if new is None else read(new, f"job {name}, rendered")
        changes += compare(name, was, now, as_one)
    return tuple(changes)
