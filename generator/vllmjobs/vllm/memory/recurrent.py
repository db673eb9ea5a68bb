"""Layers that keep a state instead of keys and values (vLLM's `layers/mamba/mamba_utils.py`)."""

import math

from vllmjobs.vllm.memory.parts import Config, Recurrent, UnknownShapeError


def gated_delta_net(config: Config) -> Recurrent:
    """Return Qwen3-Next's linear attention: queries, keys, values, a gate, and two numbers per value head."""
    keys = config.whole("linear_num_key_heads", least=1)
    values = config.whole("linear_num_value_heads", least=1)
    key_dim = config.whole("linear_key_head_dim", least=1)
    value_dim = config.whole("linear_value_head_dim", least=1)
    inner = values * value_dim
    return Recurrent(
        heads=values,
        state=key_dim * value_dim,
        inner=inner,
        group_width=2 * key_dim,
        groups=keys,
        kernel=config.whole("linear_conv_kernel_dim", default=4, least=1),
        projected=2 * keys * key_dim + 2 * inner + 2 * values,
        module="linear_attn",
        state_dtype=_dtype(config, "mamba_ssm_dtype"),
    )


def mamba2(config: Config) -> Recurrent:
    """Return Mamba 2 as Granite 4, Nemotron-H and Falcon-H1 name its sizes."""
    heads = config.whole("mamba_num_heads", "mamba_n_heads", least=1)
    if config.any("mamba_head_dim", "mamba_d_head", default="auto") == "auto":
        dim = config.whole("mamba_expand", default=2, least=1) * config.whole("hidden_size", least=1) // heads
    else:
        dim = config.whole("mamba_head_dim", "mamba_d_head", least=1)
    if not dim:
        raise UnknownShapeError(f"config.json has more Mamba heads, {heads}, than its layers are wide")
    groups = config.whole("n_groups", "mamba_n_groups", default=1, least=1)
    state = config.whole("ssm_state_size", "mamba_d_state", least=1)
    inner = heads * dim
    return Recurrent(
        heads=heads,
        state=dim * state,
        inner=inner,
        group_width=2 * state,
        groups=groups,
        kernel=config.whole("conv_kernel", "mamba_d_conv", default=4, least=1),
        projected=2 * inner + 2 * groups * state + heads,
        module="mixer" if config.has("mamba_num_heads") else "mamba",
        state_dtype=_dtype(config, "mamba_ssm_cache_dtype"),
    )


def mamba1(config: Config) -> Recurrent:
    """Return Mamba 1 as Jamba names its sizes; its two small projections are counted as `extra`."""
    hidden = config.whole("hidden_size", least=1)
    inner = config.whole("mamba_expand", default=2, least=1) * hidden
    state = config.whole("mamba_d_state", default=16, least=1)
    automatic = config.any("mamba_dt_rank", default="auto") == "auto"
    rank = math.ceil(hidden / 16) if automatic else config.whole("mamba_dt_rank")
    return Recurrent(
        heads=inner,
        state=state,
        inner=inner,
        group_width=0,
        groups=1,
        kernel=config.whole("mamba_d_conv", default=4, least=1),
        projected=2 * inner,
        module="mamba",
        extra=inner * (rank + 2 * state) + rank * inner + inner * state,
    )


def _dtype(config: Config, name: str) -> str | None:
    return config.text(name) if config.has(name) else None
