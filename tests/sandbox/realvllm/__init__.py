"""Real vLLM, on the CPU: installed by `scripts/vllm`, with a tiny model that `model` makes."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.programs import CHECKOUT

# What a job for a tiny model on the CPU has to say besides.
ARGUMENTS = ("--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "4096")
VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def folder() -> Path:
    """Return the virtual environment that holds it; installed, if need be."""
    ended = subprocess.run([CHECKOUT / "scripts" / "vllm"], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SandboxError("scripts/vllm could not install vLLM; it says why above")
    return Path(ended.stdout.strip())


def environ() -> Mapping[str, str]:
    """Return this process's variables, with those of a server on the CPU."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONDONTWRITEBYTECODE" and not name.startswith("VLLM")  # each start would compile anew
    }
    return inherited | VARIABLES
