"""Everything that keeps a model from running on a GPU, or may."""

from contextlib import suppress

from vllmjobs.vllm.memory.estimate import Estimate, Request, estimate
from vllmjobs.vllm.memory.gpus import GIB, Gpu
from vllmjobs.vllm.memory.limits import Obstacle, blocks, capability, dividing
from vllmjobs.vllm.memory.parts import UnknownShapeError, shown
from vllmjobs.vllm.memory.serving import HIGHEST_UTILIZATION, Serving
from vllmjobs.vllm.memory.shape import Shape

# Read in vllm/config/model.py, _get_and_verify_max_len: up to 0.24 a YaRN factor lengthened the context that
# config.json names, and in 0.32 no more; in between it was not looked up.
YARN_COUNTS_AS_APPLIED = (0, 32)
NEAR = 0.05  # with less of the GPU to spare than this, an estimate is no promise


def obstacles(
    shape: Shape, serving: Serving, gpu: Gpu | None, *, is_named: bool = True, may_be_longer: bool = False
) -> list[Obstacle]:
    """Return what keeps a model from running, errors first; nothing where all is well.

    Kernels are judged for a GPU that `is_named`, memory for any GPU whose estimate can be made. A context
    that `may_be_longer` than the model's is passed over. The kinds are heads, kv_heads, vocabulary, layers,
    block, capability, context, weights, kv_cache and margin.
    """
    undivided = dividing(shape, serving)
    result = [*undivided, *blocks(shape, serving)]
    if not may_be_longer:
        result += context(shape, serving)
    if gpu and is_named:
        result += capability(shape, gpu, serving)
    if gpu and not undivided:
        with suppress(UnknownShapeError):
            result += memory(estimate(shape, gpu, serving), gpu, serving)
    return sorted(result, key=lambda each: each.severity)


def context(shape: Shape, serving: Serving) -> list[Obstacle]:
    """Return a context that is longer than the model's: kind context."""
    length = serving.max_model_len
    if not isinstance(length, int) or length <= shape.longest_positions:
        return []
    limit = f"is longer than the model's {shape.longest_positions} ({shape.positions_key} in its config.json)"
    if length <= shape.stretched_positions:
        if serving.version < YARN_COUNTS_AS_APPLIED:
            return []
        message = (
            f"{shown(length)} {limit}, but its rotary scaling reaches so far: raise that key with "
            "hf-overrides, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN under env"
        )
        return [Obstacle("context", message)]
    way_out = "lower it"
    if not shape.learned_positions:
        way_out += ", or set rope_scaling and that key with hf-overrides"
    return [Obstacle("context", f"{shown(length)} {limit}; {way_out}")]


def memory(estimated: Estimate, gpu: Gpu, serving: Serving) -> list[Obstacle]:
    """Return weights or KV cache that do not fit, or only just: kinds weights, kv_cache and margin."""
    on = f"{serving.gpu_count} x {gpu.name}" if serving.gpu_count > 1 else gpu.name
    used, budget = estimated.used, estimated.total - estimated.outside
    given = serving.kv_cache_memory_bytes or 0
    if used + given >= budget:
        cache = f", with {_gib(given)} of KV cache," if given else ""
        message = (
            f"{_gib(estimated.weights)} of weights and {_gib(used - estimated.weights)} of working memory"
            f"{cache} do not fit into {_gib(budget)} of {on}; {_ways_out(estimated, gpu, serving)}"
        )
        return [Obstacle("weights", message)]
    if not estimated.fits:
        lower = [f"lower max_model_len to {estimated.longest_context}"] if estimated.longest_context else []
        message = (
            f"{estimated.max_model_len} tokens need {_gib(estimated.needed)} of KV cache, but {on} has "
            f"{_gib(estimated.kv_cache)} left; {_ways_out(estimated, gpu, serving, *lower)}"
        )
        return [Obstacle("kv_cache", message)]
    if estimated.margin < NEAR:
        spare = _gib(int(estimated.margin * estimated.total))
        message = (
            f"{estimated.max_model_len} tokens fit into {on} with {spare} to spare, less than an estimate "
            "can promise; lower max_model_len or max_num_seqs, or leave more room"
        )
        return [Obstacle("margin", message, "warning")]
    return []


def _ways_out(estimated: Estimate, gpu: Gpu, serving: Serving, *others: str) -> str:
    raised = ["gpu_memory_utilization"] if estimated.gpu_memory_utilization < HIGHEST_UTILIZATION else []
    raised += ["gpus.count"] if serving.gpu_count > 1 else []
    ways = [*others, f"raise {' or '.join(raised)}"] if raised else [*others]
    if serving.gpu_count == 1:  # then a higher gpus.count means more servers
        ways.append("give it more GPUs (strategy: tensor_parallel)")
    if estimated.smallest and estimated.smallest != Request(gpu.name, serving.gpu_count):
        ways.append(f"take {estimated.smallest.count} x {estimated.smallest.gpu}")
    *most, last = ways
    return f"{', '.join(most)}, or {last}" if most else last


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
