"""A sample of one instance's metrics at one moment, from its /metrics or from Prometheus.

Names are those of vLLM 0.11 to 0.33 (`vllm/v1/metrics/loggers.py`), and of the
prometheus-fastapi-instrumentator that it mounts (`vllm/entrypoints/serve/instrumentator/metrics.py`).
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf, isfinite, isnan
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as Series

from vllmjobs.environment.problems import UserError
from vllmjobs.text.value import Value

# A metric of `rollout.analysis` → vLLM's names for it, the newest first: an instance may show two of them at
# once, as 0.11 does, and only the first one counts.
HISTOGRAMS = {
    "time_to_first_token": ("vllm:time_to_first_token_seconds",),
    "inter_token_latency": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "e2e_latency": ("vllm:e2e_request_latency_seconds",),
}
GAUGES = {
    "queue": ("vllm:num_requests_waiting",),
    # With --show-hidden-metrics-for-version, 0.11 has the old name too.
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
_GAUGES = {name for names in GAUGES.values() for name in names}
_ENDED = "vllm:request_success_total"  # despite its name, of all requests that ended, whatever for
_PREEMPTIONS = "vllm:num_preemptions_total"
_ANSWERS = "http_requests_total"

_NAMES = (
    *(f"{name}_bucket" for names in HISTOGRAMS.values() for name in names),
    *(name for names in GAUGES.values() for name in names),
    _ENDED,
    _PREEMPTIONS,
    _ANSWERS,
)
# Where a scraper asks for OpenMetrics, as Prometheus does, prometheus-client writes vllm_ for vllm: unless it
# is told that the scraper can read it (escaping=allow-utf-8, of Prometheus 3). vLLM's /metrics always has the
# colon; its /metrics/, and a proxy that collects, may not.
SERIES = (*_NAMES, *(name.replace(":", "_") for name in _NAMES if ":" in name))
"""Every series that a sample is made of, by its name."""

_OURS = re.compile(rf"^# TYPE (vllm[:_]|{_ANSWERS} )", re.MULTILINE)
_BEGINNINGS = tuple(name + end for name in SERIES for end in ("{", " "))


class SampleError(UserError):
    """A page is not one of vLLM's metrics; the text is one clause."""


class Sample(Value, frozen=True):
    """One instance at one moment, over all its engines and model names."""

    counts: dict[str, dict[float, float]] = {}
    """The counts by name, as `analysis.Counts`: each of `HISTOGRAMS`, and counters, which are 0 as long as
    vLLM does not show them:
    requests: answers under /v1/, except its list of models, which says nothing of an engine; where there is
        no http_requests_total, requests that ended;
    answers, server_errors: of http_requests_total, and those of them with a 5xx; 0 without it;
    ended, ended_in_error: requests in the engine; an error after a stream's 200 shows only here;
    preemptions."""
    gauges: dict[str, float] = {}
    """The gauges by name; one that is not shown is missing:
    queue: requests that wait;
    kv_cache_usage: the engines' mean share of their KV cache in use."""


class Timed(NamedTuple):
    """A sample with its time."""

    at: float  # seconds, on the clock of `rollout.model`
    sample: Sample


def read(text: str) -> Sample:
    """Read a page of /metrics, in Prometheus's text format; raises `SampleError` for any other text."""
    # Of the 1,000 and more lines of vLLM's page 100 are of use, and the parser takes its time for each.
    lines = [line for line in text.split("\n") if line.startswith(_BEGINNINGS)]
    if not lines and not _OURS.search(text):
        raise SampleError("is no page of vLLM's metrics")
    try:
        families = text_string_to_metric_families("\n".join([*lines, ""]))
        return _sample(series for family in families for series in family.samples)
    except (ValueError, LookupError, OverflowError) as error:
        raise SampleError(f"is not in Prometheus's text format: {error}") from error


def from_query(result: Iterable[Any], instance_label: str) -> dict[str, Sample]:
    """Return the instances' samples by their address, from the `result` of an instant query for `SERIES`.

    It is an instant vector: prometheus.io/docs/prometheus/latest/querying/api. An instance without any series
    is missing, and one with a count that is no number. Raises `SampleError` for anything else.
    """
    by_instance: dict[str, list[Series]] = {}
    try:
        for series in result:
            labels = series["metric"]
            one = Series(labels["__name__"], labels, float(series["value"][1]))
            by_instance.setdefault(labels[instance_label], []).append(one)
        samples: dict[str, Sample] = {}
        for instance, own in by_instance.items():
            with suppress(SampleError):
                samples[instance] = _sample(own)
        return samples
    except (ValueError, LookupError, OverflowError, TypeError) as error:
        raise SampleError(f"is no instant vector of metrics by {instance_label}: {error!r}") from error


def _sample(series: Iterable[Series]) -> Sample:
    by_name: dict[str, list[Series]] = {}
    for one in series:
        name = one.name.replace("vllm_", "vllm:")
        # Of a gauge, the verdict says that it is no number; a count that is none cannot be subtracted.
        if not isfinite(float(one.value)) and name not in _GAUGES:
            raise SampleError(f"shows {one.value} for {one.name}, which counts")
        by_name.setdefault(name, []).append(one._replace(value=float(one.value)))

    answers = [one for one in by_name.get(_ANSWERS, ()) if _is_asked_of_an_engine(one.labels)]
    ended = by_name.get(_ENDED, [])
    counters = {
        "requests": answers if _ANSWERS in by_name else ended,
        "answers": answers,
        # Grouped by the instrumentator's default, `5xx`; else the status itself.
        "server_errors": [one for one in answers if one.labels.get("status", "").startswith("5")],
        "ended": ended,
        "ended_in_error": [one for one in ended if one.labels.get("finished_reason") == "error"],
        "preemptions": by_name.get(_PREEMPTIONS, []),
    }
    counts = {name: {inf: sum(one.value for one in series)} for name, series in counters.items()}
    for metric, names in HISTOGRAMS.items():
        buckets: dict[float, float] = {}
        for one in _first(by_name, [f"{name}_bucket" for name in names]):
            bound = float(one.labels["le"])
            if isnan(bound):
                raise SampleError(f"has a bucket without a bound in {one.name}")
            buckets[bound] = buckets.get(bound, 0) + one.value
        counts[metric] = buckets
    gauges = {}
    for metric, names in GAUGES.items():
        if values := [one.value for one in _first(by_name, names)]:  # one of each engine
            gauges[metric] = sum(values) / (len(values) if metric == "kv_cache_usage" else 1)
    return Sample(counts, gauges)


def _first(by_name: Mapping[str, list[Series]], names: Iterable[str]) -> list[Series]:
    return next((by_name[name] for name in names if name in by_name), [])


def _is_asked_of_an_engine(labels: Mapping[str, str]) -> bool:
    # Requests without a route of their own are counted under the handler `none`: they are no API calls.
    handler = labels.get("handler", "")
    return handler.startswith("/v1/") and not handler.startswith("/v1/models")
