"""vLLM's command line, as far as the stand-in needs it.

vLLM has 321 flags (0.33.0); the stand-in uses a dozen, and accepts and lists the rest unchecked: telling
good flags from bad ones is `vllmjobs check`'s work. Spelling is vLLM's: `_` = `-`, `--x=y` and `--x y`,
several values after one flag, `1k` decimal and `1K` binary.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The flags that carry a secret: their values stay out of the log.
SECRET = {"api-key", "hf-token"}

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Flags:
    """The values of the command line and of vLLM's own variables, with vLLM's defaults where it has some."""

    model: str
    served_model_name: tuple[str, ...]
    host: str = ""
    port: int = 8000
    max_model_len: int = 4096  # vLLM: from the model's config.json
    max_num_seqs: int = 256  # vLLM: 1024 on GPUs of 70 GiB and more
    gpu_memory_utilization: float = 0.92
    tensor_parallel_size: int = 1
    shutdown_timeout: int = 0
    api_key: tuple[str, ...] = ()
    keep_alive: int = 5
    access_log: bool = True
    listed: dict[str, str] = field(default_factory=dict)  # every flag as given, for the log


def parse(argv: list[str], environ: Mapping[str, str]) -> Flags:
    """Read the command line; ValueError with one line when vLLM would not have it either."""
    words, given = _split(argv[1:] if argv[:1] == ["serve"] else argv)
    if len(words) > 1:
        raise ValueError(f"unrecognized arguments: {' '.join(words[1:])}")
    used: dict[str, Any] = {}
    for name, values in given.items():
        if name not in _USED:
            continue
        try:
            used[name.replace("-", "_")] = _USED[name](values)
        except ValueError as error:
            shown = "***" if name in SECRET else " ".join(values)
            raise ValueError(f"--{name} {shown}: {error}") from None
    model = used.pop("model", None) or (words[0] if words else None)
    if model is None:
        raise ValueError("which model? stand-in-engine serve MODEL [--port N] ...")
    used.setdefault("served_model_name", (model,))
    if "VLLM_API_KEY" in environ:
        used.setdefault("api_key", (environ["VLLM_API_KEY"],))
    try:
        used["keep_alive"] = int(environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5"))
    except ValueError:
        raise ValueError("VLLM_HTTP_TIMEOUT_KEEP_ALIVE must be a whole number of seconds") from None
    listed = {name: "***" if name in SECRET else " ".join(values) for name, values in given.items()}
    return Flags(model=model, access_log="disable-uvicorn-access-log" not in given, listed=listed, **used)


def _split(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the words that are no flag's, and each flag's values: one, or all up to the next flag."""
    words: list[str] = []
    given: dict[str, list[str]] = {}
    values, single = words, False
    for word in argv:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.partition("=")
            name = name.lstrip("-").replace("_", "-")
            name = _SHORT.get(name, name)
            values = given[name] = [value] if equals else []
            single = name in _USED and _USED[name] is not _some
        elif single and values:
            words.append(word)
        else:
            values.append(word)
    return words, given


def _one(convert: Callable[[str], Any]) -> Callable[[list[str]], Any]:
    def of(values: list[str]) -> Any:
        if not values:
            raise ValueError("expected one value")
        return convert(values[0])

    return of


def _some(values: list[str]) -> tuple[str, ...]:
    if not values:
        raise ValueError("expected at least one value")
    return tuple(values)


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def convert(value: str) -> int:
        found = re.fullmatch(r"(\d+)([kmgKMG]?)", value)
        number = int(found[1]) * _UNITS.get(found[2], 1) if found else -1
        if number < low or (high is not None and number > high):
            raise ValueError(f"must be a whole number, {low} {'or more' if high is None else f'to {high}'}")
        return number

    return convert


def _utilization(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError("must be above 0 and at most 1")
    return number


_SHORT = {"tp": "tensor-parallel-size"}

_USED: dict[str, Callable[[list[str]], Any]] = {
    "model": _one(str),
    "served-model-name": _some,
    "host": _one(str),
    "port": _one(_whole(0, 65535)),
    "max-model-len": _one(_whole(1)),
    "max-num-seqs": _one(_whole(1)),
    "gpu-memory-utilization": _one(_utilization),
    "tensor-parallel-size": _one(_whole(1)),
    "shutdown-timeout": _one(_whole(0)),
    "api-key": _some,
}
