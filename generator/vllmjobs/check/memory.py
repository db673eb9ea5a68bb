"""VJ201 to VJ221: whether the model can run on the GPUs that it asks for."""

from vllmjobs.check.rule import Findings, model_rule
from vllmjobs.check.subject import Subject
from vllmjobs.environment.problems import Path, Severity
from vllmjobs.vllm.memory.gpus import gpus
from vllmjobs.vllm.memory.serving import HIGHEST_UTILIZATION, LOWEST_UTILIZATION
from vllmjobs.vllm.memory.shape import Shape


@model_rule("VJ201", "error")
def config_can_be_read(subject: Subject) -> Findings:
    """Find a `config` that is not there, or no JSON."""
    if subject.model.config and isinstance(subject.config, str):
        yield ("config",), subject.config


@model_rule("VJ202", "note")
def model_is_known(subject: Subject) -> Findings:
    """Find a model of unknown size: its memory is not checked.

    Without its config.json, nothing can be said about a model's memory.
    """
    if isinstance(subject.config, str) and not subject.model.config:
        yield ("model",), f"{subject.config}: its memory is not checked; name its config.json under config"
    elif isinstance(subject.shape, str):
        yield ("model",), f"{subject.shape}: its memory is not checked"


@model_rule("VJ203", "note")
def gpu_is_known(subject: Subject) -> Findings:
    """Find a GPU of unknown memory: what fits is not checked.

    A model that the smallest GPU cannot hold asks for one that can.
    """
    wanted, shape = subject.model.gpus, subject.shape
    if subject.gpu or (wanted.vendor, wanted.type) != ("nvidia", "gpu") or not isinstance(shape, Shape):
        return
    least = min(gpus(), key=lambda each: each.usable)
    if wanted.model:
        yield ("gpus", "model"), f"{wanted.model} is not in the table of GPUs: memory is not checked"
    elif subject.fits(least) is False:
        yield (
            ("gpus",),
            f"any GPU will do, and {subject.model.model} does not fit a {least.name}; name gpus.model or "
            "gpus.memory, and what fits is checked",
        )


@model_rule("VJ210", "error")
def layers_fill_the_pipeline(subject: Subject) -> Findings:
    """Find more pipeline stages than layers."""
    return _obstacles(subject, "layers", "error", _argument(subject, "pipeline-parallel-size"))


@model_rule("VJ211", "error")
def heads_divide(subject: Subject) -> Findings:
    """Find attention heads that the GPUs do not divide."""
    return _obstacles(subject, "heads", "error", ("gpus", "count"))


@model_rule("VJ212", "error")
def vocabulary_divides(subject: Subject) -> Findings:
    """Find a vocabulary that the GPUs do not divide."""
    return _obstacles(subject, "vocabulary", "error", ("gpus", "count"))


@model_rule("VJ213", "error")
def kv_heads_divide(subject: Subject) -> Findings:
    """Find key and value heads that the GPUs do not divide."""
    return _obstacles(subject, "kv_heads", "error", ("gpus", "count"))


@model_rule("VJ214", "error")
def gpu_runs_the_quantization(subject: Subject) -> Findings:
    """Find a GPU too old for the quantization."""
    return _obstacles(subject, "capability", "error", _numbers(subject))


@model_rule("VJ215", "warning")
def gpu_has_kernels_for_the_quantization(subject: Subject) -> Findings:
    """Find a GPU that keeps the quantization, and does not calculate in it."""
    return _obstacles(subject, "capability", "warning", _numbers(subject))


@model_rule("VJ216", "error")
def context_is_the_models(subject: Subject) -> Findings:
    """Find a context longer than the model's."""
    return _obstacles(subject, "context", "error", _length(subject))


@model_rule("VJ217", "error")
def quantized_blocks_divide(subject: Subject) -> Findings:
    """Find fp8 blocks that the GPUs would cut."""
    return _obstacles(subject, "block", "error", ("gpus", "count"))


@model_rule("VJ218", "error")
def weights_fit(subject: Subject) -> Findings:
    """Find weights that do not fit."""
    return _obstacles(subject, "weights", "error", ("gpus", "count"))


@model_rule("VJ219", "error")
def a_full_length_request_fits(subject: Subject) -> Findings:
    """Find a request of full length that does not fit."""
    return _obstacles(subject, "kv_cache", "error", _length(subject))


@model_rule("VJ220", "warning")
def memory_has_a_margin(subject: Subject) -> Findings:
    """Find a model that fits too tightly for an estimate."""
    return _obstacles(subject, "margin", "warning", _length(subject))


@model_rule("VJ221", "error")
def utilization_leaves_room(subject: Subject) -> Findings:
    """Find a share of the GPU outside 0.1 to 0.95.

    vLLM takes what is above 0 and at most 1; outside of 0.1 to 0.95 it most often ends out of memory.
    """
    share = subject.model.gpu_memory_utilization
    if (
        not LOWEST_UTILIZATION <= share <= HIGHEST_UTILIZATION
        and "kv-cache-memory-bytes" not in subject.written
    ):
        what = (
            "leaves too little to CUDA and to what else is on the GPU"
            if share > HIGHEST_UTILIZATION
            else "leaves no cache"
        )
        message = f"{share} {what}; use {LOWEST_UTILIZATION} to {HIGHEST_UTILIZATION}"
        yield ("gpu_memory_utilization",), message


def _length(subject: Subject) -> Path:
    return ("max_model_len",) if subject.model.max_model_len else ("model",)


def _numbers(subject: Subject) -> Path:
    """Return the key that decides the form of the weights: `quantization`, else `dtype`, else the GPU."""
    for name in ("quantization", "dtype"):
        if (path := _argument(subject, name)) != ("args",):
            return path
    return ("gpus", "model")


def _argument(subject: Subject, name: str) -> Path:
    written = subject.written.get(name)
    return ("args", written) if written else ("args",)


def _obstacles(subject: Subject, kind: str, severity: Severity, path: Path) -> Findings:
    """Yield the obstacles of one kind and severity, at the key that they come from."""
    for obstacle in subject.obstacles:
        if (obstacle.kind, obstacle.severity) == (kind, severity):
            yield path, obstacle.message
