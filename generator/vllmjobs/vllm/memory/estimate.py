"""The estimate of what a model needs of a GPU: weights, activations, CUDA graphs, and the KV cache.

    KV cache = CUDA's total x gpu_memory_utilization - weights - activations - CUDA graphs - the rest

(`determine_available_memory`, `vllm/v1/worker/gpu_worker.py`). Weights and the KV cache follow from the
model; what activations, CUDA graphs and CUDA itself take is measured, and said beside each number.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from vllmjobs.vllm.memory.gpus import GIB, Gpu, gpus
from vllmjobs.vllm.memory.kv_cache import BLOCK_SIZE, Pool, kv_cache_bytes, pools
from vllmjobs.vllm.memory.limits import impossible
from vllmjobs.vllm.memory.overhead import activation_bytes, cuda_graph_bytes, non_torch_bytes
from vllmjobs.vllm.memory.parts import shown
from vllmjobs.vllm.memory.quantization import online
from vllmjobs.vllm.memory.serving import Serving
from vllmjobs.vllm.memory.shape import Shape, UnknownShapeError
from vllmjobs.vllm.memory.weights import weight_bytes

Batch = tuple[int, int]  # max_num_seqs and max_num_batched_tokens
Rest = tuple[int, int, int]  # bytes of activations, of CUDA graphs, and outside of torch
_CPU = Gpu("CPU", 0, 1.0, (9, 0), 0.0)
# `check_and_update_config` of vllm/platforms/cpu.py; 16 for latent attention, which is not told apart here.
_CPU_BLOCK_SIZE = 128


class Request(msgspec.Struct, frozen=True):
    """So many GPUs of one kind."""

    gpu: str
    count: int


class Estimate(msgspec.Struct, frozen=True):
    """Bytes on the fullest GPU, and what they hold.

    `kv_cache` is what is left for it and may be negative; `needed` is what one request of `max_model_len`
    tokens takes of it. `outside` is what `gpu_memory_utilization` leaves alone. `margin` is the part of
    CUDA's total that would still be free (negative: missing) with one full-length request.
    """

    total: int
    weights: int
    activations: int
    cuda_graphs: int
    non_torch: int
    kv_cache: int
    needed: int
    outside: int
    max_model_len: int
    kv_tokens: int
    longest_context: int
    concurrency: float
    fits: bool
    margin: float
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    smallest: Request | None = None

    @property
    def used(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.cuda_graphs + self.non_torch


def batch_defaults(gpu: Gpu, serving: Serving) -> Batch:
    """Return max_num_seqs and max_num_batched_tokens, as given or as the API server picks them for the GPU.

    `get_batch_defaults` and `_set_default_max_num_seqs_and_batched_tokens_args` of `engine/arg_utils.py`.
    """
    seqs, tokens = 256, 2048
    if gpu.usable >= 160 * GIB:
        seqs, tokens = 1024, 16384
    elif gpu.usable >= 70 * GIB and "a100" not in gpu.name.lower() and not gpu.integrated:
        seqs, tokens = 1024, 8192
    tokens = serving.max_num_batched_tokens or tokens
    return min(serving.max_num_seqs or seqs, tokens), tokens


def estimate(shape: Shape, gpu: Gpu, serving: Serving) -> Estimate:
    """Return what serving a model takes of each GPU of a kind, and whether it fits.

    The fullest pipeline stage is given. When it does not fit, `smallest` names the request that would.
    Raises UnknownShapeError for a `kv_cache_dtype` whose layout is not known, for numbers that no server
    could start with (`Use.check`) and for a pipeline of more stages than the model has layers.
    """
    result = _estimate(shape, gpu, serving)
    if result.fits:
        return result
    would_do = smallest(shape, serving, [gpu]) or smallest(shape, serving)
    return msgspec.structs.replace(result, smallest=would_do)


def fits(shape: Shape, gpu: Gpu, serving: Serving) -> bool:
    """Tell whether a model fits; where it does not, `estimate` also searches all GPUs for one."""
    return _estimate(shape, gpu, serving).fits


def on_cpu(shape: Shape, serving: Serving, kv_cache: int) -> Estimate:
    """Return what a KV cache of so many bytes holds on the CPU: only `kv_tokens` and `concurrency` count.

    Raises UnknownShapeError as `estimate` does.
    """
    block_size = serving.block_size or _CPU_BLOCK_SIZE
    serving = msgspec.structs.replace(serving, kv_cache_memory_bytes=kv_cache, block_size=block_size)
    return _estimate(shape, _CPU, serving)


def smallest(
    shape: Shape, serving: Serving, among: Sequence[Gpu] | None = None, counts: tuple[int, ...] = (1, 2, 4, 8)
) -> Request | None:
    """Return the least GPU memory, as one kind of GPU and a tensor parallel size, that would do.

    `among` are the GPUs to choose from: of the table, those that are made for servers, when not given. None
    where none would do. Raises UnknownShapeError as `estimate` does; but the pipeline makes no difference.
    """
    _check(shape, msgspec.structs.replace(serving, pipeline_parallel=1))
    options = sorted(
        (each.memory_mib * count, count, each.name, each)
        for each in (among or [card for card in gpus() if not card.integrated and "GeForce" not in card.name])
        for count in counts
    )
    for _, count, name, each in options:
        asked = msgspec.structs.replace(serving, tensor_parallel=count, pipeline_parallel=1, data_parallel=1)
        refused = any(obstacle.severity == "error" for obstacle in impossible(shape, each, asked))
        if not refused and fits(shape, each, asked):
            return Request(name, count)
    return None


@lru_cache(maxsize=256)  # models of one environment are often served alike
def _estimate(shape: Shape, gpu: Gpu, serving: Serving) -> Estimate:
    _check(shape, serving)
    seqs, batched = batch_defaults(gpu, serving)
    dtype = str(serving.dtype if serving.dtype not in {None, "auto"} else shape.dtype)
    if dtype == "bfloat16" and gpu.compute_capability < 80:
        dtype = "float16"
    width = _cache_width(shape, serving, dtype)
    weights = weight_bytes(shape, serving.split, dtype, shape.quantization or online(serving.quantization))
    layout = pools(shape, serving.split, width, serving.block_size or BLOCK_SIZE)
    rest = (
        activation_bytes(shape, serving, seqs, batched),
        cuda_graph_bytes(shape, gpu, serving, seqs, batched),
        non_torch_bytes(gpu, serving),
    )
    offloaded = int(serving.cpu_offload_gb * GIB)
    stages = [
        (_stage(shape, gpu, serving, max(0, held - offloaded), rest, pool, (seqs, batched)), pool is None)
        for held, pool in zip(weights, layout, strict=True)
    ]
    # A stage without a cache has no tokens to be short of.
    return min(stages, key=lambda each: (each[0].fits, each[1], each[0].kv_tokens, -each[0].weights))[0]


def _check(shape: Shape, serving: Serving) -> None:
    serving.check()
    layers, pipeline = len(shape.layers), serving.pipeline_parallel
    if pipeline > layers:
        raise UnknownShapeError(f"pipeline_parallel is {pipeline}, more than the model's {layers} layers")
    _cache_width(shape, serving, shape.dtype)
    if serving.quantization and not shape.quantization and online(serving.quantization) is None:
        how = shown(serving.quantization)
        raise UnknownShapeError(f"the size of weights with quantization {how} is not known")


def _cache_width(shape: Shape, serving: Serving, dtype: str) -> float:
    kv_cache_dtype = serving.kv_cache_dtype
    if kv_cache_dtype == "auto" and shape.quantization and shape.quantization.kv_cache_dtype:
        kv_cache_dtype = shape.quantization.kv_cache_dtype
    width = kv_cache_bytes(kv_cache_dtype, dtype)
    if width is None:
        raise UnknownShapeError(f"the layout of kv_cache_dtype {shown(serving.kv_cache_dtype)} is not known")
    return width


def _stage(
    shape: Shape, gpu: Gpu, serving: Serving, weights: int, rest: Rest, pool: Pool | None, batch: Batch
) -> Estimate:
    # Bytes that are given are taken whatever the utilization (v1/worker/gpu_worker.py).
    given = serving.kv_cache_memory_bytes
    requested = gpu.usable if given else math.ceil(gpu.usable * serving.utilization)
    left = given or requested - weights - sum(rest)
    length = serving.max_model_len if isinstance(serving.max_model_len, int) else shape.max_positions
    needed = tokens = 0
    longest, concurrency, fits = shape.longest_positions, float(batch[0]), left > 0
    if pool is not None:
        in_flight, states = serving.in_flight * batch[1], serving.states_per_request

        def blocks(tokens: int) -> int:
            return pool.blocks(tokens, in_flight, states)

        held = max(0, left // pool.block_bytes)
        # One block is never given out (check_enough_kv_cache_memory, v1/core/kv_cache_planning.py).
        longest = _longest(lambda tokens: blocks(tokens) < held, max(shape.stretched_positions, length))
        if serving.max_model_len == "auto":
            length = min(length, longest)
        fits = 0 < length <= longest and weights + sum(rest) + left <= requested
        needed = blocks(length) * pool.block_bytes
        concurrency = held / max(1, blocks(length))
        tokens = int(concurrency * length)
        if serving.version < (0, 21):  # then said as the blocks of one group, times its tokens
            tables = sum(group.tables for group in pool.groups)
            tokens = held // tables * min(group.spec.block for group in pool.groups)
    return Estimate(
        total=gpu.usable,
        weights=weights,
        activations=rest[0],
        cuda_graphs=rest[1],
        non_torch=rest[2],
        kv_cache=left,
        needed=needed,
        outside=gpu.usable - requested,
        max_model_len=length,
        kv_tokens=tokens,
        longest_context=longest,
        concurrency=concurrency,
        fits=fits,
        margin=(left - needed) / gpu.usable,
        max_num_seqs=batch[0],
        max_num_batched_tokens=batch[1],
        gpu_memory_utilization=serving.utilization,
    )


def _longest(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest number up to the limit that fits, 0 if none does."""
    return bisect_left(range(1, limit + 1), True, key=lambda number: not fits(number))
