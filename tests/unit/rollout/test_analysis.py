"""The analysis of canaries."""

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.environment.rollout import Analysis, Limit, Limits
from vllmjobs.rollout.analysis import METRICS, Figures, Measurement, compare, judge, side
from vllmjobs.rollout.model import Number
from vllmjobs.rollout.samples import Sample, Timed

WELL = {
    "error_rate": 0.0,
    "time_to_first_token": 0.21,
    "inter_token_latency": 0.02,
    "e2e_latency": 3.0,
    "queue": 1.0,
    "kv_cache_usage": 0.4,
    "preemptions": 0.0,
}


def measured(analysis: Analysis, canary: list[Timed], stable: list[Timed], now: float) -> Measurement:
    """One canary against one stable instance."""
    return compare(analysis, side(analysis, [canary], now), side(analysis, [stable], now), now)


def analysis(limits: dict[str, Any] | None = None, **keys: Any) -> Analysis:
    chosen = dict.fromkeys(METRICS) | limits if limits is not None else {}
    chosen = {"e2e_latency": Limit(ratio=2, floor=1)} | chosen
    return Analysis(limits=Limits(**chosen), **{"min_requests": 20, **keys})


def sample(requests: float = 0, errors: float = 0, **gauges: float) -> Sample:
    """An instance that answered so often, each in 0.1 to 0.25 s."""
    latencies = {0.1: 0.0, 0.25: requests, inf: requests}
    counts = {
        "requests": {inf: requests},
        "answers": {inf: requests},
        "server_errors": {inf: errors},
        "ended": {inf: requests},
        "ended_in_error": {inf: 0.0},
        "preemptions": {inf: 0.0},
        **dict.fromkeys(("time_to_first_token", "inter_token_latency", "e2e_latency"), latencies),
    }
    return Sample(counts, {"queue": 0.0, "kv_cache_usage": 0.1} | gauges)


def timed(*samples: Sample, every: float = 10.0, start: float = 0.0) -> list[Timed]:
    return [Timed(start + n * every, one) for n, one in enumerate(samples)]


def compared(canary: dict[str, float], stable: dict[str, float] = WELL, **keys: Any) -> Measurement:
    limits = keys.pop("limits", None)
    requests = keys.pop("requests", (100, 1000))
    return compare(
        analysis(limits, **keys),
        Figures(requests[0], WELL | canary),
        Figures(requests[1], WELL | stable),
        60.0,
    )


def number(measurement: Measurement, metric: str) -> Number:
    return next(one for one in measurement.numbers if one.metric == metric)


# One measurement


def test_a_canary_that_is_like_the_others_passes() -> None:
    measurement = compared({})
    assert (measurement.result, measurement.reason) == (
        "pass",
        "within all limits over 100 requests to the canaries and 1,000 to the stable instances",
    )
    assert [one.metric for one in measurement.numbers] == list(METRICS)


@pytest.mark.parametrize(
    ("canary", "stable", "reason"),
    [
        (
            {"time_to_first_token": 1.314},
            {},
            "time_to_first_token is 1.31 s, more than 2 times the stable instances' 0.21 s",
        ),
        ({"error_rate": 0.5}, {}, "error_rate is 50 %, more than 5 %"),
        (
            {"error_rate": 0.0201},
            {"error_rate": 0.004},
            "error_rate is 2.01 %, more than 2 times the stable instances' 0.4 %",
        ),
        ({"queue": 12.5}, {}, "queue is 12.5, more than 3 times the stable instances' 1"),
        (
            {"kv_cache_usage": 0.95},
            {"kv_cache_usage": 0.3},
            "kv_cache_usage is 95 %, more than 2 times the stable instances' 30 %",
        ),
        ({"preemptions": 0.25}, {}, "preemptions is 0.25, more than 2 times the stable instances' 0"),
        (
            {"inter_token_latency": 0.06, "e2e_latency": 1234.5},
            {},
            "inter_token_latency is 0.06 s, more than 2 times the stable instances' 0.02 s; "
            "e2e_latency is 1234 s, more than 2 times the stable instances' 3 s",
        ),
    ],
)
def test_a_canary_that_is_worse_fails_with_both_numbers(
    canary: dict[str, float], stable: dict[str, float], reason: str
) -> None:
    measurement = compared(canary, stable)
    assert (measurement.result, measurement.reason) == ("fail", reason)


@pytest.mark.parametrize("metric", METRICS)
def test_up_to_its_floor_a_canary_is_well_whatever_the_ratio(metric: str) -> None:
    floor = getattr(analysis().limits, metric).floor
    assert number(compared({metric: floor}, dict.fromkeys(METRICS, 0.0)), metric).result == "pass"
    assert number(compared({metric: floor * 1.01}, dict.fromkeys(METRICS, 0.0)), metric).result == "fail"


def test_exactly_as_much_as_allowed_is_well() -> None:
    assert compared({"error_rate": 0.05}, {"error_rate": 0.025}).result == "pass"


def test_a_max_holds_even_below_the_floor() -> None:
    limits = {"e2e_latency": Limit(max=2, ratio=2, floor=5)}
    assert compared({"e2e_latency": 3.0}, limits=limits).reason == "e2e_latency is 3 s, more than 2 s"


def test_a_metric_that_is_left_out_is_not_looked_at() -> None:
    measurement = compared({"time_to_first_token": 99.0}, limits={"error_rate": Limit(max=0.1)})
    assert [one.metric for one in measurement.numbers] == ["error_rate"]
    assert measurement.result == "pass"


def test_each_number_says_what_it_is_held_against() -> None:
    measurement = compared({"error_rate": 0.004}, {"error_rate": 0.004})
    assert number(measurement, "error_rate") == Number(
        "error_rate",
        0.004,
        0.004,
        "at most 0.05; above 0.01, at most 2 times the stable instances' 0.004",
        "pass",
    )
    alone = compare(analysis(), Figures(100, WELL), Figures(), 0)
    assert number(alone, "queue").limit == "above 10, at most 3 times what the stable instances show"


def test_too_few_requests_decide_nothing() -> None:
    measurement = compared({"error_rate": 1.0}, requests=(19, 1000))
    assert (measurement.result, measurement.reason) == (
        "undecided",
        "the canaries had 19 requests and the stable instances 1,000, but 20 are needed",
    )
    assert {one.result for one in measurement.numbers} == {"undecided"}
    assert compared({}, requests=(1, 0)).reason.startswith("the canaries had 1 request and")


def test_without_stable_requests_a_ratio_decides_nothing_but_a_max_may_fail() -> None:
    assert compared({}, requests=(100, 19)).result == "undecided"
    slow = compared({"time_to_first_token": 9.0}, requests=(100, 19))
    assert (slow.result, number(slow, "time_to_first_token").result) == ("undecided", "undecided")
    assert compared({"error_rate": 0.06}, requests=(100, 0)).reason == "error_rate is 6 %, more than 5 %"


def test_where_nothing_is_compared_no_stable_instance_is_needed() -> None:
    measurement = compared({}, requests=(100, 0), limits={"error_rate": Limit(max=0.05)})
    assert measurement.result == "pass"
    few = compared({}, requests=(3, 0), limits={"error_rate": Limit(max=0.05)})
    assert few.reason == "the canaries had 3 requests, but 20 are needed"


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "inter_token_latency"])
def test_a_metric_that_the_canaries_do_not_show_never_passes(metric: str) -> None:
    shown = {name: value for name, value in WELL.items() if name != metric}
    measurement = compare(analysis(), Figures(100, shown), Figures(100, WELL), 0)
    assert (measurement.result, measurement.reason) == ("undecided", f"the canaries show no {metric}")


def test_a_metric_that_the_stable_instances_do_not_show_cannot_be_compared() -> None:
    shown = {name: value for name, value in WELL.items() if name != "e2e_latency"}
    measurement = compare(analysis(), Figures(100, WELL), Figures(100, shown), 0)
    assert (measurement.result, measurement.reason) == (
        "undecided",
        "the stable instances show no e2e_latency",
    )


def test_answers_of_one_token_have_no_latency_between_tokens_to_wait_for() -> None:
    one_token = {name: value for name, value in WELL.items() if name != "inter_token_latency"}
    for canary, stable in ((one_token, WELL), (WELL | {"inter_token_latency": 9.0}, one_token)):
        measurement = compare(analysis(), Figures(100, canary), Figures(100, stable), 0)
        assert measurement.result == "pass"
        assert number(measurement, "inter_token_latency").result == "undecided"
    slow = analysis({"inter_token_latency": Limit(max=1)})
    assert compare(slow, Figures(100, {"inter_token_latency": 9.0}), Figures(), 0).result == "fail"


# What the samples say


def test_both_sides_are_measured_over_the_window() -> None:
    canary = timed(sample(1000), sample(1010, errors=1), sample(1030, errors=2))
    measurement = measured(analysis(), canary, timed(sample(5), sample(45), sample(85)), now=20.0)
    assert (measurement.canary_requests, measurement.stable_requests, measurement.at) == (30, 80, 20.0)
    assert number(measurement, "error_rate").canary == pytest.approx(2 / 30)
    assert number(measurement, "time_to_first_token").canary == pytest.approx(0.2425)  # 95 % of 0.1 to 0.25
    assert measurement.reason == "error_rate is 6.67 %, more than 5 %"


def test_what_is_older_than_the_window_no_longer_counts() -> None:
    burst = timed(sample(0), sample(50, errors=50), *[sample(50 + 10 * n, errors=50) for n in range(1, 13)])
    assert side(analysis(), [burst], now=130.0).values["error_rate"] == 0.0  # 2m: from the sample at 10 s
    assert side(analysis(), [burst], now=129.0).values["error_rate"] == pytest.approx(50 / 170)


def test_what_was_counted_before_the_first_look_does_not_count() -> None:
    assert side(analysis(), [timed(sample(1000, errors=900))], now=0.0) == Figures()


def test_an_instance_that_went_silent_counts_no_longer() -> None:
    gone = timed(sample(0, queue=100.0), sample(50, queue=100.0))
    here = timed(sample(0), sample(10), start=190.0)
    summed = side(analysis(), [gone, here], now=200.0)
    assert (summed.requests, summed.values["queue"]) == (10, 0.0)


def test_an_instance_that_restarted_counts_anew() -> None:
    summed = side(analysis(), [timed(sample(100, errors=1), sample(20, errors=15))], now=10.0)
    assert (summed.requests, summed.values["error_rate"]) == (20, 0.75)


def test_gauges_are_the_mean_over_the_window_and_the_instances() -> None:
    one = timed(sample(queue=99.0), sample(queue=2.0), sample(queue=4.0))
    other = timed(sample(queue=99.0), sample(queue=0.0), sample(queue=0.0))
    assert side(analysis(), [one, other], now=20.0).values["queue"] == 1.5


def test_a_gauge_of_nan_is_no_number() -> None:
    nans = timed(sample(), sample(100, kv_cache_usage=nan))
    measurement = measured(analysis(), nans, timed(sample(), sample(100)), now=10.0)
    assert (measurement.result, measurement.reason) == ("undecided", "the canaries show no kv_cache_usage")


def test_the_error_that_cuts_a_stream_counts_although_its_200_was_out() -> None:
    cut = msgspec.structs.replace(sample(100), counts=sample(100).counts | {"ended_in_error": {inf: 30.0}})
    assert side(analysis(), [timed(sample(), cut)], now=10.0).values["error_rate"] == 0.3


def test_preemptions_are_counted_for_each_request_that_ended() -> None:
    pushed = msgspec.structs.replace(sample(50), counts=sample(50).counts | {"preemptions": {inf: 20.0}})
    assert side(analysis(), [timed(sample(), pushed)], now=10.0).values["preemptions"] == 0.4


def test_the_quantile_is_the_environments() -> None:
    one = [timed(sample(), sample(100))]
    assert side(analysis(quantile=0.5), one, now=10.0).values["e2e_latency"] == pytest.approx(0.175)


# The verdict of a step

PASS = Measurement(0, "pass", "all is well", (Number("queue", 1, 1, "none", "pass"),), 100, 1000)
FAIL = Measurement(0, "fail", "queue is 99, more than 10", (), 100, 1000)
OPEN = Measurement(0, "undecided", "the canaries had 3 requests, but 20 are needed", (), 3, 1000)


def verdict(*measurements: Measurement, elapsed: float = 120.0, **keys: Any) -> tuple[str, str]:
    actual = judge(analysis(**keys), measurements, elapsed)
    return actual.result, actual.reason


def test_a_verdict_takes_the_whole_window() -> None:
    assert verdict(PASS, elapsed=119.9) == ("undecided", "watched for 2m of 2m; all is well")
    assert verdict(PASS, elapsed=35) == ("undecided", "watched for 35s of 2m; all is well")
    assert verdict(PASS, elapsed=120) == ("pass", "all is well")


def test_one_failure_too_many_fails_at_once_and_for_good() -> None:
    assert verdict(FAIL, FAIL, elapsed=20) == ("fail", "queue is 99, more than 10")
    assert verdict(FAIL, FAIL, PASS) == ("fail", "queue is 99, more than 10")
    assert verdict(FAIL, elapsed=10, max_failures=0) == ("fail", "queue is 99, more than 10")


def test_a_failure_that_is_allowed_waits_for_the_next_measurement() -> None:
    assert verdict(PASS, FAIL) == (
        "undecided",
        "failed 1 of 1 allowed times; queue is 99, more than 10",
    )
    assert verdict(FAIL, PASS) == ("pass", "all is well")


@pytest.mark.parametrize(
    ("on_no_data", "result"), [("hold", "undecided"), ("fail", "fail"), ("promote", "pass")]
)
def test_without_enough_data_the_environment_says_what_becomes_of_it(on_no_data: str, result: str) -> None:
    actual, reason = verdict(PASS, OPEN, on_no_data=on_no_data)
    assert actual == result
    assert reason.startswith(OPEN.reason)
    assert (f"on_no_data is {on_no_data}" in reason) == (on_no_data != "hold")
    assert verdict(OPEN, elapsed=60, on_no_data=on_no_data)[0] == "undecided"


def test_a_step_that_was_never_measured_has_no_data() -> None:
    assert verdict() == ("undecided", "nothing was measured")
    assert verdict(on_no_data="fail")[0] == "fail"


def test_a_verdict_shows_what_it_rests_on() -> None:
    judged = judge(analysis(), [FAIL, OPEN, PASS], 130.0)
    assert (judged.numbers, judged.canary_requests, judged.stable_requests) == (PASS.numbers, 100, 1000)
    assert (judged.measurements, judged.failures, judged.elapsed) == (3, 1, 130.0)


values = st.dictionaries(st.sampled_from(METRICS), st.floats(0, 1e6), max_size=len(METRICS))
sides = st.builds(Figures, st.integers(0, 100), values)


@given(sides, sides, st.floats(1, 5))
def test_a_canary_passes_only_where_every_number_does(canary: Figures, stable: Figures, worse: float) -> None:
    measurement = compare(analysis(), canary, stable, 0)
    if measurement.result == "pass":
        assert canary.requests >= 20 <= stable.requests
        assert {one.result for one in measurement.numbers if one.metric != "inter_token_latency"} == {"pass"}
        assert all(one.result != "fail" for one in measurement.numbers)
    if measurement.result == "fail":  # and one that is worse still does not pass
        more = {metric: value * worse for metric, value in canary.values.items()}
        assert compare(analysis(), Figures(canary.requests, more), stable, 0).result == "fail"


@given(st.lists(st.sampled_from([PASS, FAIL, OPEN]), max_size=8), st.floats(0, 300), st.integers(0, 3))
def test_no_verdict_passes_that_does_not_end_in_a_measurement_that_does(
    measurements: Sequence[Measurement], elapsed: float, allowed: int
) -> None:
    judged = judge(analysis(max_failures=allowed), measurements, elapsed)
    if judged.result == "pass":
        assert measurements[-1] is PASS
        assert elapsed >= 120
        assert measurements.count(FAIL) <= allowed
    assert (judged.result == "fail") == (measurements.count(FAIL) > allowed)
