"""The parts of a model, in the sizes that decide its memory: of the whole model, not of one GPU."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

# Far beyond any model, and small enough that sums and loops over them end.
MOST = 2**31
MOST_LAYERS = 1000


class UnknownShapeError(ValueError):
    """The config lacks a key that is needed, or describes an architecture that is not understood."""


class Attention(msgspec.Struct, frozen=True):
    """Keys and values per head. `window` (sliding) or `chunk` (local) bounds what is kept of a request."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None
    gated: bool = False  # an output gate doubles the query projection (Qwen3-Next)
    keys_are_values: bool = False  # one projection for both (Gemma 4); the cache keeps both


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention: one vector of `kv_rank + rope` per token and layer, whatever the heads."""

    heads: int
    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value_dim: int
    index_heads: int = 0  # DeepSeek sparse attention: an indexer with a cache of its own
    index_dim: int = 0


class Recurrent(msgspec.Struct, frozen=True):
    """A state of fixed size per request: Mamba 1 and 2, gated delta nets.

    `channels` go through the convolution, of which the last `kernel - 1` inputs are kept; the state is
    `state` numbers per head. `groups` are the parts of the channels that cannot be cut by tensor parallelism.
    """

    heads: int
    state: int  # numbers per head
    inner: int  # width of what the layer computes
    group_width: int  # channels of the convolution besides `inner`, per group
    groups: int
    kernel: int
    projected: int  # width of the input projection
    module: str  # as checkpoints name it
    extra: int = 0  # parameters besides the two projections and the convolution
    state_dtype: str | None = None  # None: the model's own


class Dense(msgspec.Struct, frozen=True):
    """A feed-forward layer; `gated` has two input projections (SwiGLU) instead of one."""

    width: int
    gated: bool = True


class Experts(msgspec.Struct, frozen=True):
    """`count` experts of `width`, `active` of them per token, beside one shared feed-forward of `shared`."""

    count: int
    active: int
    width: int
    shared: int = 0
    gated: bool = True


Mixer = Attention | Latent | Recurrent
Feed = Dense | Experts


class Layer(msgspec.Struct, frozen=True):
    """One layer of the decoder: what mixes tokens, and what feeds forward."""

    mixers: tuple[Mixer, ...]
    feeds: tuple[Feed, ...]


class Vision(msgspec.Struct, frozen=True):
    """The encoder of a model that sees, as far as its weights go."""

    layers: int
    hidden: int
    width: int
    gated: bool
    out: int
    mergers: int = 1


class Config:
    """A `config.json` that is asked for keys by any of their names; null counts as absent.

    Whatever it answers is of the type and in the range asked for: what is not raises UnknownShapeError,
    which names the key.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def has(self, *names: str) -> bool:
        """Tell whether one of the names has a value other than null."""
        return any(self.values.get(name) is not None for name in names)

    def any(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first of the names that is not null, of whatever type, else the default."""
        return next((v for name in names if (v := self.values.get(name)) is not None), default)

    def whole(self, *names: str, default: int | None = None, least: int = 0, most: int = MOST) -> int:
        """Return a whole number from `least` to `most`."""
        name, value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float, least: float = 1) -> float:
        """Return a finite number of at least `least`."""
        _, value = self._first((name,), default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MOST:
            raise _wrong(name, value, f"a number from {least} to {MOST}")
        return float(value)

    def text(self, *names: str, default: str | None = None) -> str:
        """Return a string."""
        name, value = self._first(names, default)
        if not isinstance(value, str):
            raise _wrong(name, value, "a string")
        return value

    def items(self, *names: str) -> Sequence[Any]:
        """Return a list; empty where there is none."""
        name, value = self._first(names, ())
        if not isinstance(value, list | tuple):
            raise _wrong(name, value, "a list")
        return value

    def texts(self, *names: str) -> Sequence[str]:
        """Return a list of strings; empty where there is none."""
        items = self.items(*names)
        for each in items:
            if not isinstance(each, str):
                raise _wrong(f"an entry of {names[0]}", each, "a string")
        return items

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean key, read as Python reads it: what is not empty is true."""
        return bool(self.any(name, default=default))

    def inner(self, *names: str) -> "Config | None":
        """Return a nested mapping, or None."""
        if not self.has(*names):
            return None
        name, value = self._first(names, None)
        if not isinstance(value, Mapping):
            raise _wrong(name, value, "a map")
        return Config(value)

    def _first(self, names: Sequence[str], default: Any) -> tuple[str, Any]:
        name = next((name for name in names if self.values.get(name) is not None), names[0])
        value = self.any(name, default=default)
        if value is None:
            raise UnknownShapeError(f"config.json has no {name}")
        return name, value


def shown(value: object) -> str:
    """Return a value of a config.json as a message can quote it, short whatever it is."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    return reprlib.repr(value)


def _wrong(name: str, value: object, wanted: str) -> UnknownShapeError:
    return UnknownShapeError(f"{name} in config.json is {shown(value)}, not {wanted}")
