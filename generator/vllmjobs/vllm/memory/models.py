"""The shapes of models that many people serve, known without asking Hugging Face."""

from functools import cache
from typing import Any

import msgspec

from vllmjobs.vllm.memory.data import data
from vllmjobs.vllm.memory.shape import Shape, shape


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The entry of one repository: the keys of its `config.json` that decide about memory.

    `like` names a repository of the table whose keys these complete; `parameters` is the published
    number, in billions.
    """

    source: str
    config: dict[str, Any] = {}
    like: str | None = None
    parameters: float | None = None


def entry(name: str) -> Entry | None:
    """Return the entry of a repository, or None. Case makes no difference."""
    key = _spelt().get(name.lower())
    return None if key is None else msgspec.json.decode(_raw()[key], type=Entry)


def config(name: str) -> dict[str, Any] | None:
    """Return the keys that are known of a repository's `config.json`, or None."""
    known = entry(name)
    if known is None:
        return None
    base = config(known.like) or {} if known.like else {}
    return {**base, **known.config}


@cache
def known(name: str) -> Shape | None:
    """Return the shape of the model of a Hugging Face repository, or None where the table has none."""
    known = config(name)
    return None if known is None else shape(known)


@cache
def _raw() -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(data("models.json"), type=dict[str, msgspec.Raw])


@cache
def _spelt() -> dict[str, str]:
    return {name.lower(): name for name in _raw()}
