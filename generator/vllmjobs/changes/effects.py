"""The effects of a change on a group's allocations: updated in place, or replaced by others.

`tasksUpdated` in scheduler/util.go of Nomad 1.11 compares what is listed here; for anything else that differs
it changes the allocation where it is, if its node still fits. The scheduler itself judges the list in
`tests/cluster/test_diff_effects.py`.
"""

from msgspec.structs import replace

from vllmjobs.changes.jobs.tree import Item, Tree, below, number
from vllmjobs.changes.model import Field, GroupAction

_GROUP = {"ephemeral_disk", "volume", "meta", "vault"}
_NETWORK = {"mode", "mbits", "hostname", "dns", "cni", "port"}
_PORT = {"static", "to", "host_network"}
_TASK = {
    "driver", "user", "config", "env", "artifact", "vault", "secret", "template", "csi_plugin",
    "volume_mount", "meta", "identity",
}  # fmt: skip
_RESOURCES = {"cpu", "cores", "memory", "memory_max", "device", "numa", "secrets", "network"}
# Of the job as a whole. Meta is handed down to every task; who can tell what uses var and local?
_JOB = {"meta", "vault", "var", "local"}
# Where an allocation may run. Nomad looks whether the node that it is on still will do (`inplaceUpdate`).
_PLACES = {"datacenters", "node_pool", "constraint"}


def replaces(path: tuple[str, ...], of_job: bool = False, is_whole: bool = False) -> bool:
    """Tell whether a difference at this place makes Nomad replace allocations.

    `path` is in the jobspec's words, from below the group, or with `of_job` from below the job. `is_whole`
    tells that nothing stands there on one side.
    """
    match path:
        case (first, *_) if of_job:
            return first in _JOB
        case ("task", _, *rest):
            return _replaces_task(tuple(rest), is_whole)
        case ("network", "port", _, *rest):
            return not rest or rest[0] in _PORT
        case ("network", *rest):
            return not rest or rest[0] in _NETWORK
        case ("consul", word, *_):
            return _replaces_consul(word, is_whole)
        case ("restart", "render_templates"):
            return True
        case ("service", _, "connect", "sidecar_service", ("tags" | "proxy"), *_):
            return False  # a registration in Consul changes them
        case ("service", _, "connect", *_):
            return True
        case (first, *_):
            return first in _GROUP
    return False


def _replaces_task(path: tuple[str, ...], is_whole: bool) -> bool:
    """Tell the same of a path from below the task, which is empty for a task that comes or goes whole."""
    match path:
        case ("resources", word, *_):
            return word in _RESOURCES
        case ("consul", word, *_):
            return _replaces_consul(word, is_whole)
        case ("restart", "render_templates") | ("logs", "disabled"):
            return True
        case (first, *_):
            return first in _TASK
    return True


def _replaces_consul(word: str, is_whole: bool) -> bool:
    """Tell the same of a word of `consul`; of a block that comes or goes, the namespace (`consulUpdated`)."""
    return word == "namespace" or (word in ("cluster", "partition") and not is_whole)


def relocating_words(before: Tree, after: Tree) -> set[str]:
    """Return the words of the job that send every instance to another node.

    A node is in one pool and one datacenter. An instance may stay where one side is the pool `all`, or a
    datacenter may be any (scheduler/util.go inplaceUpdate).
    """
    relocating: set[str] = set()
    pools = {str(before.get("node_pool")), str(after.get("node_pool"))}
    if len(pools) > 1 and "all" not in pools:
        relocating.add("node_pool")
    listed = (tree.get("datacenters") for tree in (before, after))
    old, new = (set(map(str, names if isinstance(names, list) else [names])) for names in listed)
    if old.isdisjoint(new) and not any("*" in name for name in old | new):
        relocating.add("datacenters")
    return relocating


def is_placement(path: tuple[str, ...]) -> bool:
    """Tell whether the difference is in where allocations may run."""
    return path[0] in _PLACES or (path[0] == "task" and path[2:3] == ("constraint",))


def actions(
    count_before: int | None, count_after: int | None, fields: tuple[Field, ...], job: tuple[Field, ...]
) -> tuple[GroupAction, ...]:
    """Return what Nomad does with a group that both have; `job` are the differences of the job as a whole."""
    done: list[GroupAction] = []
    if any(field.replaces for field in (*fields, *job)):
        if count_before != 0:
            done.append("destructive")
    elif job or any(field.path != ("count",) for field in fields):
        done.append("in-place")
    return (*done, *scaled(count_before, count_after))


def scaled(before: int | None, after: int | None) -> tuple[GroupAction, ...]:
    """Return what a changed count does; an unknown count is None."""
    if before is None or after is None or before == after:
        return ()
    return ("scale-up",) if after > before else ("scale-down",)


def without_blame(fields: tuple[Field, ...], done: tuple[GroupAction, ...]) -> tuple[Field, ...]:
    """Return the fields; where nothing is replaced, none of them is the reason for it."""
    if "destructive" in done:
        return fields
    return tuple(replace(field, replaces=False) if field.replaces else field for field in fields)


def canaries(job_type: Item, group: Tree, done: tuple[GroupAction, ...]) -> int:
    """Return how many instances are started beside the old ones before any of these is stopped."""
    update = group.get("update")
    if "destructive" not in done or job_type not in (None, "service") or not isinstance(update, dict):
        return 0
    return number(update.get("canary")) or 0


def gpus(group: Tree | None) -> int | None:
    """Return the GPUs of one instance: devices of type gpu, of whatever vendor and model."""
    if group is None:
        return None
    return sum(
        number(device.get("count", 1)) or 0 if isinstance(device, dict) else 1
        for task in below(group, "task").values()
        for name, device in below(below(task, "resources"), "device").items()
        if "gpu" in name.split("/")
    )
