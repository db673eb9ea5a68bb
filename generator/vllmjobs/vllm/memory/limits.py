"""Limits that no memory lifts: sizes that do not divide, and kernels that a GPU does not have."""

from typing import Literal

import msgspec

from vllmjobs.text.english import joined
from vllmjobs.vllm.memory.gpus import Gpu
from vllmjobs.vllm.memory.parts import Attention, Dense, Experts, shown
from vllmjobs.vllm.memory.quantization import online
from vllmjobs.vllm.memory.serving import Serving
from vllmjobs.vllm.memory.shape import Shape
from vllmjobs.vllm.memory.weights import padded_vocabulary

# get_min_capability of each quantization config (vllm/model_executor/layers/quantization/*.py).
MINIMUM = {
    "awq": 75, "bitsandbytes": 70, "experts_int8": 80, "fbgemm-fp8": 80, "fp8": 75, "gptq": 60, "int4": 75,
    "int8": 75, "modelopt": 80, "mxfp4": 80, "mxfp8": 80, "nvfp4": 75,
}  # fmt: skip
# Below these the weights are only stored that way, and multiplied in 16 bits.
NATIVE = {"fp8": 89, "modelopt": 89, "nvfp4": 100, "mxfp8": 100}
BFLOAT16 = 80


class Obstacle(msgspec.Struct, frozen=True):
    """One thing that does not fit; `message` reads after the path of the setting and a colon."""

    kind: str
    message: str
    severity: Literal["error", "warning"] = "error"


def impossible(shape: Shape, gpu: Gpu, serving: Serving) -> list[Obstacle]:
    """Return what vLLM refuses, or asserts when it builds the model, whatever the memory."""
    return [*dividing(shape, serving), *blocks(shape, serving), *capability(shape, gpu, serving)]


def dividing(shape: Shape, serving: Serving) -> list[Obstacle]:
    """Return heads, vocabulary and layers that cannot be cut: kinds heads, vocabulary, kv_heads and layers.

    One cause shows in several of them, so only the first is said.
    """
    size, layers, pipeline = serving.tensor_parallel, len(shape.layers), serving.pipeline_parallel
    if undivided := _undivided(shape, size):
        kind, message = undivided
        sizes = _sizes(shape, serving) or _sizes(shape, serving, cut=True)
        return [Obstacle(kind, f"{message}; use {_one_of(sizes)}")]
    if not 1 <= pipeline <= layers:  # get_pp_indices, vllm/distributed/utils.py, would leave stages empty
        message = f"{layers} layers cannot be cut into {shown(pipeline)} pipeline stages; use 1 to {layers}"
        return [Obstacle("layers", message)]
    return []


def blocks(shape: Shape, serving: Serving) -> list[Obstacle]:
    """Return fp8 blocks whose scales would be cut (`validate_fp8_block_shape_moe`, layers/quantization)."""
    cut = _cut(shape, serving)
    if cut is None:
        return []
    width, among, block = cut
    whole = msgspec.structs.replace(serving, expert_parallel=True)
    sizes = _sizes(shape, serving)
    ways_out = [_one_of(sizes)] if sizes else []
    if _cut(shape, whole) is None:
        ways_out.append("enable-expert-parallel")
    if not ways_out:
        ways_out = [f"enable-expert-parallel and {_one_of(_sizes(shape, whole))}"]
    message = (
        f"{shown(among)} cuts feed-forward layers of {width} into parts that are no multiple of {block}, "
        f"the block of their fp8 scales; use {', or '.join(ways_out)}"
    )
    return [Obstacle("block", message)]


def _undivided(shape: Shape, size: int) -> tuple[str, str] | None:
    """Return the first thing that so many GPUs cannot share evenly: the kind of obstacle, and its message."""
    if size < 1:
        return "heads", f"{shown(size)} is no number of GPUs"
    mixers = [mixer for layer in shape.layers for mixer in layer.mixers]
    gpus = shown(size)
    for heads in sorted({each.heads for each in mixers}):
        if heads % size:
            return "heads", f"{gpus} does not divide {heads} heads"
    if (padded := padded_vocabulary(shape.vocab)) % size:
        return "vocabulary", f"{gpus} does not divide the padded vocabulary of {padded}"
    for heads in sorted({each.kv_heads for each in mixers if isinstance(each, Attention)}):
        if max(heads, size) % min(heads, size):
            return "kv_heads", f"{gpus} neither divides {heads} key and value heads nor is a multiple of them"
    return None


def _cut(shape: Shape, serving: Serving) -> tuple[int, int, int] | None:
    """Return a feed-forward width whose blocks are cut, the GPUs that share it, and the block."""
    block = shape.quantization.block if shape.quantization else None
    if not block:
        return None
    feeds = {feed for layer in shape.layers for feed in layer.feeds}
    whole = {feed.width for feed in feeds if isinstance(feed, Dense)}
    apart = {feed.width for feed in feeds if isinstance(feed, Experts) and not serving.expert_parallel}
    cut = [(width, serving.tensor_parallel) for width in whole]
    cut += [(width, serving.tensor_parallel * serving.data_parallel) for width in apart]
    wrong = [(width, among, block) for width, among in cut if among > 1 and width % (among * block)]
    return min(wrong, default=None)


def _sizes(shape: Shape, serving: Serving, cut: bool = False) -> list[int]:
    """Return tensor parallel sizes up to 16 that divide everything, or all but blocks of scales (`cut`)."""
    sizes = (msgspec.structs.replace(serving, tensor_parallel=size) for size in range(1, 17))
    return [
        each.tensor_parallel
        for each in sizes
        if _undivided(shape, each.tensor_parallel) is None and (cut or _cut(shape, each) is None)
    ]


def _one_of(sizes: list[int]) -> str:
    return joined([*map(str, sizes)], "or")


def capability(shape: Shape, gpu: Gpu, serving: Serving) -> list[Obstacle]:
    """Return a GPU's lack of kernels for the quantization or the dtype: kind capability.

    An error where vLLM refuses it, else a warning. A dtype that is not given is never refused: vLLM then
    takes float16 (`check_if_supports_dtype`, `vllm/platforms/cuda.py`).
    """
    how = shape.quantization or online(serving.quantization)
    has, method = gpu.compute_capability, how.method if how else ""
    least, native = MINIMUM.get(method, 0), NATIVE.get(method, 0)
    place = f"{gpu.name} has {has / 10}"
    if has < least:
        message = (
            f"{method} needs compute capability {least / 10}, but {place}; take a newer GPU or other weights"
        )
        return [Obstacle("capability", message)]
    if serving.dtype == "bfloat16" and has < BFLOAT16:
        message = f"bfloat16 needs compute capability {BFLOAT16 / 10}, but {place}; set dtype to float16"
        return [Obstacle("capability", message)]
    if has < native:
        message = f"{method} kernels need compute capability {native / 10}, but {place}: it works, but slower"
        return [Obstacle("capability", message, "warning")]
    return []
