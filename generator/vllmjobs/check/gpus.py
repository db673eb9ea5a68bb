"""GPUs that are asked for, against the GPUs that there are."""

import re
from collections.abc import Iterator

from vllmjobs.check.rule import Findings, of_model
from vllmjobs.check.subject import Subject
from vllmjobs.environment.problems import Path
from vllmjobs.environment.quantity import size_bytes
from vllmjobs.vllm.gpus import Gpu, gpu, gpus

# A label says 80 GB where the driver reports 79.6 GiB, 24 GB where it reports 22.5 GiB: 7 % at most.
LABEL_MARGIN = 1.07


@of_model("VJ323", "error")
def a_gpu_has_the_memory(subject: Subject) -> Findings:
    """Memory that the named GPU does not report, or that none does: nothing would ever be placed."""
    named = gpu(subject.model.gpus.model or "")
    for path, asked, text in _asked(subject):
        if named and named.memory_mib < asked:
            yield path, f"{text} is more than {named.name} reports, {_reported(named)}; {_way_out(named)}"
        elif not named and not subject.model.gpus.model and all(each.memory_mib < asked for each in gpus()):
            most = max(gpus(), key=lambda each: each.memory_mib)
            yield path, f"no known GPU reports {text}; {most.name} has the most, {_reported(most)}"


@of_model("VJ324", "warning")
def no_gpu_is_left_out_by_its_label(subject: Subject) -> Findings:
    """A driver reports less than the label says: 80 GiB leaves out every H100 80GB, which has 79.6."""
    if subject.model.gpus.model:
        return
    for path, asked, text in _asked(subject):
        near = [each for each in gpus() if each.memory_mib < asked <= each.memory_mib * LABEL_MARGIN]
        if near and any(each.memory_mib >= asked for each in gpus()):
            names = ", ".join(f"{each.name} ({_reported(each)})" for each in near[:3])
            yield path, f"{text} leaves out {names}; {_way_out(min(near, key=lambda each: each.memory_mib))}"


@of_model("VJ325", "warning")
def gpu_has_its_whole_name(subject: Subject) -> Findings:
    """Nomad compares the model with NVML's name, letter by letter: `H100` is no GPU's."""
    wanted = subject.model.gpus.model or ""
    known = gpu(wanted)
    if known and wanted != known.name and wanted not in known.short:
        yield ("gpus", "model"), f"Nomad compares with the driver's whole name, such as {known.name!r}"
    elif known and wanted != known.name and not wanted.startswith(("NVIDIA ", "Tesla ")):
        yield ("gpus", "model"), f"is short for what the driver reports; write {known.name!r}"


def _asked(subject: Subject) -> Iterator[tuple[Path, float, str]]:
    """What is asked of each GPU's memory, in MiB, and as it is written."""
    wanted = subject.model.gpus
    if (wanted.vendor, wanted.type) != ("nvidia", "gpu"):
        return
    if wanted.memory:
        yield ("gpus", "memory"), size_bytes(wanted.memory) / 2**20, wanted.memory
    for index, constraint in enumerate(wanted.constraints):
        asks = constraint.attribute == "${device.attr.memory}" and constraint.operator in (
            ">",
            ">=",
            "=",
            "==",
            "is",
        )
        if asks and re.fullmatch(r"\d+(\.\d+)? ?(MiB|GiB|TiB|MB|GB|TB)", constraint.value):
            size = size_bytes(constraint.value)
            yield ("gpus", "constraints", index, "value"), size / 2**20, constraint.value


def _reported(one: Gpu) -> str:
    return f"{one.memory_mib / 1024:.1f} GiB"


def _way_out(one: Gpu) -> str:
    """A round number a good deal below, which older drivers report too."""
    return f"ask for less, such as {int(one.memory_mib / 1024 * 0.9)} GiB"
