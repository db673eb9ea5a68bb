"""The canonical form of a job: what Nomad fills in stands there, so that to write a default is no change.

The defaults are those of Nomad 1.11: `Canonicalize` in api/{jobs,tasks,services,resources}.go.
`tests/cluster/test_diff_effects.py` holds them to the real one.
"""

import re

from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.shortcuts import spelt_out
from vllmjobs.changes.jobs.tree import NAMED_BY, Item, Tree, TreePath, below, groups, less, with_each, without
from vllmjobs.environment.quantity import duration, is_duration, seconds

_JOB: Tree = {
    "type": "service", "priority": 50, "region": "global", "namespace": "default", "node_pool": "default",
    "datacenters": ["*"], "all_at_once": False,
}  # fmt: skip
_UPDATE: Tree = {
    "stagger": "30s", "max_parallel": 1, "health_check": "checks", "min_healthy_time": "10s",
    "healthy_deadline": "5m", "progress_deadline": "10m", "auto_revert": False, "canary": 0,
    "auto_promote": False,
}  # fmt: skip
_RESCHEDULE: dict[str, Tree] = {
    "service": {
        "delay": "30s", "delay_function": "exponential", "max_delay": "1h", "unlimited": True, "attempts": 0,
        "interval": "0s",
    },
    "batch": {
        "attempts": 1, "interval": "24h", "delay": "5s", "delay_function": "constant", "max_delay": "0s",
        "unlimited": False,
    },
}  # fmt: skip
_RESTART: Tree = {"delay": "15s", "attempts": 2, "interval": "30m", "mode": "fail", "render_templates": False}
_BATCH_RESTART: Tree = {**_RESTART, "attempts": 3, "interval": "24h"}
_MIGRATE: Tree = {
    "max_parallel": 1, "health_check": "checks", "min_healthy_time": "10s", "healthy_deadline": "5m",
}  # fmt: skip
_WEIGHT: Tree = {"weight": 50}
_OPERATOR: Tree = {"operator": "="}
_OF_CHECK: dict[str, Tree] = {"check_restart": {"grace": "1s", "ignore_warnings": False}}
_SERVICE: Tree = {
    "provider": "consul", "address_mode": "auto", "on_update": "require_healthy", "cluster": "default",
}  # fmt: skip
_OF_JOB: dict[str, Tree] = {
    "periodic": {"enabled": True, "time_zone": "UTC"}, "parameterized": {"payload": "optional"},
}  # fmt: skip
_SHARED = ("update", "migrate", "reschedule")  # a job says them for all of its groups
_IDENTITY: Tree = {"aud": ["nomadproject.io"]}  # of the one called default, which every task has
_TASK: Tree = {
    "kill_timeout": "5s", "shutdown_delay": "0s", "leader": False,
    "logs": {"max_files": 10, "max_file_size": 10, "disabled": False},
    "resources": {"memory": 300, "memory_max": 0}, "identity": {},
}  # fmt: skip
_SIDECAR: Tree = {"kill_timeout": "5s", "shutdown_delay": "0s", "logs": _TASK["logs"]}
_CONNECT: dict[str, Tree] = {"sidecar_task": _SIDECAR, "gateway": {"proxy": {"connect_timeout": "5s"}}}
_CONSUL: Tree = {"cluster": "default", "partition": ""}
_OF_GROUP: dict[str, Tree] = {
    "consul": _CONSUL, "disconnect": {"replace": True, "reconcile": "best_score"},
}  # fmt: skip
_OF_TASK: dict[str, Tree] = {
    "consul": _CONSUL,
    "vault": {"env": True, "change_mode": "restart", "change_signal": "SIGHUP", "cluster": "default"},
    "csi_plugin": {"mount_dir": "/csi", "stage_publish_base_dir": "/local/csi", "health_timeout": "30s"},
}  # fmt: skip
_GROUP: Tree = {"count": 1, "ephemeral_disk": {"size": 300, "sticky": False, "migrate": False}}
# Defaults of blocks that are there, wherever they stand, by their kind.
_BLOCKS: dict[str, Tree] = {
    "constraint": _OPERATOR,
    "affinity": {**_OPERATOR, **_WEIGHT},
    "spread": {**_WEIGHT},
    "service": _SERVICE,
    "device": {"count": 1},
    "artifact": {"mode": "any", "insecure": False, "destination": "local/"},
    "template": {
        "change_mode": "restart", "once": False, "splay": "5s", "perms": "0644", "left_delimiter": "{{",
        "right_delimiter": "}}", "env": False, "error_on_missing_key": False,
    },
    "port": {"host_network": "default"},
    "volume_mount": {"propagation_mode": "private"},
}  # fmt: skip
# Blocks whose words are a person's, or a driver's.
_FOREIGN = {"config", "env", "meta", "canary_meta", "header", "headers", "options", "policy"}
_LABELLED = {"group", "task", "device", "volume", "port", "action", *NAMED_BY}
_DURATIONS = re.compile(
    r"(^|_)(interval|timeout|delay|deadline|time|grace|splay|stagger|min|max|lost_after|ttl|cooldown)$"
)
_SETS = {"datacenters"}
_NOTHING: tuple[Item, ...] = ("", "false", "0", "0s", [])
_ZERO_COUNTS = {"uid", "gid", "lost_after", "stop_on_client_after", "shutdown_delay"}


def canonicalize(job: Jobspec) -> Tree:
    """Return the tree of a job with Nomad's defaults; what it says for all groups stands in each."""
    tree = _with_block_defaults(_with_defaults(_JOB, spelt_out(job)), _OF_JOB)
    shared: Tree = {word: tree[word] for word in _SHARED if tree.get(word) is not None}
    kind = str(tree["type"])
    left = without(less(tree, (*_SHARED, "group")), "name", job.id)
    left["group"] = {name: _group(group, kind, shared) for name, group in groups(tree).items()}
    return _normalized_block((), left, is_foreign=False)


def is_nothing(path: TreePath, item: Item) -> bool:
    """Tell whether a word of a canonical tree means to Nomad what its absence means."""
    foreign = _foreign_block(path[:-1])
    if item == {}:
        return foreign is None and path[-1] in _FOREIGN
    return foreign is None and path[-1] not in _ZERO_COUNTS and item in _NOTHING


def _group(group: Tree, kind: str, shared: Tree) -> Tree:
    """Return a group with its defaults; `kind` is the job's type."""
    is_batch = kind in ("batch", "sysbatch")
    defaults: Tree = {**_GROUP, "restart": _BATCH_RESTART if is_batch else _RESTART}
    if kind in ("service", "system"):
        defaults["update"] = _UPDATE
    if kind == "service":
        defaults["migrate"] = _MIGRATE
    if kind in _RESCHEDULE:
        defaults["reschedule"] = _RESCHEDULE[kind]
    group = _with_defaults(_with_defaults(defaults, shared), group)
    scaling: Tree = {"enabled": True, "min": group["count"]}
    group = _with_block_defaults(group, {**_OF_GROUP, "scaling": scaling})
    return with_each(group, "task", lambda _, task: _task(task, group["restart"]))


def _task(task: Tree, restart: Item) -> Tree:
    """Return a task with its defaults; `restart` is the group's."""
    task = _with_defaults(_TASK, _with_defaults({"restart": restart}, task))
    resources, identity = task["resources"], task["identity"]
    if isinstance(resources, dict) and not {"cpu", "cores"} & resources.keys():
        task = {**task, "resources": {"cpu": 100, **resources}}
    if isinstance(identity, dict):
        default: Tree = {**below(identity, "default"), **_IDENTITY}
        task = {**task, "identity": {**less(identity, ("default",)), "default": default}}
    return _with_block_defaults(task, _OF_TASK)


def _with_defaults(defaults: Tree, written: Tree) -> Tree:
    """Return what is written over the defaults, maps deeply."""
    merged = written | less(defaults, written)
    for word, under in defaults.items():
        over = written.get(word)
        if isinstance(under, dict) and isinstance(over, dict):
            merged[word] = _with_defaults(under, over)
    return merged


def _with_block_defaults(tree: Tree, defaults: dict[str, Tree]) -> Tree:
    """Return a tree whose blocks have their defaults, where they are written at all."""
    return {
        word: _with_defaults(defaults[word], item) if word in defaults and isinstance(item, dict) else item
        for word, item in tree.items()
    }


def _normalized(path: TreePath, item: Item) -> Item:
    """Return values as Nomad reads them: `"4"` and 4, `90s` and `1m30s` are the same count and duration."""
    foreign = _foreign_block(path)
    if isinstance(item, dict):
        return _normalized_block(path, item, is_foreign=foreign is not None)
    if foreign == "config" and "task" in path:  # a driver reads it, and Nomad compares it as it is
        return item
    if isinstance(item, list):
        texts = [value if isinstance(value, dict) else _text(value) for value in item]
        return sorted(texts, key=str) if path[-1] in _SETS else list(texts)
    text = _text(item)
    if foreign is not None or not _DURATIONS.search(path[-1]) or not is_duration(text):
        return text
    value = seconds(text)
    return duration(value) if value == int(value) else f"{value:g}s"


def _normalized_block(path: TreePath, block: Tree, is_foreign: bool) -> Tree:
    kind = path[-2] if len(path) > 1 else ""
    if not is_foreign and kind in _BLOCKS:
        block = _with_defaults(_BLOCKS[kind], block)
        if kind == "service":
            block = _service(block)
        elif kind == "template":
            block = _template(block)
    if path[-1:] == ("port",):  # Nomad keeps the static ones apart
        static = {word: port for word, port in block.items() if isinstance(port, dict) and "static" in port}
        block = {**static, **block}
    return {word: _normalized((*path, word), item) for word, item in block.items() if item is not None}


def _foreign_block(path: TreePath) -> str | None:
    """Return the block on a path whose words are not Nomad's. A task, too, may be called env."""
    words = iter(path)
    for word in words:
        if word in _FOREIGN:
            return word
        if word in _LABELLED:
            next(words, None)
    return None


def _service(service: Tree) -> Tree:
    """Return a service whose checks have its restarts and updates, unless they say otherwise."""
    defaults: Tree = {"on_update": service["on_update"]}
    if "check_restart" in service:
        defaults = {"check_restart": service["check_restart"], **defaults}
    left = less(service, ("check_restart",))
    if isinstance(connect := left.get("connect"), dict):
        left = {**left, "connect": _with_block_defaults(connect, _CONNECT)}
    return with_each(
        left, "check", lambda _, check: _with_block_defaults(_with_defaults(defaults, check), _OF_CHECK)
    )


def _template(template: Tree) -> Tree:
    template = _with_block_defaults(template, {"change_script": {"timeout": "5s"}})
    default = "SIGHUP" if template["change_mode"] == "signal" else ""
    return {**template, "change_signal": str(template.get("change_signal", default)).upper()}


def _text(item: Item) -> str:
    return str(item).lower() if isinstance(item, bool) else "" if item is None else str(item)
