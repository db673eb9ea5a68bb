"""What is read of a command line of `vllm serve`, and what is refused, per version."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.vllm.arguments.command_line import Reading, read
from vllmjobs.vllm.arguments.parser import Mistake
from vllmjobs.vllm.arguments.tables import table

RELEASE = "0.33.0"
STRANGE = [
    "", "-", "--", "---", "--=", "-.", "--.", "--.x", "-.5", "-1", "-O", "-O=", "-O.", "-cc", "--model",
    "--port", "--port=", "--port.", "--hf-overrides", "--hf-overrides.", "--hf-overrides..a",
    "--hf-overrides.a+", "--hf-overrides.a=1", "--compilation-config={}", "--compilation-config=[]",
    "--compilation-config.pass_config=1", "--speculative-config=" + "[" * 100_000,
    "--max-model-len=" + "9" * 400 + "k", "--seed=" + "9" * 5000, "\x00",
]  # fmt: skip


def reading(line: str, version: str = RELEASE) -> Reading:
    return read(table(version).table, ["m", *line.split()])


def values(line: str, version: str = RELEASE) -> dict[str, Any]:
    found = reading(line, version)
    assert not found.mistakes
    assert found.values.pop("model_tag") == "m"
    return found.values


def mistake(line: str, version: str = RELEASE) -> Mistake:
    [only] = reading(line, version).mistakes
    return only


# What is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--max-num-seqs 64", {"max_num_seqs": 64}),
        ("--max-num-seqs=64", {"max_num_seqs": 64}),
        ("--max_num_seqs=64", {"max_num_seqs": 64}),
        ("-tp 2 -q fp8", {"tensor_parallel_size": 2, "quantization": "fp8"}),
        ("-tp=2", {"tensor_parallel_size": 2}),
        ("--enforce-eager", {"enforce_eager": True}),
        ("--no-enforce-eager", {"enforce_eager": False}),
        ("--no_enforce_eager", {"enforce_eager": False}),
        ("--disable-log-requests", {"enable_log_requests": False}),
        ("--no-enable-log-requests", {"enable_log_requests": False}),
        ("--headless", {"headless": True}),
        ("--served-model-name a b", {"served_model_name": ["a", "b"]}),
        ("--served-model-name=a --port 80", {"served_model_name": ["a"], "port": 80}),
        ("--middleware=a --middleware=b", {"middleware": ["a", "b"]}),
        ("--device-memory-utilization 0.5", {"gpu_memory_utilization": 0.5}),
        ("--attention-backend flashinfer", {"attention_backend": "flashinfer"}),
        ("--moe-backend DEEP-GEMM", {"moe_backend": "deep_gemm"}),
        ("--hf-token", {"hf_token": True}),
        ("--hf-token abc", {"hf_token": "abc"}),
        ("--revision None", {"revision": None}),
        ("--quantization=", {"quantization": None}),
        ("--seed -1", {"seed": -1}),
        ("--distributed-executor-backend my.Executor", {"distributed_executor_backend": "my.Executor"}),
        ("--reasoning-parser none", {"reasoning_parser": ""}),
        ("--lora-modules a=/b", {"lora_modules": [{"name": "a", "path": "/b"}]}),
    ],
)
def test_options_are_read_as_vllm_reads_them(line: str, expected: dict[str, Any]) -> None:
    assert values(line) == expected


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8192),
        ("1.5k", 1500),
        ("1m", 10**6),
        ("1M", 2**20),
        ("auto", -1),
        ("-1", -1),
    ],
)
def test_a_length_can_have_a_suffix(written: str, meant: int) -> None:
    assert values(f"--max-model-len {written}") == {"max_model_len": meant}


def test_automatic_lengths_came_after_0_11() -> None:
    assert mistake("--max-model-len auto", "0.11.2").kind == "type"
    assert mistake("--max-model-len=-1", "0.11.2").message == "must be at least 1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('--hf-overrides {"a":{"b":1}}', {"hf_overrides": {"a": {"b": 1}}}),
        ("--hf-overrides.a.b=1 --hf-overrides.c x", {"hf_overrides": {"a": {"b": 1}, "c": "x"}}),
        ("--hf_overrides.a_b true", {"hf_overrides": {"a_b": True}}),
        ("--hf-overrides.a+=x,y --hf-overrides.a+ z", {"hf_overrides": {"a": ["x", "y", "z"]}}),
        ("-cc.mode=3", {"compilation_config": {"mode": 3}}),
        ("--compilation-config.mode=none", {"compilation_config": {"mode": "NONE"}}),
        (
            "--compilation-config.max_cudagraph_capture_size 1k",
            {"compilation_config": {"max_cudagraph_capture_size": 1000}},
        ),
        (
            '--compilation-config={"max_cudagraph_capture_size":1k}',
            {"compilation_config": {"max_cudagraph_capture_size": 1000}},
        ),
        ('--compilation-config={"backend":"1k"}', {"compilation_config": {"backend": "1k"}}),
        ('--limit-mm-per-prompt={"image":2}', {"limit_mm_per_prompt": {"image": 2}}),
    ],
)
def test_json_options_can_be_written_whole_or_by_dotted_keys(line: str, expected: dict[str, Any]) -> None:
    assert values(line) == expected


def test_suffixes_in_json_came_after_0_17() -> None:
    assert mistake("--compilation-config.max_cudagraph_capture_size=1k", "0.17.1").kind == "type"


@pytest.mark.parametrize("line", ["-O3", "-O=3", "-O 3", "--optimization-level=3"])
def test_an_optimization_level_is_written_in_four_ways(line: str) -> None:
    assert values(line) in ({"optimization_level": 3}, {"optimization_level": "3"})


def test_an_optimization_level_was_a_compilation_mode_in_0_11() -> None:
    assert values("-O3", "0.11.2") == {"compilation_config": {"mode": 3}}
    assert values("-O.mode=3", "0.11.2") == {"compilation_config": {"mode": 3}}
    assert mistake("-O.mode=3").flag == "optimization-level"


def test_the_model_can_be_given_as_an_option() -> None:
    assert read(table(RELEASE).table, ["--model", "m", "--port=80"]) == Reading(
        {"model_tag": "m", "port": 80}, []
    )


def test_a_plugin_can_bring_a_parser_of_any_name() -> None:
    line = "--enable-auto-tool-choice --tool-call-parser mine --tool-parser-plugin /mine.py"
    assert values(line)["tool_call_parser"] == "mine"


@pytest.mark.parametrize(
    "options",
    [
        {"kv_connector": "Mine", "kv_connector_module_path": "mine.connector", "kv_role": "kv_both"},
        {"kv_connector": "NixlConnector", "kv_role": "kv_both"},
    ],
)
def test_a_connector_is_known_or_says_where_it_comes_from(options: dict[str, Any]) -> None:
    line = f"--kv-transfer-config={json.dumps(options, separators=(',', ':'))}"
    assert values(line) == {"kv_transfer_config": options}


# What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "flag", "kind", "message"),
    [
        (
            "--max-nun-seqs 3",
            "max-nun-seqs",
            "unknown",
            "is no option of vLLM 0.33.0; did you mean max-num-seqs?",
        ),
        ("--swap-space 4", "swap-space", "unknown", "is no option of vLLM 0.33.0; removed after 0.17.1"),
        ("--zzz", "zzz", "unknown", "is no option of vLLM 0.33.0"),
        (
            "extra",
            "extra",
            "unknown",
            "the word 'extra' belongs to no option; only the model's name stands by itself",
        ),
        (
            "--max-num-seq 3",
            "max-num-seq",
            "abbreviation",
            "abbreviates max-num-seqs, which may change with a new option; write max-num-seqs",
        ),
        ("--port many", "port", "type", 'must be a whole number, not "many"'),
        (
            "--max-model-len 8.5K",
            "max-model-len",
            "type",
            'must be a whole number, such as 8192, 8k (8000) or 8K (8192), not "8.5K"',
        ),
        (
            "--enforce-eager=true",
            "enforce-eager",
            "type",
            "is a switch and takes no value: write --enforce-eager alone",
        ),
        ("--dtype fp32", "dtype", "choice", None),
        (
            "--quantization fp9",
            "quantization",
            "choice",
            '"fp9" is none of the 30 values that vLLM knows; did you mean fp8?',
        ),
        (
            "--attention-backend flashh_attn",
            "attention-backend",
            "choice",
            '"flashh_attn" is none of the 51 values that vLLM knows; did you mean FLASH_ATTN?',
        ),
        (
            "--gpu-memory-utilization 1.5",
            "gpu-memory-utilization",
            "range",
            "must be more than 0 and at most 1, not 1.5",
        ),
        ("--max-num-seqs 0", "max-num-seqs", "range", "must be at least 1, not 0"),
        ("--hf-overrides.a=1 --hf-overrides.a=2", "hf-overrides.a", "repeated", None),
        (
            '--hf-overrides={"a":1} --hf-overrides.b=2',
            "hf-overrides",
            "repeated",
            "is given whole and by dotted keys; vLLM keeps the dotted keys only: write one form",
        ),
        (
            "-tp 2 --tensor-parallel-size 4",
            "tensor-parallel-size",
            "repeated",
            "is given twice (-tp and --tensor-parallel-size); vLLM keeps the last one: write it once",
        ),
        ("--enforce-eager --no-enforce-eager", "enforce-eager", "repeated", None),
        ("--max-model-len", "max-model-len", "missing-value", "needs a value"),
        ("--max-model-len --port 80", "max-model-len", "missing-value", "needs a value"),
        ("--compilation-config {mode:3}", "compilation-config", "json", None),
        (
            "--speculative-config.num_speculative_token=3",
            "speculative-config.num_speculative_token",
            "key",
            "is no key of SpeculativeConfig in vLLM 0.33.0; did you mean num_speculative_tokens?",
        ),
        (
            "--compilation-config.pass_config.fuse_norm_qant=true",
            "compilation-config.pass_config.fuse_norm_qant",
            "key",
            "is no key of PassConfig in vLLM 0.33.0; did you mean fuse_norm_quant?",
        ),
        ("--compilation-config.mode=9", "compilation-config.mode", "choice", None),
        (
            "--kv-events-config.buffer_steps=x",
            "kv-events-config.buffer_steps",
            "type",
            'must be a whole number, not "x"',
        ),
        ("--port.x=1", "port", "key", "takes no keys, as it is no JSON option"),
        ("--hf-overrides.a --enforce-eager", "hf-overrides.a", "missing-value", "needs a value"),
        ("--limit-mm-per-prompt.image=x", "limit-mm-per-prompt.image", "type", None),
        (
            "--kv-transfer-config.kv_connector=NixlConector",
            "kv-transfer-config.kv_connector",
            "choice",
            '"NixlConector" is none of the 17 values that vLLM knows; did you mean NixlConnector?',
        ),
        ("--watermark-config={}", "watermark-config.key", "missing-value", "is needed, and missing"),
        (
            "--config=/etc/vllm.yaml",
            "config",
            "conflict",
            "is ignored when joined by =; write `--config FILE`, in two words",
        ),
    ],
)  # fmt: skip
def test_a_mistake_names_the_value_the_rule_and_the_way_out(
    line: str, flag: str, kind: str, message: str | None
) -> None:
    found = mistake(line)
    assert (found.flag, found.kind) == (flag, kind)
    assert message is None or found.message == message


@pytest.mark.parametrize(
    ("line", "version", "message"),
    [
        ("--disable-log-requests", "0.24.0", "; removed after 0.11.2 and added again in 0.33.0"),
        ("--watchdog-config={}", "0.32.0", "; added in 0.33.0"),
        ("--mamba-ssu-algorithm=auto", "0.24.0", "; added by 0.32.0"),
        ("--swap-space=4", "0.24.0", "; removed after 0.17.1"),
        ("--task=embed", "0.17.1", "; removed after 0.11.2"),
    ],
)
def test_an_option_of_another_version_says_where_it_went(line: str, version: str, message: str) -> None:
    assert mistake(line, version).message == f"is no option of vLLM {version}{message}"


def test_a_key_that_an_old_version_ignores_is_refused_all_the_same() -> None:
    assert mistake("-O.level_=3", "0.11.2").message == (
        "is no key of CompilationConfig in vLLM 0.11.2, and vLLM ignores it silently; did you mean level?"
    )


def test_every_mistake_is_reported_at_once() -> None:
    found = reading("--max-num-seqs=0 --quantization=x --nonsense --port").mistakes
    assert sorted(item.flag for item in found) == ["max-num-seqs", "nonsense", "port", "quantization"]


CONFLICTS = [
    ("--enable-auto-tool-choice", "enable-auto-tool-choice", "needs tool-call-parser, such as hermes"),
    ("--enable-log-outputs", "enable-log-outputs", "needs enable-log-requests"),
    ("--max-model-len=0", "max-model-len", "must be at least 1, or auto"),
    (
        "--max-num-batched-tokens=64 --max-num-seqs=128",
        "max-num-batched-tokens",
        "must be at least max-num-seqs (128), not 64",
    ),
    (
        "--max-num-batched-tokens=256 --max-model-len=512 --no-enable-chunked-prefill",
        "max-num-batched-tokens",
        "must be at least max-model-len (512) without chunked prefill, not 256",
    ),
    (
        "--enable-lora --max-loras=4 --max-cpu-loras=2",
        "max-cpu-loras",
        "must be at least max-loras (4), not 2",
    ),
    (
        "--quantization=fp_quant",
        "quantization",
        "fp_quant is deprecated, and needs allow-deprecated-quantization",
    ),
    (
        "--headless --api-server-count=2",
        "api-server-count",
        "makes no sense with headless, which starts no API server",
    ),
    (
        "--data-parallel-size=2 --data-parallel-size-local=3",
        "data-parallel-size-local",
        "must be at most data-parallel-size (2), not 3",
    ),
    (
        "--data-parallel-size=2 --data-parallel-rank=2",
        "data-parallel-rank",
        "must be less than data-parallel-size (2), not 2",
    ),
    ("--enable-eplb", "enable-eplb", "needs enable-expert-parallel"),
    (
        "--enable-eplb --enable-expert-parallel",
        "enable-eplb",
        "needs tensor-parallel-size or data-parallel-size of 2 or more",
    ),
    (
        "--decode-context-parallel-size=3 -tp=4",
        "decode-context-parallel-size",
        "must be a divisor of tensor-parallel-size (4), not 3",
    ),
    (
        "--speculative-config.method=ngram",
        "speculative-config.num_speculative_tokens",
        "is needed with method ngram",
    ),
    (
        "--speculative-config.method=eagle3 --speculative-config.num_speculative_tokens=3",
        "speculative-config.model",
        "is needed with method eagle3: the draft model's name",
    ),
    (
        "--spec-tokens=2 --speculative-config.method=ngram --speculative-config.num_speculative_tokens=3",
        "spec-tokens",
        "is given as speculative-config.num_speculative_tokens, too; keep one",
    ),
    (
        "--attention-backend=FLASHINFER --attention-config.backend=FLASH_ATTN",
        "attention-backend",
        "is given as attention-config.backend, too; keep one",
    ),
    (
        "--structured-outputs-config.disable_any_whitespace=true",
        "structured-outputs-config.disable_any_whitespace",
        "needs the backend xgrammar or guidance",
    ),
    (
        "--kv-transfer-config.kv_connector=NixlConnector",
        "kv-transfer-config.kv_role",
        "is needed with kv_connector",
    ),
    ("--collect-detailed-traces=all", "collect-detailed-traces", "needs otlp-traces-endpoint"),
    (
        "--profiler-config.profiler=torch",
        "profiler-config.torch_profiler_dir",
        "is needed with profiler torch",
    ),
    (
        "--mm-shm-cache-max-object-size-mb=64",
        "mm-shm-cache-max-object-size-mb",
        "needs mm-processor-cache-type shm",
    ),
]


@pytest.mark.parametrize(("line", "flag", "message"), CONFLICTS)
def test_arguments_that_are_right_alone_and_wrong_together(line: str, flag: str, message: str) -> None:
    found = mistake(line)
    assert (found.flag, found.message) == (flag, message)


def test_two_ways_of_balancing_exclude_each_other() -> None:
    line = "--data-parallel-size=2 --data-parallel-rank=1 --data-parallel-hybrid-lb"
    message = "is implied by data-parallel-rank, and cannot be used with data-parallel-hybrid-lb"
    assert mistake(line).message == message


@given(st.lists(st.one_of(st.text(), st.sampled_from(STRANGE)), max_size=6))
def test_no_command_line_is_too_strange_to_be_read(words: list[str]) -> None:
    for mistake_ in read(table(RELEASE).table, words).mistakes:
        assert mistake_.message


def test_an_ordinary_command_line_takes_no_time() -> None:
    known = table(RELEASE).table
    line = [
        "m",
        "--port=80",
        "-tp",
        "2",
        "--max-model-len=32k",
        json.dumps({"a": 1}).join(["--hf-overrides=", ""]),
    ]
    read(known, line)
    began = time.process_time()
    for _ in range(100):
        read(known, line)
    assert (time.process_time() - began) / 100 < 0.005
