"""The shape of a model: everything in its `config.json` that decides how much memory it needs."""

from collections.abc import Mapping
from typing import Any

import msgspec

from vllmjobs.vllm.memory import layers
from vllmjobs.vllm.memory.layers import Family
from vllmjobs.vllm.memory.parts import MOST, MOST_LAYERS, Config, Layer, UnknownShapeError, Vision, shown
from vllmjobs.vllm.memory.quantization import Quantization, quantization

__all__ = ["Shape", "UnknownShapeError", "shape"]


class Shape(msgspec.Struct, frozen=True):
    """A model's sizes. `max_positions` is the context that vLLM takes when none is given.

    `longest_positions` is the longest that it accepts; `stretched_positions` the longest that the
    rotary embedding is said to reach (YaRN), where that is more.
    """

    architecture: str
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
        raise UnknownShapeError("config.json is not a mapping")
    outer = Config(config)
    text = _text(outer)
    kind = text.text("model_type", default="")
    family = FAMILIES.get(kind)
    if family is None:
        raise UnknownShapeError(f"the architecture {shown(kind or 'without a model_type')} is not understood")
    text = Config({**dict(family.defaults), **text.values})
    default, longest, stretched, key = _positions(text, kind)
    return Shape(
        architecture=next(iter(outer.texts("architectures")), kind),
        dtype=_dtype(text, outer),
        hidden=text.whole(*layers.HIDDEN, least=1),
        vocab=text.whole("vocab_size", least=1),
        tied=bool(text.any("tie_word_embeddings", default=outer.flag("tie_word_embeddings", family.tied))),
        layers=tuple(family.layers(text, family)),
        max_positions=default,
        longest_positions=longest,
        stretched_positions=stretched,
        quantization=quantization(outer),
        vision=_vision(outer),
        learned_positions=longest if kind in LEARNED_POSITIONS else 0,
        pooling=kind in ENCODERS,
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


def _positions(text: Config, kind: str) -> tuple[int, int, int, str]:
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
    if kind in ROBERTA:
        limit = max(1, limit - 2)  # the first two positions stand for padding
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
    layers = at.whole(
        "num_hidden_layers",
        "depth",
        "layers",
        "num_layers",
        "vt_num_hidden_layers",
        default=0,
        most=MOST_LAYERS,
    )
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


_GEMMA3 = (
    ("vocab_size", 262_208), ("head_dim", 256), ("num_attention_heads", 8), ("num_key_value_heads", 4),
    ("max_position_embeddings", 131_072), ("sliding_window_pattern", 6),
)  # fmt: skip
_ALTERNATING = (("sliding_window_pattern", 2),)
_DENSE = Family(layers.dense)
_TIED = Family(layers.dense, tied=True)
_PLAIN = Family(layers.dense, tied=True, gated=False)
_MIXES = Family(layers.every_layer_mixes)
_SOME = Family(layers.some_layers_mix)
_NO_WINDOW = (("use_sliding_window", False),)
_QWEN = Family(layers.dense, defaults=_NO_WINDOW)
_QWEN_MOE = Family(layers.some_layers_mix, defaults=_NO_WINDOW)
_QWEN_NEXT = (("full_attention_interval", 4), ("attn_output_gate", True), *_NO_WINDOW)

ROBERTA = {"roberta", "xlm-roberta", "camembert"}
ENCODERS = ROBERTA | {"bert", "modernbert"}
LEARNED_POSITIONS = ENCODERS - {"modernbert"} | {"opt", "gpt2", "gpt_bigcode"}
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ["llama", "mistral", "ministral3", "phi3", "internlm2", "internlm3", "internlm", "olmo", "olmo2",
         "olmo3", "granite", "glm", "glm4", "exaone4", "stablelm", "seed_oss", "ernie4_5", "hunyuan_v1_dense",
         "Yi", "baichuan", "aquila", "mimo", "orion", "smollm3", "minicpm"],
        _DENSE,
    ),
    **dict.fromkeys(["gemma", "cohere"], _TIED),
    **dict.fromkeys(["opt", "gpt2", "gpt_bigcode", "starcoder2", "falcon", "bert", *ROBERTA], _PLAIN),
    **dict.fromkeys(["phi", "gpt_neox", "nemotron", "apertus", "arcee"], Family(layers.dense, gated=False)),
    **dict.fromkeys(["mixtral", "phimoe", "olmoe", "granitemoe", "granitemoeshared", "minimax_m2"], _MIXES),
    **dict.fromkeys(["granitemoehybrid", "gpt_oss"], _MIXES),
    **dict.fromkeys(
        ["deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa",
         "dots1", "ernie4_5_moe"],
        _SOME,
    ),
    **dict.fromkeys(["qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_vl_text"], _QWEN),
    **dict.fromkeys(["qwen3_vl_text"], _QWEN),
    **dict.fromkeys(["qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text"], _QWEN_MOE),
    "qwen3_next": Family(layers.some_layers_mix, defaults=_QWEN_NEXT),
    "qwen3_5_text": Family(layers.dense, defaults=_QWEN_NEXT),
    "qwen3_5_moe_text": Family(layers.some_layers_mix, defaults=_QWEN_NEXT),
    "gemma2": Family(layers.dense, tied=True, defaults=(("head_dim", 256), *_ALTERNATING)),
    "gemma3_text": Family(layers.dense, tied=True, defaults=_GEMMA3),
    "gemma3": Family(layers.dense, tied=True, defaults=_GEMMA3),
    "gemma4_text": Family(layers.gemma4, tied=True),
    "cohere2": Family(layers.dense, tied=True, defaults=(("sliding_window_pattern", 4),)),
    "llama4_text": Family(layers.llama4, defaults=(("attention_chunk_size", 8192), ("head_dim", 128))),
    "mimo_v2_flash": Family(layers.mimo_v2),
    "jamba": Family(layers.jamba),
    "nemotron_h": Family(layers.nemotron_h),
}  # fmt: skip
