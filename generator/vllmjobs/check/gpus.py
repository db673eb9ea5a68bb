"""VJ323 to VJ325: GPUs that are asked for, against the GPUs that there are."""

import re
from collections.abc import Iterator
from operator import eq, ge, gt, le, lt, ne

from vllmjobs.check.rule import Findings, model_rule
from vllmjobs.check.subject import Subject
from vllmjobs.environment.problems import Path
from vllmjobs.environment.quantity import size_bytes
from vllmjobs.vllm.memory.gpus import Gpu, gpu, gpus

# A label says 80 GB where the driver reports 79.6 GiB, 24 GB where it reports 22.5 GiB: 7 % at most.
LABEL_MARGIN = 1.07
COMPARED = {
    "=": eq, "==": eq, "is": eq, "!=": ne, "not": ne, "<": lt, "<=": le, ">": gt, ">=": ge,
}  # fmt: skip


@model_rule("VJ323", "error")
def a_gpu_has_the_memory(subject: Subject) -> Findings:
    """Find more memory than the GPU reports. Nothing is ever placed where none reports so much."""
    wanted = subject.model.gpus
    named = gpu(wanted.model or "")
    if wanted.model and not named:
        return
    for path, operator, asked, text in _asked(subject):
        if any(COMPARED[operator](each.memory_mib, asked) for each in ([named] if named else gpus())):
            continue
        if named:
            yield path, f"{text} is not what {named.name} reports, {_reported(named)}; {_way_out(named)}"
        else:
            most = max(gpus(), key=lambda each: each.memory_mib)
            yield path, f"no known GPU reports {text}; {most.name} has the most, {_reported(most)}"


@model_rule("VJ324", "warning")
def no_gpu_is_left_out_by_its_label(subject: Subject) -> Findings:
    """Find a threshold from the label of a card, which leaves that card out.

    A driver reports less than the label says: 80 GiB leaves out every H100 80GB, which has 79.6.
    """
    if subject.model.gpus.model:
        return
    for path, operator, asked, text in _asked(subject):
        near = [each for each in gpus() if each.memory_mib < asked <= each.memory_mib * LABEL_MARGIN]
        if operator in (">", ">=") and near and any(each.memory_mib >= asked for each in gpus()):
            names = ", ".join(f"{each.name} ({_reported(each)})" for each in near[:3])
            yield path, f"{text} leaves out {names}; {_way_out(min(near, key=lambda each: each.memory_mib))}"


@model_rule("VJ325", "warning")
def gpu_has_its_whole_name(subject: Subject) -> Findings:
    """Find a GPU by a name that no driver reports. Nomad compares NVML's whole name: `H100` is none."""
    named: list[tuple[Path, str]] = [(("gpus", "model"), subject.model.gpus.model or "")]
    for index, constraint in enumerate(subject.model.gpus.constraints):
        if constraint.attribute == "${device.model}" and constraint.operator in ("=", "==", "is"):
            named.append((("gpus", "constraints", index, "value"), constraint.value))
    for path, name in named:
        known = gpu(name)
        is_drivers = name.startswith(("NVIDIA ", "Tesla ")) and known and name in known.short
        if known and name != known.name and not is_drivers:
            yield (
                path,
                f"{name} is not what a driver reports in full, which Nomad compares; write {known.name!r}",
            )


def _asked(subject: Subject) -> Iterator[tuple[Path, str, float, str]]:
    """Yield each demand on a GPU's memory: its key, the operator, MiB, and the text of the file."""
    wanted = subject.model.gpus
    if (wanted.vendor, wanted.type) != ("nvidia", "gpu"):
        return
    if wanted.memory:
        yield ("gpus", "memory"), ">=", size_bytes(wanted.memory) / 2**20, wanted.memory
    for index, constraint in enumerate(wanted.constraints):
        operator, value = constraint.operator, constraint.value
        is_memory = constraint.attribute == "${device.attr.memory}" and operator in COMPARED
        if is_memory and re.fullmatch(r"\d+(\.\d+)? ?(MiB|GiB|TiB|MB|GB|TB)", value):
            text = value if operator == ">=" else f"{operator} {value}"
            yield ("gpus", "constraints", index, "value"), operator, size_bytes(value) / 2**20, text


def _reported(one: Gpu) -> str:
    return f"{one.memory_mib / 1024:.1f} GiB"


def _way_out(one: Gpu) -> str:
    """Return the way out: a round number a good deal below, which older drivers report too."""
    return f"ask for less, such as {int(one.memory_mib / 1024 * 0.9)} GiB"
