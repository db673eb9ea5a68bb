"""What Nomad fills in where a job says nothing, so that to write a default is no change.

The defaults are those of Nomad 1.11: `Canonicalize` in api/{jobs,tasks,services,resources}.go.
`tests/cluster/test_diff_effects.py` holds them to the real one.
"""

import re

from vllmjobs.changes.jobs.jobspec import NAMED_BY, Item, Jobspec, Tree
from vllmjobs.changes.jobs.shortcuts import spelt_out
from vllmjobs.environment.quantity import duration, is_duration, seconds

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
_SERVICE: Tree = {
    "provider": "consul", "address_mode": "auto", "on_update": "require_healthy", "cluster": "default",
}  # fmt: skip
_PERIODIC: Tree = {"enabled": True, "time_zone": "UTC"}
_DISCONNECT: Tree = {"replace": True, "reconcile": "best_score"}
_IDENTITY: Tree = {"aud": ["nomadproject.io"]}  # of the one called default, which every task has
_VAULT: Tree = {
    "env": True, "change_mode": "restart", "change_signal": "SIGHUP", "cluster": "default",
}  # fmt: skip
_TASK: Tree = {
    "kill_timeout": "5s", "shutdown_delay": "0s", "leader": False,
    "logs": {"max_files": 10, "max_file_size": 10, "disabled": False},
    "resources": {"memory": 300, "memory_max": 0}, "identity": {},
}  # fmt: skip
_CSI_PLUGIN: Tree = {
    "mount_dir": "/csi", "stage_publish_base_dir": "/local/csi", "health_timeout": "30s",
}  # fmt: skip
_SIDECAR: Tree = {"kill_timeout": "5s", "shutdown_delay": "0s", "logs": _TASK["logs"]}
_CONNECT: dict[str, Tree] = {"sidecar_task": _SIDECAR, "gateway": {"proxy": {"connect_timeout": "5s"}}}
_CONSUL: Tree = {"cluster": "default", "partition": ""}
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
    "port": {"host_network": "default"},
    "volume_mount": {"propagation_mode": "private"},
}  # fmt: skip
# Words below these are a person's, or a driver's.
_OPAQUE = {"config", "env", "meta", "canary_meta", "header", "headers", "options", "policy"}
_LABELLED = {"group", "task", "device", "volume", "port", "action", *NAMED_BY}
_DURATIONS = re.compile(
    r"(^|_)(interval|timeout|delay|deadline|time|grace|splay|stagger|min|max|lost_after|ttl|cooldown)$"
)
_SETS = {"datacenters"}
_NOTHING: tuple[Item, ...] = ("", "false", "0", "0s", [])
_ZERO_IS_SAID = {"uid", "gid", "lost_after", "stop_on_client_after", "shutdown_delay"}


def filled(job: Jobspec) -> Tree:
    """The tree of a job with Nomad's defaults, and what is said for all groups in each of them."""
    tree = _merged(_JOB, spelt_out(job))
    if tree.get("name") == job.id:
        del tree["name"]
    if isinstance(periodic := tree.get("periodic"), dict):
        tree["periodic"] = _merged(_PERIODIC, periodic)
    if isinstance(parameterized := tree.get("parameterized"), dict):
        tree["parameterized"] = _merged({"payload": "optional"}, parameterized)
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


def is_nothing(path: Path, item: Item) -> bool:
    """Whether to say this of a filled tree is to Nomad as if it were not said."""
    opaque = _opaque(path[:-1])
    if item == {}:
        return opaque is None and path[-1] in _OPAQUE
    return opaque is None and path[-1] not in _ZERO_IS_SAID and item in _NOTHING


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
    scaling: Tree = {"enabled": True, "min": group["count"]}
    for word, default in (("consul", _CONSUL), ("disconnect", _DISCONNECT), ("scaling", scaling)):
        if isinstance(block := group.get(word), dict):
            group[word] = _merged(default, block)
    tasks = group.get("task")
    if isinstance(tasks, dict):
        group["task"] = {name: _task(task, group["restart"]) for name, task in tasks.items()}
    return group


def _task(task: Item, restart: Item) -> Item:
    if not isinstance(task, dict):
        return task
    task = _merged(_TASK, {**task, "restart": _merged({"restart": restart}, task)["restart"]})
    resources, identity = task["resources"], task["identity"]
    if isinstance(resources, dict) and not {"cpu", "cores"} & resources.keys():
        task["resources"] = {"cpu": 100, **resources}
    if isinstance(identity, dict):
        own = identity.get("default")
        others = {name: value for name, value in identity.items() if name != "default"}
        task["identity"] = {**others, "default": {**(own if isinstance(own, dict) else {}), **_IDENTITY}}
    for word, default in (("consul", _CONSUL), ("vault", _VAULT), ("csi_plugin", _CSI_PLUGIN)):
        if isinstance(block := task.get(word), dict):
            task[word] = _merged(default, block)
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
    opaque = _opaque(path)
    if isinstance(item, dict):
        kind = path[-2] if len(path) > 1 else ""
        if opaque is None and kind in _BLOCKS:
            item = _merged(_BLOCKS[kind], item)
            if kind == "service":
                item = _service(item)
            elif kind == "template":
                item = _template(item)
        if path[-1:] == ("port",):  # Nomad keeps the static ones apart
            static = {
                word: port for word, port in item.items() if isinstance(port, dict) and "static" in port
            }
            item = {**static, **item}
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


def _opaque(path: Path) -> str | None:
    """The block on the way of which the words are not Nomad's. A task, too, may be called env."""
    words = iter(path)
    for word in words:
        if word in _OPAQUE:
            return word
        if word in _LABELLED:
            next(words, None)
    return None


def _service(service: Tree) -> Tree:
    """What a service says of restarts and updates is for its checks, unless they say otherwise."""
    shared = {"check_restart": service["check_restart"]} if "check_restart" in service else {}
    checks = service.get("check")
    service = {word: value for word, value in service.items() if word != "check_restart"}
    if isinstance(checks, dict):
        implied = {**shared, "on_update": service["on_update"]}
        service["check"] = {
            name: _check(_merged(implied, check)) if isinstance(check, dict) else check
            for name, check in checks.items()
        }
    if isinstance(connect := service.get("connect"), dict):
        service["connect"] = {
            word: _merged(_CONNECT[word], block) if word in _CONNECT and isinstance(block, dict) else block
            for word, block in connect.items()
        }
    return service


def _check(check: Tree) -> Tree:
    return _merged({"check_restart": _CHECK_RESTART}, check) if "check_restart" in check else check


def _template(template: Tree) -> Tree:
    default = "SIGHUP" if template["change_mode"] == "signal" else ""
    if isinstance(script := template.get("change_script"), dict):
        template = {**template, "change_script": _merged({"timeout": "5s"}, script)}
    return {**template, "change_signal": str(template.get("change_signal", default)).upper()}


def _text(item: Item) -> str:
    return str(item).lower() if isinstance(item, bool) else "" if item is None else str(item)


def _duration(text: str) -> str:
    if not is_duration(text):
        return text
    value = seconds(text)
    return duration(value) if value == int(value) else f"{value:g}s"
