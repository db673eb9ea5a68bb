"""The layout of the KV cache: blocks, groups of layers, and what one request takes of them.

`vllm/v1/core/kv_cache_planning.py` and `vllm/v1/kv_cache_interface.py` of vLLM 0.33.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vllmjobs.vllm.memory.parts import Attention, Latent, Mixer, Recurrent
from vllmjobs.vllm.memory.shape import Shape
from vllmjobs.vllm.memory.weights import DTYPE_BYTES, GpuSplit, stages

BLOCK_SIZE = 16  # CacheConfig.DEFAULT_BLOCK_SIZE
DENSE_MLA_FP8, SPARSE_MLA_FP8 = 576, 656  # bytes per token; sparse: fp8_ds_mla keeps scales and a bf16 tail


class Spec(NamedTuple):
    """The KV cache of one layer: a page of `page` bytes holds `block` tokens, or one state.

    `bound` is the tokens of a request that are kept behind what is being computed, None for all.
    """

    kind: str
    page: int
    block: int
    bound: int | None = None


class KvCacheGroup(NamedTuple):
    """So many block tables of one kind, each shared by as many layers."""

    spec: Spec
    tables: int = 1


class Pool(NamedTuple):
    """The KV cache of one GPU: one pool of blocks of `block_bytes`, from which every group takes."""

    groups: tuple[KvCacheGroup, ...]
    block_bytes: int

    def blocks(self, tokens: int, in_flight: int, states: int) -> int:
        """Return the blocks that a request of so many tokens takes at most.

        `in_flight` tokens may be scheduled beyond a window; `states` are the copies of a recurrent state.
        """
        total = 0
        for group in self.groups:
            spec, taken = group.spec, 0
            match spec.kind:
                case "state":
                    taken = states
                case "window":
                    kept = min((spec.bound or 0) - 1 + in_flight, tokens)
                    taken = -(-kept // spec.block) + 1
                case "chunk":
                    taken = -(-min((spec.bound or 0) + in_flight, tokens) // spec.block)
                case _:
                    taken = -(-tokens // spec.block)
            total += taken * group.tables
        return total


def kv_cache_bytes(kv_cache_dtype: str, dtype: str) -> float | None:
    """Return the bytes per cached number for a `--kv-cache-dtype`, or None for a layout that is not known."""
    if kv_cache_dtype in {"auto", dtype}:
        return DTYPE_BYTES.get(dtype, 2)
    if kv_cache_dtype in DTYPE_BYTES:
        return DTYPE_BYTES[kv_cache_dtype]
    if kv_cache_dtype in {"fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla", "int8"}:
        return 1
    return {"nvfp4": 0.5 + 1 / 16}.get(kv_cache_dtype)


def pools(shape: Shape, split: GpuSplit, width: float, block_size: int) -> list[Pool | None]:
    """Return the pool of one GPU of each pipeline stage; None for a stage without a KV cache.

    `width` is bytes per cached number. The pipeline is no longer than the model (`stages`).
    """
    specs: list[tuple[int, Spec]] = []
    block = _aligned_block(shape, split, width, block_size)
    for index, layer in enumerate(shape.layers):
        for mixer in layer.mixers:
            specs += [(index, spec) for spec in _specs(mixer, split, width, block, shape.dtype)]
    parts = stages(len(shape.layers), split.pipeline)
    if not specs or shape.pooling:
        return [None] * len(parts)
    if len({(spec.kind, spec.bound) for _, spec in specs}) == 1:  # one block table for all layers
        return [_one_group([spec for index, spec in specs if index in part]) for part in parts]
    tables = _tables(specs)
    groups = tuple(KvCacheGroup(spec, len(shared)) for spec, shared in tables.items())
    every = [each for shared in tables.values() for each in shared]
    pages = [max(sum(i in part for i in each) for each in every) for part in parts]
    return [Pool(groups, count * groups[0].spec.page) if count else None for count in pages]


def _specs(mixer: Mixer, split: GpuSplit, width: float, block: int, dtype: str) -> list[Spec]:
    if isinstance(mixer, Latent):
        per_token: float = (mixer.kv_rank + mixer.rope) * width
        if width == 1:
            per_token = SPARSE_MLA_FP8 if mixer.index_heads else DENSE_MLA_FP8
        specs = [Spec("full", int(per_token * block), block)]
        if mixer.index_heads:  # fp8 keys and a 4-byte scale per 128 of them
            specs.append(Spec("full", (mixer.index_dim + mixer.index_dim // 128 * 4) * block, block))
        return specs
    if isinstance(mixer, Recurrent):
        return [Spec("state", state_bytes(mixer, split.tensor, dtype), block)]
    page = int(_token_bytes(mixer, split, width) * block)
    if mixer.window:
        return [Spec("window", page, block, mixer.window)]
    if mixer.chunk:
        return [Spec("chunk", page, block, mixer.chunk)]
    return [Spec("full", page, block)]


def _token_bytes(mixer: Attention, split: GpuSplit, width: float) -> float:
    heads = max(1, mixer.kv_heads // split.tensor)  # fewer heads than GPUs: each GPU holds one
    return heads * (mixer.head_dim + mixer.value_dim) * width


def state_bytes(mixer: Recurrent, tensor: int, dtype: str) -> int:
    """Return the bytes of one request's state in one layer on one GPU (`MambaStateShapeCalculator`)."""
    groups = mixer.groups if mixer.groups % tensor == 0 else max(tensor, mixer.groups)
    channels = (mixer.inner + groups * mixer.group_width) // tensor
    convolved = channels * (mixer.kernel - 1) * DTYPE_BYTES.get(dtype, 2)
    width = DTYPE_BYTES.get(mixer.state_dtype or dtype, 2)
    return convolved + max(1, mixer.heads // tensor) * mixer.state * width


def _aligned_block(shape: Shape, split: GpuSplit, width: float, block_size: int) -> int:
    """Return the tokens per block; a page of a hybrid holds a state (`_align_hybrid_block_size`)."""
    mixers = [mixer for layer in shape.layers for mixer in layer.mixers]
    states = [state_bytes(each, split.tensor, shape.dtype) for each in mixers if isinstance(each, Recurrent)]
    attention = next((each for each in mixers if isinstance(each, Attention)), None)
    if not states or attention is None:
        return block_size
    per_token = _token_bytes(attention, split, width)
    return block_size * -(-max(states) // int(block_size * per_token))


def _one_group(specs: Sequence[Spec]) -> Pool | None:
    page = sum(spec.page for spec in specs)
    return Pool((KvCacheGroup(specs[0]._replace(page=page)),), page) if specs else None


def _tables(specs: Sequence[tuple[int, Spec]]) -> dict[Spec, list[list[int]]]:
    """Return the layers of each block table, by kind: as many in each, with pages of equal size.

    Pages grow to the largest: by holding more tokens where that divides, else by padding. The rarest
    kind sets the size of a group, unless none has half as many layers more.
    """
    largest = max(spec.page for _, spec in specs)
    same: dict[Spec, list[int]] = {}
    for index, spec in specs:
        ratio, rest = divmod(largest, spec.page)
        block = spec.block * (1 if rest or spec.kind == "state" else ratio)
        same.setdefault(spec._replace(page=largest, block=block), []).append(index)
    counts = [len(layers) for layers in same.values()]
    size = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    tables = {}
    for spec, layers in same.items():
        parts = -(-len(layers) // size)
        tables[spec] = [layers[i::parts] for i in range(parts)]
    return tables
