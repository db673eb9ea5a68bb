"""Tables of what each release of `vllm serve` accepts, made by scripts/vllm-tables from vLLM's own parser."""

import pkgutil
import zlib
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

import msgspec

from vllmjobs.vllm.releases import VERSIONS, order, precedes

Kind = Literal[
    "any", "null", "bool", "int", "float", "str", "choice", "list", "tuple", "map", "object", "union",
    "opaque",
]  # fmt: skip
Read = Literal[
    "str", "int", "float", "bool", "json", "object", "size", "size-or-auto", "json-or-str", "none-or-str",
    "folded", "comma-list", "lora", "switch",
]  # fmt: skip


class Type(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The type that pydantic checks in one of vLLM's configuration classes."""

    kind: Kind
    null: bool = False
    choices: tuple[str | int | float | bool | None, ...] = ()
    fold: Literal["", "upper", "lower", "snake", "number"] = ""  # how vLLM folds a string that it compares
    by_path: bool = False  # True where the path of a class is a choice, too
    keys: tuple[str, ...] = ()  # the keys that a map may have; any where it is empty
    of: tuple["Type", ...] = ()
    object: str = ""
    required: bool = False
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None


class Flag(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One action of vLLM's parser."""

    names: tuple[str, ...]
    dest: str
    read: Read  # the way a word becomes a value
    off: tuple[str, ...] = ()  # the names, among `names`, that set a switch to false
    optional: bool = False  # True where "" and "None" mean none
    appended: bool = False
    nargs: str = ""
    choices: tuple[str | int | float, ...] = ()
    default: Any = None
    const: Any = None
    origin: str = ""  # the field that the value ends in, as `SchedulerConfig.max_num_seqs`
    value: Type | None = None  # the type that this field checks, once the words have been read

    @property
    def name(self) -> str:
        """The long name, without dashes: `max-num-seqs`."""
        return next((name for name in self.names if name.startswith("--")), self.names[0]).lstrip("-")


class Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A configuration class that a JSON option is read into."""

    keys: dict[str, Type]
    closed: bool  # True where another key is an error; vLLM otherwise ignores it


class Table(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True):
    """The table of what one release of vLLM accepts."""

    version: str
    flags: tuple[Flag, ...]
    objects: dict[str, Object]
    level_flag: str  # the destination of `-O3`: `compilation_config` up to 0.11, then `optimization_level`
    dotted_suffixes: bool  # True where `--option.key 1k` means 1000
    json_suffixes: bool  # True where `--option {"key": 1k}` means 1000
    deprecated_quantization: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, Flag]:
        """The flags by each of their spellings, with dashes."""
        return {name: flag for flag in self.flags for name in flag.names}

    @cached_property
    def by_dest(self) -> dict[str, Flag]:
        """The flags by the names that vLLM's code uses."""
        return {flag.dest: flag for flag in self.flags}


class Nearest(NamedTuple):
    """The table that stands for a version."""

    table: Table
    asked: str
    exact: bool

    @property
    def note(self) -> str:
        """A note for a person when there is no table of this very version; empty otherwise."""
        if self.exact:
            return ""
        older = ", the oldest known" if precedes(self.asked, self.table.version) else ""
        return f"vllmjobs has no table for vLLM {self.asked}, and checks it as {self.table.version}{older}"


def table(version: str) -> Nearest:
    """Return the table of a version, else of the nearest lower one; below all of them, the lowest.

    A local suffix (`+cu129`) changes nothing. What is no version number (`nightly`, a commit) counts as
    newer than every release.
    """
    place = order(version)
    lower = [known for known in VERSIONS if order(known) <= place]
    chosen = lower[-1] if lower else VERSIONS[0]
    return Nearest(_load(chosen), version, order(chosen) == place)


def history(flag: str) -> list[str]:
    """Return the releases whose parser knows a flag, by any of its names (`max-num-seqs`), oldest first."""
    name = "--" + flag.lstrip("-").replace("_", "-")
    return [version for version in VERSIONS if name in _load(version).by_name]


@cache
def _load(version: str) -> Table:
    packed = pkgutil.get_data("vllmjobs.vllm.arguments", f"tables/{version}.json.gz")
    assert packed is not None, version
    return msgspec.json.decode(zlib.decompress(packed, wbits=31), type=Table)
