"""The settings of a server that decide its memory."""

import re
from typing import Literal

import msgspec

from vllmjobs.vllm.memory.parts import MOST, UnknownShapeError, shown
from vllmjobs.vllm.memory.weights import GpuSplit
from vllmjobs.vllm.releases import NEWEST

MinorVersion = tuple[int, int]
_MINOR = re.compile(r"v?([0-9]{1,6})\.([0-9]{1,6})(?![0-9])")
# Of gpu_memory_utilization: vLLM takes more and less, and most often ends out of memory (VJ221).
LOWEST_UTILIZATION, HIGHEST_UTILIZATION = 0.1, 0.95
# From where to where these may be, where they are given: vLLM's own bounds (`Field` in `vllm/config/*.py`) or
# beyond any machine.
RANGES: dict[str, tuple[float, float]] = {
    "tensor_parallel": (1, MOST), "pipeline_parallel": (1, MOST), "data_parallel": (1, MOST),
    "gpu_memory_utilization": (0.001, 1), "max_num_seqs": (1, MOST), "max_num_batched_tokens": (1, MOST),
    "max_model_len": (1, MOST), "kv_cache_memory_bytes": (0, 2**50), "block_size": (1, MOST),
    "cpu_offload_gb": (0, 2**20),
}  # fmt: skip


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a server, in vLLM's own words. None leaves the choice to vLLM.

    `max_model_len` "auto" is vLLM's `auto` and -1: the longest context that fits.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    gpu_memory_utilization: float | None = None
    max_model_len: int | Literal["auto"] | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    block_size: int | None = None
    enforce_eager: bool = False
    cpu_offload_gb: float = 0.0
    prefix_caching: bool | None = None
    vllm_version: str = NEWEST

    @property
    def version(self) -> MinorVersion:
        """Major and minor number of vLLM; what is no version counts as the newest."""
        match = _MINOR.match(self.vllm_version) or _MINOR.match(NEWEST)
        assert match
        return int(match[1]), int(match[2])

    def check(self) -> None:
        """Raise UnknownShapeError for a number that no server could start with."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not least <= value <= most:
                raise UnknownShapeError(f"{name} is {shown(value)}, not from {least} to {most}")

    @property
    def utilization(self) -> float:
        """The part of the GPU that vLLM may take."""
        return self.gpu_memory_utilization or (0.92 if self.version >= (0, 22) else 0.9)

    @property
    def in_flight(self) -> int:
        """Batches that may be on their way at once, counted since vllm-project/vllm#47728."""
        return self.pipeline_parallel + 1 if self.version >= (0, 26) else 1

    @property
    def states_per_request(self) -> int:
        """Copies of a recurrent state: 2 where prefix caching keeps them at block boundaries."""
        cached = self.version >= (0, 25) if self.prefix_caching is None else self.prefix_caching
        return 2 if cached else 1

    @property
    def split(self) -> GpuSplit:
        """The spread of the weights over the GPUs."""
        return GpuSplit(
            self.tensor_parallel, self.pipeline_parallel, self.data_parallel, self.expert_parallel
        )

    @property
    def gpu_count(self) -> int:
        """GPUs that this takes in all."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel
