"""The layers of a model, from its `config.json`. One function per way of laying them out.

The keys and their defaults are those of transformers' configuration classes and of vLLM's
`model_executor/models/*`, which are named where a rule is not plain from the key.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from vllmjobs.vllm.memory.data import data
from vllmjobs.vllm.memory.parts import (
    MOST,
    MOST_LAYERS,
    Attention,
    Config,
    Dense,
    Experts,
    Feed,
    Latent,
    Layer,
    Mixer,
    UnknownShapeError,
    shown,
)
from vllmjobs.vllm.memory.recurrent import gated_delta_net, mamba1, mamba2

HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
HIDDEN = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTH = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The layout of the models of some `model_type`s, a row of `data/families.json`."""

    types: tuple[str, ...]
    layers: str  # a key of `LAYOUTS`
    tied: bool = False  # the default of tie_word_embeddings
    gated: bool = True  # SwiGLU and the like
    learned_positions: bool = False
    padding_positions: int = 0  # the first positions, which stand for padding
    encoder: bool = False
    defaults: dict[str, Any] = {}  # what published configs leave to transformers


@cache
def families() -> dict[str, Family]:
    """Return the family of each `model_type` that is understood."""
    rows = msgspec.json.decode(data("families.json"), type=list[Family])
    return {kind: row for row in rows for kind in row.types}


def attention(config: Config, sliding: bool = False, chunked: bool = False) -> Attention:
    """Return the attention of one layer: as the whole model's, with the layer's own window."""
    heads = config.whole(*HEADS, least=1)
    if config.flag("multi_query") and not config.flag("new_decoder_architecture"):
        kv_heads = 1  # Falcon, GPTBigCode
    else:
        kv_heads = config.whole(*KV_HEADS, default=heads, least=1)
    head_dim = config.whole("head_dim", "hidden_size_per_head", "attention_head_dim", default=0)
    head_dim = head_dim or config.whole(*HIDDEN) // heads
    if not head_dim:
        raise UnknownShapeError(f"{HIDDEN[0]} in config.json is less than its {heads} {HEADS[0]}")
    return Attention(
        heads,
        kv_heads,
        head_dim,
        config.whole("v_head_dim", default=head_dim, least=1),
        window=config.whole("sliding_window", least=1) if sliding else None,
        chunk=config.whole("attention_chunk_size", least=1) if chunked else None,
        gated=config.flag("attn_output_gate"),
    )


def latent(config: Config) -> Latent:
    """Return DeepSeek's latent attention (`model_executor/models/deepseek_v2.py`)."""
    index_heads = config.whole("index_n_heads", default=0)
    return Latent(
        config.whole(*HEADS, least=1),
        config.whole("q_lora_rank", default=0) or None,
        config.whole("kv_lora_rank", least=1),
        config.whole("qk_nope_head_dim", least=1),
        config.whole("qk_rope_head_dim", least=1),
        config.whole("v_head_dim", least=1),
        index_heads,
        config.whole("index_head_dim", least=1) if index_heads else 0,
    )


def _count(config: Config) -> int:
    return config.whole(*LAYERS, least=1, most=MOST_LAYERS)


def _per_layer(config: Config, name: str, count: int) -> Sequence[Any]:
    """Return the entries of a list that has one for each layer."""
    entries = config.items(name)
    if len(entries) < count:
        raise UnknownShapeError(f"{name} in config.json has {len(entries)} entries for {count} layers")
    return entries[:count]


def _layer_types(config: Config) -> list[str]:
    """Return `full_attention`, `sliding_attention`, … for each layer, from `layer_types` or older keys."""
    count = _count(config)
    for name in ("layer_types", "layers_block_type"):
        if config.texts(name):
            return list(_per_layer(config, name, count))
    if every := config.whole("full_attention_interval", default=0):
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    names = ("sliding_window_pattern", "_sliding_window_pattern")
    pattern = config.any(*names)
    if pattern and isinstance(pattern, str):  # EXAONE 4: LLLG
        local = [pattern[i % len(pattern)] == "L" for i in range(count)]
        return ["sliding_attention" if each else "full_attention" for each in local]
    if every := config.whole(*names, default=0):
        return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    if config.whole("attention_chunk_size", default=0):
        # Llama 4: every fourth layer has no positions and sees everything
        step = config.whole("no_rope_layer_interval", default=4, least=1)
        return ["chunked_attention" if (i + 1) % step else "full_attention" for i in range(count)]
    windowed = config.whole("sliding_window", default=0) and config.flag("use_sliding_window", default=True)
    return ["sliding_attention" if windowed else "full_attention"] * count


def _mixer(config: Config, kind: str) -> Mixer:
    match kind:
        case "full_attention" | "attention" | "global_attention":
            return attention(config)
        case "sliding_attention" | "local_attention":
            return attention(config, sliding=bool(config.whole("sliding_window", default=0)))
        case "chunked_attention":
            return attention(config, chunked=True)
        case "linear_attention":
            return gated_delta_net(config)
        case "mamba":
            return mamba2(config) if config.has("mamba_n_heads") else mamba1(config)
    raise UnknownShapeError(f"a layer of the type {shown(kind)} is not understood")


def dense(config: Config, family: Family) -> list[Layer]:
    """Return layers of attention and a feed-forward."""
    width = config.whole(*WIDTH, default=4 * config.whole(*HIDDEN, least=1), least=1, most=4 * MOST)
    feed = Dense(width, family.gated)
    return [Layer((_mixer(config, kind),), (feed,)) for kind in _layer_types(config)]


def every_layer_mixes(config: Config, family: Family) -> list[Layer]:
    """Return layers of experts: Mixtral, gpt-oss, MiniMax-M2, Granite MoE (dense without experts)."""
    count = config.whole("num_local_experts", "num_experts", default=0)
    shared = config.whole("shared_intermediate_size", default=0)
    feed: Feed = Dense(shared or config.whole(*WIDTH, least=1), family.gated)
    if count:
        active = config.whole("num_experts_per_tok", "experts_per_token", default=2, least=1)
        width = config.whole("moe_intermediate_size", *WIDTH, least=1)
        feed = Experts(count, active, width, shared, family.gated)
    return [Layer((_mixer(config, kind),), (feed,)) for kind in _layer_types(config)]


def some_layers_mix(config: Config, family: Family) -> list[Layer]:
    """Return layers, some of experts as the config picks them: Qwen MoE, GLM-4.x MoE, DeepSeek, Kimi."""
    types = _layer_types(config)
    sparse = _sparse_layers(config, len(types))
    # Where every layer has experts, the width of the others need not be said.
    plain = Dense(config.whole("intermediate_size", default=0, least=0 if all(sparse) else 1), family.gated)
    experts: Feed = plain
    if any(sparse):
        width = config.whole("moe_intermediate_size", least=1)
        shared = config.whole("shared_expert_intermediate_size", default=0)
        shared = shared or config.whole("n_shared_experts", "num_shared_experts", default=0) * width
        count = config.whole("n_routed_experts", "num_experts", "num_local_experts", least=1)
        experts = Experts(count, config.whole("num_experts_per_tok", least=1), width, shared, family.gated)
    mla = config.has("kv_lora_rank")
    return [
        Layer((latent(config) if mla else _mixer(config, kind),), (experts if mixes else plain,))
        for kind, mixes in zip(types, sparse, strict=True)
    ]


def _sparse_layers(config: Config, count: int) -> list[bool]:
    if not config.whole("n_routed_experts", "num_experts", "num_local_experts", default=0):
        return [False] * count
    if isinstance(config.any("moe_layer_freq"), list):  # MiMo-V2: 0 or 1 per layer
        return [bool(each) for each in _per_layer(config, "moe_layer_freq", count)]
    every = config.whole("moe_layer_freq", default=1, least=1)
    first = config.whole("first_k_dense_replace", default=0)
    step = config.whole("decoder_sparse_step", default=1, least=1)
    plain = config.items("mlp_only_layers")
    return [i >= first and i % every == 0 and (i + 1) % step == 0 and i not in plain for i in range(count)]


def llama4(config: Config, family: Family) -> list[Layer]:
    """Return layers, each n-th of experts, with a shared one of the same width (`models/llama4.py`)."""
    width = config.whole(*WIDTH, least=1)
    step = config.whole("interleave_moe_layer_step", default=1, least=1)
    count, active = config.whole("num_local_experts", least=1), config.whole("num_experts_per_tok", least=1)
    experts = Experts(count, active, width, width)
    plain = Dense(config.whole("intermediate_size_mlp", least=1))
    return [
        Layer((_mixer(config, kind),), (plain if (i + 1) % step else experts,))
        for i, kind in enumerate(_layer_types(config))
    ]


def gemma4(config: Config, family: Family) -> list[Layer]:
    """Return layers: full attention has its own heads, experts go beside the dense (`models/gemma4.py`)."""
    if any(config.whole(name, default=0) for name in ("hidden_size_per_layer_input", "num_kv_shared_layers")):
        raise UnknownShapeError(
            "Gemma 4 with embeddings per layer or shared keys and values is not understood"
        )
    local = attention(config, sliding=True)
    dim = config.whole("global_head_dim", default=local.head_dim, least=1)
    same = config.flag("attention_k_eq_v")
    kv_heads = local.kv_heads
    if same:
        kv_heads = config.whole("num_global_key_value_heads", default=kv_heads, least=1)
    everywhere = Attention(local.heads, kv_heads, dim, dim, keys_are_values=same)
    feeds: tuple[Feed, ...] = (Dense(config.whole(*WIDTH, least=1)),)
    if config.flag("enable_moe_block"):
        count = config.whole("num_experts", least=1)
        active = config.whole("top_k_experts", "num_experts_per_tok", least=1)
        feeds += (Experts(count, active, config.whole("moe_intermediate_size", least=1)),)
    mixers = {"sliding_attention": local}
    return [Layer((mixers.get(kind, everywhere),), feeds) for kind in _layer_types(config)]


def mimo_v2(config: Config, family: Family) -> list[Layer]:
    """Return layers, sliding ones with their own heads by `hybrid_layer_pattern` (`models/mimo_v2.py`)."""
    dim = config.whole("swa_head_dim", "head_dim", least=1)
    sliding = Attention(
        config.whole("swa_num_attention_heads", *HEADS, least=1),
        config.whole("swa_num_key_value_heads", *KV_HEADS, least=1),
        dim,
        config.whole("swa_v_head_dim", "v_head_dim", default=dim, least=1),
        config.whole("sliding_window", least=1),
    )
    everywhere = attention(config)
    pattern = _per_layer(config, "hybrid_layer_pattern", _count(config))
    plain = Config({**config.values, "layer_types": ["full_attention"] * len(pattern)})
    return [
        Layer((sliding if local else everywhere,), layer.feeds)
        for local, layer in zip(pattern, some_layers_mix(plain, family), strict=True)
    ]


def jamba(config: Config, family: Family) -> list[Layer]:
    """Return layers of attention and experts at fixed periods, Mamba 1 between (`models/jamba.py`)."""
    attends = config.whole("attn_layer_period", default=8, least=1)
    attends_at = config.whole("attn_layer_offset", default=4)
    mixes = config.whole("expert_layer_period", default=2, least=1)
    mixes_at = config.whole("expert_layer_offset", default=1)
    width = config.whole(*WIDTH, least=1)
    count = config.whole("num_experts", default=16)
    experts = Experts(count, config.whole("num_experts_per_tok", default=2, least=1), width)
    sparse: Feed = experts if count > 1 else Dense(width)
    return [
        Layer(
            (attention(config) if i % attends == attends_at else mamba1(config),),
            (sparse if i % mixes == mixes_at else Dense(width),),
        )
        for i in range(_count(config))
    ]


def nemotron_h(config: Config, family: Family) -> list[Layer]:
    """Return the layers of a pattern: Mamba 2, attention, feed-forward, experts (`models/nemotron_h.py`)."""
    pattern = config.text("hybrid_override_pattern")
    if not 1 <= len(pattern) <= MOST_LAYERS:
        raise UnknownShapeError(f"hybrid_override_pattern has {len(pattern)} layers, not 1 to {MOST_LAYERS}")
    if config.any("moe_latent_size"):
        raise UnknownShapeError("experts that work on a narrower state (moe_latent_size) are not understood")
    made: dict[str, Layer] = {}
    for letter in set(pattern):
        match letter:
            case "M":
                made[letter] = Layer((mamba2(config),), ())
            case "*":
                made[letter] = Layer((attention(config),), ())
            case "-":
                made[letter] = Layer((), (Dense(config.whole(*WIDTH, least=1), gated=False),))
            case "E":
                shared = config.whole("moe_shared_expert_intermediate_size", default=0)
                shared *= config.whole("n_shared_experts", default=1)
                count = config.whole("n_routed_experts", least=1)
                active = config.whole("num_experts_per_tok", least=1)
                width = config.whole("moe_intermediate_size", least=1)
                made[letter] = Layer((), (Experts(count, active, width, shared, gated=False),))
            case _:
                raise UnknownShapeError(f"{letter!r} in hybrid_override_pattern is not understood")
    return [made[letter] for letter in pattern]


LAYOUTS = {
    layout.__name__: layout
    for layout in (dense, every_layer_mixes, some_layers_mix, llama4, gemma4, mimo_v2, jamba, nemotron_h)
}
