"""Jobs as Nomad's API gives them, in the jobspec's own words; and what differs between two of them.

Nomad's own Diff (nomad/structs/diff.go) names things as its Go structs do, tells a network of which one port
changed as one network less and one more, and leaves out most lists: spreads, a device's constraints, the
arguments of a check. It is asked only where something differs; what does, the two jobs tell.
"""

import re
from collections.abc import Iterator, Set
from functools import cache
from typing import Any

from vllmjobs.changes import compare
from vllmjobs.changes.effects import below
from vllmjobs.changes.jobs.canonical import filled
from vllmjobs.changes.jobs.jobspec import NAMED_BY, Item, Jobspec, Tree, put
from vllmjobs.changes.model import Field
from vllmjobs.environment.quantity import duration
from vllmjobs.text.json import Json

Path = tuple[str, ...]

# Where the jobspec's word is not the Go name in small letters: the `hcl:` tags of Nomad's api package, and
# the names that diff.go gives to objects.
WORDS = {
    "LTarget": "attribute",
    "RTarget": "value",
    "Operand": "operator",
    "SpreadTarget": "target",
    "SizeMB": "size",
    "SELinuxLabel": "selinux_label",
    "Constraints": "constraint",
    "Affinities": "affinity",
    "Spreads": "spread",
    "Volumes": "volume",
    "Tasks": "task",
    "TaskGroups": "group",
    "RestartPolicy": "restart",
    "ReschedulePolicy": "reschedule",
    "Networks": "network",
    "Services": "service",
    "MaxFileSizeMB": "max_file_size",
    "LogConfig": "logs",
    "Artifacts": "artifact",
    "Templates": "template",
    "VolumeMounts": "volume_mount",
    "CSIPluginConfig": "csi_plugin",
    "ScalingPolicies": "scaling",
    "Secrets": "secret",
    "Identities": "identity",
    "Actions": "action",
    "GetterSource": "source",
    "GetterOptions": "options",
    "GetterHeaders": "headers",
    "GetterMode": "mode",
    "GetterInsecure": "insecure",
    "RelativeDest": "destination",
    "SourcePath": "source",
    "DestPath": "destination",
    "EmbeddedTmpl": "data",
    "LeftDelim": "left_delimiter",
    "RightDelim": "right_delimiter",
    "Envvars": "env",
    "ErrMissingKey": "error_on_missing_key",
    "Audience": "aud",
    "Regions": "region",
    "Spec": "cron",
    "Specs": "crons",
    "Links": "link",
    "ParameterizedJob": "parameterized",
    "MemoryMB": "memory",
    "MemoryMaxMB": "memory_max",
    "DiskMB": "disk",
    "SecretsMB": "secrets",
    "Devices": "device",
    "DynamicPorts": "port",
    "ReservedPorts": "port",  # where the two are one in a jobspec
    "MBits": "mbits",
    "PortLabel": "port",
    "TaskName": "task",
    "Checks": "check",
    "ExcludeOutboundCIDRs": "exclude_outbound_cidrs",
    "ExcludeUIDs": "exclude_uids",
    "Paths": "path",
    "Listeners": "listener",
}
_IN = {("port", "Value"): "static", ("numa", "Devices"): "devices"}
# Durations, in nanoseconds; and `min` and `max` of a template's wait.
DURATIONS = {
    "connect_timeout", "delay", "grace", "health_timeout", "healthy_deadline", "interval", "kill_timeout",
    "lost_after", "max_client_disconnect", "max_delay", "max_run_duration", "min_healthy_time",
    "progress_deadline", "shutdown_delay", "splay", "stagger", "stop_after_client_disconnect",
    "stop_on_client_after", "timeout", "ttl", "vault_grace",
}  # fmt: skip
# The labels of blocks, which in JSON are a value of theirs.
_LABELS = {
    "group": "name", "task": "name", "port": "label", "device": "name", "volume": "name", "action": "name",
    "secret": "name", "target": "value",
}  # fmt: skip
_OWN_WORDS = {
    "env", "meta", "canary_meta", "config", "header", "options", "headers", "tagged_addresses", "policy",
    "args",
}  # fmt: skip
_MAY_BE_EMPTY = {
    "port", "group", "task", "device", "volume", "service", "check", "env", "vault", "sidecar_service",
    "transparent_proxy", "mesh", "parameterized",
}  # fmt: skip
# The name that nomad/structs/services.go gives to a check that has none, once the job is kept.
_NAMELESS = re.compile(r'service: ".*" check')
_WAITS = {("wait", "min"), ("wait", "max")}
_JOB = {
    "Type", "Priority", "AllAtOnce", "Datacenters", "NodePool", "Constraints", "Affinities", "TaskGroups",
    "Spreads", "Periodic", "ParameterizedJob", "Meta", "UI",
}  # fmt: skip
# What Nomad adds to a job that it keeps.
_NOT_WRITTEN = {
    ("network", "CIDR"),
    ("network", "IP"),
    ("network", "Device"),
    ("service", "Namespace"),
    ("port", "IgnoreCollision"),
    ("periodic", "SpecType"),
    ("resources", "DiskMB"),
    ("identity", "ServiceName"),
    ("scaling", "ID"),
    ("scaling", "Type"),
    ("scaling", "Target"),
    ("scaling", "CreateIndex"),
    ("scaling", "ModifyIndex"),
}
# Zero, or false, says something only where Nomad's default is something else.
_ZERO_COUNTS = {
    "count", "attempts", "interval", "unlimited", "max_parallel", "min_healthy_time", "healthy_deadline",
    "progress_deadline", "delay", "splay", "weight", "kill_timeout", "grace", "stagger", "size", "memory",
    "max_files", "max_file_size", "priority", "percent", "min", "max",
}  # fmt: skip


def tree(job: Json) -> Tree:
    """A job of `/v1/job/ID`, or of `/v1/jobs/parse`, as `vllmjobs.changes.jobspec.read` would give it.

    With Nomad's defaults, and without its region and namespace, by which it was found.
    """
    words = _block({key: value for key, value in job.items() if key in _JOB}, "job")
    for group_name, group in compare.groups(words).items():
        _name_services(group, str(job.get("Name", job["ID"])), group_name, "group")
        for service in below(group, "service").values():
            if isinstance(service, dict):
                _take_back_task(service.get("task"), below(service, "check"))
        for name, task in below(group, "task").items():
            if isinstance(task, dict):
                _name_services(task, str(job.get("Name", job["ID"])), group_name, name)
                _take_back(name, task, group)
    return filled(Jobspec(str(job["ID"]), words))


def job_fields(diff: Json, before: Tree, after: Tree) -> tuple[Field, ...]:
    """What differs outside of the groups; `diff` is a plan's Diff."""
    return _fields(diff, compare.without_groups(before), compare.without_groups(after), of_job=True)


def group_fields(diff: Json | None, before: Tree, after: Tree) -> tuple[Field, ...]:
    """What differs in a group that both jobs have; `diff` is its part of the Diff's TaskGroups."""
    return _fields(diff or {}, before, after)


def _fields(diff: Json, before: Tree, after: Tree, of_job: bool = False) -> tuple[Field, ...]:
    """Where Nomad sees no difference, there is none: it adds to a job what nobody wrote."""
    told = set(_told(diff, ()))
    for task in diff.get("Tasks") or ():
        place = ("task", task["Name"])
        told.update([place] if task["Type"] in ("Added", "Deleted") else _told(task, place))
    both = below(before, "task").keys() & below(after, "task").keys()
    return tuple(
        field
        for field in compare.fields(before, after, of_job)
        if _is_unseen(field.path, both) or _is_told(field.path, told)
    )


def _name_services(said: Tree, job: str, group: str, task: str) -> None:
    """`${BASE}` in a service's name, as Nomad puts it in (nomad/structs/services.go Canonicalize)."""
    known = {"JOB": job, "TASKGROUP": group, "TASK": task, "BASE": f"{job}-{group}-{task}"}
    if "service" not in said:
        return
    services: Tree = {}
    for place, service in below(said, "service").items():
        name = re.sub(r"\$\{(\w+)\}", lambda found: known.get(found[1], found[0]), place)
        services[name] = {**service, "name": name} if isinstance(service, dict) and name != place else service
    said["service"] = services


def _take_back(name: str, task: Tree, group: Tree) -> None:
    """Take out what Nomad has put into a task: the group's `restart`, and its name into its services."""
    if task.get("restart") == group.get("restart"):
        task.pop("restart", None)
    _take_back_task(name, below(task, "service"))
    for service in below(task, "service").values():
        _take_back_task(name, below(service, "check"))


def _take_back_task(name: Item, named: Tree) -> None:
    """Where services, or the checks of one, say that they are of this task."""
    for said in named.values():
        if isinstance(said, dict) and name is not None and said.get("task") == name:
            del said["task"]


def _told(diff: Json, place: Path) -> Iterator[Path]:
    """Where a job, a group or a task differs; of constraints, in which."""
    for one in (*(diff.get("Fields") or ()), *(diff.get("Objects") or ())):
        if one["Type"] != "None":
            said = {field["Name"]: field["New"] or field["Old"] for field in one.get("Fields") or ()}
            which = [said.get("LTarget") or said["Operand"]] if one["Name"] == "Constraint" else []
            yield (*place, _word(one["Name"].partition("[")[0]), *which)
            if any(part["Name"] == "Identity" for part in one.get("Objects") or ()):
                yield (*place, "service", "identity")


def _is_told(path: Path, told: Set[Path]) -> bool:
    """A service whose identity is not told has the one that the servers' configuration gives to all
    (nomad/job_endpoint_hook_implicit_identities.go)."""  # fmt: skip
    at = 2 if path[0] == "task" else 0
    if (path[at : at + 1], path[at + 2 : at + 3]) == (("service",), ("identity",)):
        return (*path[: at + 1], "identity") in told
    return any(_unnumbered(path)[:length] in told for length in range(1, 5))


def _is_unseen(path: Path, both: Set[str]) -> bool:
    """What nomad/structs/diff.go does not compare; `both` are the tasks of both sides. A task of one alone
    that is not told is Nomad's: the proxy of a Connect service."""  # fmt: skip
    return path[0] == "spread" or (
        path[2:3] in (("lifecycle",), ("restart",), ("scaling",), ("csi_plugin",)) and path[1] in both
    )


def _unnumbered(path: Path) -> Path:
    """Without the number that a second constraint of the same attribute has."""
    return tuple(re.sub(r"#\d+$", "", word) for word in path)


def _block(said: Json, kind: str) -> Tree:
    tree: Tree = {}
    for key, value in said.items():
        word = _IN.get((kind, key)) or _word(key)
        if (
            (kind, key) in _NOT_WRITTEN
            or (word, value) == ("host_network", "default")
            or word == _LABELS.get(kind)
        ):
            continue
        if word in _OWN_WORDS and isinstance(value, dict):
            tree[word] = _own(value)
        elif word == "volume" and isinstance(value, dict):
            tree[word] = {name: _block(volume, word) for name, volume in value.items()}
        elif word == "identity" and isinstance(value, dict):
            put(tree, [word, "default"], _identity(value))
        elif isinstance(value, dict):
            tree[word] = _block(value, word)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                inner = _block(item, word)
                put(tree, [word, *_name(word, item, inner)], inner)
        elif value or value is False or (value == 0 and word in _ZERO_COUNTS):
            tree[word] = _duration(value) if (word in DURATIONS or (kind, word) in _WAITS) else value
    return {word: item for word, item in tree.items() if item not in ([], {}) or word in _MAY_BE_EMPTY}


def _name(kind: str, said: Json, inner: Tree) -> list[str]:
    """What stands behind the kind of a block: its label, or what tells it from others."""
    if kind in _LABELS:
        return [str(said[key]) for key in said if _word(key) == _LABELS[kind]]
    if kind == "check" and _NAMELESS.fullmatch(str(inner.get("name", ""))):
        del inner["name"]
    return [str(inner[key]) for key in NAMED_BY.get(kind, ()) if key in inner][:1] or (
        ["default"] if kind in NAMED_BY else []
    )


def _identity(said: Json) -> Tree:
    """The only one of a service, or a task's own, which Nomad names."""
    return {word: value for word, value in _block(said, "identity").items() if word != "name"}


def _own(said: Json) -> Tree:
    """What a person or a driver names: `env`, `meta`, `config`, whose blocks are lists of maps."""
    tree: Tree = {}
    for word, value in said.items():
        if isinstance(value, dict):
            tree[word] = _own(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                inner = _own(item)
                put(tree, [word, *_name(word, item, inner)], inner)
        else:
            tree[word] = _whole(value)
    return tree


def _whole(value: Any) -> Any:
    """1 for 1.0: what a driver reads, Nomad keeps as floating point numbers once the job runs."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {word: _whole(item) for word, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _duration(nanoseconds: int) -> str:
    milliseconds = nanoseconds // 10**6
    return f"{milliseconds}ms" if milliseconds % 1000 else duration(milliseconds / 1000)


@cache
def _word(name: str) -> str:
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name))
    return WORDS.get(name) or words.lower()
