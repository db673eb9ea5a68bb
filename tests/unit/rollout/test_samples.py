"""The samples that are read from an instance's metrics."""

from contextlib import suppress
from math import inf, isnan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllmjobs.rollout.samples import SERIES, Sample, SampleError, from_query, read

LABELS = 'engine="0",model_name="chat"'
PAGE = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="chat"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="chat",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="chat"} 0.25
vllm:num_preemptions_total{engine="0",model_name="chat"} 4.0
vllm:num_preemptions_created{engine="0",model_name="chat"} 1.7e+09
vllm:request_success_total{engine="0",finished_reason="stop",model_name="chat"} 90.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="chat"} 5.0
vllm:request_success_total{engine="0",finished_reason="error",model_name="chat"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="chat"} 80.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="chat"} 97.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="chat"} 97.0
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 60.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 30.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"} 3.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="503"} 1.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="404"} 6.0
http_requests_total{handler="/v1/models",method="GET",status="2xx"} 1000.0
http_requests_total{handler="/score",method="POST",status="5xx"} 20.0
http_requests_total{handler="none",method="GET",status="4xx"} 40.0
"""


def count(sample: Sample, name: str) -> float:
    return sample.counts[name][inf]


def test_requests_are_the_answers_under_v1_and_errors_those_with_5xx() -> None:
    sample = read(PAGE)
    assert count(sample, "requests") == count(sample, "answers") == 60 + 30 + 3 + 1 + 6
    assert count(sample, "server_errors") == 3 + 1


def test_lists_of_models_and_other_paths_are_no_requests() -> None:
    sample = read('http_requests_total{handler="/v1/models/{model}",status="2xx"} 5\n' + PAGE)
    assert count(sample, "requests") == 100


def test_where_answers_are_not_counted_the_requests_that_ended_are() -> None:
    sample = read("".join(line for line in PAGE.splitlines(True) if not line.startswith("http")))
    assert (count(sample, "requests"), count(sample, "answers")) == (97, 0)
    assert (count(sample, "ended"), count(sample, "ended_in_error")) == (97, 2)


def test_histograms_are_kept_as_counts_up_to_each_bound() -> None:
    assert read(PAGE).counts["time_to_first_token"] == {0.1: 80.0, inf: 97.0}
    assert read(PAGE).counts["e2e_latency"] == {}


def test_engines_and_model_names_are_added_up_but_a_share_is_their_mean() -> None:
    second = PAGE.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75")
    sample = read(PAGE + "".join(line for line in second.splitlines(True) if line.startswith("vllm:")))
    assert sample.gauges == {"queue": 6.0, "kv_cache_usage": 0.5}
    assert sample.counts["time_to_first_token"] == {0.1: 160.0, inf: 194.0}
    assert count(sample, "preemptions") == 8


@pytest.mark.parametrize(
    ("old", "new", "metric"),
    [
        ("time_per_output_token_seconds_bucket", "inter_token_latency_seconds_bucket", "inter_token_latency"),
        ("gpu_cache_usage_perc", "kv_cache_usage_perc", "kv_cache_usage"),
    ],
)
def test_a_name_of_old_is_read_and_beside_the_new_one_not_counted_twice(
    old: str, new: str, metric: str
) -> None:
    def shown(*names: str) -> Any:
        sample = read("".join(f'vllm:{name}{{{LABELS},le="+Inf"}} 0.5\n' for name in names))
        return sample.counts.get(metric) or sample.gauges.get(metric)

    assert shown(old) == shown(new) == shown(old, new)
    assert shown(old)


def test_an_instance_that_nobody_has_asked_yet_shows_nothing() -> None:
    sample = read("# HELP http_requests_total Requests.\n# TYPE http_requests_total counter\n")
    assert count(sample, "requests") == 0
    assert sample.gauges == {}


def test_nan_is_kept_for_the_verdict_to_stumble_on() -> None:
    assert isnan(read(f"vllm:kv_cache_usage_perc{{{LABELS}}} NaN\n").gauges["kv_cache_usage"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>nginx</body></html>",
        "# TYPE python_info gauge\npython_info 1\n",
        f"vllm:num_requests_waiting{{{LABELS}}} many\n",
        f"vllm:num_requests_waiting{{{LABELS}\n",
        "vllm:time_to_first_token_seconds_bucket{} 1\n",
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(SampleError):
        read(text)


@given(st.text(), st.integers(0, len(PAGE)), st.integers(0, 5))
def test_a_broken_page_is_an_error_and_no_crash(noise: str, at: int, cut: int) -> None:
    with suppress(SampleError):
        read(PAGE[:at] + noise + PAGE[at + cut :])


def test_a_model_name_may_hold_anything() -> None:
    registry = CollectorRegistry()
    hostile = 'a "b" \\ {c}, \u2028 \n d'
    Gauge("vllm:num_requests_waiting", "", ["model_name"], registry=registry).labels(hostile).set(2)
    Counter("vllm:request_success", "", ["model_name", "finished_reason"], registry=registry).labels(
        hostile, "stop"
    ).inc(5)
    Histogram("vllm:e2e_request_latency_seconds", "", ["model_name"], registry=registry, buckets=(1,)).labels(
        hostile
    ).observe(0.5)
    sample = read(generate_latest(registry).decode())
    assert sample.gauges == {"queue": 2.0}
    assert count(sample, "ended") == 5
    assert sample.counts["e2e_latency"] == {1.0: 1.0, inf: 1.0}


def series(name: str, value: str, **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": name, **labels}, "value": [1700000000.123, value]}


def test_prometheus_tells_the_same_by_instance() -> None:
    result = [
        series("vllm:num_requests_waiting", "3", pod="a:8000", engine="0"),
        series("vllm:time_to_first_token_seconds_bucket", "7", pod="a:8000", le="+Inf"),
        series("http_requests_total", "4", pod="b:8000", handler="/v1/completions", status="5xx"),
    ]
    samples = from_query(result, "pod")
    assert set(samples) == {"a:8000", "b:8000"}
    assert samples["a:8000"].gauges == {"queue": 3.0}
    assert samples["a:8000"].counts["time_to_first_token"] == {inf: 7.0}
    assert count(samples["b:8000"], "server_errors") == 4


@pytest.mark.parametrize(
    "result", [None, [1], [{"metric": {}}], [series("up", "1")], [series("up", "one", instance="a")]]
)
def test_any_other_result_is_refused(result: Any) -> None:
    with pytest.raises(SampleError):
        from_query(result, "instance")


def test_names_that_openmetrics_made_of_vllms_are_read_too() -> None:
    escaped = PAGE.replace("vllm:", "vllm_")
    assert read(escaped) == read(PAGE)
    assert read("# TYPE vllm_cache_config_info gauge\n") == read("# TYPE http_requests_total counter\n")
    assert "vllm_num_requests_waiting" in SERIES
    assert len(SERIES) == len(set(SERIES)) == 2 * 9 + 1


def test_a_time_that_is_no_time_is_told() -> None:
    with pytest.raises(SampleError, match="is not in Prometheus's text format"):
        read("vllm:num_requests_waiting 1 " + "9" * 500 + "\n")


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e999"])
def test_a_count_that_is_no_number_is_told_and_the_other_instances_are_read(value: str) -> None:
    with pytest.raises(SampleError, match=r"shows -?(nan|inf) for vllm:request_success_total, which counts"):
        read(f"vllm:request_success_total {value}\n")
    with pytest.raises(SampleError, match="has a bucket without a bound"):
        read('vllm:e2e_request_latency_seconds_bucket{le="NaN"} 1\n')
    bad = {"metric": {"__name__": "vllm:request_success_total", "instance": "a:1"}, "value": [0, value]}
    good = {"metric": {"__name__": "vllm:request_success_total", "instance": "b:1"}, "value": [0, "2"]}
    assert set(from_query([bad, good], "instance")) == {"b:1"}
