"""The layers of a model, from its `config.json`. One function per way of laying them out.

The keys and their defaults are those of transformers' configuration classes and of vLLM's
`model_executor/models/*`, which are named where a rule is not plain from the key.
"""

from collections.abc import Callable
from typing import NamedTuple

from vllmjobs.vllm.parts import (
    Attention,
    Config,
    Dense,
    Experts,
    Feed,
    Latent,
    Layer,
    Mixer,
    UnknownShapeError,
)
from vllmjobs.vllm.recurrent import gated_delta_net, mamba1, mamba2

HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
HIDDEN = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTH = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


class Family(NamedTuple):
    """How the models of one `model_type` are laid out."""

    layers: Callable[[Config, "Family"], list[Layer]]
    tied: bool = False  # the default of tie_word_embeddings
    gated: bool = True  # SwiGLU and the like
    defaults: tuple[tuple[str, object], ...] = ()  # what published configs leave to transformers


def attention(config: Config, sliding: bool = False, chunked: bool = False) -> Attention:
    """The attention of one layer: as the whole model's, with the layer's own window."""
    heads = config.whole(*HEADS)
    if config.flag("multi_query") and not config.flag("new_decoder_architecture"):
        kv_heads = 1  # Falcon, GPTBigCode
    else:
        kv_heads = config.whole(*KV_HEADS, default=heads)
    if not heads or not kv_heads:
        raise UnknownShapeError(f"{HEADS[0]} and {KV_HEADS[0]} in config.json must be at least 1")
    head_dim = config.whole("head_dim", "hidden_size_per_head", "attention_head_dim", default=0)
    head_dim = head_dim or config.whole(*HIDDEN) // heads
    return Attention(
        heads,
        kv_heads,
        head_dim,
        config.whole("v_head_dim", default=head_dim),
        window=config.whole("sliding_window") if sliding else None,
        chunk=config.whole("attention_chunk_size") if chunked else None,
        gated=config.flag("attn_output_gate"),
    )


def latent(config: Config) -> Latent:
    """DeepSeek's latent attention (`model_executor/models/deepseek_v2.py`)."""
    return Latent(
        config.whole(*HEADS),
        config.any("q_lora_rank"),
        config.whole("kv_lora_rank"),
        config.whole("qk_nope_head_dim"),
        config.whole("qk_rope_head_dim"),
        config.whole("v_head_dim"),
        config.whole("index_n_heads", default=0),
        config.whole("index_head_dim", default=0),
    )


def _layer_types(config: Config) -> list[str]:
    """One of `full_attention`, `sliding_attention`, … per layer, from `layer_types` or what stood for it."""
    count = config.whole(*LAYERS)
    if types := config.any("layer_types", "layers_block_type"):
        if len(types) < count:
            raise UnknownShapeError(f"layer_types in config.json has {len(types)} entries for {count} layers")
        return [str(kind) for kind in types[:count]]
    if every := config.any("full_attention_interval"):
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    if every := config.any("sliding_window_pattern", "_sliding_window_pattern"):
        if isinstance(every, str):  # EXAONE 4: LLLG
            return [
                "sliding_attention" if every[i % len(every)] == "L" else "full_attention"
                for i in range(count)
            ]
        return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    if config.any("attention_chunk_size"):  # Llama 4: every fourth layer has no positions and sees everything
        step = config.any("no_rope_layer_interval", default=4)
        return ["chunked_attention" if (i + 1) % step else "full_attention" for i in range(count)]
    windowed = bool(config.any("sliding_window")) and config.flag("use_sliding_window", default=True)
    return ["sliding_attention" if windowed else "full_attention"] * count


def _mixer(config: Config, kind: str) -> Mixer:
    match kind:
        case "full_attention" | "attention" | "global_attention":
            return attention(config)
        case "sliding_attention" | "local_attention":
            return attention(config, sliding=bool(config.any("sliding_window")))
        case "chunked_attention":
            return attention(config, chunked=True)
        case "linear_attention":
            return gated_delta_net(config)
        case "mamba":
            return mamba2(config) if config.has("mamba_n_heads") else mamba1(config)
    raise UnknownShapeError(f"a layer of the type {kind!r} is not understood")


def dense(config: Config, family: Family) -> list[Layer]:
    """Attention and a feed-forward in every layer."""
    width = config.whole(*WIDTH, default=4 * config.whole(*HIDDEN))
    feed = Dense(width, family.gated)
    return [Layer((_mixer(config, kind),), (feed,)) for kind in _layer_types(config)]


def every_layer_mixes(config: Config, family: Family) -> list[Layer]:
    """Experts in every layer: Mixtral, gpt-oss, MiniMax-M2, Granite MoE (dense where it names no experts)."""
    count = config.whole("num_local_experts", "num_experts", default=0)
    shared = config.whole("shared_intermediate_size", default=0)
    feed: Feed = Dense(shared or config.whole(*WIDTH), family.gated)
    if count:
        active = config.whole("num_experts_per_tok", "experts_per_token", default=2)
        width = config.whole("moe_intermediate_size", *WIDTH)
        feed = Experts(count, active, width, shared, family.gated)
    return [Layer((_mixer(config, kind),), (feed,)) for kind in _layer_types(config)]


def some_layers_mix(config: Config, family: Family) -> list[Layer]:
    """Experts in the layers that the config picks: Qwen MoE, GLM-4.x MoE, DeepSeek, Kimi."""
    types = _layer_types(config)
    sparse = _sparse_layers(config, len(types))
    plain = Dense(config.whole("intermediate_size", default=0), family.gated)
    experts: Feed = plain
    if any(sparse):
        width = config.whole("moe_intermediate_size")
        shared = config.whole("shared_expert_intermediate_size", default=0)
        shared = shared or config.whole("n_shared_experts", "num_shared_experts", default=0) * width
        count = config.whole("n_routed_experts", "num_experts", "num_local_experts")
        experts = Experts(count, config.whole("num_experts_per_tok"), width, shared, family.gated)
    mla = config.has("kv_lora_rank")
    return [
        Layer((latent(config) if mla else _mixer(config, kind),), (experts if mixes else plain,))
        for kind, mixes in zip(types, sparse, strict=True)
    ]


def _sparse_layers(config: Config, count: int) -> list[bool]:
    if not config.any("n_routed_experts", "num_experts", "num_local_experts"):
        return [False] * count
    frequency = config.any("moe_layer_freq", default=1)
    if isinstance(frequency, list):  # MiMo-V2: 0 or 1 per layer
        return [bool(each) for each in frequency]
    first = config.whole("first_k_dense_replace", default=0)
    step = config.whole("decoder_sparse_step", default=1)
    plain = config.any("mlp_only_layers", default=[])
    return [
        i >= first and i % frequency == 0 and (i + 1) % step == 0 and i not in plain for i in range(count)
    ]


def llama4(config: Config, family: Family) -> list[Layer]:
    """Experts in every n-th layer, each with a shared one of the same width (`models/llama4.py`)."""
    width, step = config.whole(*WIDTH), config.whole("interleave_moe_layer_step", default=1)
    experts = Experts(config.whole("num_local_experts"), config.whole("num_experts_per_tok"), width, width)
    plain = Dense(config.whole("intermediate_size_mlp"))
    return [
        Layer((_mixer(config, kind),), (plain if (i + 1) % step else experts,))
        for i, kind in enumerate(_layer_types(config))
    ]


def gemma4(config: Config, family: Family) -> list[Layer]:
    """Full attention has heads of its own; experts stand beside the dense layer (`models/gemma4.py`)."""
    if config.whole("hidden_size_per_layer_input", default=0) or config.whole(
        "num_kv_shared_layers", default=0
    ):
        raise UnknownShapeError(
            "Gemma 4 with embeddings per layer or shared keys and values is not understood"
        )
    local = attention(config, sliding=True)
    dim = config.whole("global_head_dim", default=local.head_dim)
    same = config.flag("attention_k_eq_v")
    kv_heads = config.whole("num_global_key_value_heads", default=local.kv_heads) if same else local.kv_heads
    everywhere = Attention(local.heads, kv_heads, dim, dim, keys_are_values=same)
    feeds: tuple[Feed, ...] = (Dense(config.whole(*WIDTH)),)
    if config.flag("enable_moe_block"):
        active = config.whole("top_k_experts", "num_experts_per_tok")
        feeds += (Experts(config.whole("num_experts"), active, config.whole("moe_intermediate_size")),)
    return [
        Layer((local if kind == "sliding_attention" else everywhere,), feeds) for kind in _layer_types(config)
    ]


def mimo_v2(config: Config, family: Family) -> list[Layer]:
    """Sliding layers with heads of their own, picked by `hybrid_layer_pattern` (`models/mimo_v2.py`)."""
    dim = config.whole("swa_head_dim", "head_dim")
    sliding = Attention(
        config.whole("swa_num_attention_heads", *HEADS),
        config.whole("swa_num_key_value_heads", *KV_HEADS),
        dim,
        config.whole("swa_v_head_dim", "v_head_dim", default=dim),
        config.whole("sliding_window"),
    )
    everywhere = attention(config)
    pattern = config.any("hybrid_layer_pattern", default=[])
    plain = Config({**config.values, "layer_types": ["full_attention"] * len(pattern)})
    return [
        Layer((sliding if local else everywhere,), layer.feeds)
        for local, layer in zip(pattern, some_layers_mix(plain, family), strict=True)
    ]


def jamba(config: Config, family: Family) -> list[Layer]:
    """Attention and experts at fixed periods, Mamba 1 between (`models/jamba.py`)."""
    attends = config.whole("attn_layer_period", default=8), config.whole("attn_layer_offset", default=4)
    mixes = config.whole("expert_layer_period", default=2), config.whole("expert_layer_offset", default=1)
    width = config.whole(*WIDTH)
    count = config.whole("num_experts", default=16)
    experts = Experts(count, config.whole("num_experts_per_tok", default=2), width)
    sparse: Feed = experts if count > 1 else Dense(width)
    return [
        Layer(
            (attention(config) if i % attends[0] == attends[1] else mamba1(config),),
            (sparse if i % mixes[0] == mixes[1] else Dense(width),),
        )
        for i in range(config.whole(*LAYERS))
    ]


def nemotron_h(config: Config, family: Family) -> list[Layer]:
    """One letter per layer: Mamba 2, attention, a feed-forward, or experts (`models/nemotron_h.py`)."""
    pattern = config.any("hybrid_override_pattern")
    if pattern is None:
        raise UnknownShapeError("config.json has no hybrid_override_pattern")
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
                made[letter] = Layer((), (Dense(config.whole(*WIDTH), gated=False),))
            case "E":
                shared = config.whole("moe_shared_expert_intermediate_size", default=0)
                shared *= config.whole("n_shared_experts", default=1)
                count, active = config.whole("n_routed_experts"), config.whole("num_experts_per_tok")
                width = config.whole("moe_intermediate_size")
                made[letter] = Layer((), (Experts(count, active, width, shared, gated=False),))
            case _:
                raise UnknownShapeError(f"{letter!r} in hybrid_override_pattern is not understood")
    return [made[letter] for letter in pattern]
