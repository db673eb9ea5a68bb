"""Jobs as Nomad's API gives them, as trees of the jobspec's own words."""

import pkgutil
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from vllmjobs.changes.jobs.canonical import canonicalize
from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.tree import NAMED_BY, Tree, below, put, with_each, without
from vllmjobs.environment.quantity import duration
from vllmjobs.text.json import Json

# The name that nomad/structs/services.go gives to a check that has none, once the job is kept.
_NAMELESS = re.compile(r'service: ".*" check')


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
            own = {word: item for word, item in _block(value, name).items() if word != "name"}
            put(
                block, [name, "default"], own
            )  # the only one of a service, or a task's own, which Nomad names
        elif isinstance(value, dict):
            block[name] = _block(value, name)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for item in value:
                inner = _less_implied_name(name, _block(item, name))
                put(block, [name, *_labels(name, item, inner)], inner)
        elif value or value is False or (value == 0 and name in api.zero_counts):
            is_duration = name in api.durations or (kind == "wait" and name in ("min", "max"))
            block[name] = _duration(value) if is_duration else value
    return {name: item for name, item in block.items() if item not in ([], {}) or name in api.may_be_empty}


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
