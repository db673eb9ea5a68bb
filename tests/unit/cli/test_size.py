"""`vllmjobs size`: what a model takes of its GPUs, and where what is known of the model comes from."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vllmjobs.cli import main

Size = Callable[..., Result]
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "vocab_size": 128256,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
GIB = 2**30


@pytest.fixture
def size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Size:
    """Runs `vllmjobs size prod` on one model, with keys of its own."""
    (tmp_path / "envs").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.chdir(tmp_path)

    def run(keys: dict[str, Any], *options: str) -> Result:
        (tmp_path / "envs/prod.yaml").write_text(json.dumps({"models": {"chat": keys}}))
        done = CliRunner().invoke(main, ["size", "prod", *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


def only(done: Result) -> Any:
    (model,) = json.loads(done.stdout)["models"]
    return model


def test_the_parts_add_up_to_what_cuda_counts(size: Size) -> None:
    done = size({"model": "meta-llama/Llama-3.1-8B-Instruct", "gpus": {"memory": "70 GiB"}}, "--json")
    model = only(done)
    found = model["estimate"]
    parts = ("weights", "activations", "cuda_graphs", "non_torch", "kv_cache", "outside")
    assert sum(found[part] for part in parts) == found["total"]
    assert (model["gpu"], model["count"], found["fits"]) == ("NVIDIA H100 80GB HBM3", 1, True)
    assert found["weights"] == pytest.approx(14.99 * GIB, rel=0.02)  # facts of vLLM's own log
    assert done.exit_code == 0


def test_another_gpu_may_be_asked_about(size: Size) -> None:
    keys: dict[str, Any] = {"model": "meta-llama/Llama-3.3-70B-Instruct", "gpus": {"model": "NVIDIA H200"}}
    keys["max_model_len"] = 4096
    done = size(keys, "--gpu", "l40s", "--json")
    model = only(done)
    assert (model["gpu"], model["estimate"]["fits"], done.exit_code) == ("NVIDIA L40S", False, 1)
    assert model["smallest"]["count"] >= 1
    done = size(keys, "--gpu", "H10")
    assert done.exit_code == 1
    assert "H10 is not in the table of GPUs; did you mean " in done.stderr


def test_a_model_that_does_not_fit_is_told_what_would(size: Size) -> None:
    done = size({"model": "Qwen/Qwen3-32B", "gpus": {"memory": "70 GiB"}, "max_model_len": 32768})
    assert done.exit_code == 1
    assert "  does not fit: 32,768 tokens need 8.00 GiB of KV cache; " in done.stdout
    assert "\n  smallest that would do: " in done.stdout


def test_without_a_gpu_the_smallest_that_would_do_is_named(size: Size) -> None:
    done = size({"model": "facebook/opt-125m"})
    assert done.stdout == (
        "chat: facebook/opt-125m\n"
        "  no GPU is named; add gpus.model or gpus.memory, or use --gpu NAME\n"
        "  smallest that would do: 1 x Tesla T4\n"
    )


def test_heads_that_the_gpus_do_not_divide_are_said_instead_of_an_estimate(size: Size) -> None:
    keys = {
        "model": "microsoft/phi-4",
        "strategy": "tensor_parallel",
        "gpus": {"count": 4, "memory": "20 GiB"},
    }
    done = size(keys)
    assert "4 neither divides 10 key and value heads nor is a multiple of them; use 1 or 2" in done.stdout


@pytest.mark.parametrize("where", ["the file named", "the model's folder", "the Hugging Face cache"])
def test_the_config_of_a_model_is_found_in(size: Size, tmp_path: Path, where: str) -> None:
    keys = {"model": "acme/own-llama", "gpus": {"memory": "70 GiB"}}
    if where == "the file named":
        keys["config"] = "own.json"
        path = tmp_path / "envs/own.json"
    elif where == "the model's folder":
        keys["model"] = str(tmp_path / "models/own")
        path = tmp_path / "models/own/config.json"
    else:
        repository = tmp_path / "huggingface/hub/models--acme--own-llama"
        path = repository / "snapshots/abc/config.json"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("abc")
    assert only(size(keys, "--json"))["estimate"] is None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(LLAMA))
    assert only(size(keys, "--json"))["estimate"]["weights"] == pytest.approx(14.96 * GIB, rel=0.02)


def test_a_revision_of_the_hugging_face_cache_is_the_one_that_is_served(size: Size, tmp_path: Path) -> None:
    keys = {"model": "acme/own", "gpus": {"memory": "70 GiB"}, "args": {"revision": "abc"}}
    path = tmp_path / "huggingface/hub/models--acme--own/snapshots/abc/config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(LLAMA))
    assert only(size(keys, "--json"))["estimate"]
    keys["args"] = {}
    assert only(size(keys, "--json"))["estimate"] is None


def test_hf_overrides_are_laid_over_the_config(size: Size) -> None:
    keys = {"model": "Qwen/Qwen3-8B", "gpus": {"memory": "70 GiB"}}
    keys["args"] = {"hf-overrides": {"max_position_embeddings": 131072}}
    assert only(size(keys, "--json"))["estimate"]["max_model_len"] == 131072


def test_arguments_of_vllm_are_taken_into_account(size: Size) -> None:
    keys: dict[str, Any] = {"model": "Qwen/Qwen3-8B", "gpus": {"memory": "70 GiB"}, "max_model_len": 4096}
    plain = only(size(keys, "--json"))["estimate"]
    keys["args"] = {"kv-cache-dtype": "fp8", "max-num-seqs": 64, "enforce_eager": True}
    small = only(size(keys, "--json"))["estimate"]
    assert small["kv_tokens"] > 2 * plain["kv_tokens"]
    assert (small["max_num_seqs"], small["cuda_graphs"]) == (64, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ("{}", "the architecture"),
        ('{"model_type": "llama"}', "hidden_size"),
    ],
)
def test_a_config_that_says_nothing_is_no_reason_to_fail(
    size: Size, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "envs/own.json").write_text(text)
    done = size({"model": "acme/own", "config": "own.json"})
    assert said in done.stdout
    assert done.exit_code == 0


# Beside vLLM's own log

LOG = """\
(EngineCore pid=67) INFO [gpu_model_runner.py:4879] Model loading took 14.99 GiB memory and 60.297843 seconds
(EngineCore pid=67) INFO [gpu_worker.py:440] Available KV cache memory: 58.11 GiB
(EngineCore pid=67) INFO [kv_cache_utils.py:1708] GPU KV cache size: 476,016 tokens
(EngineCore pid=67) INFO [kv_cache_utils.py:1708] Maximum concurrency for 131,072 tokens per request: 3.63x
"""  # the figures of unit/vllm/memory/truth.yaml
ON_H100: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B-Instruct", "vllm": "0.19.0", "gpus": {"memory": "70 GiB"},
    "args": {"gpu-memory-utilization": 0.95},
}  # fmt: skip


def test_what_vllm_said_is_shown_beside_the_estimate(size: Size, tmp_path: Path) -> None:
    (tmp_path / "start.log").write_text(LOG)
    done = size(ON_H100, "--log", "start.log")
    assert done.stdout.endswith("""
                           vLLM said     estimated     off
  KV cache tokens            476,016       470,736   -1.1%
  requests at a time            3.63          3.59   -1.1%
  KV cache                 58.11 GiB     57.46 GiB   -1.1%
  weights                  14.99 GiB     14.96 GiB   -0.2%
""")
    model = only(size(ON_H100, "--log", "start.log", "--json"))
    assert model["said"]["device"] == "GPU"
    assert model["said"]["notes"] == []
    tokens = model["said"]["figures"]["kv_tokens"]
    assert tokens["said"] == 476_016
    assert tokens["estimated"] == model["estimate"]["kv_tokens"]
    assert tokens["off"] == pytest.approx(tokens["estimated"] / 476_016 - 1)
    assert only(size(ON_H100, "--json"))["said"] is None


def test_a_log_of_requests_of_another_length_is_said_to_be_one(size: Size, tmp_path: Path) -> None:
    (tmp_path / "start.log").write_text(LOG)
    said = only(size(ON_H100 | {"max_model_len": 8192}, "--log", "start.log", "--json"))["said"]
    assert said["figures"]["concurrency"] == {"said": 3.63, "estimated": None, "off": None}
    assert said["notes"] == ["the log counts requests of 131,072 tokens, the estimate 8,192"]


def test_a_log_can_come_through_a_pipe_and_is_of_one_model(tmp_path: Path, size: Size) -> None:
    size(ON_H100)
    both = {"chat": ON_H100, "code": ON_H100}
    (tmp_path / "envs/prod.yaml").write_text(json.dumps({"models": both}))
    done = CliRunner().invoke(main, ["size", "prod", "--log", "-"], input=LOG)
    assert (done.exit_code, done.stderr) == (
        1,
        "Error: prod has 2 models, but --log is the log of one; add --model chat or --model code\n",
    )
    log = "".join(f"{group} 1a2b3c4d | {line}\n" for group in ("chat", "code") for line in LOG.splitlines())
    log += "chat 1a2b3c4d | GPU KV cache size: 470,000 tokens\n"
    for name, tokens in (("chat", 470_000), ("code", 476_016)):
        done = CliRunner().invoke(main, ["size", "prod", "--model", name, "--log", "-", "--json"], input=log)
        assert only(done)["said"]["figures"]["kv_tokens"]["said"] == tokens


def test_a_log_without_a_line_of_a_start_is_an_error(size: Size, tmp_path: Path) -> None:
    (tmp_path / "other.log").write_bytes(b"\xff\x00\nINFO:     Started server process [123]\n")
    done = size(ON_H100, "--log", "other.log")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "Error: other.log has no line of vLLM's start-up; looked for \"GPU KV cache"
    )
    assert "No such file" in size(ON_H100, "--log", "nowhere.log").stderr


QWEN = LLAMA | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "vocab_size": 151936,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "tie_word_embeddings": True,
}  # fmt: skip
# Of Qwen2.5-0.5B-Instruct with vLLM 0.30.0: a GiB, and 256 MiB.
ON_CPU = """\
(Worker pid=80) INFO [cpu_worker.py:271] Explicitly set ({set}/15.84) GiB for KV cache on node 0.
(EngineCore pid=56) INFO [kv_cache_utils.py:2395] CPU KV cache size: {tokens} tokens, Maximum \
concurrency for {length} tokens per request: {times}x
"""
A_GIB = ON_CPU.format(set="1.0", tokens="87,296", length="4,096", times="21.31")
A_QUARTER = ON_CPU.format(set="0.25", tokens="21,760", length="2,048", times="10.62")


@pytest.mark.parametrize(
    ("keys", "log"),
    [
        ({"env": {"VLLM_CPU_KVCACHE_SPACE": 1}, "max_model_len": 4096}, A_GIB),
        ({"args": {"kv-cache-memory-bytes": 2**28}, "max_model_len": 2048}, A_QUARTER),
        ({"max_model_len": 2048}, A_QUARTER),
    ],
    ids=["the variable", "the argument", "the log alone"],
)
def test_on_the_cpu_the_tokens_of_the_cache_that_was_asked_for_are_compared(
    size: Size, tmp_path: Path, keys: dict[str, Any], log: str
) -> None:
    (tmp_path / "envs/own.json").write_text(json.dumps(QWEN))
    (tmp_path / "start.log").write_text(log)
    keys = {"model": "acme/own", "config": "own.json", "vllm": "0.30.0", **keys}
    done = size(keys, "--log", "start.log", "--json")
    model = only(done)
    assert (done.exit_code, model["estimate"], model["said"]["device"]) == (0, None, "CPU")
    figures = model["said"]["figures"]
    assert figures["kv_tokens"]["off"] == 0
    assert figures["concurrency"]["off"] == pytest.approx(0, abs=0.001)
    assert figures["kv_cache"]["estimated"] is None
    (note,) = model["said"]["notes"]
    assert re.fullmatch("on the CPU, only what (1.00|0.25) GiB of KV cache hold is estimated", note)


def test_a_cpu_that_called_itself_a_gpu_is_known_by_its_variable(size: Size, tmp_path: Path) -> None:
    """As that of older versions did."""
    (tmp_path / "envs/own.json").write_text(json.dumps(QWEN))
    (tmp_path / "start.log").write_text("GPU KV cache size: 87,296 tokens\n")
    keys = {"model": "acme/own", "config": "own.json", "vllm": "0.20.0", "max_model_len": 4096}
    said = only(size(keys, "--log", "start.log", "--json"))["said"]
    assert said["figures"]["kv_tokens"]["estimated"] is None
    keys["env"] = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    said = only(size(keys, "--log", "start.log", "--json"))["said"]
    assert said["figures"]["kv_tokens"]["off"] == 0


def test_on_the_cpu_a_cache_of_unknown_size_is_said_to_be_one(size: Size, tmp_path: Path) -> None:
    (tmp_path / "start.log").write_text(A_GIB.splitlines()[1])
    done = size({"model": "Qwen/Qwen3-8B"}, "--log", "start.log")
    assert done.stdout.endswith("""
                           vLLM said     estimated     off
  KV cache tokens             87,296             -
  requests at a time           21.31             -
  neither VLLM_CPU_KVCACHE_SPACE nor the log tells the size of the KV cache
""")
