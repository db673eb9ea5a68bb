"""Jobs as Nomad's API gives them, as trees of the jobspec's own words."""

import re
from collections.abc import Mapping
from typing import Any

from vllmjobs.changes.jobs.api_words import api_words, word
from vllmjobs.changes.jobs.canonical import canonicalize
from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.tree import NAMED_BY, Item, Tree, below, put, with_each, without
from vllmjobs.environment.quantity import duration
from vllmjobs.text.json import Json

# The name that nomad/structs/services.go gives to a check that has none, once the job is kept.
_NAMELESS = re.compile(r'service: ".*" check')


def tree(job: Json) -> Tree:
    """Return a job of `/v1/job/ID`, or of `/v1/jobs/parse`, as `canonicalize` would give its jobspec.

    It is without its region and namespace, by which it was found.
    """
    name = str(job.get("Name", job["ID"]))
    words = _block({key: value for key, value in job.items() if key in api_words().job_keys}, "job")
    written = with_each(words, "group", lambda label, group: _written_group(name, label, group))
    return canonicalize(Jobspec(str(job["ID"]), written))


def _written_group(job: str, name: str, group: Tree) -> Tree:
    """Return a group less what Nomad puts into it."""

    def service(_: str, block: Tree) -> Tree:
        return with_each(block, "check", lambda _, check: _without_task(check, block.get("task")))

    group = with_each(_with_service_names(group, job, name, "group"), "service", service)
    restart = group.get("restart")
    return with_each(group, "task", lambda label, task: _written_task(job, name, label, task, restart))


def _written_task(job: str, group: str, name: str, task: Tree, restart: Item) -> Tree:
    """Return a task less what Nomad puts into it: the group's `restart`, and its name into its services."""

    def service(_: str, block: Tree) -> Tree:
        return with_each(_without_task(block, name), "check", lambda _, check: _without_task(check, name))

    task = without(_with_service_names(task, job, group, name), "restart", restart)
    return with_each(task, "service", service)


def _without_task(block: Tree, task: Item) -> Tree:
    """Return a service or a check that does not say that it is this task's."""
    return block if task is None else without(block, "task", task)


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
            put(block, [name, "default"], _identity(value))
        elif isinstance(value, dict):
            block[name] = _block(value, name)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for item in value:
                inner = _less_implied_name(name, _block(item, name))
                put(block, [name, *_labels(name, item, inner)], inner)
        elif value or value is False or (value == 0 and name in api.zero_counts):
            block[name] = _duration(value) if _is_duration(kind, name) else value
    return {name: item for name, item in block.items() if item not in ([], {}) or name in api.may_be_empty}


def _is_duration(kind: str, name: str) -> bool:
    return name in api_words().durations or (kind == "wait" and name in ("min", "max"))


def _less_implied_name(kind: str, block: Tree) -> Tree:
    """Return a block less the name that Nomad gave it."""
    is_nameless = kind == "check" and _NAMELESS.fullmatch(str(block.get("name", "")))
    return without(block, "name", block["name"]) if is_nameless else block


def _labels(kind: str, values: Json, block: Tree) -> list[str]:
    """Return what stands behind the kind of a block: its label, or what tells it from others."""
    if label := api_words().labels.get(kind):
        return [str(values[key]) for key in values if word(key) == label]
    if kind not in NAMED_BY:
        return []
    return [str(block[key]) for key in NAMED_BY[kind] if key in block][:1] or ["default"]


def _identity(values: Json) -> Tree:
    """Return the only identity of a service, or a task's own, which Nomad names."""
    return {name: item for name, item in _block(values, "identity").items() if name != "name"}


def _free_block(values: Json) -> Tree:
    """Return what a person or a driver names: `env`, `meta`, `config`, whose blocks are lists of maps."""
    block: Tree = {}
    for name, value in values.items():
        if isinstance(value, dict):
            block[name] = _free_block(value)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
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
