"""What each model takes of its GPUs, as a table for people and as JSON."""

import json
from typing import Any, NamedTuple

import msgspec

from vllmjobs.check.subject import Subject
from vllmjobs.vllm.gpus import Gpu
from vllmjobs.vllm.limits import capability, dividing
from vllmjobs.vllm.memory import Estimate, Request, smallest
from vllmjobs.vllm.shape import Shape, UnknownShapeError

GIB = 2**30
BAR = 40  # characters for all of a GPU
EIGHTHS = " ▏▎▍▌▋▊▉"


class Size(NamedTuple):
    """One model's estimate on one kind of GPU, or why there is none; and the smallest GPUs that would do.

    `smallest` is of the table, `of_same` of this kind. `refused` is why vLLM would not run it there, whatever
    the memory.
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


def size(subject: Subject, gpu: Gpu | None) -> Size:
    """The memory of one model on `gpu`, or on the GPU that it asks for."""
    gpu = gpu or subject.gpu
    found = Size(subject.name, subject.model.model, subject.use.gpu_count, gpu)
    if not isinstance(subject.shape, Shape):
        return found._replace(why_not=subject.shape or str(subject.config))
    try:
        of_same = smallest(subject.shape, subject.use, [gpu]) if gpu else None
        found = found._replace(smallest=smallest(subject.shape, subject.use), of_same=of_same)
    except UnknownShapeError as error:
        return found._replace(why_not=str(error))
    refused = dividing(subject.shape, subject.use)
    refused += [*capability(subject.shape, gpu, subject.use)] if gpu else []
    if errors := [misfit.message for misfit in refused if misfit.severity == "error"]:
        return found._replace(refused=errors[0])
    if gpu is None:
        return found._replace(why_not="no GPU is named; say gpus.model or gpus.memory, or --gpu NAME")
    fit = subject.on(gpu)
    return found._replace(why_not=fit) if isinstance(fit, str) else found._replace(estimate=fit)


def as_text(sizes: list[Size]) -> str:
    """For each model a bar per part of the GPU, and what fits."""
    return "\n".join(_one(each) for each in sizes)


def as_json(sizes: list[Size]) -> str:
    """`{version, models: [...]}`; amounts in bytes per GPU, `null` where there is no estimate.

    A model: name, model, gpu, count, estimate (see `Estimate`), smallest and smallest_of_this_gpu (each
    {gpu, count}), reason.
    """
    models: list[dict[str, Any]] = [
        {
            "name": each.name,
            "model": each.model,
            "gpu": each.gpu.name if each.gpu else None,
            "count": each.gpus,
            "estimate": msgspec.to_builtins(each.estimate),
            "smallest": msgspec.to_builtins(each.smallest),
            "smallest_of_this_gpu": msgspec.to_builtins(each.of_same),
            "reason": each.refused or each.why_not or None,
        }
        for each in sizes
    ]
    return json.dumps({"version": 1, "models": models}, indent=2) + "\n"


def _one(size: Size) -> str:
    on = f" on {size.gpus} x {size.gpu.name}" if size.gpu else ""
    lines = [f"{size.name}: {size.model}{on}"]
    found = size.estimate
    if found is None:
        lines.append(f"  cannot run: {size.refused}" if size.refused else f"  {size.why_not}")
    else:
        parts = {
            "weights": found.weights,
            "activations": found.activations,
            "CUDA graphs": found.cuda_graphs,
            "non-torch": found.non_torch,
            "KV cache": found.kv_cache,
            "left": found.total - found.used - found.kv_cache,
        }
        lines += [f"  {name:<12}{_gib(value)}  {_bar(value / found.total)}" for name, value in parts.items()]
        lines.append(f"  {'of':<12}{_gib(found.total)}  per GPU, as CUDA counts it")
        lines += _what_fits(found)
    requests = [f"{each.count} x {each.gpu}" for each in (size.of_same, size.smallest) if each]
    if requests:
        lines.append(f"  smallest that would do: {', of all GPUs '.join(dict.fromkeys(requests))}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _what_fits(found: Estimate) -> list[str]:
    if not found.fits:
        missing = f"{found.max_model_len:,} tokens need {found.needed / GIB:.2f} GiB of KV cache"
        longest = f"; {found.longest_context:,} would fit" if found.longest_context else ""
        return [f"  does not fit: {missing}{longest}"]
    return [
        f"  {found.kv_tokens:,} tokens of KV cache: {found.concurrency:.1f} requests of "
        f"{found.max_model_len:,} tokens at a time",
        f"  longest context that fits: {found.longest_context:,} tokens",
    ]


def _gib(value: int) -> str:
    return f"{value / GIB:>8.2f} GiB"


def _bar(share: float) -> str:
    eighths = round(max(0.0, min(share, 1.0)) * BAR * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8]
