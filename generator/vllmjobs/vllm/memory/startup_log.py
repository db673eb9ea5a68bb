"""The lines in which vLLM tells its memory when it starts, found in a log by their words.

They are those of vLLM 0.32, and the older ones since 0.5: `update_kv_cache_capacity` and its forerunners in
`vllm/v1/core/kv_cache_utils.py`, `load_model` in `vllm/v1/worker/gpu_model_runner.py`, and
`determine_available_memory` in `gpu_worker.py` and `cpu_worker.py` beside it; before V1,
`vllm/worker/worker.py` and `vllm/executor/executor_base.py`.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from vllmjobs.vllm.memory.gpus import GIB
from vllmjobs.vllm.memory.kv_cache import BLOCK_SIZE

LEAST = ("kv_tokens", "concurrency", "max_model_len", "kv_cache")  # of all that speak of one start
LINES = (
    "GPU KV cache size: … tokens",
    "Maximum concurrency for … tokens per request",
    "Available KV cache memory: … GiB",
    "Model loading took … GiB",
)

_COUNT, _AMOUNT = r"[0-9][0-9,]{0,20}", r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_WORDS = re.compile(
    # One engine of several may say so a moment after another; only then do they load.
    r"(?P<start>Initializing an? (?:V[01] )?LLM engine \(v)"
    rf"|(?P<device>[A-Z]PU)(?: \+ host)? KV cache size: (?P<tokens>{_COUNT}) tokens"
    rf"|# (?:GPU|cuda|rocm) blocks: (?P<blocks>{_COUNT})"  # up to 0.7, and V0
    rf"|Maximum concurrency for (?P<length>{_COUNT}) tokens per request: (?P<concurrency>{_AMOUNT})x"
    # What is called GB up to 0.7 is GiB, too: divided by 2**30.
    rf"|(?:Model loading|Loading model weights) took (?P<weights>{_AMOUNT}) Gi?B\b"
    # The second is V0's, the third the CPU's.
    r"|(?:Available KV cache memory: |reserved for KV Cache is |(?:Explicitly|Auto) set \()"
    rf"(?P<cache>-?{_AMOUNT})(?: ?GiB|/{_AMOUNT}\) GiB for KV cache)"
)
# Before a line of `vllmjobs logs`, of a cluster or of this machine; within a line of the supervisor's.
_HEAD = re.compile(r"(?P<of>\S{1,128}?)(?:-[0-9]+| [0-9a-f]{8}) \| ")
_INSTANCE = re.compile(r'"instance": ?"(?P<of>[^"]{1,128}?)(?:-[0-9]+)?"')


class StartupLog(NamedTuple):
    """The figures that one start logged, None for each that it did not.

    `weights` and `kv_cache` are bytes of one GPU, rounded as the log rounds them: the most and the least of
    all that speak, as `kv_tokens` and `concurrency` are the least. `concurrency` is of requests of
    `max_model_len` tokens. `device` is what the KV cache is on, such as GPU or CPU.
    """

    device: str | None = None
    kv_tokens: int | None = None
    concurrency: float | None = None
    max_model_len: int | None = None
    kv_cache: int | None = None
    weights: int | None = None


def startup_log(
    lines: Iterable[str], others: Collection[str] = (), block_size: int = BLOCK_SIZE
) -> StartupLog | None:
    """Return the figures of the last start in a log; None where no line holds any.

    Lines of instances of the models `others` are left out. Versions that counted blocks are taken to have
    blocks of `block_size` tokens.
    """
    starts: dict[str, StartupLog] = {}
    begun: set[str] = set()
    last = None
    for line in lines:
        for match in _WORDS.finditer(line):
            head = _HEAD.match(line) or _INSTANCE.search(line)
            if head and head["of"] in others:
                break
            whose = head[0] if head else ""
            if match["start"]:
                begun.add(whose)
                continue
            before = StartupLog() if whose in begun else starts.get(whose, StartupLog())
            begun.discard(whose)
            starts[whose] = _and(before, _read(match, block_size))
            last = whose
    return None if last is None else starts[last]


def _read(match: re.Match[str], block_size: int) -> StartupLog:
    if blocks := match["blocks"]:
        return StartupLog("GPU", _count(blocks) * block_size)
    if tokens := match["tokens"]:
        return StartupLog(match["device"], _count(tokens))
    if length := match["length"]:
        return StartupLog(concurrency=float(match["concurrency"]), max_model_len=_count(length))
    if weights := match["weights"]:
        return StartupLog(weights=int(float(weights) * GIB))
    return StartupLog(kv_cache=int(float(match["cache"]) * GIB))


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def _and(one: StartupLog, other: StartupLog) -> StartupLog:
    weights = max(_given(one.weights, other.weights), default=None)
    least = {name: min(_given(getattr(one, name), getattr(other, name)), default=None) for name in LEAST}
    return StartupLog(other.device or one.device, weights=weights, **least)


def _given(*values: Any) -> list[Any]:
    return [value for value in values if value is not None]
