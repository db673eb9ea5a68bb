"""The nodes of a cluster: what each has, what of it is free, and who holds the rest."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from vllmjobs.gpus import cards
from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.text.json import Json
from vllmjobs.text.states import ENDED

FENCE = (f"${{meta.{FENCE_META}}}", "is_not_set")  # the constraint of jobs that heed it: attribute, operator


class Node(NamedTuple):
    """One client of Nomad. `free` and `total` are of memory, disk (MiB) and cpu (MHz)."""

    id: str
    name: str
    datacenter: str
    pool: str
    kind: str  # the node class
    refuses: str  # why it takes no allocations: ineligible, draining, down, fenced; empty where it does
    fence: str  # the GPU for which a supervisor has fenced it, and why; empty where it is not
    drivers: frozenset[str]  # the healthy ones
    cards: tuple[cards.Card, ...]
    total: dict[str, int]
    free: dict[str, int] | None  # None where no allocation may be read
    ports: dict[int, str]  # ports that are taken, and the jobs that took them


def in_cluster(nodes: Iterable[Json], allocations: Iterable[Json] | None) -> list[Node]:
    """Join `/v1/nodes?resources=true` and `/v1/allocations?resources=true`, sorted by name.

    `allocations` is None where they may not be read.
    """
    running: dict[str, list[Json]] = {}
    for allocation in allocations or ():
        if allocation["ClientStatus"] not in ENDED:
            running.setdefault(allocation["NodeID"], []).append(allocation)
    known = allocations is not None
    values = (_node(node, running.get(node["ID"], []) if known else None) for node in nodes)
    return sorted(values, key=lambda node: (node.name, node.id))


def serving(job: Json, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes of the job's node pool and datacenters, also those that take no allocations."""
    return [node for node in in_pool(job, nodes) if in_datacenter(job, node)]


def fitting(job: Json, group: Json, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that have the group's drivers and meet the constraints of job, group and tasks.

    Only constraints on name, datacenter, node pool and class can be judged; others count as met.
    """
    tasks = group.get("Tasks") or ()
    drivers = {task["Driver"] for task in tasks}
    rules = [rule for spec in (job, group, *tasks) for rule in spec.get("Constraints") or ()]
    return [node for node in nodes if drivers <= node.drivers and all(_meets(node, rule) for rule in rules)]


def fenced(job: Json, group: Json, node: Node) -> Node:
    """Return the node, as one that takes no allocations if it is fenced, and the group heeds that."""
    heeds = any(
        (rule["LTarget"], rule["Operand"]) == FENCE
        for spec in (job, group, *(group.get("Tasks") or ()))
        for rule in spec.get("Constraints") or ()
    )
    return node._replace(refuses="fenced") if heeds and node.fence and not node.refuses else node


def in_pool(job: Json, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes of the job's node pool; `all` holds every node."""
    pool = job.get("NodePool") or "default"
    return [node for node in nodes if pool in (node.pool, "all")]


def in_datacenter(job: Json, node: Node) -> bool:
    """Tell whether a node is in one of the job's datacenters, which may hold `*`."""
    return any(fnmatchcase(node.datacenter, pattern) for pattern in job.get("Datacenters") or ("*",))


def _node(node: Json, running: Sequence[Json] | None) -> Node:
    resources, reserved = node.get("NodeResources") or {}, node.get("ReservedResources") or {}
    names = {"cpu": ("Cpu", "CpuShares"), "memory": ("Memory", "MemoryMB"), "disk": ("Disk", "DiskMB")}
    total = {word: _amount(resources, *path) - _amount(reserved, *path) for word, path in names.items()}
    free = None
    if running is not None:
        used = [_used(allocation.get("AllocatedResources") or {}) for allocation in running]
        free = {word: amount - sum(each[word] for each in used) for word, amount in total.items()}
    return Node(
        id=node["ID"],
        name=node["Name"],
        datacenter=node["Datacenter"],
        pool=node.get("NodePool") or "default",
        kind=node.get("NodeClass") or "",
        refuses=_refuses(node),
        fence=cards.fence(node),
        drivers=frozenset(name for name, driver in (node.get("Drivers") or {}).items() if driver["Healthy"]),
        cards=tuple(cards.in_cluster([node], running)),
        total=total,
        free=free,
        ports={
            port["Value"]: allocation["JobID"]
            for allocation in running or ()
            for port in ((allocation.get("AllocatedResources") or {}).get("Shared") or {}).get("Ports") or ()
        },
    )


def _meets(node: Node, rule: Json) -> bool:
    known = {
        "${node.unique.name}": node.name,
        "${node.unique.id}": node.id,
        "${node.datacenter}": node.datacenter,
        "${node.pool}": node.pool,
        "${node.class}": node.kind,
    }
    actual, wanted = known.get(rule["LTarget"]), rule["RTarget"]
    match rule["Operand"]:
        case "=" | "==" | "is":
            return actual in (None, wanted)
        case "!=" | "not":
            return bool(actual != wanted)
    return True


def _refuses(node: Json) -> str:
    if node["Status"] != "ready":
        return str(node["Status"])
    if node.get("Drain"):
        return "draining"
    return "" if node["SchedulingEligibility"] == "eligible" else "ineligible"


def _used(resources: Json) -> dict[str, int]:
    """Return the most that an allocation uses: of tasks that run in turn, Nomad counts the larger."""
    tasks = (resources.get("Tasks") or {}).values()
    return {
        "cpu": sum(_amount(task, "Cpu", "CpuShares") for task in tasks),
        "memory": sum(_amount(task, "Memory", "MemoryMB") for task in tasks),
        "disk": _amount(resources, "Shared", "DiskMB"),
    }


def _amount(resources: Json, kind: str, name: str) -> int:
    return int((resources.get(kind) or {}).get(name) or 0)
