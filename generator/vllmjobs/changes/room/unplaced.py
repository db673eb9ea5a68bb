"""Why allocations cannot be placed, in words that a person acts on.

The scheduler says it in numbers, by its own texts: AllocMetric in nomad/structs/alloc.go; the texts are those
of scheduler/feasible/feasible.go (nodes filtered out) and rank.go (nodes with no room left).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllmjobs.changes.model import Unplaced, Updates
from vllmjobs.changes.room.fleet import FENCE, Node, fenced, fitting, in_datacenter, in_pool, serving
from vllmjobs.changes.room.shortage import (
    GpuRequest,
    Shortage,
    eligible_again,
    is_fenced,
    joined,
    requested,
    unfenced,
)

Json = Mapping[str, Any]
_NO_NODES = "the ACL capability node:read would tell more"
_CLASS = "computed class ineligible"
# Constraints that Nomad adds by itself: nomad/job_endpoint_hooks.go.
_IMPLIED = {
    "attr.consul.": (
        "run no Consul agent of 1.8 or newer",
        "let a Consul agent run beside Nomad on each node",
    ),
    "attr.vault.": ("reach no Vault", "set up Vault in the configuration of the nodes"),
    "attr.os.signals": ("cannot send the signals that the job names", ""),
    "attr.nomad.service_discovery": ("offer no service discovery of Nomad's own", ""),
    "attr.nomad.": ("run too old a Nomad", "upgrade Nomad on the nodes"),
    "attr.plugins.cni.": ("lack a CNI plugin of the job's network", "install the CNI plugins on the nodes"),
}
_FILTERED = {
    "missing compatible host volumes": ("lack its host volume", "set cache.volume to one that they have"),
    "missing network": ("lack the network mode that it asks for", ""),
    "distinct_hosts": ("run an instance already, and distinct_hosts allows one per node", ""),
    "missing secrets provider": ("lack its secrets provider", ""),
}
# What an environment calls it, where in a node's resources it is, and its unit.
_DIMENSIONS = {"memory": "MiB", "cpu": "MHz", "disk": "MiB"}


def unplaced(
    name: str,
    job: Json,
    group: Json,
    updates: Updates,
    failed: Mapping[str, Json],
    count_before: int | None,
    nodes: Sequence[Node] | None,
) -> Unplaced:
    """What the scheduler's metric of a failed placement says.

    `name` is the job's for `render --job`; `job` and `group` are as `/v1/jobs/parse` gives them,
    canonicalized; `failed` is FailedTGAllocs, the group's own among them; `nodes` is None where they may not
    be read.

    Once one allocation of a group has found no room, the scheduler tries no other of it, and counts them as
    CoalescedFailures (scheduler/generic_sched.go computePlacements); so they all count as failed.
    """
    metric = failed[group["Name"]]
    wanted = updates.canary + updates.place + updates.destructive_update + updates.migrate
    without = (metric.get("CoalescedFailures") or 0) + 1
    if job.get("Type") in ("system", "sysbatch"):  # which counts only nodes with room for it
        wanted += without
    case = _Case(name, job, group, updates, failed, count_before, nodes, max(wanted, without), without)
    why, way_out = case.told()
    return Unplaced(
        wanted=case.wanted,
        failed=without,
        canaries=bool(updates.canary),
        why=tuple(dict.fromkeys(why)),
        way_out=tuple(dict.fromkeys(one for one in (*way_out, *case.fewer()) if one)),
    )


class _Case:
    """One group that cannot be placed."""

    def __init__(
        self,
        name: str,
        job: Json,
        group: Json,
        updates: Updates,
        failed: Mapping[str, Json],
        count_before: int | None,
        nodes: Sequence[Node] | None,
        wanted: int,
        without: int,
    ) -> None:
        self.keys = "" if name == "vllm" else "balancer."
        self.job, self.group, self.updates = job, group, updates
        self.metric = failed[group["Name"]]
        self.siblings = [metric for name, metric in failed.items() if name != group["Name"]]
        self.count_before = count_before
        self.nodes = nodes
        self.serving = [fenced(job, group, node) for node in serving(job, nodes or ())]
        self.usable = fitting(job, group, self.serving)
        self.wanted, self.failed = wanted, without
        self.each = "canary" if updates.canary else "instance"

    def told(self) -> tuple[list[str], list[str]]:
        """What stands in the way, and what may be done."""
        pairs: list[tuple[str, str]] = []
        if not self.metric.get("NodesEvaluated"):
            pairs += self._no_nodes()
        if quota := self.metric.get("QuotaExhausted"):
            pairs.append((f"the namespace's quota is used up: {', '.join(quota)}", "raise the quota"))
        filtered = dict(self.metric.get("ConstraintFiltered") or {})
        exhausted = dict(self.metric.get("DimensionExhausted") or {})
        gpu_texts = [
            text for text in (*filtered, *exhausted) if text.startswith(("missing devices", "devices: "))
        ]
        rest = {text: number for text, number in filtered.items() if text not in gpu_texts}
        others = sum(rest.values())
        why, way_out = self._gpus(gpu_texts, filtered, exhausted, others) if gpu_texts else ([], [])
        off = [node for node in self.usable if node.refuses == "fenced"]
        # A fenced node is a class of its own, and told by its text only to the first that looks at it.
        seen_before = max(0, rest.pop(_CLASS, 0) - (0 if any(map(_is_fence, rest)) else len(off)))
        if off:
            rest = {text: number for text, number in rest.items() if not _is_fence(text)}
            pairs += [(is_fenced(node), unfenced(node)) for node in off if not gpu_texts]
        if seen_before and len(rest) == 1:
            rest = {text: number + seen_before for text, number in rest.items()}
        elif seen_before and not gpu_texts:
            rest |= dict.fromkeys(self._of_siblings(), seen_before)
            if not rest:
                are = "is" if seen_before == 1 else "are"
                pairs.append(
                    (f"{_nodes(seen_before)} {are} ruled out by a constraint, a driver or a device", "")
                )
        pairs += [self._filtered(text, number) for text, number in _by_number(rest)]
        only = not (why or pairs or rest)
        pairs += [
            self._exhausted(text, number, only and len(exhausted) == 1)
            for text, number in _by_number(exhausted)
            if text not in gpu_texts
        ]
        why += [reason for reason, _ in pairs]
        way_out += [way for _, way in pairs]
        if self.nodes is None:
            why.append(_NO_NODES)
        return why, way_out

    def fewer(self) -> Iterator[str]:
        """What makes do with those for which there is room."""
        updates, fit = self.updates, self.wanted - self.failed
        if updates.canary == self.wanted and fit:
            blue_green = updates.canary == self.group.get("Count") and updates.canary > 1
            strategy = ", with rollout.strategy: canary" if blue_green else ""
            yield f"set rollout.canaries: {fit}{strategy}"
        elif updates.place == self.wanted and self.job.get("Type") == "service":
            count = self.group.get("Count") or 0
            less, before = count - self.failed, self.count_before
            if less > 0 and (before in (None, count) or less > before):
                yield f"set {'balancer.count' if self.keys else 'replicas'}: {less}"

    def _no_nodes(self) -> Iterator[tuple[str, str]]:
        """No node takes allocations in the job's node pool and datacenters."""
        pool = self.job.get("NodePool") or "default"
        centers = joined(self.job.get("Datacenters") or ["*"], "or")
        key = "balancer." if self.keys else "nomad."
        if self.nodes is None:
            yield f"no node takes allocations in node pool {pool}, datacenter {centers}", ""
            return
        mine = in_pool(self.job, self.nodes)
        if not mine:
            pools = Counter(node.pool for node in self.nodes)
            there = f", there is {_numbered(pools)}" if pools else ""
            way = f"set {key}node_pool: {pools.most_common(1)[0][0]}" if pools else ""
            yield f"no node is in node pool {pool}{there}", way
        elif not any(in_datacenter(self.job, node) for node in mine):
            known = Counter(node.datacenter for node in mine)
            yield (
                f"no node is in datacenter {centers}, there is {_numbered(known)}",
                f"set nomad.datacenters: [{', '.join(sorted(known))}]",
            )
        for node in self.serving:
            if node.refuses:
                mend = eligible_again(node) if node.refuses in ("ineligible", "draining") else ""
                yield f"{node.name} is {node.refuses}", mend

    def _gpus(
        self, texts: Sequence[str], filtered: Mapping[str, int], exhausted: Mapping[str, int], ruled_out: int
    ) -> tuple[list[str], list[str]]:
        request = requested(self.group)
        if request is None:
            return [f"{_nodes(sum(filtered.values()))} lack a device that it asks for"], []
        if self.nodes is None:
            asked = f"{request}" if request.count == 1 else f"{request.count} of {request}"
            lacking = sum(filtered.get(text, 0) for text in texts)
            busy = sum(exhausted.get(text, 0) for text in texts)
            why = [f"{_nodes(lacking)} {_verb(lacking, 'lack')} {asked}"] if lacking else []
            return why + ([f"{_nodes(busy)} {_have(busy)} too few free for {asked}"] if busy else []), []
        return self._shortage(request, ruled_out).told()

    def _shortage(self, request: GpuRequest, ruled_out: int = 0) -> Shortage:
        return Shortage(
            request,
            self.usable,
            [node for node in self.nodes or () if node not in self.serving],
            self.job["ID"],
            self.group["Name"],
            self.group.get("Count") or 0,
            self.wanted,
            self.each,
            replaces=bool(self.updates.destructive_update),
            exact=self._are_those(ruled_out),
        )

    def _are_those(self, ruled_out: int = 0) -> bool:
        """Whether the nodes that seem to be usable are those that the scheduler has looked at."""
        evaluated = (self.metric.get("NodesEvaluated") or 0) - ruled_out
        return evaluated == sum(not node.refuses for node in self.usable)

    def _filtered(self, text: str, number: int) -> tuple[str, str]:
        nodes = _nodes(number)
        if text == "missing drivers":
            return self._drivers(nodes, number)
        if text in _FILTERED:
            said, way = _FILTERED[text]
            return f"{nodes} {_verb(number, said)}", way
        if _is_fence(text):
            are = "is" if number == 1 else "are"
            return f"{nodes} {are} fenced, since a GPU is broken", "see docs/runbooks/gpu-fenced.md"
        for attribute, (said, way) in _IMPLIED.items():
            if text.startswith("${" + attribute) and not self._owner(text):
                return f"{nodes} {_verb(number, said)} ({text})", way
        if owner := self._owner(text):
            does = "does" if number == 1 else "do"
            return f"{nodes} {does} not meet {text}", f"change that constraint in {owner}"
        if text.startswith("distinct_property"):
            return f"{nodes} would break {text}", "change that constraint"
        return f"{nodes} cannot be used: {text}", ""

    def _owner(self, text: str) -> str | None:
        """The key under which an environment holds a constraint, which Nomad tells as `L operand R`."""
        for spec, key in ((self.job, "nomad.constraints"), (self.group, "placement.constraints")):
            for rule in spec.get("Constraints") or ():
                if text == f"{rule['LTarget']} {rule['Operand']} {rule['RTarget']}":
                    is_balancer = self.keys and spec is self.job
                    return "balancer.placement.constraints" if is_balancer else key
        return None

    def _of_siblings(self) -> list[str]:
        """What was told of another group only, since it holds for the whole job."""
        texts = [text for metric in self.siblings for text in metric.get("ConstraintFiltered") or ()]
        return [text for text in texts if (self._owner(text) or "").startswith(("nomad.", "balancer."))]

    def _drivers(self, nodes: str, number: int) -> tuple[str, str]:
        asked = {task["Driver"] for task in self.group["Tasks"]}
        there = sorted({driver for node in self.serving for driver in node.drivers - asked})
        said = f"{nodes} {_have(number)} no healthy driver {joined(sorted(asked), 'or')}"
        if not there:
            return said, ""
        return f"{said}, they have {joined(there)}", f"set {self.keys}driver: {there[0]}"

    def _exhausted(self, text: str, number: int, only: bool) -> tuple[str, str]:
        nodes = _nodes(number)
        if text in _DIMENSIONS:
            return self._dimension(text, number, only)
        if port := re.search(r"port collision (?P<label>\S+)=(?P<port>\d+)", text):
            taken = int(port["port"])
            by = sorted({node.ports[taken] for node in self.serving if taken in node.ports})
            said = f"port {taken} ({port['label']}) is taken on {nodes}"
            free = (
                "balancer.port to a free one" if self.keys else "ports.static to a free port, or leave it out"
            )
            return said + (f", by {joined(by)}" if by else ""), f"set {free}"
        if text == "cores":
            return f"{nodes} {_have(number)} too few cores free", "lower resources.cores"
        return f"{nodes} {_have(number)} no room: {text}", ""

    def _dimension(self, what: str, number: int, only: bool) -> tuple[str, str]:
        unit, need = _DIMENSIONS[what], self._need(what)
        said = (
            f"{_nodes(number)} {_have(number)} too little {what} free, each {self.each} needs {need} {unit}"
        )
        key = f"{self.keys}{what}" if self.keys else f"resources.{what}"
        nodes = [node for node in self.usable if not node.refuses]
        free = [node.free[what] for node in nodes if node.free is not None]
        if not free or not only or not self._are_those():
            return said, f"lower {key}"
        size = self._largest(what, need, nodes)
        said += f", and {max(free)} {unit} are free at most on one node"
        return said, f"lower {key} to {size} {unit}" if size else f"lower {key}"

    def _largest(self, what: str, need: int, nodes: Sequence[Node]) -> int:
        """The most that each may ask for so that all are placed; 0 where there is no such amount."""
        request = requested(self.group)
        limits = {node.id: self._shortage(request).slots(node) if request else self.wanted for node in nodes}
        free = {node.id: node.free[what] for node in nodes if node.free is not None}
        sizes = {amount // share for amount in free.values() for share in range(1, self.wanted + 1)}
        enough = (
            size
            for size in sizes
            if 0 < size < need and sum(min(free[id] // size, limits[id]) for id in free) >= self.wanted
        )
        return max(enough, default=0)

    def _need(self, what: str) -> int:
        if what == "disk":
            return int((self.group.get("EphemeralDisk") or {}).get("SizeMB") or 0)
        key = {"memory": "MemoryMB", "cpu": "CPU"}[what]
        return sum(int((task.get("Resources") or {}).get(key) or 0) for task in self.group["Tasks"])


def _is_fence(text: str) -> bool:
    return text.split() == [*FENCE]


def _by_number(texts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(texts.items(), key=lambda item: (-item[1], item[0]))


def _numbered(known: Mapping[str, int]) -> str:
    return joined([f"{name} ({_nodes(number)})" for name, number in sorted(known.items())])


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _verb(number: int, said: str) -> str:
    """`lack it` of several, `lacks it` of one."""
    word, _, rest = said.partition(" ")
    ends = "es" if word.endswith("ch") else "" if word == "cannot" else "s"
    return f"{word}{ends} {rest}" if number == 1 else said
