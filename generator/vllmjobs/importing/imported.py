"""A file of balanced-vllm-docker, to the text of an environment file; and what it says of its own machine."""

import re
from typing import NamedTuple

from msgspec import structs

from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import InvalidEnvironmentError, Mark, Problem
from vllmjobs.environment.tree import UNREADABLE
from vllmjobs.importing.dotenv import Note, read
from vllmjobs.importing.instances import instances_block, is_instances, read_instances
from vllmjobs.importing.settings import ALL_GPUS, DotEnvReader
from vllmjobs.importing.text import Commented, yaml_text

MAX_NAME = 40  # leaves room for a model's name in the name of its service
HEAD = """\
# yaml-language-server: $schema=schema.json
# Imported from balanced-vllm-docker; each comment names the variable or field that a value came from.
"""


class Imported(NamedTuple):
    """An environment file, and what it does not say as the source did; no secret is in either."""

    text: str
    notes: list[Note]


def imported(text: str, source: str, name: str, extends: str | None) -> Imported:
    """Turn an `.env` file or an `instances.config`, told apart by what they hold, into an environment file.

    `source` is what messages call the file, `name` becomes the environment `vllm-NAME`, and `extends` the
    file over which it is laid. Raises `InvalidEnvironmentError`, which names the lines, for what cannot be
    carried over at all. Bytes that are not UTF-8 may come as Python's surrogate escapes.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > MAX_NAME:
        message = f"must be lower-case letters and digits, with single dashes between, at most {MAX_NAME}"
        raise InvalidEnvironmentError([Problem(Mark("--as"), (), f"{message} (got {name[:MAX_NAME]!r})")])
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if bad := UNREADABLE.search(text):
        raise InvalidEnvironmentError([_unreadable(bad, text, source)])
    job = f"vllm-{name}"
    if is_instances(text):
        instances, problems = read_instances(text, source)
        block, notes = instances_block(instances, job) if instances else ({}, [])
    else:
        settings = DotEnvReader(read(text, source), source)
        block = settings.environment(job)
        notes, problems = settings.notes, settings.problems
    if problems:
        raise InvalidEnvironmentError(problems)
    base = None if extends in (None, f"{name}.yaml") else Commented(str(extends))
    text = yaml_text({"extends": base, "job": Commented(job), **block})
    return Imported(HEAD + text, sorted(notes))


def _unreadable(bad: re.Match[str], text: str, source: str) -> Problem:
    byte = ord(bad[0]) - 0xDC00  # where a byte that is no UTF-8 is put: PEP 383
    is_byte = 0x80 <= byte <= 0xFF
    what = f"byte 0x{byte:02x} is not valid UTF-8" if is_byte else f"holds the character U+{ord(bad[0]):04X}"
    return Problem(Mark.at(source, text, bad.start()), (), f"{what}; save the file as UTF-8 text")


class OfTheBox(NamedTuple):
    """The settings of the machine that are not part of the environment."""

    takes_all: bool  # VLLM_GPU_COUNT asks for every GPU, as it does where it is not set
    secrets: dict[str, str]
    cache: str | None  # MODEL_CACHE_PATH, which holds models as HF_HOME does; relative to the file's folder
    gpus: str | None  # CUDA_VISIBLE_DEVICES


def of_the_box(text: str, source: str) -> OfTheBox:
    """Read an `.env` file once more; an `instances.config` names every server, and has no secrets."""
    if is_instances(text):
        return OfTheBox(False, {}, None, None)
    variables = read(text.replace("\r\n", "\n"), source).variables
    count = variables.get("VLLM_GPU_COUNT")
    takes_all = count is None or count.value.strip().lower() in ("", *ALL_GPUS)
    secrets = {name: one.value for name, one in variables.items() if one.secret}
    cache, gpus = (
        variables[name].value.strip() or None if name in variables else None
        for name in ("MODEL_CACHE_PATH", "CUDA_VISIBLE_DEVICES")
    )
    return OfTheBox(takes_all, secrets, cache, gpus)


def without_caches(environment: Environment) -> Environment:
    """Return the same without the cache of a fleet, which is laid out otherwise."""
    models = {key: structs.replace(model, cache=None) for key, model in environment.models.items()}
    return structs.replace(environment, models=models)
