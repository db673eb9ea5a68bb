"""The devices of a node and their health: pure, from its config and the text of its health file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import NAMESPACE_URL, uuid5

from vllmjobs_sandbox.gpus.plugin.config import Config, GpuModel

VENDOR = "nvidia"
DEVICE_TYPE = "gpu"


class Health(StrEnum):
    """The words that a health file may use. An absent GPU is one that has fallen off the bus."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    ABSENT = "absent"


class HealthFileError(ValueError):
    """The text of a health file that cannot be read as one."""


class UnknownDevicesError(LookupError):
    """A reservation of devices that are not there; worded as the nvidia plugin words it."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"unknown device IDs: {','.join(ids)}")


@dataclass(frozen=True)
class Gpu:
    """One device."""

    id: str
    healthy: bool


@dataclass(frozen=True)
class Group:
    """The devices of one model, which share what is known of them."""

    model: GpuModel
    gpus: tuple[Gpu, ...]
    driver_version: str


def device_id(node: str, model: str, index: int) -> str:
    """Name a GPU as NVML does. The same place in the same node always has the same ID."""
    return f"GPU-{uuid5(NAMESPACE_URL, json.dumps([node, model, index]))}"


def device_ids(node: str, gpus: Iterable[GpuModel]) -> list[str]:
    """List the IDs that a node with these `gpu` blocks presents, block by block."""
    seen: dict[str, int] = {}
    ids = []
    for gpu in gpus:
        first = seen.get(gpu.model, 0)
        seen[gpu.model] = first + gpu.count
        ids += [device_id(node, gpu.model, index) for index in range(first, seen[gpu.model])]
    return ids


def read_health(text: str) -> dict[str, Health]:
    """Read `{"GPU-…": "unhealthy"}`. A GPU that is not named is healthy."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HealthFileError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise HealthFileError("must be an object from device ID to health")
    for gpu, health in values.items():
        if health not in list(Health):
            raise HealthFileError(f"{gpu} is {health!r}, but must be one of {', '.join(Health)}")
    return {gpu: Health(health) for gpu, health in values.items()}


def device_groups(config: Config, health: Mapping[str, Health]) -> list[Group]:
    """Say what the node presents now. A group without devices is left out: Nomad expects none."""
    groups = []
    for model in config.gpus:
        gpus = tuple(
            Gpu(id, health.get(id) != Health.UNHEALTHY)
            for id in device_ids(config.node, [model])
            if health.get(id) != Health.ABSENT
        )
        if gpus:
            groups.append(Group(model, gpus, config.driver_version))
    return groups


def reservation(groups: Iterable[Group], ids: Sequence[str]) -> dict[str, str]:
    """Answer the environment of a task that was given these devices.

    An unhealthy GPU can be reserved, as from the nvidia plugin: `nomad alloc restart` does just that.
    """
    present = {gpu.id for group in groups for gpu in group.gpus}
    unknown = [id for id in ids if id not in present]
    if unknown:
        raise UnknownDevicesError(unknown)
    if not ids:
        return {}
    # All that the nvidia plugin sets, for Docker's runtime; CUDA_VISIBLE_DEVICES is the job's to make of it.
    return {"NVIDIA_VISIBLE_DEVICES": ",".join(ids)}
