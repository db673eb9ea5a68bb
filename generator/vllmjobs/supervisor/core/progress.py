"""An engine's progress, from what two probes observed."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vllmjobs.supervisor.core.asking import NOTHING, ServerFacts

MOST = 2.0**53  # the largest count that is believed: beyond it a float counts no ones any more


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe of an engine, and what the next one has to know."""

    health: int | None = None  # the status of /health; None without an answer
    tokens: float | None = None  # of prompts and answers, and answered requests, in one sum; None if not told
    unanswered: int | None = None  # the requests that run or wait; None if not told
    completion: Literal["answered", "unprobed", "refused", "silent"] | None = (
        None  # None when none was asked for
    )
    reason: str = ""  # the reason for which it does not serve, in a few words
    has_served: bool = False  # True if it ever answered a completion in its present life
    proved_at: float = 0.0  # the time at which it last made progress, on the loop's clock
    is_asleep: bool = False  # True if it sleeps on purpose
    facts: ServerFacts = NOTHING  # what was found out in its present life


class Load(NamedTuple):
    """The sums of a page of vLLM's metrics, over all engines and labels; None where it has none."""

    tokens: float | None
    unanswered: int | None


def progressed(before: ProbeResult | None, after: ProbeResult) -> bool:
    """Tell whether the engine did anything from one probe to the next, or has nothing to do."""
    if after.completion == "answered" or grew(before, after):
        return True
    if after.completion == "unprobed" and after.unanswered is None:
        return after.health == 200  # nothing else tells
    return after.unanswered == 0 and after.completion != "silent" and after.health in (200, None)


def grew(before: ProbeResult | None, after: ProbeResult) -> bool:
    """Tell whether the engine counted more tokens."""
    if before is None or before.tokens is None or after.tokens is None:
        return False
    return after.tokens > before.tokens


def wants_proof(before: ProbeResult | None, sample: ProbeResult, is_due: bool) -> bool:
    """Tell whether a completion has to show what nothing else shows."""
    if not sample.has_served:
        return sample.health == 200
    return not grew(before, sample) and (is_due or not progressed(before, sample))


def read_metrics(page: bytes) -> Load:
    """Sum the few series that count, `vllm/v1/metrics/loggers.py`; all others are left alone."""
    sums: dict[bytes, float] = {}
    for name, labels, text in _SERIES.findall(b"\n" + page):
        with suppress(ValueError):
            value = float(text)
            if 0 <= value <= MOST and not _NOT_ANSWERED.search(labels):
                sums[name] = sums.get(name, 0.0) + value
    running, waiting = sums.pop(b"num_requests_running", None), sums.pop(b"num_requests_waiting", 0.0)
    return Load(sum(sums.values()) if sums else None, None if running is None else round(running + waiting))


_SERIES = re.compile(
    rb"\nvllm:(generation_tokens_total|prompt_tokens_total|request_success_total"
    rb"|num_requests_running|num_requests_waiting)(\{.*\})? +(\S+)"
)
# A client that leaves is counted as well, and clients do leave an engine that hangs: this probe first of all.
_NOT_ANSWERED = re.compile(rb'finished_reason="(?:abort|error)"')
