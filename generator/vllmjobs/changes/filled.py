"""What Nomad fills in where a job says nothing, so that to write a default is no change.

The defaults are those of Nomad 1.11: `Canonicalize` in api/{jobs,tasks,services,resources}.go.
`tests/cluster/test_diff_effects.py` holds them to the real one.
"""

import re

from vllmjobs.changes.jobspec import Item, Jobspec, Tree
from vllmjobs.environment.quantity import duration, seconds

Path = tuple[str, ...]

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
_CHECK_RESTART: Tree = {"grace": "1s", "ignore_warnings": False}
_SERVICE: Tree = {"provider": "consul", "address_mode": "auto", "on_update": "require_healthy"}
_TASK: Tree = {
    "kill_timeout": "5s", "shutdown_delay": "0s", "leader": False,
    "logs": {"max_files": 10, "max_file_size": 10, "disabled": False},
    "resources": {"memory": 300, "memory_max": 0},
}  # fmt: skip
_GROUP: Tree = {"count": 1, "ephemeral_disk": {"size": 300, "sticky": False, "migrate": False}}
# Of blocks that are there, wherever they stand, by their kind.
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
}  # fmt: skip
_OPAQUE = {"config", "env", "meta", "canary_meta", "header", "headers", "options"}  # only strings are known
_DURATIONS = re.compile(
    r"(^|_)(interval|timeout|delay|deadline|time|grace|splay|stagger|min|max|lost_after|ttl|cooldown)$"
)
_SETS = {"datacenters"}


def filled(job: Jobspec) -> Tree:
    """The tree of a job with Nomad's defaults, and what is said for all groups in each of them."""
    tree = _merged(_JOB, job.tree)
    kind = str(tree["type"])
    batch = kind in ("batch", "sysbatch")
    shared = {word: tree.pop(word, None) for word in ("update", "migrate", "reschedule")}
    groups = tree.get("group")
    tree["group"] = {
        name: _group(group, kind, batch, shared)
        for name, group in (groups.items() if isinstance(groups, dict) else ())
        if isinstance(group, dict)
    }
    result = _plain((), tree)
    assert isinstance(result, dict)
    return result


def _group(group: Tree, kind: str, batch: bool, shared: dict[str, Item]) -> Tree:
    implied: Tree = {**_GROUP, "restart": _BATCH_RESTART if batch else _RESTART}
    if kind in ("service", "system"):
        implied["update"] = _UPDATE
    if kind == "service":
        implied["migrate"] = _MIGRATE
    if kind in _RESCHEDULE:
        implied["reschedule"] = _RESCHEDULE[kind]
    said: Tree = {word: value for word, value in shared.items() if value is not None}
    group = _merged(_merged(implied, said), group)
    tasks = group.get("task")
    if isinstance(tasks, dict):
        group["task"] = {name: _task(task) for name, task in tasks.items()}
    return group


def _task(task: Item) -> Item:
    if not isinstance(task, dict):
        return task
    task = _merged(_TASK, task)
    resources = task["resources"]
    if isinstance(resources, dict) and not {"cpu", "cores"} & resources.keys():
        task = {**task, "resources": {"cpu": 100, **resources}}
    return task


def _merged(implied: Tree, said: Tree) -> Tree:
    """What is said over what is implied; maps deeply."""
    result: Tree = {}
    for word in (*said, *(word for word in implied if word not in said)):
        under, over = implied.get(word), said.get(word)
        if isinstance(under, dict) and isinstance(over, dict):
            result[word] = _merged(under, over)
        else:
            result[word] = over if word in said else under
    return result


def _plain(path: Path, item: Item) -> Item:
    """Values as Nomad reads them: `"4"` and 4, `90s` and `1m30s` are the same count and duration."""
    opaque = next((word for word in path if word in _OPAQUE), None)
    if isinstance(item, dict):
        kind = path[-2] if len(path) > 1 else ""
        if opaque is None and kind in _BLOCKS:
            item = _merged(_BLOCKS[kind], item)
            if kind == "service":
                item = _service(item)
        return {word: _plain((*path, word), value) for word, value in item.items() if value is not None}
    if opaque == "config" and "task" in path:  # a driver reads it, and Nomad compares it as it is
        return item
    if isinstance(item, list):
        texts = [value if isinstance(value, dict) else _text(value) for value in item]
        return sorted(texts, key=str) if path[-1] in _SETS else list(texts)
    text = _text(item)
    if opaque is None and _DURATIONS.search(path[-1]):
        return _duration(text)
    return text


def _service(service: Tree) -> Tree:
    """A service's check_restart is that of its checks, unless they say otherwise."""
    checks = service.get("check")
    if isinstance(checks, dict):
        shared = service.get("check_restart")
        service = {word: value for word, value in service.items() if word != "check_restart"}
        service["check"] = {name: _check(check, shared) for name, check in checks.items()}
    return service


def _check(check: Item, shared: Item) -> Item:
    if not isinstance(check, dict):
        return check
    if shared is not None:
        check = _merged({"check_restart": shared}, check)
    return _merged({"check_restart": _CHECK_RESTART}, check) if "check_restart" in check else check


def _text(item: Item) -> str:
    return str(item).lower() if isinstance(item, bool) else "" if item is None else str(item)


def _duration(text: str) -> str:
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h))+", text):
        return text
    value = seconds(text)
    return duration(value) if value == int(value) else f"{value:g}s"
