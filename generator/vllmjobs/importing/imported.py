"""A file of balanced-vllm-docker, to the text of an environment file."""

import re
from typing import NamedTuple

from vllmjobs.environment.problems import InvalidEnvironmentError, Mark, Problem
from vllmjobs.environment.tree import UNREADABLE
from vllmjobs.importing.dotenv import Note, read
from vllmjobs.importing.instances import instances_block, is_instances, read_instances
from vllmjobs.importing.settings import Settings
from vllmjobs.importing.text import Block, Commented, yaml_text

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
    block, notes, problems = (_instances if is_instances(text) else _dotenv)(text, source, job)
    if problems:
        raise InvalidEnvironmentError(problems)
    base = None if extends in (None, f"{name}.yaml") else Commented(str(extends))
    text = yaml_text({"extends": base, "job": Commented(job), **block})
    return Imported(HEAD + text, sorted(notes))


def _dotenv(text: str, source: str, job: str) -> tuple[Block, list[Note], list[Problem]]:
    settings = Settings(read(text, source), source)
    return settings.environment(job), settings.notes, settings.problems


def _instances(text: str, source: str, job: str) -> tuple[Block, list[Note], list[Problem]]:
    instances, problems = read_instances(text, source)
    if problems or not instances:
        return {}, [], problems
    return (*instances_block(instances, job), [])


def _unreadable(bad: re.Match[str], text: str, source: str) -> Problem:
    byte = ord(bad[0]) - 0xDC00  # where a byte that is no UTF-8 is put: PEP 383
    is_byte = 0x80 <= byte <= 0xFF
    what = f"byte 0x{byte:02x} is not valid UTF-8" if is_byte else f"holds the character U+{ord(bad[0]):04X}"
    return Problem(Mark.at(source, text, bad.start()), (), f"{what}; save the file as UTF-8 text")
