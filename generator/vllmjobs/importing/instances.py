"""An older `instances.config`, `NAME:PORT:MODEL:DEVICE:MAX_LEN:TP` a line, to the keys of an environment.

The fields: balanced-vllm-docker's generate_compose.sh and start_instance.sh.
"""

import re
import unicodedata
from typing import NamedTuple

from vllmjobs.environment.problems import Mark, Problem
from vllmjobs.environment.secrets import looks_secret
from vllmjobs.importing.dotenv import Note
from vllmjobs.importing.settings import MAX_GPUS, MAX_TOKENS, TENSOR_PARALLEL, length, model_name, whole
from vllmjobs.importing.text import Commented, YamlBlock, balancer, group_name

FIELDS = ("NAME", "PORT", "MODEL", "DEVICE", "MAX_LEN", "TP")
NGINX_PORT = 80  # generate_compose.sh


class Instance(NamedTuple):
    """One line."""

    mark: Mark
    name: str
    port: str
    model: str
    device: str
    max_len: int
    tensor_parallel: int


def is_instances(text: str) -> bool:
    """Tell whether the first line that says something has at least three colons before any `=`."""
    lines = (line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#"))
    return bool(re.match(r"([^:=]*:){3}", next(lines, "")))


def read_instances(text: str, source: str) -> tuple[list[Instance], list[Problem]]:
    """Return the instances of a file, and the lines that are none; `text` has line feeds only."""
    instances: list[Instance] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                instances.append(_instance(line, Mark(source, number, 1)))
            except ValueError as error:
                problems.append(Problem(Mark(source, number, 1), (), str(error)))
    return instances, problems


def instances_block(instances: list[Instance], job: str) -> tuple[YamlBlock, list[Note]]:
    """Return a model for each line, or for several lines that differ only in name, port and GPUs."""
    models: dict[tuple[object, ...], list[Instance]] = {}
    for instance in instances:
        is_cpu = instance.device == "cpu"
        same = (instance.model, instance.max_len, instance.tensor_parallel, is_cpu)
        models.setdefault(same, []).append(instance)
    first = instances[0]
    reason = f"{first.name}: its port is left out, as are all others: Nomad picks the ports"
    notes = [Note(first.mark, reason, is_of_a_fleet=True)]
    groups: dict[str, YamlBlock] = {}
    for replicas in models.values():
        group = group_name(replicas[0].name, job, taken=groups)
        groups[group] = _model(replicas, group, routed=len(models) > 1)
        notes += _notes(replicas, group, routed=len(models) > 1)
    if len(models) > 1:
        notes.append(Note(first.mark, f"{first.name}: /v1/ also led to it, and now leads to no model"))
    return {"balancer": balancer(Commented(NGINX_PORT)), "models": groups}, notes


def _instance(line: str, mark: Mark) -> Instance:
    """Read one line; raises `ValueError` with a sentence that shows nothing secret."""
    if looks_secret(line):
        raise ValueError("holds what looks like a secret (not shown); an instance has none")
    if not unicodedata.is_normalized("NFC", line):
        raise ValueError("is not in Unicode's normal form NFC; type it anew")
    fields = [field.strip() for field in line.split(":")]
    if len(fields) != len(FIELDS):
        raise ValueError(f"must be {':'.join(FIELDS)} (has {len(fields)} of these {len(FIELDS)} fields)")
    for name, field in zip(FIELDS, fields, strict=True):
        if not field:
            raise ValueError(f"has no {name}; a line is {':'.join(FIELDS)}")
    name, port, model, device, max_len, parallel = fields
    if not re.fullmatch(r"auto|cpu|[0-9]+(,[0-9]+)*", device, re.ASCII):
        raise ValueError(
            f"DEVICE must be auto, cpu or the numbers of GPUs, such as 0,1 (got {device[:40]!r})"
        )
    model = model_name(model)
    longest, gpus = _whole("MAX_LEN", max_len, MAX_TOKENS), _whole("TP", parallel, MAX_GPUS)
    return Instance(mark, name, port, model, device, longest, gpus)


def _whole(name: str, text: str, highest: int) -> int:
    try:
        return whole(1, highest)(text)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _model(replicas: list[Instance], group: str, *, routed: bool) -> YamlBlock:
    instance = replicas[0]
    parallel = instance.tensor_parallel
    return {
        "model": Commented(instance.model, "MODEL"),
        "served_name": Commented(instance.name, "NAME"),
        "strategy": Commented(TENSOR_PARALLEL if parallel > 1 else "multi_instance"),
        "replicas": Commented(
            len(replicas), "lines with this MODEL, MAX_LEN and TP" if len(replicas) > 1 else ""
        ),
        "gpus": {"count": Commented(parallel, "TP")},
        "max_model_len": Commented(length(instance.model, instance.max_len)[0], "MAX_LEN"),
        "route": {"path": Commented(f"/{group}/v1/"), "strip": Commented(f"/{group}")} if routed else {},
    }


def _notes(replicas: list[Instance], group: str, *, routed: bool) -> list[Note]:
    first = replicas[0]
    notes = [
        Note(other.mark, f"{other.name} is a replica of {first.name}, and answers to that name only")
        for other in replicas[1:]
    ]
    now = f"/{group}/v1/..." if routed else "/v1/..."
    notes.append(Note(first.mark, f"{first.name}: /v1/{first.name}/... is now {now}"))
    if reason := length(first.model, first.max_len)[1]:
        notes.append(Note(first.mark, f"{first.name}: MAX_LEN {reason}"))
    for instance in replicas:
        if instance.device != "auto":
            is_cpu = instance.device == "cpu"
            why = "every server gets a GPU" if is_cpu else "Nomad picks the GPUs"
            message = f"{instance.name}: DEVICE {instance.device} is not carried over: {why}"
            notes.append(Note(instance.mark, message, is_of_a_fleet=not is_cpu))
    return notes
