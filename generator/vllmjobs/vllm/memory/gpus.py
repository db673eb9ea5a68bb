"""GPUs by the names that NVML gives them: memory, compute capability, bandwidth."""

import re
from functools import cache

import msgspec

from vllmjobs.text.english import near
from vllmjobs.vllm.memory.data import data

GIB = 2**30


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU model, or one partition (MIG) of it.

    `memory_mib` is NVML's total (what `nvidia-smi` and a Nomad device attribute say), `usable_gib` what
    `cudaMemGetInfo` calls the total: the smaller, and what vLLM counts with. `bandwidth` is in TB/s.
    `estimated` names the fields that are inferred, not read from a machine or a data sheet.
    """

    name: str
    memory_mib: int
    usable_gib: float
    capability: tuple[int, int]
    bandwidth: float
    short: tuple[str, ...] = ()
    estimated: tuple[str, ...] = ()
    source: str = ""
    integrated: bool = False

    @property
    def usable(self) -> int:
        """Bytes that CUDA calls the total."""
        return int(self.usable_gib * GIB)

    @property
    def compute_capability(self) -> int:
        """90 for 9.0, as vLLM writes its minima (`get_min_capability` of its quantization configs)."""
        return self.capability[0] * 10 + self.capability[1]


@cache
def gpus() -> list[Gpu]:
    """Return all GPUs of the table, in the order of the file."""
    return msgspec.json.decode(data("gpus.json"), type=list[Gpu])


def gpu(name: str) -> Gpu | None:
    """Return the GPU of an NVML name (`NVIDIA H100 80GB HBM3`) or short form (`a100-80gb`), or None.

    Case, spaces, `-`, `_` and the words NVIDIA, Tesla and GeForce make no difference.
    """
    return _by_name().get(_key(name))


def nearest_names(name: str) -> list[str]:
    """Return up to three NVML names that are spelt much like this one, the nearest first."""
    close = near(_key(name), _by_name(), 6, cutoff=0.5)
    return list(dict.fromkeys(_by_name()[key].name for key in close))[:3]


@cache
def _by_name() -> dict[str, Gpu]:
    names: dict[str, Gpu] = {}
    for each in gpus():
        for name in (each.name, *each.short):
            names.setdefault(_key(name), each)
    return names


def _key(name: str) -> str:
    return re.sub(r"nvidia|tesla|geforce|[^a-z0-9+]", "", name.lower())
