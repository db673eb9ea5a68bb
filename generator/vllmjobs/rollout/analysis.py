"""The analysis of canaries: their samples against those of the stable instances, in the same time.

`side` sums up the samples of a window, `compare` makes one measurement of two sides, and `judge` a verdict of
the measurements of a step. Histograms are read as Prometheus does, but for the window's edges.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import inf, isnan, nan

from msgspec.structs import fields

from vllmjobs.environment.quantity import duration, seconds
from vllmjobs.environment.rollout import Analysis, Limit, Limits
from vllmjobs.rollout.model import Number, Result, Verdict
from vllmjobs.rollout.samples import GAUGES, HISTOGRAMS, Timed
from vllmjobs.text.english import counted
from vllmjobs.text.value import Value

METRICS = tuple(field.name for field in fields(Limits))

# An answer of one token, as every probe's, has no time between tokens: where one side shows none, there is
# nothing to compare, and nothing to wait for.
_MAY_BE_MISSING = "inter_token_latency"
_SECONDS = tuple(HISTOGRAMS)
_SHARES = ("error_rate", "kv_cache_usage")

Buckets = Mapping[float, float]
"""A histogram: the observations up to each bucket's upper bound, +Inf among them. A plain counter is the one
that has +Inf alone, so a reset is found in the same way for both."""
Counts = Mapping[str, Buckets]
"""Histograms and counters by name, which only grow."""


class Figures(Value, frozen=True):
    """The canaries, or the stable instances, taken together over the window."""

    requests: int = 0  # see `Sample.counts`
    values: dict[str, float] = {}  # of each metric that has data: latencies in seconds, shares from 0 to 1


class Measurement(Value, frozen=True):
    """The result of one comparison of canaries and stable instances."""

    at: float  # seconds, on the clock of `rollout.model`
    result: Result
    reason: str  # one clause, as `Verdict.reason`
    numbers: tuple[Number, ...] = ()  # one number for each metric that has a limit
    canary_requests: int = 0  # the requests that the canaries had in the window
    stable_requests: int = 0  # the requests that the stable instances had in the window


def side(analysis: Analysis, instances: Sequence[Sequence[Timed]], now: float) -> Figures:
    """Take the last `window` of several instances together.

    Counts are added up, gauges are the mean over an instance's samples and then over the instances. Each
    inner sequence is one instance's, in order of time. The counts of its first sample may be older than the
    window, and are left out.

    error_rate is the share of answers with a 5xx, or the share of ended requests that ended in an error, if
    it is higher: the error that cuts a stream comes after its 200, and some servers show no answers.
    """
    since = now - seconds(analysis.window)
    windows = [window for samples in instances if len(window := _since(since, samples)) > 1]
    grown = total(increase([one.sample.counts for one in window]) for window in windows)
    count = {name: buckets.get(inf, 0.0) for name, buckets in grown.items()}

    def share(part: str, whole: str) -> float | None:
        return count[part] / count[whole] if count.get(whole) else None

    errors = (share("server_errors", "answers"), share("ended_in_error", "ended"))
    values = {
        "error_rate": max((one for one in errors if one is not None), default=None),
        "preemptions": share("preemptions", "ended"),
    }
    for metric in HISTOGRAMS:
        values[metric] = quantile(analysis.quantile, grown.get(metric, {}))
    for metric in GAUGES:
        gauges = [
            [one.sample.gauges[metric] for one in window[1:] if metric in one.sample.gauges]
            for window in windows
        ]
        values[metric] = _mean([_mean(one) for one in gauges if one])
    known = {metric: value for metric, value in values.items() if value is not None and not isnan(value)}
    return Figures(round(count.get("requests", 0)), known)


def compare(analysis: Analysis, canary: Figures, stable: Figures, now: float) -> Measurement:
    """Compare the canaries with their limits, and with a stable side that may be of another time."""
    least = analysis.min_requests
    limits: dict[str, Limit] = {
        metric: limit for metric in METRICS if (limit := getattr(analysis.limits, metric)) is not None
    }
    has_enough = canary.requests >= least
    is_comparable = stable.requests >= least
    numbers, clauses = [], []
    for metric, limit in limits.items():
        value, reference = canary.values.get(metric), stable.values.get(metric)
        usable = reference if is_comparable else None
        result, clause = _check(metric, limit, value, usable) if has_enough else ("undecided", "")
        numbers.append(Number(metric, value, reference, _in_words(limit, reference), result))
        if result == "fail" or (result == "undecided" and metric != _MAY_BE_MISSING):
            clauses.append((result, clause))

    failed = [clause for result, clause in clauses if result == "fail"]
    needs_stable = any(limit.ratio is not None for limit in limits.values())
    result, reason = _sum_up(failed, [clause for _, clause in clauses], canary, stable)
    if not failed and not (has_enough and (is_comparable or not needs_stable)):
        others = f" and the stable instances {stable.requests:,}" if needs_stable else ""
        result = "undecided"
        reason = f"the canaries had {counted(canary.requests, 'request')}{others}, but {least} are needed"
    return Measurement(now, result, reason, tuple(numbers), canary.requests, stable.requests)


def judge(analysis: Analysis, measurements: Sequence[Measurement], elapsed: float) -> Verdict:
    """Sum up the measurements of a step, in order of time, `elapsed` seconds after it began.

    One failure too many fails it at once. Else the last measurement decides once the window is over: a
    failure that is allowed waits for the next one, and where there is too little data `on_no_data` decides.
    """
    last = measurements[-1] if measurements else Measurement(0, "undecided", "nothing was measured")
    failures = [one for one in measurements if one.result == "fail"]
    result, reason = _result(analysis, last, failures, elapsed)
    return Verdict(
        result,
        reason,
        last.numbers,
        last.canary_requests,
        last.stable_requests,
        len(measurements),
        len(failures),
        elapsed,
    )


def _result(
    analysis: Analysis, last: Measurement, failures: Sequence[Measurement], elapsed: float
) -> tuple[Result, str]:
    """Return the result of a step, and its reason: of the rules below, the first one that holds decides."""
    if len(failures) > analysis.max_failures:
        return "fail", failures[-1].reason
    if elapsed < seconds(analysis.window):
        return "undecided", f"watched for {duration(elapsed)} of {analysis.window}; {last.reason}"
    if last.result == "fail":
        allowed = f"failed {len(failures)} of {analysis.max_failures} allowed times"
        return "undecided", f"{allowed}; {last.reason}"
    if last.result == "undecided" and analysis.on_no_data != "hold":
        reason = f"{last.reason}; on_no_data is {analysis.on_no_data}"
        return ("fail" if analysis.on_no_data == "fail" else "pass"), reason
    return last.result, last.reason


def _since(since: float, samples: Sequence[Timed]) -> Sequence[Timed]:
    """Return the samples after that time, and the newest one before them, from which they count."""
    before = sum(one.at <= since for one in samples)
    return samples[max(0, before - 1) :]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def _check(metric: str, limit: Limit, value: float | None, stable: float | None) -> tuple[Result, str]:
    if value is None:
        return "undecided", f"the canaries show no {metric}"
    if limit.max is not None and value > limit.max:
        return "fail", f"{metric} is {_amount(metric, value)}, more than {_amount(metric, limit.max)}"
    if limit.ratio is None or value <= limit.floor:
        return "pass", ""
    if stable is None:
        return "undecided", f"the stable instances show no {metric}"
    if value > limit.ratio * stable:
        more = f"more than {limit.ratio:g} times the stable instances' {_amount(metric, stable)}"
        return "fail", f"{metric} is {_amount(metric, value)}, {more}"
    return "pass", ""


def _sum_up(failed: list[str], undecided: list[str], canary: Figures, stable: Figures) -> tuple[Result, str]:
    if failed:
        return "fail", "; ".join(failed)
    if undecided:
        return "undecided", "; ".join(undecided)
    return "pass", (
        f"within all limits over {counted(canary.requests, 'request')} to the canaries "
        f"and {stable.requests:,} to the stable instances"
    )


def _in_words(limit: Limit, stable: float | None) -> str:
    clauses = [] if limit.max is None else [f"at most {limit.max:g}"]
    if limit.ratio is not None:
        shown = (
            "what the stable instances show" if stable is None else f"the stable instances' {_short(stable)}"
        )
        above = f"above {limit.floor:g}, " if limit.floor else ""
        clauses.append(f"{above}at most {limit.ratio:g} times {shown}")
    return "; ".join(clauses) or "none"


def _amount(metric: str, value: float) -> str:
    if metric in _SHARES:
        return f"{_short(100 * value)} %"
    return f"{_short(value)} s" if metric in _SECONDS else _short(value)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


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
    own = [buckets[bound] for bound in bounds]
    counts: list[float] = list(accumulate(own, lambda below, count: max(count, below)))
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
