"""Quantiles as Prometheus computes them, and what was counted between two looks."""

from bisect import bisect_left
from itertools import accumulate
from math import inf, isclose, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.rollout.analysis import Buckets, increase, quantile, total


def test_a_quantile_lies_linearly_within_its_bucket() -> None:
    buckets = {0.1: 0.0, 0.5: 50.0, 1.0: 100.0, inf: 100.0}
    assert quantile(0.25, buckets) == pytest.approx(0.3)
    assert quantile(0.5, buckets) == pytest.approx(0.5)
    assert quantile(0.95, buckets) == pytest.approx(0.95)


def test_the_lowest_bucket_begins_at_0() -> None:
    assert quantile(0.5, {0.2: 10.0, inf: 10.0}) == pytest.approx(0.1)


def test_a_lowest_bucket_that_ends_at_0_or_below_is_its_upper_bound() -> None:
    assert quantile(0.5, {-1.0: 10.0, 1.0: 10.0, inf: 10.0}) == -1.0
    assert quantile(0.5, {0.0: 10.0, inf: 10.0}) == 0.0


def test_what_is_above_all_buckets_counts_as_the_highest_bound() -> None:
    assert quantile(0.95, {0.1: 1.0, 2560.0: 2.0, inf: 100.0}) == 2560.0


def test_a_bucket_that_counts_less_than_a_lower_one_is_raised_to_it() -> None:
    assert quantile(0.5, {1.0: 6.0, 2.0: 4.0, 3.0: 10.0, inf: 10.0}) == quantile(
        0.5, {1.0: 6.0, 2.0: 6.0, 3.0: 10.0, inf: 10.0}
    )


def test_the_order_of_the_buckets_does_not_matter() -> None:
    assert quantile(0.5, {inf: 4.0, 2.0: 4.0, 1.0: 2.0}) == 1.0


@pytest.mark.parametrize(
    "buckets",
    [
        {},
        {inf: 10.0},
        {1.0: 5.0, 2.0: 10.0},
        {1.0: 0.0, inf: 0.0},
        {1.0: nan, inf: 3.0},
        {1.0: 1.0, inf: nan},
    ],
    ids=["empty", "only +Inf", "no +Inf", "nothing observed", "NaN", "NaN in all"],
)
def test_without_observations_or_bounds_there_is_no_quantile(buckets: Buckets) -> None:
    assert isnan(quantile(0.95, buckets))


bounds = st.lists(st.integers(1, 10_000).map(lambda n: n / 100), min_size=1, max_size=12, unique=True)


@given(bounds.map(sorted), st.data(), st.floats(0.01, 0.99))
def test_a_quantile_is_where_the_line_through_the_buckets_reaches_it(
    upper: list[float], data: st.DataObject, q: float
) -> None:
    each = data.draw(st.lists(st.integers(0, 50), min_size=len(upper), max_size=len(upper)))
    counts = list(accumulate(each))
    beyond = data.draw(st.integers(0, 50))
    value = quantile(
        q, {**dict(zip(upper, map(float, counts), strict=True)), inf: float(counts[-1] + beyond)}
    )
    if not counts[-1] + beyond:
        assert isnan(value)
        return
    rank = q * (counts[-1] + beyond)
    if rank > counts[-1]:
        assert value == upper[-1]
        return
    # The inverse: as many as `rank` lie below the value, on the line between the corners.
    corners = [(0.0, 0.0), *zip(upper, map(float, counts), strict=True)]
    at = min(bisect_left(upper, value), len(upper) - 1) + 1
    (low, below), (high, above) = corners[at - 1], corners[at]
    assert isclose(below + (above - below) * (value - low) / (high - low), rank, rel_tol=1e-9, abs_tol=1e-9)


def test_an_increase_is_the_plain_difference() -> None:
    samples = [{"requests": {inf: 100.0}}, {"requests": {inf: 103.0}}, {"requests": {inf: 110.0}}]
    assert increase(samples) == {"requests": {inf: 10.0}}


def test_of_one_look_nothing_is_known() -> None:
    assert increase([{"requests": {inf: 100.0}}]) == {}
    assert increase([]) == {}


def test_what_appears_later_began_at_0() -> None:
    assert increase([{}, {"requests": {inf: 3.0}}]) == {"requests": {inf: 3.0}}


def test_after_a_restart_everything_counts() -> None:
    samples = [{"requests": {inf: 100.0}}, {"requests": {inf: 7.0}}, {"requests": {inf: 9.0}}]
    assert increase(samples) == {"requests": {inf: 9.0}}


def test_one_counter_that_fell_tells_of_the_restart_of_all() -> None:
    before = {"requests": {inf: 100.0}, "server_errors": {inf: 2.0}}
    after = {"requests": {inf: 20.0}, "server_errors": {inf: 15.0}}
    assert increase([before, after]) == after


def test_a_counter_that_is_gone_tells_of_a_restart() -> None:
    assert increase([{"a": {inf: 3.0}, "b": {inf: 1.0}}, {"b": {inf: 4.0}}]) == {"b": {inf: 4.0}}


def test_instances_are_added_up_bucket_by_bucket() -> None:
    one, other = {"h": {1.0: 1.0, inf: 2.0}}, {"h": {1.0: 10.0, 2.0: 20.0, inf: 30.0}}
    assert total([one, other]) == {"h": {1.0: 11.0, 2.0: 20.0, inf: 32.0}}


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 20)), max_size=20)


@given(steps)
def test_no_request_is_lost_or_counted_twice_however_often_an_instance_restarts(
    steps: list[tuple[bool, int, int]],
) -> None:
    fast = slow = 0
    samples = [{"h": {1.0: 0.0, inf: 0.0}}]
    expected = 0
    for restarts, more_fast, more_slow in steps:
        if restarts and more_fast + more_slow < fast + slow:  # else no sample can tell
            fast = slow = 0
        fast, slow = fast + more_fast, slow + more_slow
        expected += more_fast + more_slow
        samples.append({"h": {1.0: float(fast), inf: float(fast + slow)}})
    assert increase(samples).get("h", {inf: 0.0})[inf] == expected
