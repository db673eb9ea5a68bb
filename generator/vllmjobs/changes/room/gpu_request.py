"""The GPUs that an allocation asks for, and the cards that meet it."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllmjobs.environment.quantity import size_bytes
from vllmjobs.gpus.cards import Card
from vllmjobs.text.json import Json

AttributeConstraint = tuple[str, str, str]  # attribute, operator, value
_MEMORY = "${device.attr.memory}"
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "=": operator.eq,
    "!=": operator.ne, "regexp": lambda text, pattern: re.search(pattern, text) is not None,
}  # fmt: skip
_SYNONYMS = {"==": "=", "is": "=", "not": "!="}


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """A `device` block of a task that asks for GPUs."""

    name: str  # the device's name: `gpu`, `nvidia/gpu` or `nvidia/gpu/MODEL`
    count: int
    constraints: tuple[AttributeConstraint, ...]

    @property
    def model(self) -> str | None:
        """The model's name, where one is asked for."""
        return self.name.split("/", 2)[2] if self.name.count("/") > 1 else None

    def names(self, card: Card) -> bool:
        """Tell whether the request's name, less its constraints, covers a card."""
        return self.model in (None, card.model)

    def matches(self, card: Card) -> bool:
        """Tell whether a card meets the request, well or not."""
        return self.names(card) and self.meets_constraints(card)

    def meets_constraints(self, card: Card) -> bool:
        """Tell whether a card meets all constraints."""
        return all(meets(card, constraint) for constraint in self.constraints)

    def is_of_memory(self, constraint: AttributeConstraint) -> bool:
        """Tell whether a constraint asks for at least so much memory."""
        return constraint[:2] in ((_MEMORY, ">="), (_MEMORY, ">"))

    def __str__(self) -> str:
        text = " and ".join(
            f"{attribute[2:-1].removeprefix('device.').removeprefix('attr.')} {sign} {value}"
            for attribute, sign, value in self.constraints
        )
        return f"{self.name} with {text}" if text else self.name


def requested(group: Json) -> GpuRequest | None:
    """Return the GPUs of a task group as `/v1/jobs/parse` gives it; of several requests the largest."""
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
                (rule["LTarget"], _SYNONYMS.get(rule["Operand"], rule["Operand"]), rule["RTarget"])
                for rule in device.get("Constraints") or ()
            ),
        )
        for device in devices
    ]
    return max(requests, key=lambda request: request.count, default=None)


def meets(card: Card, constraint: AttributeConstraint) -> bool:
    """Tell whether a card meets a constraint; a constraint that cannot be judged is taken to be met."""
    attribute, sign, wanted = constraint
    compare = _OPERATORS.get(sign)
    if compare is None:
        return True
    known = {"${device.model}": card.model, "${device.attr.driver_version}": card.driver_version}
    actual = known.get(attribute)
    try:
        if attribute == _MEMORY and card.memory_mib is not None:
            return compare(card.memory_mib * 2**20, size_bytes(wanted))
        if actual is None or sign not in ("=", "!=", "regexp"):
            return True
        return compare(actual, wanted)
    except (AttributeError, KeyError, TypeError, re.error):
        return True  # an amount of another unit, or none; an expression of RE2 that Python does not know
