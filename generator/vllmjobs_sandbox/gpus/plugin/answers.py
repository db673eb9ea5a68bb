"""The answers of the plugin as messages: pure, from values to protobuf."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime

from google.protobuf.message import Message

from vllmjobs_sandbox.gpus.plugin.config import GPU_KEYS, NODE_KEYS, Key
from vllmjobs_sandbox.gpus.plugin.devices import DEVICE_TYPE, VENDOR, Gpu, Group
from vllmjobs_sandbox.gpus.plugin.messages import message

PLUGIN_NAME = "simgpu"
_TYPE_DEVICE = 3  # base.proto: enum PluginType
_SERVING = 1  # health.proto: enum ServingStatus


def serving() -> Message:
    """Say that the plugin is up; go-plugin asks before it trusts the connection."""
    return message("HealthCheckResponse", status=_SERVING)


def plugin_info() -> Message:
    """Introduce the plugin. v0.1.0 is the only API version of device plugins (plugins/device/versions.go)."""
    return message(
        "PluginInfoResponse",
        type=_TYPE_DEVICE,
        plugin_api_versions=["v0.1.0"],
        plugin_version="0.1.0",
        name=PLUGIN_NAME,
    )


def config_schema() -> Message:
    """Say what may stand in the plugin's block: the keys of the node, and any number of `gpu` blocks."""
    gpu = message("BlockList", name="gpu", nested=_object({key.name: _attribute(key) for key in GPU_KEYS}))
    keys = {key.name: _attribute(key) for key in NODE_KEYS}
    return message("ConfigSchemaResponse", spec=_object({**keys, "gpu": message("Spec", block_list=gpu)}))


def _object(attributes: Mapping[str, Message]) -> Message:
    return message("Spec", object=message("Object", attributes=attributes))


def _attribute(key: Key) -> Message:
    attr = message("Spec", Attr=message("Attr", name=key.name, type=key.type, required=key.required))
    if key.required:
        return attr
    # A literal is HCL text, in which a string carries its quotes.
    literal = message("Spec", literal=message("Literal", value=json.dumps(key.default)))
    return message("Spec", default=message("Default", primary=attr, default=literal))


def fingerprint(groups: Iterable[Group]) -> Message:
    """Present the devices, under the attribute names and units of the nvidia plugin's fingerprint.go."""
    return message("FingerprintResponse", device_group=[_group(group) for group in groups])


def _group(group: Group) -> Message:
    numbers = {
        "memory": (group.model.memory_mib, "MiB"),
        "power": (group.model.power_w, "W"),
        "cores_clock": (group.model.cores_clock_mhz, "MHz"),
    }
    attributes = {
        name: message("Attribute", int_val=value, unit=unit)
        for name, (value, unit) in numbers.items()
        if value
    }
    attributes["driver_version"] = message("Attribute", string_val=group.driver_version)
    return message(
        "DeviceGroup",
        vendor=VENDOR,
        device_type=DEVICE_TYPE,
        device_name=group.model.model,
        devices=[_device(gpu) for gpu in group.gpus],
        attributes=attributes,
    )


def _device(gpu: Gpu) -> Message:
    why = "" if gpu.healthy else "the health file says so"
    return message("DetectedDevice", ID=gpu.id, healthy=gpu.healthy, health_description=why)


def reserved(environment: Mapping[str, str]) -> Message:
    """Hand a task its devices."""
    return message("ReserveResponse", container_res=message("ContainerReservation", envs=environment))


def stats(groups: Iterable[Group], now: datetime) -> Message:
    """Report the memory in use, named as in the nvidia plugin's stats.go: none, for nothing runs on these."""
    return message(
        "StatsResponse",
        groups=[
            message(
                "DeviceGroupStats",
                vendor=VENDOR,
                type=DEVICE_TYPE,
                name=group.model.model,
                instance_stats={gpu.id: _memory(group.model.memory_mib, now) for gpu in group.gpus},
            )
            for group in groups
        ],
    )


def _memory(total_mib: int, now: datetime) -> Message:
    state = message(
        "StatValue",
        int_numerator_val={"value": 0},
        int_denominator_val={"value": total_mib},
        unit="MiB",
        desc="UsedMemory / TotalMemory",
    )
    details = message("StatObject", attributes={"Memory state": state})
    return message("DeviceStats", summary=state, stats=details, timestamp=now)
