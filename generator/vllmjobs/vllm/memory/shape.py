"""The shape of a model: everything in its `config.json` that decides how much memory it needs."""

from collections.abc import Mapping
from typing import Any

import msgspec

from vllmjobs.vllm.memory import layers
from vllmjobs.vllm.memory.layers import LAYOUTS, families
from vllmjobs.vllm.memory.parts import MOST, MOST_LAYERS, Config, Layer, UnknownShapeError, Vision, shown
from vllmjobs.vllm.memory.quantization import Quantization, quantization

__all__ = ["Shape", "UnknownShapeError", "shape"]


class Shape(msgspec.Struct, frozen=True):
    """A model's sizes. `max_positions` is the context that vLLM takes when none is given.

    `longest_positions` is the longest that it accepts; `stretched_positions` the longest that the
    rotary embedding is said to reach (YaRN), where that is more.
    """

    dtype: str
    hidden: int
    vocab: int
    tied: bool
    layers: tuple[Layer, ...]
    max_positions: int
    longest_positions: int
    stretched_positions: int
    quantization: Quantization | None = None
    vision: Vision | None = None
    learned_positions: int = 0
    pooling: bool = False  # an encoder: no KV cache, no output layer
    positions_key: str = "max_position_embeddings"


def shape(config: Mapping[str, Any]) -> Shape:
    """Return the shape of the model that a Hugging Face `config.json` describes.

    What vLLM is given as hf_overrides belongs into the mapping. Raises UnknownShapeError, a ValueError, when
    a key is missing, has a value that makes no sense, or the architecture is not understood: then nothing
    can be said about its memory.
    """
    if not isinstance(config, Mapping):
        raise UnknownShapeError("config.json is no JSON object")
    outer = Config(config)
    text = _text(outer)
    kind = text.text("model_type", default="")
    family = families().get(kind)
    if family is None:
        raise UnknownShapeError(f"the architecture {shown(kind or 'without a model_type')} is not understood")
    text = Config({**family.defaults, **text.values})
    default, longest, stretched, key = _positions(text, kind, family.padding_positions)
    return Shape(
        dtype=_dtype(text, outer),
        hidden=text.whole(*layers.HIDDEN, least=1),
        vocab=text.whole("vocab_size", least=1),
        tied=bool(text.any("tie_word_embeddings", default=outer.flag("tie_word_embeddings", family.tied))),
        layers=tuple(LAYOUTS[family.layers](text, family)),
        max_positions=default,
        longest_positions=longest,
        stretched_positions=stretched,
        quantization=quantization(outer),
        vision=_vision(outer),
        learned_positions=longest if family.learned_positions else 0,
        pooling=family.encoder,
        positions_key=key,
    )


def _text(outer: Config) -> Config:
    """Return the part of the config for the language model; it may leave model_type to the outer one."""
    at = outer.inner("thinker_config") or outer
    inner = at.inner("text_config", "llm_config", "language_config")
    if inner is None:
        return at
    if inner.has("model_type"):
        return inner
    return Config({**inner.values, "model_type": at.any("model_type", default=outer.any("model_type"))})


def _dtype(text: Config, outer: Config) -> str:
    # vLLM's _resolve_auto_dtype runs float32 checkpoints in 16 bits.
    name = text.text("dtype", "torch_dtype", default=outer.text("dtype", "torch_dtype", default="bfloat16"))
    name = name.removeprefix("torch.")
    return "bfloat16" if name in {"float32", "auto"} else name


def _positions(text: Config, kind: str, padding: int) -> tuple[int, int, int, str]:
    """Return the default, longest and stretched context, and the key it comes from.

    vLLM's `_get_and_verify_max_len` (`vllm/config/model.py`): the smallest of the keys below, times the
    factor of the rotary embedding unless its type counts as applied already.
    """
    names = (
        "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length",
        "max_seq_length", "seq_len",
    )  # fmt: skip
    lengths = {name: text.whole(name, least=1) for name in names if text.has(name)} or {names[0]: 2048}
    key = min(lengths, key=lambda name: lengths[name])
    limit = lengths[key]
    if text.has("model_max_length"):  # Command-R
        key, limit = "model_max_length", text.whole("model_max_length", least=1)
    limit = max(1, limit - padding)
    original_key = "original_max_position_embeddings"
    rope = text.inner("rope_scaling", "rope_parameters") or Config({})
    if nested := rope.inner("full_attention"):
        rope = nested
    rotary = rope.text("rope_type", "type", default="default")
    factor = rope.number("factor", default=1.0)
    longest = limit
    if rotary in {"linear", "dynamic"} and "gemma3" not in kind:
        longest = int(limit * factor)
    default = longest
    if rotary == "longrope":
        default = text.whole(original_key, default=min(longest, MOST), least=1)
    original = rope.whole(original_key, default=limit, least=1)
    stretched = int(original * factor) if "yarn" in rotary else longest
    return default, longest, max(longest, stretched), key


def _vision(outer: Config) -> Vision | None:
    at = outer.inner("vision_config") or (outer.inner("thinker_config") or Config({})).inner("vision_config")
    if at is None:
        return None
    names = ("hidden_size", "embed_dim", "width")
    if isinstance(at.any(*names), Mapping):  # several encoders, each with a width of its own
        return None
    hidden = at.whole(*names, default=0)
    depths = ("num_hidden_layers", "depth", "layers", "num_layers", "vt_num_hidden_layers")
    layers = at.whole(*depths, default=0, most=MOST_LAYERS)
    ratio = at.number("mlp_ratio", default=4)
    if at.has("embed_dim") and at.has("mlp_ratio"):  # Qwen2-VL: hidden_size is what it puts out
        hidden = at.whole("embed_dim")
    if not hidden or not layers:
        return None
    width = at.whole("intermediate_size", least=1) if at.has("intermediate_size") else int(hidden * ratio)
    out = at.whole("out_hidden_size", default=outer.whole("hidden_size", default=hidden, least=1), least=1)
    kind = at.text("model_type", default="")
    mergers = 1 + len(at.items("deepstack_visual_indexes"))
    return Vision(layers, hidden, width, kind in {"qwen2_5_vl", "pixtral"}, out, mergers)
