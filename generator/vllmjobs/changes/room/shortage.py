"""Why there are no GPUs for an allocation, and what may be done: from the cards of the cluster."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllmjobs.changes.room.fleet import Node
from vllmjobs.environment.quantity import size_bytes
from vllmjobs.gpus.cards import FENCE, Card

Json = Mapping[str, Any]
_MEMORY = "${device.attr.memory}"
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "regexp": lambda a, b: re.search(b, a) is not None,
}
_SAME = {"==": "=", "is": "=", "not": "!="}
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """A `device` block of a task that asks for GPUs."""

    name: str
    """`gpu`, `nvidia/gpu` or `nvidia/gpu/MODEL`."""
    count: int
    constraints: tuple[tuple[str, str, str], ...]
    """Attribute, operator, value."""

    @property
    def model(self) -> str | None:
        """The model's name, where one is asked for."""
        return self.name.split("/", 2)[2] if self.name.count("/") > 1 else None

    def __str__(self) -> str:
        said = " and ".join(
            f"{attribute[2:-1].removeprefix('device.').removeprefix('attr.')} {operator} {value}"
            for attribute, operator, value in self.constraints
        )
        return f"{self.name} with {said}" if said else self.name


def requested(group: Json) -> GpuRequest | None:
    """The GPUs of a task group as `/v1/jobs/parse` gives it; of several requests the largest."""
    devices = [
        device
        for task in group["Tasks"]
        for device in (task.get("Resources") or {}).get("Devices") or ()
        if "gpu" in device["Name"].split("/")
    ]
    requests = [
        GpuRequest(
            device["Name"],
            1 if device.get("Count") is None else device["Count"],
            tuple(
                (rule["LTarget"], _SAME.get(rule["Operand"], rule["Operand"]), rule["RTarget"])
                for rule in device.get("Constraints") or ()
            ),
        )
        for device in devices
    ]
    return max(requests, key=lambda request: request.count, default=None)


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is asked of the nodes that serve a job, some of which may take no allocations now."""

    request: GpuRequest
    serving: Sequence[Node]
    others: Sequence[Node]
    """Nodes of other node pools and datacenters."""
    job: str
    group: str
    count: int
    """Instances of the group, when all is done."""
    wanted: int
    """Allocations, those included for which there is room."""
    each: str
    """What an allocation is called: `canary` or `instance`."""
    replaces: bool
    """Whether each is to take the place of one that holds GPUs now."""
    exact: bool
    """Whether nothing else keeps an allocation from these nodes, as far as the scheduler tells."""

    def told(self) -> tuple[list[str], list[str]]:
        """What stands in the way, and what may be done."""
        if not any(node.cards for node in self.serving):
            return self._no_gpus()
        if not any(self._matching(node, healthy=False) for node in self.serving):
            return self._none_matches()
        why, way_out = self._occupied()
        for node in self.serving:
            if node.refuses in ("ineligible", "draining") and self.slots(node):
                why.append(f"{node.name}, where {_gpus(len(self._free(node)))} are free, is {node.refuses}")
                way_out.insert(0, eligible_again(node))
            elif node.refuses == "fenced" and self.slots(node):
                why.append(is_fenced(node))
                way_out.append(unfenced(node))
            elif node.refuses and len(self._matching(node, healthy=False)) >= self.request.count:
                why.append(f"{node.name} is {node.refuses}")
        for node in self._open():
            broken = [card for card in self._matching(node, healthy=False) if not _is_well(card)]
            if broken:
                reasons = ", ".join(sorted({card.health_reason for card in broken}))
                are = "is" if len(broken) == 1 else "are"
                why.append(f"{_gpus(len(broken))} on {node.name} {are} unhealthy ({reasons})")
                if len(self._free(node)) % self.request.count + len(broken) >= self.request.count:
                    way_out.insert(0, f"mend the unhealthy {_gpus(len(broken))[2:]} on {node.name}")
        return why, way_out

    def _no_gpus(self) -> tuple[list[str], list[str]]:
        why = [f"no node that it may run on has {self.request.name}"]
        elsewhere = [node for node in self.others if self._matching(node)]
        if not elsewhere:
            return why, ["look whether the device plugin runs on the nodes: vllmjobs gpus --nomad"]
        why += [f"{node.name} in {_place(node)} has {len(self._matching(node))}" for node in elsewhere[:3]]
        return why, [f"run it in {_place(elsewhere[0])}"]

    def _none_matches(self) -> tuple[list[str], list[str]]:
        """There are GPUs, but others."""
        cards = [card for node in self.serving for card in node.cards]
        named = [card for card in cards if self._is_named(card)]
        rules = self.request.constraints
        if not named:
            models = Counter(str(card.model) for card in cards).most_common(MOST_NAMED)
            there = joined([f"{model} ({number})" for model, number in models])
            good = [str(card.model) for card in cards if all(_meets(card, rule) for rule in rules)]
            way_out = (
                [f"set gpus.model: {Counter(good).most_common(1)[0][0]}, or leave it out"] if good else []
            )
            return [f"no GPU is {self.request.model}: there are {there}"], way_out
        failing = [rule for rule in rules if not any(_meets(card, rule) for card in named)]
        if len(failing) == 1 and failing[0][:2] in ((_MEMORY, ">="), (_MEMORY, ">")):
            most = max(card.memory_mib or 0 for card in named)
            return [
                f"no GPU has so much memory: {self.request} is asked for, and the largest has "
                f"{most / 1024:.1f} GiB"
            ], [f"set gpus.memory: {most // 1024} GiB, or less"]
        return [f"no GPU is {self.request}"], ["change gpus.constraints"]

    def _occupied(self) -> tuple[list[str], list[str]]:
        """There are such GPUs, but too few are free on one node."""
        need = self.request.count
        nodes = [node for node in self.serving if self._matching(node, healthy=False)]
        free = {node.name: len(self._free(node)) for node in self._open()}
        has = "node has" if len(nodes) == 1 else "nodes have"
        most = max(free.values(), default=0)
        spread = f", {most} at most on one node" if most < need <= sum(free.values()) else ""
        ask = f"each {self.each} needs {need}" + (" on one node" if need > 1 else "")
        total = sum(free.values())
        are = "GPU is" if total in (0, 1) else "GPUs are"
        if any(card.holders is None for node in nodes for card in node.cards):
            why = [
                f"{len(nodes)} {has} {self.request}, {ask}; who holds them is not known without "
                "the ACL capability namespace:read-job"
            ]
            return why, []
        why = [f"{len(nodes)} {has} {self.request}, {total or 'no'} {are} free{spread}, {ask}"]
        largest = max(len(self._matching(node)) for node in nodes)
        if largest < need:
            why.append(f"no node has more than {largest}" if largest else "none of them is known to be well")
            return why, [f"lower gpus.count to {largest} or less"] if largest else []
        if holders := self._holders(self._open()):
            why.append(f"{joined(holders)} hold{'s' if len(holders) == 1 else ''} the others")
        return why, list(self._ways())

    def _ways(self) -> Iterator[str]:
        if self.exact and (freeing := self._freeing()):
            yield freeing
        if self.exact and self.each == "canary" and self._could_roll():
            yield "set rollout.strategy: rolling, which stops an old instance before it starts a new one"

    def _freeing(self) -> str | None:
        """The fewest GPUs of other jobs that would have to be free."""
        need = self.request.count
        steps: list[tuple[int, str]] = []
        for node in self._open():
            free = len(self._free(node)) + (self._own(node) if self.replaces else 0)
            others = sum(1 for card in self._matching(node) if card.holders and not self._is_own(card))
            for slot in range(1, (free + others) // need + 1):
                steps.append((max(0, slot * need - free) - max(0, (slot - 1) * need - free), node.name))
        taken = sorted(steps)[: self.wanted]
        if len(taken) < self.wanted or not sum(cost for cost, _ in taken):
            return None
        missing = [(cost, name) for cost, name in taken if cost]
        if len(missing) == 1:
            (cost, _) = missing[0]
            where = sorted({name for other, name in steps if other == cost})[:MOST_NAMED]
            return f"free {_gpus(cost)} on {joined(where, 'or')}"
        amounts: Counter[str] = Counter()
        for cost, name in missing:
            amounts[name] += cost
        return "free " + joined([f"{_gpus(cost)} on {name}" for name, cost in sorted(amounts.items())])

    def slots(self, node: Node) -> int:
        """How many allocations the free GPUs of a node are enough for."""
        return len(self._free(node)) // self.request.count

    def _could_roll(self) -> bool:
        """Whether an instance that is stopped leaves room for a new one, until all of them are new."""
        name, room, starts = f"{self.job}/{self.group}", 0, False
        for node in self._open():
            held = Counter(
                holder.allocation
                for card in self._matching(node)
                for holder in card.holders or ()
                if holder.name.rpartition("[")[0] == name
            )
            free = len(self._free(node))
            room += (free + sum(held.values())) // self.request.count
            starts = starts or any(number + free >= self.request.count for number in held.values())
        return starts and room >= self.count

    def _holders(self, nodes: Sequence[Node]) -> list[str]:
        held = Counter(
            holder.name.rpartition("/")[0]
            for node in nodes
            for card in self._matching(node)
            for holder in card.holders or ()
        )
        first = sorted(held.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
        rest = sum(held.values()) - sum(number for _, number in first)
        said = [f"{'this job' if name == self.job else name} ({number})" for name, number in first]
        return [*said, f"others ({rest})"] if rest else said

    def _open(self) -> list[Node]:
        return [node for node in self.serving if not node.refuses]

    def _matching(self, node: Node, healthy: bool = True) -> list[Card]:
        return [
            card
            for card in node.cards
            if self._is_named(card)
            and all(_meets(card, rule) for rule in self.request.constraints)
            and (not healthy or _is_well(card))
        ]

    def _is_named(self, card: Card) -> bool:
        return self.request.model in (None, card.model)

    def _free(self, node: Node) -> list[Card]:
        return [card for card in self._matching(node) if not card.holders]

    def _own(self, node: Node) -> int:
        return sum(1 for card in self._matching(node) if self._is_own(card))

    def _is_own(self, card: Card) -> bool:
        return any(holder.name.rpartition("/")[0] == self.job for holder in card.holders or ())


def eligible_again(node: Node) -> str:
    """What makes a node take allocations."""
    return f"make {node.name} eligible again: nomad node eligibility -enable {node.id[:8]}"


def is_fenced(node: Node) -> str:
    """Why: the supervisor has said it."""
    return f"{node.name} is fenced: {node.fence}"


def unfenced(node: Node) -> str:
    """What makes a fenced node take allocations; not before its GPU is mended."""
    return (
        f"mend the GPU of {node.name}, and then lift the fence (docs/runbooks/gpu-fenced.md): "
        f"nomad node meta apply -node-id {node.id[:8]} -unset {FENCE}"
    )


def joined(words: Sequence[str], conjunction: str = "and") -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _is_well(card: Card) -> bool:
    return card.health in ("ok", "degraded")


def _gpus(number: int) -> str:
    return f"{number} GPU" if number == 1 else f"{number} GPUs"


def _place(node: Node) -> str:
    return f"node pool {node.pool}, datacenter {node.datacenter}"


def _meets(card: Card, rule: tuple[str, str, str]) -> bool:
    """Whether a card meets a constraint; what cannot be judged is taken to be met."""
    attribute, operator, value = rule
    compared = _COMPARED.get(operator)
    if compared is None:
        return True
    known = {"${device.model}": card.model, "${device.attr.driver_version}": card.driver_version}
    said = known.get(attribute)
    try:
        if attribute == _MEMORY and card.memory_mib is not None:
            return compared(card.memory_mib * 2**20, size_bytes(value))
        return compared(said, value) if said is not None and operator in ("=", "!=", "regexp") else True
    except (AttributeError, KeyError, TypeError, re.error):
        return True  # an amount of another unit, or none; an expression of RE2 that Python does not know
