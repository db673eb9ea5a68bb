"""GPUs as NVML or Nomad sees them, in one shape: pure, from their answers to a table or JSON.

Only the standard library, so that a process which has nothing else can use it too.

`as_json` prints a list with one object per card. Every key is always there, and null where its source
does not know:

| key | value |
|---|---|
| node, node_status, node_eligible | Nomad only: name, `ready`, `down` …, whether it takes new allocations |
| node_fenced | Nomad only: the GPU for which a supervisor has fenced the node, why, and since when |
| index | NVML only: its number on this machine; a MIG instance has that of its GPU |
| uuid | `GPU-…` or `MIG-…`: what `NVIDIA_VISIBLE_DEVICES` and Nomad's device IDs hold |
| model | the name in full; a `device` block names it as `nvidia/gpu/MODEL` |
| memory_mib, memory_used_mib | as NVML counts them; used is without what the driver keeps for itself |
| compute_capability, driver_version | text, such as `9.0` and `570.124.06` |
| temperature_c, power_w, utilization_percent | now |
| mig | `off`, `on` (its instances follow as cards of their own), or an instance's profile (`1g.10gb`) |
| parent | uuid of the GPU that a MIG instance is part of (NVML only) |
| health | `ok`, `degraded` (it works, see to it), `failed`, or `unknown` (it could not be asked) |
| health_reason | a sentence; empty when ok |
| holders | who has memory on it (NVML) or has it reserved (Nomad); null where that could not be asked |

A holder has `name` (the process's command, or `JOB/GROUP[INDEX]`), and either `pid` and `memory_mib`, or
`allocation` and `namespace`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from vllmjobs.environment.quantity import BYTES
from vllmjobs.supervisor.core.gpu_events import FENCE_META, GpuReading
from vllmjobs.text.english import columns
from vllmjobs.text.json import Json
from vllmjobs.text.states import ENDED

CardHealth = Literal["ok", "degraded", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class CardHolder:
    """The holder of a card: a process, or an allocation."""

    name: str
    pid: int | None = None
    memory_mib: int | None = None
    allocation: str | None = None
    namespace: str | None = None

    def __str__(self) -> str:
        if self.pid is None:
            return f"{self.name} ({(self.allocation or '')[:8]})"
        used = "" if self.memory_mib is None else f", {self.memory_mib} MiB"
        return f"{self.name} (pid {self.pid}{used})"


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU or MIG instance; the module's docstring explains each value."""

    node: str | None = None
    node_status: str | None = None
    node_eligible: bool | None = None
    node_fenced: str | None = None
    index: int | None = None
    uuid: str | None = None
    model: str | None = None
    memory_mib: int | None = None
    memory_used_mib: int | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    utilization_percent: int | None = None
    mig: str | None = None
    parent: str | None = None
    health: CardHealth = "ok"
    health_reason: str = ""
    holders: tuple[CardHolder, ...] | None = None


def health_of(reading: GpuReading) -> tuple[CardHealth, str]:
    """Return the health of a GPU, and every reason for it.

    Where there is a recovery action, NVIDIA's driver asks for it before the GPU is used again
    (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt). A pending row remapping leaves the GPU usable.
    """
    failed, degraded = [], []
    if reading.recovery:
        failed.append(reading.recovery)
    if reading.remap_failed:
        failed.append("a memory row could not be remapped")
    if reading.remap_pending:
        degraded.append("a memory row will be remapped at the next GPU reset")
    if errors := reading.uncorrected_ecc:
        degraded.append(f"{errors} uncorrected ECC error{'s' if errors > 1 else ''} since the driver loaded")
    return "failed" if failed else "degraded" if degraded else "ok", "; ".join(failed + degraded)


def mig_profile(model: str | None) -> str | None:
    """Take `1g.10gb` from `NVIDIA H100 80GB HBM3 MIG 1g.10gb`; None for a whole GPU."""
    return (model or "").partition(" MIG ")[2] or None


def in_cluster(nodes: Iterable[Json], allocations: Iterable[Json] | None) -> list[Card]:
    """Join Nomad's `/v1/nodes?resources=true` and `/v1/allocations?resources=true` to cards.

    Sorted by node, model and uuid. A node that is fenced comes with its Meta, which Nomad has in no list.
    An allocation that has ended holds nothing; one whose client is disconnected ("unknown") still does. Where
    allocations may not be read (None), holders are None. Of a node that is not ready, the last known devices
    are shown.
    """
    holders: dict[tuple[str, str], list[CardHolder]] = {}
    for allocation in allocations or ():
        if allocation["ClientStatus"] not in ENDED:
            for device in _device_ids(allocation):
                holders.setdefault((allocation["NodeID"], device), []).append(_holder(allocation))
    cards = []
    for node in nodes:
        for group in (node.get("NodeResources") or {}).get("Devices") or ():
            if group["Type"] != "gpu":
                continue
            attributes = group["Attributes"] or {}
            for instance in group["Instances"] or ():
                health, reason = _reported(node, instance)
                held = tuple(holders.get((node["ID"], instance["ID"]), ()))
                card = Card(
                    node=node["Name"],
                    node_status=node["Status"],
                    node_eligible=node["SchedulingEligibility"] == "eligible",
                    node_fenced=fence(node) or None,
                    uuid=instance["ID"],
                    model=group["Name"],
                    memory_mib=_mebibytes(attributes.get("memory")),
                    driver_version=(attributes.get("driver_version") or {}).get("String"),
                    mig=mig_profile(group["Name"]),
                    health=health,
                    health_reason=reason,
                    holders=None if allocations is None else held,
                )
                cards.append(card)
    return sorted(cards, key=lambda card: (card.node, card.model, card.uuid))


def fence(node: Json) -> str:
    """Return what a supervisor wrote when it fenced a node; empty where it is not fenced."""
    return str((node.get("Meta") or {}).get(FENCE_META, ""))


def as_json(cards: Sequence[Card]) -> str:
    """Return a JSON list, ending in a newline; the module's docstring names its keys."""
    return json.dumps([asdict(card) for card in cards], indent=2) + "\n"


def table(cards: Sequence[Card]) -> str:
    """Return aligned columns with a heading, for people; empty without cards.

    A column that no card has a value for is left out. UUIDs are cut to their first block.
    """
    shown = {name: [show(card) for card in cards] for name, show in _COLUMNS.items()}
    filled = [[name, *(cell or "-" for cell in all_)] for name, all_ in shown.items() if any(all_)]
    return columns([*zip(*filled, strict=True)])


def _device_ids(allocation: Json) -> Iterable[str]:
    tasks = (allocation.get("AllocatedResources") or {}).get("Tasks") or {}
    return (
        device
        for task in tasks.values()
        for group in task.get("Devices") or ()
        if group["Type"] == "gpu"
        for device in group["DeviceIDs"] or ()
    )


def _holder(allocation: Json) -> CardHolder:
    # Name is JOB.GROUP[INDEX], and each of the two may hold dots.
    index = allocation["Name"].rpartition("[")[2].removesuffix("]")
    return CardHolder(
        f"{allocation['JobID']}/{allocation['TaskGroup']}[{index}]",
        allocation=allocation["ID"],
        namespace=allocation["Namespace"],
    )


def _reported(node: Json, instance: Json) -> tuple[CardHealth, str]:
    if node["Status"] != "ready":
        return "unknown", f"the node is {node['Status']}"
    if instance["Healthy"]:
        return "ok", ""
    return "failed", instance.get("HealthDescription") or "reported unhealthy by its device plugin"


def _mebibytes(memory: Json | None) -> int | None:
    """Return an attribute of Nomad in MiB: it is one of Int and Float, with a unit or without."""
    if not memory or memory.get("Unit") not in BYTES:  # the nvidia plugin itself always says MiB
        return None
    amount = memory.get("Int") or memory.get("Float") or 0
    return int(amount * BYTES[memory["Unit"]]) // 2**20


def _node(card: Card) -> str:
    status = card.node_status if card.node_status != "ready" else "" if card.node_eligible else "ineligible"
    if card.node_fenced:
        status = f"{status}, fenced" if status else "fenced"
    return f"{card.node} ({status})" if card.node and status else card.node or ""


def _memory(card: Card) -> str:
    if card.memory_mib is None or card.memory_used_mib is None:
        return _text(card.memory_mib)
    return f"{card.memory_used_mib}/{card.memory_mib}"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


_COLUMNS: dict[str, Callable[[Card], str]] = {
    "NODE": _node,
    "GPU": lambda card: _text(card.index),
    "UUID": lambda card: "-".join((card.uuid or "").split("-")[:2]),
    "MODEL": lambda card: card.model or "",
    "MIG": lambda card: card.mig or "",
    "MEMORY MiB": _memory,
    "UTIL %": lambda card: _text(card.utilization_percent),
    "TEMP C": lambda card: _text(card.temperature_c),
    "POWER W": lambda card: _text(card.power_w),
    "HEALTH": lambda card: ": ".join(filter(None, (card.health, card.health_reason))),
    "HELD BY": lambda card: "?" if card.holders is None else ", ".join(map(str, card.holders)) or "-",
}
