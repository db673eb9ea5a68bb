"""Real vLLM, on the CPU: installed by `scripts/vllm`, with a tiny model that `model` makes."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
from openai.types import Completion

from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.programs import CHECKOUT

# What a job for a tiny model on the CPU has to say besides.
ARGUMENTS = ("--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "4096")
LONG = 500  # tokens, in one stream: 7 s with one thread on a CPU without AVX-512
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Its engine computes in its own process, as with one GPU: one process less to load torch for.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # What its API server has loaded, its engine core need not load again; `scripts/vllm` lets that hold here.
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    # Several servers share the cores: each computes with one thread, on whichever core is free.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def folder() -> Path:
    """Return the virtual environment that holds it; installed, if need be."""
    ended = subprocess.run([CHECKOUT / "scripts" / "vllm"], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SandboxError("scripts/vllm could not install vLLM; it says why above")
    return Path(ended.stdout.strip())


def environ() -> Mapping[str, str]:
    """Return this process's variables, with those of a server on the CPU."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM")}
    return inherited | VARIABLES


def engine_core(port: int) -> int:
    """Return the process that computes, of the one server that listens on a port."""
    found = subprocess.run(["pgrep", "--full", "EngineCore"], stdout=subprocess.PIPE, text=True, check=False)
    (mine,) = [int(pid) for pid in found.stdout.split() if b"%d" % port in _command_line(_parent(int(pid)))]
    return mine


def client(address: str) -> openai.OpenAI:
    """Return a client that retries nothing."""
    local = openai.DefaultHttpxClient(trust_env=False, verify=False)
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, http_client=local)


def answered_tokens(asked: openai.OpenAI, max_tokens: int) -> list[int]:
    """Ask for a chat and a completion, each plain and streamed; return the tokens that each answer counts."""
    chats, completions = asked.chat.completions, asked.completions
    hello: list[Any] = [{"role": "user", "content": "hi"}]
    say: dict[str, Any] = {"model": "chat", "max_tokens": max_tokens, "extra_body": {"ignore_eos": True}}
    streamed = {**say, "stream": True, "stream_options": {"include_usage": True}}
    usages = [chats.create(messages=hello, **say).usage, completions.create(prompt="hi", **say).usage]
    for pieces in (chats.create(messages=hello, **streamed), completions.create(prompt="hi", **streamed)):
        usages += [piece.usage for piece in pieces if piece.usage]
    return [usage.completion_tokens for usage in usages]


def stream(asked: openai.OpenAI, max_tokens: int) -> openai.Stream[Completion]:
    """Begin a completion of so many tokens, whose last piece counts them."""
    return asked.completions.create(
        model="chat", prompt="hi", max_tokens=max_tokens, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
