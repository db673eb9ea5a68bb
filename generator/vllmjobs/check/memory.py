"""VJ201 to VJ221: whether the model can run on the GPUs that it asks for."""

from collections.abc import Callable
from functools import partial

from vllmjobs.check.rule import Findings, model_rule
from vllmjobs.check.subject import Subject
from vllmjobs.environment.problems import KeyPath, Severity
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
    """Find a model of unknown size: its memory is not checked. Nothing is known without its config.json."""
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
            f"names no GPU, and {subject.model.model} does not fit the smallest, a {least.name}; add "
            "gpus.model or gpus.memory, and vllmjobs checks what fits",
        )


@model_rule("VJ221", "error")
def utilization_leaves_room(subject: Subject) -> Findings:
    """Find a share of the GPU outside 0.1 to 0.95. vLLM takes it, and most often ends out of memory."""
    share = subject.model.gpu_memory_utilization
    if LOWEST_UTILIZATION <= share <= HIGHEST_UTILIZATION or "kv-cache-memory-bytes" in subject.written:
        return
    what = "leaves no room for the KV cache"
    if share > HIGHEST_UTILIZATION:
        what = "leaves too little for CUDA and for what else is on the GPU"
    message = f"{share} {what}; use {LOWEST_UTILIZATION} to {HIGHEST_UTILIZATION}"
    yield ("gpu_memory_utilization",), message


def _length(subject: Subject) -> KeyPath:
    return ("max_model_len",) if subject.model.max_model_len else ("model",)


def _numbers(subject: Subject) -> KeyPath:
    """Return the key that decides the form of the weights: `quantization`, else `dtype`, else the GPU."""
    for name in ("quantization", "dtype"):
        if (path := _argument(subject, name)) != ("args",):
            return path
    return ("gpus", "model")


def _argument(subject: Subject, name: str) -> KeyPath:
    written = subject.written.get(name)
    return ("args", written) if written else ("args",)


def _stages(subject: Subject) -> KeyPath:
    return _argument(subject, "pipeline-parallel-size")


def _gpus(_: Subject) -> KeyPath:
    return ("gpus", "count")


def _obstacles(subject: Subject, kind: str, severity: Severity, at: Callable[[Subject], KeyPath]) -> Findings:
    """Yield the obstacles of one kind and severity, at the key that they come from."""
    for obstacle in subject.obstacles:
        if (obstacle.kind, obstacle.severity) == (kind, severity):
            yield at(subject), obstacle.message


# The rules that pass on the obstacles of one kind (`vllm/memory/obstacles.py`), and nothing else.
PASSED_ON: tuple[tuple[str, str, Severity, Callable[[Subject], KeyPath], str, str], ...] = (
    ("VJ210", "layers", "error", _stages, "layers-fill-the-pipeline", "More pipeline stages than layers."),
    ("VJ211", "heads", "error", _gpus, "heads-divide", "Attention heads that the GPUs do not divide."),
    ("VJ212", "vocabulary", "error", _gpus, "vocabulary-divides",
     "A vocabulary that the GPUs do not divide."),
    ("VJ213", "kv_heads", "error", _gpus, "kv-heads-divide",
     "Key and value heads that the GPUs do not divide."),
    ("VJ214", "capability", "error", _numbers, "gpu-runs-the-quantization",
     "A GPU too old for the quantization."),
    ("VJ215", "capability", "warning", _numbers, "gpu-has-kernels-for-the-quantization",
     "A GPU that keeps the quantization, and does not calculate in it."),
    ("VJ216", "context", "error", _length, "context-is-the-models", "A context longer than the model's."),
    ("VJ217", "block", "error", _gpus, "quantized-blocks-divide", "Fp8 blocks that the GPUs would cut."),
    ("VJ218", "weights", "error", _gpus, "weights-fit", "Weights that do not fit."),
    ("VJ219", "kv_cache", "error", _length, "a-full-length-request-fits",
     "A request of full length that does not fit."),
    ("VJ220", "margin", "warning", _length, "memory-has-a-margin",
     "A model that fits too tightly for an estimate."),
)  # fmt: skip
for _rule, _kind, _severity, _at, _name, _finds in PASSED_ON:
    model_rule(_rule, _severity, _name, _finds)(partial(_obstacles, kind=_kind, severity=_severity, at=_at))
