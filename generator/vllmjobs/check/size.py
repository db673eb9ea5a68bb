"""The size of each model on its GPUs, as a table for people and as JSON."""

import json
from typing import Any, NamedTuple

import msgspec

from vllmjobs.check.subject import Subject
from vllmjobs.text.visible import one_line
from vllmjobs.vllm.memory.estimate import Estimate, Request, on_cpu, smallest
from vllmjobs.vllm.memory.gpus import GIB, Gpu
from vllmjobs.vllm.memory.limits import capability, dividing
from vllmjobs.vllm.memory.shape import Shape, UnknownShapeError
from vllmjobs.vllm.memory.startup_log import StartupLog

BAR = 40  # characters for all of a GPU
EIGHTHS = " ▏▎▍▌▋▊▉"
FIGURES = {  # of `StartupLog` and `Estimate` alike
    "kv_tokens": "KV cache tokens", "concurrency": "requests at a time", "kv_cache": "KV cache",
    "weights": "weights",
}  # fmt: skip
CPU_FIGURES = ("kv_tokens", "concurrency")


class Figure(NamedTuple):
    """One figure of vLLM's log, and the estimated one; None where the estimate does not cover it."""

    logged: float
    estimated: float | None

    @property
    def off(self) -> float | None:
        """Return how far the estimate is above vLLM's figure, as a part of that figure."""
        return None if self.estimated is None or not self.logged else self.estimated / self.logged - 1


class Beside(NamedTuple):
    """The figures of a log by their key in `FIGURES`, and why some have no estimate beside them."""

    device: str | None
    figures: dict[str, Figure]
    notes: list[str]


class ModelSize(NamedTuple):
    """One model's estimate on one kind of GPU, or why there is none; and the smallest GPUs that would do.

    `smallest` is of the table, `of_same` of this kind. `refused` is why vLLM would not run it there, whatever
    the memory. `beside` is what vLLM's log says, where one was given.
    """

    name: str
    model: str
    gpus: int
    gpu: Gpu | None
    estimate: Estimate | None = None
    smallest: Request | None = None
    of_same: Request | None = None
    why_not: str = ""
    refused: str = ""
    beside: Beside | None = None


def size_of(subject: Subject, gpu: Gpu | None) -> ModelSize:
    """Return the memory of one model on `gpu`, or on the GPU that it asks for."""
    gpu = gpu or subject.gpu
    result = ModelSize(subject.name, subject.model.model, subject.serving.gpu_count, gpu)
    if not isinstance(subject.shape, Shape):
        return result._replace(why_not=subject.shape or str(subject.config))
    try:
        of_same = smallest(subject.shape, subject.serving, [gpu]) if gpu else None
        result = result._replace(smallest=smallest(subject.shape, subject.serving), of_same=of_same)
    except UnknownShapeError as error:
        return result._replace(why_not=str(error))
    refused = dividing(subject.shape, subject.serving)
    refused += [*capability(subject.shape, gpu, subject.serving)] if gpu else []
    if errors := [obstacle.message for obstacle in refused if obstacle.severity == "error"]:
        return result._replace(refused=errors[0])
    if gpu is None:
        return result._replace(why_not="no GPU is named; add gpus.model or gpus.memory, or use --gpu NAME")
    fit = subject.on(gpu)
    return result._replace(why_not=fit) if isinstance(fit, str) else result._replace(estimate=fit)


def beside(subject: Subject, result: ModelSize, log: StartupLog) -> ModelSize:
    """Return a size with what vLLM told in its log beside the estimate.

    On the CPU the estimate covers what a token takes: the tokens are those that a cache of the size that was
    asked for holds, or of the size that the log tells. Versions that called the CPU a GPU, too, are known by
    VLLM_CPU_KVCACHE_SPACE.
    """
    estimate, covered, notes = result.estimate, tuple(FIGURES), []
    space = _kv_cache_space(subject)
    if log.device == "CPU" or (space and not result.gpu):
        # In vLLM's order: the variable is laid over the argument (vllm/platforms/cpu.py).
        given = space or subject.serving.kv_cache_memory_bytes or log.kv_cache
        estimate, covered = None, CPU_FIGURES
        if not given:
            notes.append("neither VLLM_CPU_KVCACHE_SPACE nor the log tells the size of the KV cache")
        elif isinstance(subject.shape, Shape):
            try:
                estimate = on_cpu(subject.shape, subject.serving, given)
                notes.append(f"on the CPU, only what {given / GIB:.2f} GiB of KV cache hold is estimated")
            except UnknownShapeError as error:
                notes.append(str(error))
    if estimate and log.max_model_len not in (None, estimate.max_model_len):
        covered = tuple(name for name in covered if name != "concurrency")
        lengths = f"{log.max_model_len:,} tokens, the estimate {estimate.max_model_len:,}"
        notes.append(f"the log counts requests of {lengths}")
    figures = {
        name: Figure(value, getattr(estimate, name) if estimate and name in covered else None)
        for name in FIGURES
        if (value := getattr(log, name)) is not None
    }
    return result._replace(beside=Beside(log.device, figures, notes))


def _kv_cache_space(subject: Subject) -> int | None:
    """Return the bytes of VLLM_CPU_KVCACHE_SPACE, which counts whole GiB."""
    text = str(subject.model.env.get("VLLM_CPU_KVCACHE_SPACE", ""))
    return int(text) * GIB if text.isascii() and text.isdigit() and len(text) < 9 else None


def as_text(sizes: list[ModelSize]) -> str:
    """Return, for each model, a bar per part of the GPU, and what fits."""
    return "\n".join(_one(each) for each in sizes)


def as_json(sizes: list[ModelSize]) -> str:
    """Return `{version, models: [...]}`; amounts in bytes per GPU, `null` where there is no estimate.

    A model: name, model, gpu, count, estimate (see `Estimate`), said, smallest and smallest_of_this_gpu (each
    {gpu, count}), reason. `said` is null without a log, else {device, figures, notes}; of the figures, each
    {said, estimated, off} by its name in the estimate, `off` is 0.01 where that is 1 % above what was said.
    """
    models: list[dict[str, Any]] = [
        {
            "name": each.name,
            "model": each.model,
            "gpu": each.gpu.name if each.gpu else None,
            "count": each.gpus,
            "estimate": msgspec.to_builtins(each.estimate),
            "said": each.beside and _logged(each.beside),
            "smallest": msgspec.to_builtins(each.smallest),
            "smallest_of_this_gpu": msgspec.to_builtins(each.of_same),
            "reason": each.refused or each.why_not or None,
        }
        for each in sizes
    ]
    return json.dumps({"version": 1, "models": models}, indent=2) + "\n"


def _one(size: ModelSize) -> str:
    on = f" on {size.gpus} x {size.gpu.name}" if size.gpu else ""
    lines = [f"{size.name}: {size.model}{on}"]
    estimate = size.estimate
    if estimate is None:
        lines.append(f"  cannot run: {size.refused}" if size.refused else f"  {size.why_not}")
    else:
        parts = {
            "weights": estimate.weights,
            "activations": estimate.activations,
            "CUDA graphs": estimate.cuda_graphs,
            "non-torch": estimate.non_torch,
            "KV cache": estimate.kv_cache,
            "left": estimate.total - estimate.used - estimate.kv_cache,
        }
        lines += [f"  {name:<12}{_gib(size)}  {_bar(size / estimate.total)}" for name, size in parts.items()]
        lines.append(f"  {'of':<12}{_gib(estimate.total)}  per GPU, as CUDA counts it")
        lines += _what_fits(estimate)
    requests = [f"{each.count} x {each.gpu}" for each in (size.of_same, size.smallest) if each]
    if requests:
        lines.append(f"  smallest that would do: {'; with any GPU: '.join(dict.fromkeys(requests))}")
    lines += _beside(size.beside) if size.beside else []
    return "".join(f"{one_line(line.rstrip())}\n" for line in lines)


def _logged(beside: Beside) -> dict[str, Any]:
    every = beside.figures.items()
    figures = {name: {"said": one.logged, "estimated": one.estimated, "off": one.off} for name, one in every}
    return {"device": beside.device, "figures": figures, "notes": beside.notes}


def _beside(beside: Beside) -> list[str]:
    """Return a line for each figure, vLLM's own first."""

    def shown(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        if name == "kv_tokens":
            return f"{value:,.0f}"
        return f"{value:.2f}" if name == "concurrency" else f"{value / GIB:.2f} GiB"

    lines = [f"  {'':<20}{'vLLM said':>14}{'estimated':>14}{'off':>8}"]
    for name, each in beside.figures.items():
        off = "" if each.off is None else f"{each.off:+.1%}"
        logged, estimated = shown(name, each.logged), shown(name, each.estimated)
        lines.append(f"  {FIGURES[name]:<20}{logged:>14}{estimated:>14}{off:>8}")
    return lines + [f"  {note}" for note in beside.notes]


def _what_fits(estimate: Estimate) -> list[str]:
    if not estimate.fits:
        missing = f"{estimate.max_model_len:,} tokens need {estimate.needed / GIB:.2f} GiB of KV cache"
        longest = f"; {estimate.longest_context:,} would fit" if estimate.longest_context else ""
        return [f"  does not fit: {missing}{longest}"]
    return [
        f"  {estimate.kv_tokens:,} tokens of KV cache: {estimate.concurrency:.1f} requests of "
        f"{estimate.max_model_len:,} tokens at a time",
        f"  longest context that fits: {estimate.longest_context:,} tokens",
    ]


def _gib(value: int) -> str:
    return f"{value / GIB:>8.2f} GiB"


def _bar(share: float) -> str:
    eighths = round(max(0.0, min(share, 1.0)) * BAR * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8]
