"""Whether the model can run on the GPUs that it asks for."""

from collections.abc import Callable

from vllmjobs.check.rule import Findings, Rule, of_model
from vllmjobs.check.subject import Subject
from vllmjobs.environment.problems import Path, Severity
from vllmjobs.vllm.memory.gpus import gpus
from vllmjobs.vllm.memory.serving import HIGHEST_UTILIZATION, LOWEST_UTILIZATION
from vllmjobs.vllm.memory.shape import Shape


@of_model("VJ201", "error")
def config_can_be_read(subject: Subject) -> Findings:
    """The config.json that the environment names."""
    if subject.model.config and isinstance(subject.config, str):
        yield ("config",), subject.config


@of_model("VJ202", "note")
def model_is_known(subject: Subject) -> Findings:
    """Without its config.json, nothing can be said about a model's memory."""
    if isinstance(subject.config, str) and not subject.model.config:
        yield ("model",), f"{subject.config}: its memory is not checked; name its config.json under config"
    elif isinstance(subject.shape, str):
        yield ("model",), f"{subject.shape}: its memory is not checked"


@of_model("VJ203", "note")
def gpu_is_known(subject: Subject) -> Findings:
    """A model that the smallest GPU cannot hold asks for one that can."""
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


@of_model("VJ221", "error")
def utilization_leaves_room(subject: Subject) -> Findings:
    """vLLM takes what is above 0 and at most 1; outside of 0.1 to 0.95 it most often ends out of memory."""
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
        yield (
            ("gpu_memory_utilization",),
            f"{share} {what}; use {LOWEST_UTILIZATION} to {HIGHEST_UTILIZATION}",
        )


def _count(_: Subject) -> Path:
    return ("gpus", "count")


def _length(subject: Subject) -> Path:
    return ("max_model_len",) if subject.model.max_model_len else ("model",)


def _pipeline(subject: Subject) -> Path:
    return _argument(subject, "pipeline-parallel-size")


def _numbers(subject: Subject) -> Path:
    """What the weights are kept in: `quantization`, else `dtype`, else the model's own on this GPU."""
    for name in ("quantization", "dtype"):
        if (path := _argument(subject, name)) != ("args",):
            return path
    return ("gpus", "model")


def _argument(subject: Subject, name: str) -> Path:
    written = subject.written.get(name)
    return ("args", written) if written else ("args",)


# What vllm/misfits.py finds, by its kind: each a rule of its own, so that each can be passed over alone.
_MISFITS: list[tuple[str, Severity, str, str, Callable[[Subject], Path]]] = [
    ("VJ210", "error", "layers", "layers-fill-the-pipeline", _pipeline),
    ("VJ211", "error", "heads", "heads-divide", _count),
    ("VJ212", "error", "vocabulary", "vocabulary-divides", _count),
    ("VJ213", "error", "kv_heads", "kv-heads-divide", _count),
    ("VJ214", "error", "capability", "gpu-runs-the-quantization", _numbers),
    ("VJ215", "warning", "capability", "gpu-has-kernels-for-the-quantization", _numbers),
    ("VJ216", "error", "context", "context-is-the-models", _length),
    ("VJ217", "error", "block", "quantized-blocks-divide", _count),
    ("VJ218", "error", "weights", "weights-fit", _count),
    ("VJ219", "error", "kv_cache", "a-full-length-request-fits", _length),
    ("VJ220", "warning", "margin", "memory-has-a-margin", _length),
]


def _rule(rule: str, severity: Severity, kind: str, name: str, path: Callable[[Subject], Path]) -> Rule:
    def find(subject: Subject) -> Findings:
        for misfit in subject.misfits:
            if (misfit.kind, misfit.severity) == (kind, severity):
                yield path(subject), misfit.message

    return of_model(rule, severity, name)(find)


MISFITS = [_rule(*row) for row in _MISFITS]
