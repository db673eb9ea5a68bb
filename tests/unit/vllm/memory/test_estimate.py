import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.vllm.memory import truth
from unit.vllm.memory.truth import NAMES
from vllmjobs.vllm.memory.estimate import Estimate, Request, batch_defaults, estimate, smallest
from vllmjobs.vllm.memory.gpus import Gpu, gpu, gpus
from vllmjobs.vllm.memory.kv_cache import Pool, pools
from vllmjobs.vllm.memory.limits import blocks, dividing
from vllmjobs.vllm.memory.models import config, known
from vllmjobs.vllm.memory.obstacles import context, obstacles
from vllmjobs.vllm.memory.overhead import capture_sizes
from vllmjobs.vllm.memory.parts import Attention, Config
from vllmjobs.vllm.memory.quantization import quantization
from vllmjobs.vllm.memory.serving import Serving
from vllmjobs.vllm.memory.shape import Shape, UnknownShapeError, shape
from vllmjobs.vllm.memory.weights import GpuSplit
from vllmjobs.vllm.releases import NEWEST

GIB = 2**30
PAGE = Path(__file__).parents[4] / "docs" / "memory.md"
ROWS = [f"{index} {row.model} on {row.gpu}" for index, row in enumerate(truth.table())]


def model(name: str) -> Shape:
    found = known(name)
    assert found is not None, name
    return found


def card(name: str) -> Gpu:
    found = gpu(name)
    assert found is not None, name
    return found


def pool(name: str, tensor: int = 1, width: float = 2) -> Pool:
    (found,) = pools(model(name), GpuSplit(tensor), width, 16)
    assert found is not None
    return found


def guess(name: str, on: str, **serving: Any) -> Estimate:
    return estimate(model(name), card(on), Serving(**serving))


# What vLLM itself said


@pytest.mark.parametrize("index", range(len(ROWS)), ids=ROWS)
def test_estimates_agree_with_what_vllm_said(index: int) -> None:
    for figure in truth.figures(index):
        assert figure.agrees or figure.miss, (figure.name, figure.published, figure.estimated)


@pytest.mark.parametrize("index", range(len(ROWS)), ids=ROWS)
def test_a_known_miss_that_misses_no_more_is_taken_out(index: int) -> None:
    assert [figure.name for figure in truth.figures(index) if figure.miss and figure.agrees] == []


@pytest.mark.parametrize("index", range(len(ROWS)), ids=ROWS)
def test_what_fits_is_said_to_fit_and_what_does_not_is_not(index: int) -> None:
    row = truth.table()[index]
    assert row.fits is None or truth.estimated(index).fits == row.fits


def test_the_truth_is_of_every_kind() -> None:
    rows = truth.table()
    assert len(rows) >= 40
    assert sum(row.serving.tensor_parallel > 1 for row in rows) >= 8
    assert len({row.gpu for row in rows}) >= 8
    assert sum(bool(row.misses) for row in rows) <= 3


def test_the_page_shows_the_table_as_it_is_computed(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text()
    before, _, after = text.partition("<!-- truth -->\n")
    _, end, rest = after.partition("<!-- end of truth -->\n")
    assert end
    written = before + "<!-- truth -->\n" + truth.markdown() + end + rest
    if request.config.getoption("--rewrite"):
        PAGE.write_text(written)
    assert PAGE.read_text() == written


# What holds for all models


@pytest.mark.parametrize("name", NAMES)
def test_every_model_of_the_table_has_a_sane_estimate(name: str) -> None:
    found = guess(name, "GB300", tensor_parallel=8, max_model_len=512)
    parts = found.weights + found.activations + found.cuda_graphs + found.non_torch + found.kv_cache
    assert parts == found.total - found.outside
    assert found.fits
    assert found.margin > 0
    assert found.smallest is None
    assert found.kv_tokens > 10_000 or model(name).pooling


@given(st.sampled_from(NAMES), st.integers(1, 5000), st.integers(1, 5000))
def test_a_longer_context_never_needs_less(name: str, length: int, more: int) -> None:
    short = guess(name, "H200", max_model_len=length)
    long = guess(name, "H200", max_model_len=length + more)
    assert short.needed <= long.needed
    assert short.fits or not long.fits


@given(
    st.sampled_from(NAMES).filter(lambda name: not model(name).pooling),
    st.sampled_from([1, 2, 4]),
    st.integers(64, 4096),
)
def test_an_fp8_cache_takes_half(name: str, tensor: int, length: int) -> None:
    mixers = [mixer for layer in model(name).layers for mixer in layer.mixers]
    eight, sixteen = (pool(name, tensor, width).block_bytes for width in (1, 2))
    if all(isinstance(mixer, Attention) for mixer in mixers):  # others keep scales, or states that stay
        assert 2 * eight == sixteen
    whole = guess(name, "H200", tensor_parallel=tensor, max_model_len=length, kv_cache_dtype="bfloat16")
    half = guess(name, "H200", tensor_parallel=tensor, max_model_len=length, kv_cache_dtype="fp8")
    assert half.needed <= whole.needed


@given(st.sampled_from(NAMES), st.sampled_from([each.name for each in gpus()]), st.sampled_from([1, 2, 4]))
def test_the_longest_context_fits_and_one_token_more_does_not(name: str, on: str, tensor: int) -> None:
    found = guess(name, on, tensor_parallel=tensor)
    limit = max(model(name).stretched_positions, found.max_model_len)
    if model(name).pooling:
        return
    if found.longest_context:
        assert guess(name, on, tensor_parallel=tensor, max_model_len=found.longest_context).fits
    if found.longest_context < limit:
        assert not guess(name, on, tensor_parallel=tensor, max_model_len=found.longest_context + 1).fits


@given(st.sampled_from(NAMES), st.sampled_from(["A100", "H100", "L40S"]))
def test_auto_takes_the_longest_context_that_fits(name: str, on: str) -> None:
    found = guess(name, on, max_model_len="auto")
    longest = min(found.longest_context, model(name).max_positions)
    assert found.max_model_len == longest or model(name).pooling
    assert found.fits == (found.max_model_len > 0 and found.kv_cache > 0)


# Rules one by one

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def test_keys_and_values_are_counted_per_gpu() -> None:
    def per_token(name: str, tensor: int) -> float:
        return pool(name, tensor).block_bytes / 16

    assert per_token(LLAMA, 1) == 32 * 8 * 2 * 128 * 2
    assert per_token(LLAMA, 4) == 32 * 2 * 2 * 128 * 2
    assert per_token(LLAMA, 16) == 32 * 1 * 2 * 128 * 2  # no GPU holds less than one head
    assert per_token("deepseek-ai/DeepSeek-V3", 1) == per_token("deepseek-ai/DeepSeek-V3", 8) == 61 * 576 * 2


def test_sliding_windows_bound_what_a_request_takes() -> None:
    short = guess("openai/gpt-oss-20b", "H100", max_model_len=32768)
    long = guess("openai/gpt-oss-20b", "H100", max_model_len=131072)
    assert long.needed < 3 * short.needed


def test_a_page_of_a_hybrid_holds_a_whole_state() -> None:
    # "Setting attention block size to 528 tokens": a start-up log; 784: LMCache/LMCache#5079
    for name, tokens in (("Qwen/Qwen3.5-9B", 528), ("Qwen/Qwen3.5-27B", 784), ("Qwen/Qwen3.5-35B-A3B", 1056)):
        groups = pool(name).groups
        assert {group.spec.block for group in groups} == {tokens}
        assert len({group.spec.page for group in groups}) == 1


def test_defaults_of_the_batch_follow_the_gpu() -> None:
    assert batch_defaults(card("L40S"), Serving()) == (256, 2048)
    assert batch_defaults(card("A100"), Serving()) == (256, 2048)
    assert batch_defaults(card("H100"), Serving()) == (1024, 8192)
    assert batch_defaults(card("B200"), Serving()) == (1024, 16384)
    assert batch_defaults(card("B200"), Serving(max_num_seqs=32, max_num_batched_tokens=4096)) == (32, 4096)


def test_graphs_are_captured_for_the_sizes_that_vllm_logs() -> None:
    assert len(capture_sizes(card("L40S"), 256, 8192)) == 51  # PIECEWISE=51 (largest=512)
    assert len(capture_sizes(card("L40S"), 128, 2048)) == 35  # PIECEWISE=35 (largest=256)
    assert capture_sizes(card("L40S"), 1, 2048) == [1, 2]


def test_eager_execution_leaves_the_graphs_to_the_cache() -> None:
    graphs, eager = guess(LLAMA, "H100"), guess(LLAMA, "H100", enforce_eager=True)
    assert eager.cuda_graphs == 0
    assert eager.kv_cache - graphs.kv_cache == graphs.cuda_graphs > 0


def test_settings_change_what_they_say() -> None:
    plain = guess(LLAMA, "H100")
    assert guess(LLAMA, "H100", cpu_offload_gb=4).weights == plain.weights - 4 * GIB
    assert guess(LLAMA, "H100", quantization="fp8").weights < 0.6 * plain.weights
    assert guess(LLAMA, "H100", kv_cache_memory_bytes=10 * GIB).kv_cache == 10 * GIB
    assert guess(LLAMA, "H100", gpu_memory_utilization=0.5).outside > plain.outside
    assert guess(LLAMA, "H100", dtype="float32").weights == 2 * plain.weights
    assert guess(LLAMA, "H100", max_num_seqs=16).activations < plain.activations


def test_experts_in_mxfp4_are_padded_for_their_kernels() -> None:
    assert guess("openai/gpt-oss-20b", "H100").weights == pytest.approx(13.72 * GIB, rel=0.01)


def test_a_cache_of_a_layout_that_is_not_known_is_an_error() -> None:
    with pytest.raises(UnknownShapeError, match="turboquant_4bit"):
        guess(LLAMA, "H100", kv_cache_dtype="turboquant_4bit")


def test_an_embedding_model_needs_no_cache() -> None:
    found = guess("BAAI/bge-m3", "T4")
    assert (found.needed, found.kv_tokens, found.fits) == (0, 0, True)


def test_the_smallest_request_is_the_least_memory_that_does() -> None:
    small, large = model("Qwen/Qwen2.5-0.5B-Instruct"), model("meta-llama/Llama-3.3-70B-Instruct")
    assert smallest(small, Serving()) == Request("Tesla T4", 1)
    found = smallest(large, Serving())
    assert found is not None
    assert estimate(large, card(found.gpu), Serving(tensor_parallel=found.count)).fits
    servers = [each for each in gpus() if not each.integrated and "GeForce" not in each.name]
    less = [each for each in servers if each.memory_mib < card(found.gpu).memory_mib]
    assert not any(estimate(large, each, Serving(tensor_parallel=found.count)).fits for each in less)


def test_more_of_the_same_gpu_comes_first_where_that_does() -> None:
    large, small = "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
    assert guess(large, "H100", max_model_len=8192).smallest == Request("NVIDIA H100 80GB HBM3", 4)
    assert guess(small, "RTX 4090", max_model_len=131072).smallest == Request("NVIDIA GeForce RTX 4090", 2)


# Obstacles

BLOCKS = [name for name in NAMES if (how := quantization(Config(config(name) or {}))) and how.block]


def messages(name: str, on: str, **serving: Any) -> dict[str, str]:
    return {each.kind: each.message for each in obstacles(model(name), Serving(**serving), card(on))}


def test_what_fits_has_no_obstacles() -> None:
    assert messages(LLAMA, "H100") == {}
    assert messages("Qwen/Qwen3-30B-A3B-FP8", "L40S", max_model_len=16384) == {}


def test_heads_and_vocabulary_that_do_not_divide_name_the_sizes_that_do() -> None:
    # One cause, one message: three GPUs divide neither Llama's 8 key and value heads nor its vocabulary.
    assert messages(LLAMA, "H100", tensor_parallel=3) == {
        "heads": "3 does not divide 32 heads; use 1, 2, 4, 8 or 16"
    }
    assert messages("Qwen/Qwen2.5-1.5B-Instruct", "H100", tensor_parallel=3) == {
        "vocabulary": "3 does not divide the padded vocabulary of 151936; use 1, 2 or 4"
    }
    assert messages(LLAMA, "H100", tensor_parallel=-1) == {
        "heads": "-1 is no number of GPUs; use 1, 2, 4, 8 or 16"
    }


@pytest.mark.parametrize("stages", [-1, 0, 33, 1_000_000, 2**63 - 1])
def test_a_pipeline_has_a_layer_for_every_stage(stages: int) -> None:
    assert messages(LLAMA, "H100", pipeline_parallel=stages) == {
        "layers": f"32 layers cannot be cut into {stages} pipeline stages; use 1 to 32"
    }
    with pytest.raises(UnknownShapeError, match=f"pipeline_parallel is {stages}, "):
        guess(LLAMA, "H100", pipeline_parallel=stages)


def test_phi_4_with_its_ten_key_heads_dies_at_four_gpus() -> None:
    found = messages("microsoft/phi-4", "H100", tensor_parallel=4)
    assert found == {
        "kv_heads": "4 neither divides 10 key and value heads nor is a multiple of them; use 1 or 2"
    }


def test_scales_of_fp8_blocks_must_not_be_cut() -> None:
    found = messages("Qwen/Qwen3-235B-A22B-FP8", "H100", tensor_parallel=8)
    assert found["block"] == (
        "8 cuts feed-forward layers of 1536 into parts that are no multiple of 128, the block of their fp8 "
        "scales; use 1, 2 or 4, or enable-expert-parallel"
    )
    assert "block" not in messages(
        "Qwen/Qwen3-235B-A22B-FP8", "H100", tensor_parallel=8, expert_parallel=True
    )
    assert "block" not in messages("Qwen/Qwen3-235B-A22B-FP8", "H100", tensor_parallel=4)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_sizes_that_are_named_are_refused_for_nothing_else(name: str) -> None:
    for tensor in (3, 8, 16, 32, 64):
        for data in (1, 2):
            serving = Serving(tensor_parallel=tensor, data_parallel=data)
            for found in [*dividing(model(name), serving), *blocks(model(name), serving)]:
                sizes = [int(size) for size in re.findall(r"\d+", found.message.partition("; use ")[2])]
                spread = "enable-expert-parallel and" in found.message
                for size in sizes:
                    other = Serving(tensor_parallel=size, data_parallel=data, expert_parallel=spread)
                    assert [*dividing(model(name), other), *blocks(model(name), other)] == []


@pytest.mark.parametrize(
    ("name", "on", "severity", "message"),
    [
        ("Qwen/Qwen3-8B-AWQ", "V100 32GB", "error", "awq needs compute capability 7.5, but Tesla "
         "V100-SXM2-32GB has 7.0; take a newer GPU or other weights"),
        ("Qwen/Qwen3-8B-FP8", "A100", "warning", "fp8 kernels need compute capability 8.9, but NVIDIA "
         "A100-SXM4-80GB has 8.0: it works, but slower"),
        ("nvidia/Qwen3-235B-A22B-NVFP4", "H200", "warning", "nvfp4 kernels need compute capability 10.0, "
         "but NVIDIA H200 has 9.0: it works, but slower"),
        ("openai/gpt-oss-20b", "T4", "error", "mxfp4 needs compute capability 8.0, but Tesla T4 has "
         "7.5; take a newer GPU or other weights"),
    ],
)  # fmt: skip
def test_quantizations_need_a_compute_capability(name: str, on: str, severity: str, message: str) -> None:
    found = [each for each in obstacles(model(name), Serving(), card(on)) if each.kind == "capability"]
    assert [(each.severity, each.message) for each in found] == [(severity, message)]


def test_bfloat16_is_refused_on_a_gpu_that_lacks_it_unless_vllm_may_choose() -> None:
    small = "Qwen/Qwen2.5-0.5B-Instruct"
    assert messages(small, "T4", dtype="bfloat16", max_model_len=4096) == {
        "capability": "bfloat16 needs compute capability 8.0, but Tesla T4 has 7.5; set dtype to float16"
    }
    for dtype in ("auto", "float16", None):
        assert messages(small, "T4", dtype=dtype, max_model_len=4096) == {}
    least = smallest(model(small), Serving(dtype="bfloat16"))
    assert least is not None
    assert card(least.gpu).compute_capability >= 80


def test_a_context_beyond_the_models_is_refused_unless_its_rotary_scaling_reaches_it() -> None:
    assert messages("Qwen/Qwen3-8B", "H100", max_model_len=131072)["context"] == (
        "131072 is longer than the model's 40960 (max_position_embeddings in its config.json); lower it, or "
        "set rope_scaling and that key with hf-overrides"
    )
    v2 = "deepseek-ai/DeepSeek-V2-Lite-Chat"
    assert "context" not in messages(v2, "H100", max_model_len=163840)


def test_a_yarn_factor_lengthens_the_context_up_to_0_24_and_no_more_in_0_32() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    stretched = shape((config("Qwen/Qwen3-8B") or {}) | {"rope_scaling": scaling})
    assert context(stretched, Serving(max_model_len=131072, vllm_version="0.24.0")) == []
    (found,) = context(stretched, Serving(max_model_len=131072, vllm_version="0.33.0"))
    assert found.message.endswith("or set VLLM_ALLOW_LONG_MAX_MODEL_LEN under env")


def test_weights_that_do_not_fit_name_a_request_that_would() -> None:
    name = "meta-llama/Llama-3.3-70B-Instruct"
    found = messages(name, "H100", max_model_len=8192)
    assert found["weights"].startswith("131.4 GiB of weights and ")
    assert found["weights"].endswith(
        " of NVIDIA H100 80GB HBM3; raise gpu_memory_utilization, give it more GPUs (strategy: "
        "tensor_parallel), or take 4 x NVIDIA H100 80GB HBM3"
    )
    several = messages(name, "L4", tensor_parallel=2, max_model_len=8192)["weights"]
    assert " of 2 x NVIDIA L4; raise gpu_memory_utilization or gpus.count, or take " in several


def test_a_gpu_that_is_used_up_is_not_to_be_used_more() -> None:
    found = messages(
        "meta-llama/Llama-3.3-70B-Instruct", "H100", max_model_len=8192, gpu_memory_utilization=0.95
    )
    assert "gpu_memory_utilization" not in found["weights"]
    assert "; give it more GPUs (strategy: tensor_parallel), or take " in found["weights"]


def test_a_cache_too_small_names_the_context_that_would_fit() -> None:
    found = obstacles(model("Qwen/Qwen3-32B"), Serving(max_model_len=32768), card("H100"))
    assert [(each.kind, each.severity) for each in found] == [("kv_cache", "error")]
    longest = guess("Qwen/Qwen3-32B", "H100", max_model_len=32768).longest_context
    assert found[0].message.startswith(
        "32768 tokens need 8.0 GiB of KV cache, but NVIDIA H100 80GB HBM3 has "
    )
    assert f"lower max_model_len to {longest}, raise gpu_memory_utilization" in found[0].message


def test_what_only_just_fits_is_a_warning() -> None:
    found = obstacles(model("Qwen/Qwen3-32B"), Serving(max_model_len=24576), card("H100"))
    assert [(each.kind, each.severity) for each in found] == [("margin", "warning")]


# Whatever a user writes

ODD: Any = st.sampled_from(
    [
        0,
        -1,
        1,
        3,
        33,
        2**31,
        10_000_000,
        2**63,
        10**400,
        1e308,
        0.0,
        -0.5,
        "",
        "8",
        "auto",
        "re:(",
        [],
        {},
        [None],
    ]
)
JSON: Any = st.recursive(
    ODD | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], by: Any) -> Any:
    if not at:
        return by
    copy = value.copy()
    copy[at[0]] = replaced(value[at[0]], at[1:], by)
    return copy


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """The config of a known model with something else in some of its places."""
    found = config(draw(st.sampled_from(NAMES))) or {}
    for _ in range(draw(st.integers(0, 2))):
        found = replaced(found, draw(st.sampled_from(list(places(found)))), draw(JSON))
    return found


WHOLE = st.integers(1, 64) | st.sampled_from([0, -1, 2**31, 2**63 - 1, 10**400]) | st.integers()
REAL = st.floats(0.1, 1.0) | st.floats()
WORD = st.text(max_size=8)
SERVINGS = st.builds(
    Serving,
    tensor_parallel=WHOLE,
    pipeline_parallel=WHOLE,
    data_parallel=WHOLE,
    expert_parallel=st.booleans(),
    gpu_memory_utilization=st.none() | REAL,
    max_model_len=st.none() | st.just("auto") | WHOLE,
    max_num_seqs=st.none() | WHOLE,
    max_num_batched_tokens=st.none() | WHOLE,
    dtype=st.none() | st.sampled_from(["auto", "bfloat16", "float32"]) | WORD,
    quantization=st.none() | st.sampled_from(["fp8", "mxfp4", "bitsandbytes"]) | WORD,
    kv_cache_dtype=st.sampled_from(["auto", "fp8", "nvfp4"]) | WORD,
    kv_cache_memory_bytes=st.none() | WHOLE,
    block_size=st.none() | WHOLE,
    enforce_eager=st.booleans(),
    cpu_offload_gb=st.just(0.0) | REAL,
    prefix_caching=st.none() | st.booleans(),
    vllm_version=st.sampled_from(["0.33.0", "0.33rc1", "0.33+cu129", "nightly", "1"]) | WORD,
)
PLAIN = st.builds(
    Serving, tensor_parallel=st.sampled_from([1, 2, 8]), pipeline_parallel=st.sampled_from([1, 4])
)
CARDS = st.sampled_from(gpus())


@given(configs(), CARDS, PLAIN | SERVINGS)
def test_any_config_and_any_serving_give_an_estimate_or_say_why_not(
    changed: dict[str, Any], on: Gpu, serving: Serving
) -> None:
    try:
        found = estimate(shape(changed), on, serving)
    except UnknownShapeError as error:
        assert 0 < len(str(error)) < 300
    else:
        assert isinstance(found, Estimate)


@given(configs(), CARDS, PLAIN | SERVINGS)
def test_any_config_and_any_serving_give_obstacles(
    changed: dict[str, Any], on: Gpu, serving: Serving
) -> None:
    try:
        model = shape(changed)
    except UnknownShapeError as error:
        assert str(error)
        return
    for one in (
        *dividing(model, serving),
        *blocks(model, serving),
        *context(model, serving),
    ):  # never refused
        assert one.message
    for one in obstacles(model, serving, on):
        assert one.message
        assert one.severity in ("error", "warning")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tensor_parallel", 0), ("data_parallel", -1), ("gpu_memory_utilization", 1.5),
        ("gpu_memory_utilization", float("nan")), ("max_model_len", 0), ("max_model_len", 2**63),
        ("max_num_seqs", 0), ("max_num_seqs", 2**63), ("max_num_batched_tokens", -1), ("block_size", 0),
        ("block_size", -16), ("cpu_offload_gb", float("inf")), ("cpu_offload_gb", float("nan")),
        ("kv_cache_memory_bytes", -1),
    ],
)  # fmt: skip
def test_a_number_that_no_server_could_start_with_is_named(setting: str, value: Any) -> None:
    for ask in (
        lambda serving: estimate(model(LLAMA), card("H100"), serving),
        lambda serving: smallest(model(LLAMA), serving),
    ):
        with pytest.raises(UnknownShapeError, match=f"{setting} is .*, not from"):
            ask(Serving(**{setting: value}))


LATEST = tuple(int(part) for part in NEWEST.split(".")[:2])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.33.0", (0, 33)), ("0.33rc1", (0, 33)), ("0.33+cu129", (0, 33)), ("v0.9.2", (0, 9)),
        ("1.0", (1, 0)), ("nightly", LATEST), ("", LATEST), ("9" * 5000, LATEST),
    ],
)  # fmt: skip
def test_what_is_no_version_counts_as_the_newest(text: str, version: tuple[int, int]) -> None:
    assert Serving(vllm_version=text).version == version


def test_a_stage_of_a_pipeline_without_attention_is_not_short_of_cache() -> None:
    nano = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    found = guess(nano, "H100", pipeline_parallel=len(model(nano).layers), max_model_len=4096)
    assert found.fits
    assert found.kv_tokens > 0


def test_bytes_that_are_given_to_the_cache_are_taken_whatever_the_utilization() -> None:
    given = Serving(gpu_memory_utilization=0.1, max_model_len=4096, kv_cache_memory_bytes=10 * GIB)
    assert obstacles(model("Qwen/Qwen3-8B"), given, card("H100")) == []
    (found,) = obstacles(model("Qwen/Qwen3-8B"), given, card("L4"))
    assert found.kind == "weights"
    assert "with 10.0 GiB of KV cache, do not fit into" in found.message


def test_of_weights_in_an_unknown_form_nothing_is_said() -> None:
    with pytest.raises(UnknownShapeError, match="the size of weights with quantization 'gguf' is not known"):
        guess("meta-llama/Llama-3.1-70B-Instruct", "H100", quantization="gguf")
    quantized = "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8"  # says so itself, whatever the argument calls it
    assert guess(quantized, "H100", quantization="compressed-tensors", max_model_len=4096).fits
