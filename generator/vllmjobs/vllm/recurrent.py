"""Layers that keep a state instead of keys and values (vLLM's `layers/mamba/mamba_utils.py`)."""

import math

from vllmjobs.vllm.parts import Config, Recurrent


def gated_delta_net(config: Config) -> Recurrent:
    """Qwen3-Next's linear attention: queries, keys, values and a gate, two numbers more per value head."""
    keys, values = config.whole("linear_num_key_heads"), config.whole("linear_num_value_heads")
    key_dim, value_dim = config.whole("linear_key_head_dim"), config.whole("linear_value_head_dim")
    inner = values * value_dim
    return Recurrent(
        heads=values,
        state=key_dim * value_dim,
        inner=inner,
        group_width=2 * key_dim,
        groups=keys,
        kernel=config.whole("linear_conv_kernel_dim", default=4),
        projected=2 * keys * key_dim + 2 * inner + 2 * values,
        module="linear_attn",
        state_dtype=config.any("mamba_ssm_dtype"),
    )


def mamba2(config: Config) -> Recurrent:
    """Mamba 2 as Granite 4, Nemotron-H and Falcon-H1 name its sizes."""
    heads = config.whole("mamba_num_heads", "mamba_n_heads")
    dim = config.any("mamba_head_dim", "mamba_d_head", default="auto")
    if not isinstance(dim, int):
        dim = config.whole("mamba_expand", default=2) * config.whole("hidden_size") // heads
    groups, state = (
        config.whole("n_groups", "mamba_n_groups", default=1),
        config.whole("ssm_state_size", "mamba_d_state"),
    )
    inner = heads * dim
    return Recurrent(
        heads=heads,
        state=dim * state,
        inner=inner,
        group_width=2 * state,
        groups=groups,
        kernel=config.whole("conv_kernel", "mamba_d_conv", default=4),
        projected=2 * inner + 2 * groups * state + heads,
        module="mixer" if config.has("mamba_num_heads") else "mamba",
        state_dtype=config.any("mamba_ssm_cache_dtype"),
    )


def mamba1(config: Config) -> Recurrent:
    """Mamba 1 as Jamba names its sizes; its two small projections are counted as `extra`."""
    hidden = config.whole("hidden_size")
    inner = config.whole("mamba_expand", default=2) * hidden
    state = config.whole("mamba_d_state", default=16)
    rank = config.any("mamba_dt_rank", default="auto")
    rank = rank if isinstance(rank, int) else math.ceil(hidden / 16)
    return Recurrent(
        heads=inner,
        state=state,
        inner=inner,
        group_width=0,
        groups=1,
        kernel=config.whole("mamba_d_conv", default=4),
        projected=2 * inner,
        module="mamba",
        extra=inner * (rank + 2 * state) + rank * inner + inner * state,
    )
