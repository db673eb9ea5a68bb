"""The words of Nomad's API, as a jobspec has them: `api_words.toml`."""

import pkgutil
import re
import tomllib
from functools import cache

import msgspec


class ApiWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of `api_words.toml`, where each has its comment."""

    job_keys: frozenset[str]
    durations: frozenset[str]
    free_words: frozenset[str]
    may_be_empty: frozenset[str]
    zero_counts: frozenset[str]
    words: dict[str, str]
    words_in: dict[str, dict[str, str]]
    labels: dict[str, str]
    not_written: dict[str, frozenset[str]]


@cache
def api_words() -> ApiWords:
    """Return the tables."""
    text = pkgutil.get_data(__name__, "api_words.toml")
    assert text is not None
    return msgspec.convert(tomllib.loads(text.decode()), ApiWords)


@cache
def word(name: str) -> str:
    """Return the jobspec's word for a name of the API: `kill_timeout` for KillTimeout."""
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name))
    return api_words().words.get(name) or words.lower()
