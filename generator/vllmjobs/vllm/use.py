"""How a model is served: the settings that decide its memory."""

from typing import Literal

import msgspec

from vllmjobs.vllm.weights import Split

Version = tuple[int, int]


class Use(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is served, in vLLM's own words. None: what vLLM takes then.

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
    vllm_version: str = "0.33.0"

    @property
    def version(self) -> Version:
        """Major and minor number of vLLM."""
        major, minor = (*self.vllm_version.split("."), "0")[:2]
        return int(major), int(minor)

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
    def split(self) -> Split:
        """How the weights are spread."""
        return Split(self.tensor_parallel, self.pipeline_parallel, self.data_parallel, self.expert_parallel)

    @property
    def gpu_count(self) -> int:
        """GPUs that this takes in all."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel
