"""Jobs as Nomad's API gives them, as trees of the jobspec's own words; and what a plan changes in them.

Nomad's own Diff (nomad/structs/diff.go) names things as its Go structs do, tells a network of which one port
changed as one network less and one more, and leaves out most lists: spreads, a device's constraints, the
arguments of a check. So it is asked only where something differs; the two jobs tell what.
"""

import pkgutil
import re
import tomllib
from collections.abc import Iterator, Mapping, Set
from functools import cache
from typing import Any

import msgspec

from vllmjobs.changes.differences import fields
from vllmjobs.changes.jobs.canonical import canonicalize
from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.tree import NAMED_BY, Tree, TreePath, below, less, put, with_each, without
from vllmjobs.changes.model import Field
from vllmjobs.environment.quantity import duration
from vllmjobs.text.json import Json

# The name that nomad/structs/services.go gives to a check that has none, once the job is kept.
_NAMELESS = re.compile(r'service: ".*" check')
_PLACE = range(1, 5)  # words of a place in the Diff
# Blocks of a task that nomad/structs/diff.go does not compare.
_NOT_COMPARED = ("lifecycle", "restart", "scaling", "csi_plugin")


class ApiWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of `api_words.toml`, where each has its comment."""

    job_keys: frozenset[str]
    durations: frozenset[str]
    free_words: frozenset[str]
    may_be_empty: frozenset[str]
    zero_counts: frozenset[str]
    words: dict[str, str]
    words_in: dict[str, dict[str, str]]
    labels: dict[str, str]
    not_written: dict[str, frozenset[str]]


@cache
def api_words() -> ApiWords:
    """Return the tables."""
    text = pkgutil.get_data(__name__, "api_words.toml")
    assert text is not None
    return msgspec.convert(tomllib.loads(text.decode()), ApiWords)


@cache
def word(name: str) -> str:
    """Return the jobspec's word for a name of the API: `kill_timeout` for KillTimeout."""
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name))
    return api_words().words.get(name) or words.lower()


def tree(job: Json) -> Tree:
    """Return a job of `/v1/job/ID`, or of `/v1/jobs/parse`, as `canonicalize` would give its jobspec.

    It is without its region and namespace, by which it was found.
    """
    name = str(job.get("Name", job["ID"]))
    words = _block({key: value for key, value in job.items() if key in api_words().job_keys}, "job")
    written = with_each(words, "group", lambda label, group: _written_group(name, label, group))
    return canonicalize(Jobspec(str(job["ID"]), written))


def _written_group(job: str, name: str, group: Tree) -> Tree:
    """Return a group less what Nomad puts into it: a service's task into checks, its `restart` into tasks."""

    def service(_: str, block: Tree) -> Tree:
        return with_each(block, "check", lambda _, check: without(check, "task", block.get("task")))

    def task(label: str, block: Tree) -> Tree:
        return without(_with_service_names(block, job, name, label), "restart", group.get("restart"))

    group = with_each(_with_service_names(group, job, name, "group"), "service", service)
    return with_each(group, "task", task)


def _with_service_names(tree: Tree, job: str, group: str, task: str) -> Tree:
    """Put `${BASE}` into the names of services as Nomad does (nomad/structs/services.go Canonicalize)."""
    known = {"JOB": job, "TASKGROUP": group, "TASK": task, "BASE": f"{job}-{group}-{task}"}
    if "service" not in tree:
        return tree
    services: Tree = {}
    for written, service in below(tree, "service").items():
        name = re.sub(r"\$\{(\w+)\}", lambda match: known.get(match[1], match[0]), written)
        is_named = isinstance(service, dict) and name != written
        services[name] = {**service, "name": name} if is_named and isinstance(service, dict) else service
    return {**tree, "service": services}


def _block(values: Json, kind: str) -> Tree:
    """Return a block of the API in the jobspec's words; `kind` is what the jobspec calls it."""
    api = api_words()
    block: Tree = {}
    for key, value in values.items():
        name = api.words_in.get(kind, {}).get(key) or word(key)
        if (
            key in api.not_written.get(kind, ())
            or (name, value) == ("host_network", "default")
            or name == api.labels.get(kind)
        ):
            continue
        if name in api.free_words and isinstance(value, dict):
            block[name] = _free_block(value)
        elif name == "volume" and isinstance(value, dict):
            block[name] = {label: _block(volume, name) for label, volume in value.items()}
        elif name == "identity" and isinstance(value, dict):
            # The only one of a service, or a task's own, which Nomad names.
            put(block, [name, "default"], less(_block(value, name), ("name",)))
        elif isinstance(value, dict):
            block[name] = _block(value, name)
        elif _is_blocks(value):
            for item in value:
                inner = _less_implied_name(name, _block(item, name))
                put(block, [name, *_labels(name, item, inner)], inner)
        elif value or value is False or (value == 0 and name in api.zero_counts):
            is_duration = name in api.durations or (kind == "wait" and name in ("min", "max"))
            block[name] = _duration(value) if is_duration and isinstance(value, int) else value
    return {name: item for name, item in block.items() if item not in ([], {}) or name in api.may_be_empty}


def _is_blocks(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _less_implied_name(kind: str, block: Tree) -> Tree:
    is_nameless = kind == "check" and _NAMELESS.fullmatch(str(block.get("name", "")))
    return without(block, "name", block["name"]) if is_nameless else block


def _labels(kind: str, values: Json, block: Tree) -> list[str]:
    """Return what stands behind the kind of a block: its label, or what tells it from others."""
    if label := api_words().labels.get(kind):
        return [str(values[key]) for key in values if word(key) == label]
    if kind not in NAMED_BY:
        return []
    return [str(block[key]) for key in NAMED_BY[kind] if key in block][:1] or ["default"]


def _free_block(values: Json) -> Tree:
    """Return what a person or a driver names: `env`, `meta`, `config`, whose blocks are lists of maps."""
    block: Tree = {}
    for name, value in values.items():
        if isinstance(value, dict):
            block[name] = _free_block(value)
        elif _is_blocks(value):
            for item in value:
                inner = _less_implied_name(name, _free_block(item))
                put(block, [name, *_labels(name, item, inner)], inner)
        else:
            block[name] = _whole(value)
    return block


def _whole(value: Any) -> Any:
    """Return 1 for 1.0: once a job runs, Nomad keeps the numbers that a driver reads as floating point."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _duration(nanoseconds: int) -> str:
    milliseconds = nanoseconds // 10**6
    return f"{milliseconds}ms" if milliseconds % 1000 else duration(milliseconds / 1000)


def planned_fields(diff: Json, before: Tree, after: Tree, of_job: bool = False) -> tuple[Field, ...]:
    """Return what differs, where Nomad sees a difference too: it adds to a job what nobody wrote.

    `diff` is a plan's Diff for a job without its groups, `of_job`, and for a group its part of TaskGroups.
    """
    places = set(_places(diff, ()))
    for task in diff.get("Tasks") or ():
        place = ("task", task["Name"])
        places.update([place] if task["Type"] in ("Added", "Deleted") else _places(task, place))
    tasks_of_both = below(before, "task").keys() & below(after, "task").keys()
    return tuple(
        field
        for field in fields(before, after, of_job)
        if _is_not_compared(field.path, tasks_of_both) or _is_at(field.path, places)
    )


def _places(diff: Json, place: TreePath) -> Iterator[TreePath]:
    """Yield where a job, a group or a task differs; for constraints, in which one."""
    for part in (*(diff.get("Fields") or ()), *(diff.get("Objects") or ())):
        if part["Type"] == "None":
            continue
        values = {field["Name"]: field["New"] or field["Old"] for field in part.get("Fields") or ()}
        which = [values.get("LTarget") or values["Operand"]] if part["Name"] == "Constraint" else []
        yield (*place, word(part["Name"].partition("[")[0]), *which)
        if any(inner["Name"] == "Identity" for inner in part.get("Objects") or ()):
            yield (*place, "service", "identity")


def _is_at(path: TreePath, places: Set[TreePath]) -> bool:
    """Tell whether a path is at one of the places.

    A service whose identity is at none has the identity that the servers' configuration gives to all
    (nomad/job_endpoint_hook_implicit_identities.go).
    """
    start = 2 if path[0] == "task" else 0
    if (path[start : start + 1], path[start + 2 : start + 3]) == (("service",), ("identity",)):
        return (*path[: start + 1], "identity") in places
    # A second constraint of the same attribute has a number.
    unnumbered = tuple(re.sub(r"#\d+$", "", part) for part in path)
    return any(unnumbered[:length] in places for length in _PLACE)


def _is_not_compared(path: TreePath, tasks_of_both: Set[str]) -> bool:
    """Tell whether nomad/structs/diff.go leaves out a path, so that it may differ all the same.

    A task that only one side has, and that is not in the Diff, is Nomad's: the proxy of a Connect service.
    """
    return path[0] == "spread" or (len(path) > 2 and path[2] in _NOT_COMPARED and path[1] in tasks_of_both)
