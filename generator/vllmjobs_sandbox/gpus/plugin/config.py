"""The block that an operator may write in a Nomad agent: `plugin "simgpu" { config { … } }`.

One table of keys makes both the schema that Nomad checks the block against and our own checks,
since a schema knows types and defaults but not that a count is whole or a name not empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

MOST_GPUS = 1024
"""More than any machine has; stops a slip of the keyboard from filling Nomad's state."""

DRIVER_VERSION = "570.124.06"
"""The driver that the node claims to run when its block does not say."""


class ConfigError(ValueError):
    """A value in the plugin's block that cannot be used; Nomad prints it and the agent does not start."""


@dataclass(frozen=True)
class Key:
    """One attribute of a block. Without a default it is required."""

    name: str
    type: str  # "string" or "number", as hclspec calls them
    default: str | int | None = None
    least: int = 0
    most: int = 2**31 - 1
    may_be_empty: bool = False

    @property
    def required(self) -> bool:
        """Tell whether an operator has to name it."""
        return self.default is None


NODE_KEYS = (
    Key("node", "string"),
    Key("driver_version", "string", DRIVER_VERSION),
    Key("health_file", "string", "", may_be_empty=True),
)

GPU_KEYS = (
    Key("model", "string"),
    Key("memory_mib", "number", least=1),
    Key("count", "number", 1, most=MOST_GPUS),
    # 0 leaves the attribute out, as the nvidia plugin does with what NVML cannot tell.
    Key("power_w", "number", 0),
    Key("cores_clock_mhz", "number", 0),
)


@dataclass(frozen=True)
class GpuModel:
    """A `gpu` block: how many of one model the node has, and what the driver says of each."""

    model: str
    memory_mib: int
    count: int = 1
    power_w: int = 0
    cores_clock_mhz: int = 0


@dataclass(frozen=True)
class Config:
    """The whole block. `node` is part of every device ID; an empty `health_file` means always healthy."""

    node: str
    gpus: tuple[GpuModel, ...]
    driver_version: str = DRIVER_VERSION
    health_file: str = ""


def read_config(values: object) -> Config:
    """Check what Nomad sent (the block as plain values) and raise ConfigError on the first mistake."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"the config is {values!r}, but must be a map of its keys")
    blocks = values.get("gpu") or []
    if not isinstance(blocks, Sequence) or not all(isinstance(block, Mapping) for block in blocks):
        raise ConfigError(f"gpu is {blocks!r}, but must be a list of blocks")
    node = {key.name: _value(values, key, key.name) for key in NODE_KEYS}
    health_file = str(node["health_file"])
    if health_file and not health_file.startswith("/"):
        raise ConfigError(
            f"health_file is {health_file!r}, but must be an absolute path: "
            "the plugin runs in whichever folder Nomad was started in"
        )
    return Config(
        node=str(node["node"]),
        gpus=_merged([_gpu(block, f"gpu[{index}]") for index, block in enumerate(blocks)]),
        driver_version=str(node["driver_version"]),
        health_file=health_file,
    )


def _gpu(block: Mapping[str, object], place: str) -> GpuModel:
    value = {key.name: _value(block, key, f"{place}.{key.name}") for key in GPU_KEYS}
    return GpuModel(
        model=str(value["model"]),
        memory_mib=int(value["memory_mib"]),
        count=int(value["count"]),
        power_w=int(value["power_w"]),
        cores_clock_mhz=int(value["cores_clock_mhz"]),
    )


def _value(block: Mapping[str, object], key: Key, place: str) -> str | int:
    value = block.get(key.name)
    if value is None:
        if key.default is None:
            raise ConfigError(f"{place} is missing")
        return key.default
    if key.type == "string":
        if not isinstance(value, str) or not (value.strip() or key.may_be_empty):
            raise ConfigError(f"{place} is {value!r}, but must be text that is not empty")
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not key.least <= value <= key.most:
        raise ConfigError(f"{place} is {value!r}, but must be a whole number from {key.least} to {key.most}")
    return value


def _merged(gpus: Sequence[GpuModel]) -> tuple[GpuModel, ...]:
    """Return one entry per model: of two device groups with the same name Nomad keeps only the last one."""
    merged: dict[str, GpuModel] = {}
    for gpu in gpus:
        known = merged.get(gpu.model)
        if known is None:
            merged[gpu.model] = gpu
            continue
        total = replace(gpu, count=known.count + gpu.count)
        for key, value in vars(total).items():
            if key != "count" and value != getattr(known, key):
                raise ConfigError(
                    f"{key} of {gpu.model!r} is {getattr(known, key)} in one gpu block and {value} in another"
                    ", but Nomad keeps one value per model: use the same in both, or another model name"
                )
        if total.count > MOST_GPUS:
            raise ConfigError(f"{gpu.model!r} adds up to {total.count} GPUs, but {MOST_GPUS} is the most")
        merged[gpu.model] = total
    return tuple(merged.values())
