"""VJ331: what a change does, against the same environment before it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from vllmjobs.check.rule import Findings, model_rule
from vllmjobs.check.subject import Subject
from vllmjobs.environment.derive import canaries
from vllmjobs.environment.problems import Path, dotted

UNRENDERED: list[Path] = [("vllm",), ("config",), ("install",)]  # of them only consequences are in a job


@model_rule("VJ331", "note")
def canaries_try_a_change(subject: Subject) -> Findings:
    """Find a change since the commit of `--against` that reaches all instances at once, with no canary.

    Nomad places canaries for a destructive change only.
    """
    before = subject.facts.before
    group = before and before.groups.get(subject.name)
    if not before or not group or group.actions[:1] != ("in-place",) or not canaries(subject.model):
        return
    was, now = (
        msgspec.to_builtins(environment.models.get(subject.name))
        for environment in (before.environment, subject.environment)
    )
    changed = [path for path in _changed(was, now) if path not in UNRENDERED]
    if changed:
        yield (
            changed[0],
            f"Nomad makes the change of {', '.join(map(dotted, changed))} in place: in all instances at "
            "once, with no canary and no promotion",
        )


def _changed(before: Any, after: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changed(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield path
