"""`vllmjobs size`: what a model takes of its GPUs, and where what is known of the model comes from."""

import json
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
        "  no GPU is named; say gpus.model or gpus.memory, or --gpu NAME\n"
        "  smallest that would do: 1 x Tesla T4\n"
    )


def test_heads_that_the_gpus_do_not_divide_are_said_instead_of_an_estimate(size: Size) -> None:
    keys = {
        "model": "microsoft/phi-4",
        "strategy": "tensor_parallel",
        "gpus": {"count": 4, "memory": "20 GiB"},
    }
    done = size(keys)
    assert "4 neither divides 10 key and value heads nor is divided by them; use 1 or 2" in done.stdout


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
        ("[]", "is no map of keys"),
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
