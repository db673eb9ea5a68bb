from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.vllm.memory.truth import NAMES
from vllmjobs.vllm.memory.models import config, entry, known
from vllmjobs.vllm.memory.parts import Attention, Dense, Experts, Latent, Recurrent
from vllmjobs.vllm.memory.quantization import Quantization
from vllmjobs.vllm.memory.shape import Shape, UnknownShapeError, shape
from vllmjobs.vllm.memory.weights import GpuSplit, after, before, layer_matrices, stages, weight_bytes

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip


def model(name: str) -> Shape:
    found = known(name)
    assert found is not None, name
    return found


def attentions(shape: Shape) -> list[Attention | Latent]:
    """The attention of every layer that has one, in order."""
    return [each for layer in shape.layers for each in layer.mixers if isinstance(each, Attention | Latent)]


def sizes(shape: Shape) -> tuple[int, int, int]:
    """The most heads of a layer, and of the first attention the key and value heads, and what is cached."""
    every = attentions(shape)
    kv_heads = next((each.kv_heads for each in every if isinstance(each, Attention)), 1)
    first = next(iter(every), None)
    cached = first.kv_rank + first.rope if isinstance(first, Latent) else first.head_dim if first else 0
    return max((each.heads for each in every), default=0), kv_heads, cached


def parameters(shape: Shape) -> int:
    """The numbers in the checkpoint, as publishers count them."""
    inside = [matrix for i in range(len(shape.layers)) for matrix in layer_matrices(shape, i)]
    return sum(matrix.size for matrix in (*before(shape), *after(shape), *inside) if not matrix.made)


@pytest.mark.parametrize("name", [name for name in NAMES if getattr(entry(name), "parameters", None)])
def test_parameters_are_what_the_publisher_says(name: str) -> None:
    published = getattr(entry(name), "parameters", None)
    assert parameters(model(name)) / 1e9 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_of_the_table_has_a_source_and_a_sane_shape(name: str) -> None:
    found, kept = model(name), entry(name)
    assert kept is not None
    assert kept.source
    assert kept.like is None or entry(kept.like) is not None
    assert found.hidden % 64 == 0
    assert 500 < found.max_positions <= found.longest_positions <= found.stretched_positions
    assert found.dtype in {"bfloat16", "float16"}
    assert attentions(found)


def test_the_table_knows_the_models_that_people_serve() -> None:
    assert len(NAMES) >= 180
    assert known("META-LLAMA/Llama-3.1-8b-instruct") == known("meta-llama/Llama-3.1-8B-Instruct")
    assert known("nobody/nothing") is None


@pytest.mark.parametrize(
    ("name", "layers", "heads", "kv_heads", "head_dim", "vocab"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 32, 32, 8, 128, 128256),
        ("meta-llama/Llama-3.3-70B-Instruct", 80, 64, 8, 128, 128256),
        ("Qwen/Qwen3-8B", 36, 32, 8, 128, 151936),
        ("Qwen/Qwen3-32B", 64, 64, 8, 128, 151936),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 32, 32, 8, 128, 32000),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 40, 32, 8, 128, 131072),
        ("openai/gpt-oss-20b", 24, 64, 8, 64, 201088),
        ("facebook/opt-125m", 12, 12, 12, 64, 50272),
        ("microsoft/phi-4", 40, 40, 10, 128, 100352),
        ("microsoft/DialoGPT-medium", 24, 16, 16, 64, 50257),
        ("deepseek-ai/DeepSeek-V3", 61, 128, 1, 576, 129280),
    ],
)
def test_sizes_are_read_whatever_the_keys_are_called(
    name: str, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int
) -> None:
    found = model(name)
    assert (len(found.layers), *sizes(found), found.vocab) == (
        layers, heads, kv_heads, head_dim, vocab,
    )  # fmt: skip


def windows(name: str) -> list[int | None]:
    return [each.window for each in attentions(model(name)) if isinstance(each, Attention)]


def test_sliding_windows_are_where_each_family_has_them() -> None:
    assert windows("openai/gpt-oss-20b") == [128, None] * 12
    assert windows("google/gemma-2-9b-it") == [4096, None] * 21
    gemma3 = windows("google/gemma-3-27b-it")
    assert gemma3[:6] == [1024] * 5 + [None]
    assert gemma3.count(None) == 10
    assert set(windows("mistralai/Mistral-7B-Instruct-v0.1")) == {4096}
    assert set(windows("mistralai/Mistral-7B-Instruct-v0.3")) == {None}
    assert set(windows("Qwen/Qwen2.5-7B-Instruct")) == {None}


def test_llama_4_sees_everything_in_every_fourth_layer_and_mixes_in_every_second() -> None:
    maverick = model("meta-llama/Llama-4-Maverick-17B-128E-Instruct")
    chunks = [each.chunk for each in attentions(maverick) if isinstance(each, Attention)]
    assert chunks == [8192, 8192, 8192, None] * 12
    assert [isinstance(layer.feeds[0], Experts) for layer in maverick.layers] == [False, True] * 24


def test_hybrids_have_states_beside_attention() -> None:
    next_80b = model("Qwen/Qwen3-Next-80B-A3B-Instruct")
    kinds = ["state" if isinstance(layer.mixers[0], Recurrent) else "attention" for layer in next_80b.layers]
    assert kinds == ["state", "state", "state", "attention"] * 12
    nano = model("nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    assert sum(isinstance(layer.mixers[0], Recurrent) for layer in nano.layers if layer.mixers) == 27
    assert sum(isinstance(layer.feeds[0], Dense) for layer in nano.layers if layer.feeds) == 25


def test_latent_attention_and_its_indexer_are_told_apart() -> None:
    v3, v32 = (attentions(model(f"deepseek-ai/DeepSeek-{name}"))[0] for name in ("V3", "V3.2"))
    assert isinstance(v3, Latent)
    assert isinstance(v32, Latent)
    assert (v3.kv_rank + v3.rope, v3.index_heads, v32.index_heads) == (576, 0, 64)


def test_what_a_config_leaves_to_its_class_is_filled_in() -> None:
    assert sizes(model("google/gemma-3-4b-it"))[0] == 8
    bare = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "sliding_window": 1024}}  # fmt: skip
    assert parameters(shape(bare)) == pytest.approx(3.88e9, rel=0.01)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_config_that_lacks_a_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(UnknownShapeError, match=f"config.json has no {key}"):
        shape({name: value for name, value in LLAMA.items() if name != key})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "something_new"}, "the architecture 'something_new' is not understood"),
        ({"model_type": None}, "without a model_type"),
        ({"quantization_config": {"quant_method": "magic"}}, "the quantization method 'magic'"),
        ({"hidden_size": "wide"}, "hidden_size in config.json is 'wide', not a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads in config.json is 0, not a whole number from 1 to"),
        ({"layer_types": ["full_attention"]}, "has 1 entries for 32 layers"),
        ({"layer_types": ["telepathy"] * 32}, "a layer of the type 'telepathy'"),
        ({"layer_types": [None] * 32}, "an entry of layer_types in config.json is None, not a string"),
        ({"vocab_size": 0}, "vocab_size in config.json is 0, not a whole number from 1"),
        ({"intermediate_size": 0}, "intermediate_size in config.json is 0, not a whole number from 1"),
        ({"hidden_size": 16}, "hidden_size in config.json is less than its 32 num_attention_heads"),
        ({"num_hidden_layers": 10_000_000}, "num_hidden_layers in config.json is 10000000, not a whole "),
        ({"num_hidden_layers": True}, "num_hidden_layers in config.json is True, not a whole number"),
        ({"rope_scaling": ["yarn"]}, "rope_scaling in config.json is a list, not a map"),
        ({"rope_scaling": {"type": "yarn", "factor": float("nan")}}, "factor in config.json is nan, not a "),
        ({"vision_config": {"hidden_size": "64", "depth": 2}}, "hidden_size in config.json is '64', not a"),
        ({"quantization_config": {"quant_method": "fp8", "ignore": ["re:("]}}, "is no regular expression"),
        ({"quantization_config": {"quant_method": "fp8", "ignore": ["re:(a+)+"]}}, "is not understood"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 1]}}, "weight_block_size"),
    ],
)
def test_what_is_not_understood_is_unknown_and_never_a_wrong_number(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnknownShapeError, match=message):
        shape({**LLAMA, **changed})


@pytest.mark.parametrize("rank", ["8", [], {}, 1e308, -1, True])
def test_a_rank_of_latent_attention_is_a_whole_number(rank: object) -> None:
    with pytest.raises(UnknownShapeError, match="q_lora_rank in config"):
        shape((config("deepseek-ai/DeepSeek-V3") or {}) | {"q_lora_rank": rank})


values = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=3) | st.lists(
    st.integers(0, 3), max_size=3
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_any_other_config_gives_a_shape_or_says_why_not(name: str, data: st.DataObject) -> None:
    kept = config(name)
    assert kept is not None
    key = data.draw(st.sampled_from(sorted(kept)))
    try:
        found = shape({**kept, key: data.draw(values)})
    except UnknownShapeError as error:
        assert str(error)
    else:
        assert isinstance(found, Shape)


def test_the_context_follows_from_positions_and_rotary_scaling() -> None:
    def longest(**changed: Any) -> tuple[int, int, int]:
        found = shape({**LLAMA, **changed})
        return found.max_positions, found.longest_positions, found.stretched_positions

    assert longest() == (8192, 8192, 8192)
    assert longest(rope_scaling={"type": "linear", "factor": 4.0}) == (32768, 32768, 32768)
    assert longest(rope_scaling={"rope_type": "llama3", "factor": 8.0}) == (8192, 8192, 8192)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    assert longest(rope_scaling=yarn) == (8192, 8192, 32768)
    phi = model("microsoft/Phi-3.5-mini-instruct")
    assert (phi.max_positions, phi.longest_positions) == (4096, 131072)


def test_quantized_layers_are_told_from_those_left_as_they_were() -> None:
    some = Quantization(
        "fp8", 8, left_out=("lm_head", "model.layers.3.mlp", "re:.*self_attn.*", "*.gate_proj")
    )
    assert some.covers("layers.2.mlp.down_proj")
    assert not some.covers("layers.3.mlp.down_proj")
    assert some.covers("layers.30.mlp.down_proj")
    assert not some.covers("layers.2.self_attn.q_proj")
    assert not some.covers("layers.2.mlp.gate_proj")
    assert not some.covers("lm_head")
    experts = Quantization("fp8", 8, left_out=("re:model\\.layers\\.(0|1)\\..*(gate|up)_proj$",))
    assert not experts.covers("layers.1.mlp.gate_proj")
    assert experts.covers("layers.2.mlp.gate_proj")
    elsewhere = Quantization("nvfp4", 4, left_out=("model.language_model.layers.*.linear_attn*",))
    assert not elsewhere.covers("layers.7.linear_attn.in_proj")
    assert elsewhere.covers("layers.7.mlp.experts.up_proj")


def test_the_first_pipeline_stages_take_the_layers_that_are_left_over() -> None:
    assert stages(10, 4) == [range(2), range(2, 5), range(5, 8), range(8, 10)]
    assert [len(stage) for stage in stages(61, 2)] == [31, 30]


def test_fewer_key_heads_than_gpus_are_held_several_times() -> None:
    qwen = model("Qwen/Qwen3-30B-A3B")
    keys = next(each for each in layer_matrices(qwen, 0) if each.name.endswith("k_proj"))
    assert GpuSplit(4).share(keys) == GpuSplit(8).share(keys) == 1 / 4


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
def test_more_gpus_never_hold_more_weights_each(name: str, tensor: int, pipeline: int) -> None:
    found = model(name)
    before = max(weight_bytes(found, GpuSplit(tensor, pipeline), None, found.quantization))
    assert max(weight_bytes(found, GpuSplit(2 * tensor, pipeline), None, found.quantization)) <= before
    assert max(weight_bytes(found, GpuSplit(tensor, 2 * pipeline), None, found.quantization)) <= before


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from([1, 2, 4]))
def test_expert_parallel_holds_whole_experts_and_tensor_parallel_pieces(name: str, data: int) -> None:
    found = model(name)
    pieces = weight_bytes(found, GpuSplit(2, 1, data), None, found.quantization)[0]
    whole = weight_bytes(found, GpuSplit(2, 1, data, experts=True), None, found.quantization)[0]
    assert whole == pytest.approx(pieces, rel=0.2)
