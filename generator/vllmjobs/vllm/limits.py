"""What vLLM refuses whatever the memory: what does not divide, and kernels that a GPU does not have."""

from collections.abc import Callable
from typing import Literal

import msgspec

from vllmjobs.vllm.gpus import Gpu
from vllmjobs.vllm.parts import Attention, Dense, Experts
from vllmjobs.vllm.quantization import online
from vllmjobs.vllm.shape import Shape
from vllmjobs.vllm.use import Use
from vllmjobs.vllm.weights import padded_vocabulary

# get_min_capability of each quantization config (vllm/model_executor/layers/quantization/*.py).
MINIMUM = {
    "awq": 75, "bitsandbytes": 70, "experts_int8": 80, "fbgemm-fp8": 80, "fp8": 75, "gptq": 60, "int4": 75,
    "int8": 75, "modelopt": 80, "mxfp4": 80, "mxfp8": 80, "nvfp4": 75,
}  # fmt: skip
# Below these the weights are only stored that way, and multiplied in 16 bits.
NATIVE = {"fp8": 89, "modelopt": 89, "nvfp4": 100, "mxfp8": 100}


class Misfit(msgspec.Struct, frozen=True):
    """One thing that does not fit; `message` reads after the path of the setting and a colon."""

    kind: str
    message: str
    severity: Literal["error", "warning"] = "error"


def impossible(shape: Shape, gpu: Gpu, use: Use) -> list[Misfit]:
    """What vLLM refuses, or asserts when it builds the model, whatever the memory."""
    return [*dividing(shape, use), *blocks(shape, use), *capability(shape, gpu, use)]


def dividing(shape: Shape, use: Use) -> list[Misfit]:
    """Heads and vocabulary that tensor parallelism does not divide: kinds heads, vocabulary and kv_heads."""
    size = use.tensor_parallel
    found = []
    mixers = [mixer for layer in shape.layers for mixer in layer.mixers]
    heads = sorted({each.heads for each in mixers})
    kv_heads = sorted({each.kv_heads for each in mixers if isinstance(each, Attention)})
    padded = padded_vocabulary(shape.vocab)

    def fits(size: int) -> bool:
        return (
            all(each % size == 0 for each in heads)
            and padded % size == 0
            and all(_kv_divides(each, size) for each in kv_heads)
        )

    way_out = "use " + _one_of(_sizes(fits))
    if wrong := [each for each in heads if each % size]:
        found.append(Misfit("heads", f"{size} does not divide {wrong[0]} heads; {way_out}"))
    if padded % size:
        found.append(
            Misfit("vocabulary", f"{size} does not divide the padded vocabulary of {padded}; {way_out}")
        )
    if wrong := [each for each in kv_heads if not _kv_divides(each, size)]:
        message = f"{size} neither divides {wrong[0]} key and value heads nor is divided by them; {way_out}"
        found.append(Misfit("kv_heads", message))
    return found


def blocks(shape: Shape, use: Use) -> list[Misfit]:
    """Scales of fp8 blocks that would be cut (`validate_fp8_block_shape_moe`, layers/quantization)."""
    block = shape.quantization.block if shape.quantization else None
    if not block:
        return []
    feeds = {feed for layer in shape.layers for feed in layer.feeds}
    whole = {feed.width for feed in feeds if isinstance(feed, Dense)}
    apart = {feed.width for feed in feeds if isinstance(feed, Experts) and not use.expert_parallel}
    cut = [(width, use.tensor_parallel) for width in whole]
    cut += [(width, use.tensor_parallel * use.data_parallel) for width in apart]
    for width, among in sorted(cut):
        if among > 1 and width % (among * block):
            sizes = _one_of([size for size in range(1, 17) if width % (size * block) == 0])
            message = (
                f"{among} cuts feed-forward layers of {width} into parts that are no multiple of {block}, "
                f"the block of their fp8 scales; use {sizes}"
            )
            message += ", or expert parallel" if width in apart else ""
            return [Misfit("block", message)]
    return []


def _kv_divides(kv_heads: int, size: int) -> bool:
    return kv_heads % size == 0 if kv_heads >= size else size % kv_heads == 0


def _sizes(fits: Callable[[int], bool]) -> list[int]:
    return [size for size in range(1, 17) if fits(size)]


def _one_of(sizes: list[int]) -> str:
    *most, last = map(str, sizes or [1])
    return f"{', '.join(most)} or {last}" if most else last


def capability(shape: Shape, gpu: Gpu, use: Use) -> list[Misfit]:
    """Whether the GPU has kernels for the quantization: an error below vLLM's minimum, else a warning."""
    how = shape.quantization or online(use.quantization)
    if how is None:
        return []
    has, least, native = gpu.compute_capability, MINIMUM.get(how.method, 0), NATIVE.get(how.method, 0)
    place = f"{gpu.name} has compute capability {has / 10}"
    if has < least:
        message = (
            f"{how.method} weights need {least / 10} or more, and {place}; take a newer GPU or other weights"
        )
        return [Misfit("capability", message)]
    if has < native:
        message = (
            f"{how.method} runs without its own kernels below {native / 10}, and {place}: it works, slower"
        )
        return [Misfit("capability", message, "warning")]
    return []
