"""The stand-in's own knobs, from the environment.

`VLLMJOBS_*`, since vLLM warns about any `VLLM_*` that it does not know, and a job made for the stand-in
must also run on vLLM.

| variable VLLMJOBS_STANDIN_… | default | meaning |
|---|---|---|
| LOAD_SECONDS | 0.5 | bound but not listening for so long (vLLM: 34 to 2222 s were seen) |
| ANSWER_SECONDS | 0.003 | until an answer begins (vLLM: 0.003 in the middle, 0.0016 at the least) |
| TOKENS_PER_SECOND | 200 | per sequence, as on the CPU build; it does not slow down with the batch |
| ANSWER_TOKENS | 64 | where an answer ends by itself ("stop"), unless `ignore_eos` or max_tokens |
| KV_TOKENS | 476016 | size of the KV cache (Llama-3.1-8B on an H100), for kv_cache_usage_perc |
| LINGER_SECONDS | 10 | how long a stop without a drain waits for its clients to leave (vLLM: for ever) |
| EXIT_SECONDS | 1 | from drained to gone (vLLM: about 7 s) |
| DEATH_SECONDS | 1 | from the engine's death to exit 0 (vLLM: within 5 s) |
| WORKERS | 0 | with an EngineCore and so many workers, as processes of their own; 0 for one process |
| FAILURE | none | a comma list of the modes below |

| failure mode | what happens |
|---|---|
| exit-1-before-ready | the load ends in exit 1 |
| never-ready | the load never ends |
| exit-0-after=N | the engine dies at request N + 1: active requests get 500, /health 503, exit 0 |
| dies-of=WORD | a prompt with that word ends the process at once, without a word to anybody |
| hang-after=N, hang | at request N + 1 (hang: the first) the steps end: no answers, /health 200 |
| error-rate=0.1 | 500 for that share of completions, evenly: here each tenth |
| slow-health=SECONDS | /health takes so long |
| slow-first-token=SECONDS | each sequence's prefill takes so long |
| preempts | each request counts one preemption more; the pretended cache never takes a block back |
| ignore-term | SIGTERM and SIGINT do nothing |
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "VLLMJOBS_STANDIN_"


@dataclass(frozen=True)
class Failure:
    """A way to misbehave: each field is a mode, and None or zero means to behave."""

    exit_1_before_ready: bool = False
    never_ready: bool = False
    exit_0_after: int | None = None
    dies_of: str | None = None
    hang_after: int | None = None
    error_rate: float = 0.0
    slow_health: float = 0.0
    slow_first_token: float = 0.0
    preempts: bool = False
    ignore_term: bool = False


@dataclass(frozen=True)
class Knobs:
    """Every knob, checked."""

    load_seconds: float = 0.5
    answer_seconds: float = 0.003
    tokens_per_second: float = 200.0
    answer_tokens: int = 64
    kv_tokens: int = 476_016
    linger_seconds: float = 10.0
    exit_seconds: float = 1.0
    death_seconds: float = 1.0
    workers: int = 0
    failure: Failure = field(default_factory=Failure)


def read(environ: Mapping[str, str]) -> Knobs:
    """Take the knobs from an environment; ValueError with one line for the first that is wrong."""
    given: dict[str, Any] = {}
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX):
            continue
        knob = variable.removeprefix(PREFIX)
        if knob not in _KNOBS:
            raise ValueError(f"{variable}: no such knob{_nearest(knob, _KNOBS)}")
        try:
            given[knob.lower()] = _KNOBS[knob](value)
        except ValueError as error:
            raise ValueError(f"{variable}={value}: {error}") from None
    return Knobs(**given)


def _seconds(value: str) -> float:
    return _number(value, "a number of seconds, 0 or more")


def _number(value: str, rule: str, at_most: float = float("inf")) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"must be {rule}") from None
    if not 0 <= number <= at_most or number == float("inf"):
        raise ValueError(f"must be {rule}")
    return number


def _rate(value: str) -> float:
    number = _number(value, rule := "a number above 0")
    if not number:
        raise ValueError(f"must be {rule}")
    return number


def _share(value: str) -> float:
    return _number(value, "a share between 0 and 1", at_most=1)


def _count(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ValueError("must be a whole number, 0 or more")
    return int(value)


def _positive(value: str) -> int:
    number = _count(value)
    if not number:
        raise ValueError("must be a whole number, 1 or more")
    return number


def _failure(value: str) -> Failure:
    given: dict[str, Any] = {}
    for mode in filter(None, (part.strip() for part in value.split(","))):
        name, equals, argument = mode.partition("=")
        if name not in _MODES:
            raise ValueError(f"no failure mode {name!r}{_nearest(name, _MODES)}")
        convert = _MODES[name]
        if convert is None and equals:
            raise ValueError(f"{name} takes no value")
        if convert is not None and not equals:
            raise ValueError(f"{name} needs a value, as in {name}=1")
        try:
            setting = True if convert is None else convert(argument)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        if name == "hang":
            given["hang_after"] = 0
        else:
            given[name.replace("-", "_")] = setting
    return Failure(**given)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"


_KNOBS: dict[str, Callable[[str], Any]] = {
    "LOAD_SECONDS": _seconds,
    "ANSWER_SECONDS": _seconds,
    "TOKENS_PER_SECOND": _rate,
    "ANSWER_TOKENS": _positive,
    "KV_TOKENS": _positive,
    "LINGER_SECONDS": _seconds,
    "EXIT_SECONDS": _seconds,
    "DEATH_SECONDS": _seconds,
    "WORKERS": _count,
    "FAILURE": _failure,
}

_MODES: dict[str, Callable[[str], Any] | None] = {
    "exit-1-before-ready": None,
    "never-ready": None,
    "exit-0-after": _count,
    "dies-of": str,
    "hang": None,
    "hang-after": _count,
    "error-rate": _share,
    "slow-health": _seconds,
    "slow-first-token": _seconds,
    "preempts": None,
    "ignore-term": None,
}
