"""What a change does, against the same environment before it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from vllmjobs.check.rule import Findings, of_model
from vllmjobs.check.subject import Subject
from vllmjobs.environment.derive import Deadlines, canaries
from vllmjobs.environment.problems import Path, dotted
from vllmjobs.render.context import Group, group

# In no job, or only by what follows from them.
UNRENDERED: list[Path] = [("vllm",), ("config",), ("install",)]
FIGURES: list[Path] = [("pull_time",), ("load_time",)]


@of_model("VJ331", "note")
def canaries_try_a_change(subject: Subject) -> Findings:
    """Nomad places canaries for a destructive change only; any other reaches all instances at once."""
    before = subject.facts.before
    if before is None or subject.name not in before.models or not canaries(subject.model):
        return
    was, now = (group(environment, subject.name) for environment in (before, subject.environment))
    changed = [
        path
        for path in _changed(msgspec.to_builtins(was.model), msgspec.to_builtins(now.model))
        if path not in UNRENDERED and (path not in FIGURES or _rendered(was) != _rendered(now))
    ]
    if changed not in ([], [("replicas",)]) and _replaced(was) == _replaced(now):
        yield (
            changed[0],
            f"Nomad makes the change of {', '.join(map(dotted, changed))} in place: in all instances at "
            "once, with no canary and no promotion",
        )


def _replaced(group: Group) -> tuple[object, ...]:
    """What Nomad replaces an allocation for when it changes: `tasksUpdated` in its scheduler/util.go.

    Everything else in `vllm.nomad.hcl.j2` it changes in place: count, service, update, migrate, restart,
    reschedule, kill_timeout, shutdown_delay, logs, constraints, affinities and spreads.
    """
    model = group.model
    task = (model.driver, group.user, group.image, group.command, model.entrypoint, group.args, group.env)
    docker = (model.container, group.shm_bytes, model.logs)  # in its `config`; for others, logs are a block
    pulled = group.deadlines.pull if model.driver == "docker" else None
    resources = (group.device, model.gpus, model.resources, group.bridged, model.ports, model.cache)
    return task, docker if model.driver == "docker" else None, pulled, group.secrets, resources


def _rendered(group: Group) -> Deadlines:
    """The deadlines that the job holds, whatever the driver."""
    return group.deadlines._replace(start=0, pull=0)


def _changed(before: Any, after: Any, path: Path = ()) -> Iterator[Path]:
    """The keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changed(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield path
