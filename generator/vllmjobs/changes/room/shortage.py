"""Shortages: of GPUs, from the cards of the cluster, and of what else is full on nodes; with remedies.

The scheduler's texts of what is full are those of scheduler/feasible/rank.go in Nomad.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from vllmjobs.changes.model import Amount, Holder, Reason, Remedy, Setting
from vllmjobs.changes.room.fleet import Node
from vllmjobs.changes.room.gpu_request import GpuRequest, meets, requested
from vllmjobs.changes.room.placement import FailedPlacement
from vllmjobs.changes.room.ruled_out import Explanation, amounts, lift_fence, make_eligible
from vllmjobs.gpus.cards import Card

# An environment's word for it, which is also the key in `Node.free`, and its unit.
_UNITS = {"memory": "MiB", "cpu": "MHz", "disk": "MiB"}
_EARLY = ("mend-gpus", "make-eligible")
_ELSEWHERE = 3  # nodes with such GPUs that the job may not run on


@dataclass(frozen=True, slots=True)
class Shortage:
    """GPUs that a failed placement asks for, held against the nodes that it may use."""

    placement: FailedPlacement
    request: GpuRequest
    ruled_out: int = 0  # nodes that the scheduler ruled out for something else than GPUs

    def explain(self) -> Explanation:
        """Yield what stands in the way, and what may be done."""
        if not any(node.cards for node in self._nodes):
            yield from self._no_gpus()
        elif not any(self._matching(node) for node in self._nodes):
            yield from self._none_matches()
        else:
            nodes = [*self._refusing(), *self._broken()]
            # A GPU to mend and a node to enable are less work than to free GPUs; a fence comes last.
            early = [each for each in reversed(nodes) if isinstance(each, Remedy) and each.kind in _EARLY]
            yield from early
            yield from self._too_few()
            yield from (each for each in nodes if each not in early)

    def slots(self, node: Node) -> int:
        """Return how many allocations the free GPUs of a node are enough for."""
        return len(self._free(node)) // self.request.count

    @property
    def _nodes(self) -> list[Node]:
        return self.placement.usable

    @property
    def _open_nodes(self) -> list[Node]:
        return [node for node in self._nodes if not node.refuses]

    def _no_gpus(self) -> Explanation:
        yield Reason(kind="no-gpus", resource=self.request.name)
        others = [node for node in self.placement.nodes or () if node not in self.placement.serving]
        elsewhere = [node for node in others if self._well(node)]
        for node in elsewhere[:_ELSEWHERE]:
            yield Reason(
                kind="gpus-elsewhere",
                resource=self.request.name,
                node=node.name,
                node_pool=node.pool,
                datacenters=(node.datacenter,),
                largest=len(self._well(node)),
            )
        if elsewhere:
            yield Remedy(kind="move", node_pool=elsewhere[0].pool, datacenter=elsewhere[0].datacenter)
        else:
            yield Remedy(kind="check-device-plugin", command="vllmjobs gpus --nomad")

    def _none_matches(self) -> Explanation:
        request = self.request
        cards = [card for node in self._nodes for card in node.cards]
        named = [card for card in cards if request.names(card)]
        if not named:
            yield Reason(kind="gpu-model", resource=request.model, counts=_models(cards))
            if good := _models([card for card in cards if request.meets_constraints(card)]):
                yield Remedy(kind="set", settings=(Setting(key="gpus.model", value=good[0].name),))
            return
        unmet = [rule for rule in request.constraints if not any(meets(card, rule) for card in named)]
        if len(unmet) == 1 and request.is_of_memory(unmet[0]):
            most = max(card.memory_mib or 0 for card in named)
            yield Reason(kind="gpu-memory", resource=str(request), unit="MiB", largest=most)
            yield Remedy(kind="set", settings=(Setting(key="gpus.memory", value=f"{most // 1024} GiB"),))
        else:
            yield Reason(kind="gpu-constraints", resource=str(request))
            yield Remedy(kind="change", settings=(Setting(key="gpus.constraints"),))

    def _too_few(self) -> Explanation:
        need = self.request.count
        nodes = [node for node in self._nodes if self._matching(node)]
        reason = Reason(kind="gpus", nodes=len(nodes), resource=str(self.request), needed=need)
        if any(card.holders is None for node in nodes for card in node.cards):
            yield reason
            return
        free = [len(self._free(node)) for node in self._open_nodes]
        most, largest = max(free, default=0), max(len(self._well(node)) for node in nodes)
        yield replace(reason, free=sum(free), most_free=most, largest=largest, holders=self._holders())
        if 0 < largest < need:
            yield Remedy(kind="lower", settings=(Setting(key="gpus.count", value=str(largest)),))
        elif largest >= need and self.placement.is_exact(self.ruled_out):
            yield from self._freeing()
            if self.placement.updates.canary and self._could_roll():
                yield Remedy(kind="set", settings=(Setting(key="rollout.strategy", value="rolling"),))

    def _refusing(self) -> Explanation:
        for node in self._nodes:
            if node.refuses in ("ineligible", "draining") and self.slots(node):
                yield Reason(kind="node-state", node=node.name, text=node.refuses, free=len(self._free(node)))
                yield make_eligible(node)
            elif node.refuses == "fenced" and self.slots(node):
                yield Reason(kind="node-fenced", node=node.name, text=node.fence)
                yield lift_fence(node)
            elif node.refuses and len(self._matching(node)) >= self.request.count:
                yield Reason(kind="node-state", node=node.name, text=node.refuses)

    def _broken(self) -> Explanation:
        for node in self._open_nodes:
            faults = Counter(card.health_reason for card in self._matching(node) if not _is_well(card))
            if not faults:
                continue
            asked, counts = str(self.request), amounts(faults)
            yield Reason(kind="gpus-unhealthy", node=node.name, resource=asked, counts=counts)
            if len(self._free(node)) % self.request.count + faults.total() >= self.request.count:
                yield Remedy(kind="mend-gpus", gpus=(Amount(name=node.name, count=faults.total()),))

    def _freeing(self) -> Iterator[Remedy]:
        """Yield the fewest GPUs of other jobs that would have to be free."""
        need, wanted = self.request.count, self.placement.wanted
        steps: list[tuple[int, str]] = []  # GPUs that one more allocation on a node costs
        for node in self._open_nodes:
            # A destructive update takes the place of an instance that holds GPUs now.
            own = sum(1 for card in self._well(node) if self._is_own(card))
            replaced = own if self.placement.updates.destructive_update else 0
            free = len(self._free(node)) + replaced
            others = sum(1 for card in self._well(node) if card.holders and not self._is_own(card))
            for slot in range(1, (free + others) // need + 1):
                steps.append((max(0, slot * need - free) - max(0, (slot - 1) * need - free), node.name))
        taken = sorted(steps)[:wanted]
        missing = [(cost, name) for cost, name in taken if cost]
        if len(taken) < wanted or not missing:
            return
        if len(missing) == 1:
            ((cost, _),) = missing
            anywhere = {name: cost for other, name in steps if other == cost}
            yield Remedy(kind="free-gpus-on-any", gpus=amounts(anywhere))
            return
        costs: Counter[str] = Counter()
        for cost, name in missing:
            costs[name] += cost
        yield Remedy(kind="free-gpus", gpus=amounts(costs))

    def _could_roll(self) -> bool:
        """Tell whether an instance that is stopped leaves room for a new one, until all of them are new."""
        placement = self.placement
        group = f"{placement.job['ID']}/{placement.group['Name']}"
        room, starts = 0, False
        for node in self._open_nodes:
            held = Counter(
                holder.allocation
                for card in self._well(node)
                for holder in card.holders or ()
                if holder.name.rpartition("[")[0] == group
            )
            free = len(self._free(node))
            room += (free + held.total()) // self.request.count
            starts = starts or any(number + free >= self.request.count for number in held.values())
        return starts and room >= (placement.group.get("Count") or 0)

    def _holders(self) -> tuple[Holder, ...]:
        """Return the jobs that hold such GPUs, the largest first."""
        held = Counter(
            holder.name.rpartition("/")[0]
            for node in self._open_nodes
            for card in self._well(node)
            for holder in card.holders or ()
        )
        ours = self.placement.job["ID"]
        return tuple(
            Holder(job=job, count=count, own=job == ours)
            for job, count in sorted(held.items(), key=lambda item: (-item[1], item[0]))
        )

    def _matching(self, node: Node) -> list[Card]:
        return [card for card in node.cards if self.request.matches(card)]

    def _well(self, node: Node) -> list[Card]:
        return [card for card in self._matching(node) if _is_well(card)]

    def _free(self, node: Node) -> list[Card]:
        return [card for card in self._well(node) if not card.holders]

    def _is_own(self, card: Card) -> bool:
        ours = self.placement.job["ID"]
        return any(holder.name.rpartition("/")[0] == ours for holder in card.holders or ())


def _models(cards: list[Card]) -> tuple[Amount, ...]:
    """Return the models of cards, the most frequent first."""
    models = Counter(str(card.model) for card in cards).most_common()
    return tuple(Amount(name=model, count=count) for model, count in models)


def _is_well(card: Card) -> bool:
    return card.health in ("ok", "degraded")


def full(placement: FailedPlacement, nodes_by_text: Mapping[str, int], is_all: bool) -> Explanation:
    """Yield why nodes are full, from DimensionExhausted, less what it says of GPUs.

    `is_all` tells that this is all that stands in the way.
    """
    for text, nodes in sorted(nodes_by_text.items(), key=lambda item: (-item[1], item[0])):
        if text in _UNITS:
            yield from _resource(placement, text, nodes, is_all)
        elif port := re.search(r"port collision (?P<label>\S+)=(?P<port>\d+)", text):
            yield from _port(placement, port["label"], int(port["port"]), nodes)
        elif text == "cores":
            yield Reason(kind="cores", nodes=nodes)
            yield Remedy(kind="lower", settings=(Setting(key="resources.cores"),))
        else:
            yield Reason(kind="full", nodes=nodes, text=text)


def _port(placement: FailedPlacement, label: str, port: int, nodes: int) -> Explanation:
    jobs = [node.ports[port] for node in placement.serving if port in node.ports]
    holders = tuple(
        Holder(job=job, count=jobs.count(job), own=job == placement.job["ID"]) for job in sorted(set(jobs))
    )
    yield Reason(kind="port", resource=label, port=port, nodes=nodes, holders=holders)
    key = placement.key("balancer.port", "ports.static")
    yield Remedy(kind="set", settings=(Setting(key=key),))


def _resource(placement: FailedPlacement, resource: str, count: int, is_all: bool) -> Explanation:
    unit = _UNITS[resource]
    if resource == "disk":
        need = int((placement.group.get("EphemeralDisk") or {}).get("SizeMB") or 0)
    else:
        word = {"memory": "MemoryMB", "cpu": "CPU"}[resource]
        need = sum(int((task.get("Resources") or {}).get(word) or 0) for task in placement.group["Tasks"])
    key = placement.key(f"balancer.{resource}", f"resources.{resource}")
    nodes = [node for node in placement.usable if not node.refuses]
    free = [node.free[resource] for node in nodes if node.free is not None]
    most = max(free) if free and is_all and placement.is_exact() else None
    yield Reason(kind="resource", nodes=count, resource=resource, unit=unit, needed=need, most_free=most)
    size = 0 if most is None else _largest(placement, resource, need, nodes)
    yield Remedy(kind="lower", settings=(Setting(key=key, value=f"{size} {unit}" if size else None),))


def _largest(placement: FailedPlacement, resource: str, need: int, nodes: Sequence[Node]) -> int:
    """Return the most that each may ask for so that all are placed; 0 where there is no such amount."""
    request, wanted = requested(placement.group), placement.wanted
    limits = {node.id: Shortage(placement, request).slots(node) if request else wanted for node in nodes}
    free = {node.id: node.free[resource] for node in nodes if node.free is not None}
    sizes = {amount // share for amount in free.values() for share in range(1, wanted + 1)}
    enough = (
        size
        for size in sizes
        if 0 < size < need and sum(min(free[id] // size, limits[id]) for id in free) >= wanted
    )
    return max(enough, default=0)
