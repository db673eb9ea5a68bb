"""Counts that only grow, and quantiles of them: as Prometheus reads a histogram, but for the window's edges.

A histogram is a map from each bucket's upper bound, +Inf among them, to the observations up to it; a plain
counter is the histogram that has +Inf alone. So a reset is found in the same way for both.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf, isnan, nan

Buckets = Mapping[float, float]
Counts = Mapping[str, Buckets]


def quantile(q: float, buckets: Buckets) -> float:
    """Return `histogram_quantile(q, …)` of Prometheus (promql/quantile.go bucketQuantile), 0 < q < 1.

    Linear within the bucket, whose lower end is 0 for the lowest one, unless that ends at 0 or below; from
    the +Inf bucket, the upper bound of the second highest. A bucket that counts less than a lower one is
    raised to it (prometheus/prometheus#2610). NaN where nothing was observed, and without a +Inf bucket or
    any other.
    """
    bounds = sorted(buckets)
    if len(bounds) < 2 or bounds[-1] != inf:
        return nan
    counts: list[float] = []
    for bound in bounds:
        counts.append(max(buckets[bound], counts[-1]) if counts else buckets[bound])
    if not counts[-1] or any(map(isnan, counts)):
        return nan
    rank = q * counts[-1]
    at = next(place for place, count in enumerate(counts) if count >= rank)
    if at == len(bounds) - 1:
        return bounds[-2]
    if at == 0 and bounds[0] <= 0:
        return bounds[0]
    low, below = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    return low + (bounds[at] - low) * ((rank - below) / (counts[at] - below))


def increase(counts: Sequence[Counts]) -> dict[str, dict[float, float]]:
    """Return what was counted between the first and the last of one instance's counts, in order of time.

    Where any count is lower than before, the instance was started anew, and all that it now counts is new;
    Prometheus looks at each series alone and misses a counter that has already overtaken its old value. And
    unlike its increase(), this is the plain difference, without extrapolation to the window's edges: of
    counters that stand for requests, it is a whole number.
    """
    return total(_between(before, after) for before, after in pairwise(counts))


def total(counts: Iterable[Counts]) -> dict[str, dict[float, float]]:
    """Return the sum of each bucket, as Prometheus's `sum by (le)`."""
    summed: dict[str, dict[float, float]] = {}
    for one in counts:
        for name, buckets in one.items():
            into = summed.setdefault(name, {})
            for bound, count in buckets.items():
                into[bound] = into.get(bound, 0) + count
    return summed


def _between(before: Counts, after: Counts) -> Counts:
    if any(
        after.get(name, {}).get(bound, 0) < count
        for name, buckets in before.items()
        for bound, count in buckets.items()
    ):
        return after
    return {
        name: {bound: count - before.get(name, {}).get(bound, 0) for bound, count in buckets.items()}
        for name, buckets in after.items()
    }
