"""The analysis of canaries: their samples against those of the stable instances, in the same time.

`side` sums up the samples of a window, `compare` makes one measurement of two sides, and `judge` a verdict of
the measurements of a step.
"""

from collections.abc import Sequence
from math import inf, isnan, nan

from msgspec.structs import fields

from vllmjobs.environment.quantity import duration, seconds
from vllmjobs.environment.rollout import Analysis, Limit, Limits
from vllmjobs.rollout import histogram
from vllmjobs.rollout.model import Number, Result, Value, Verdict
from vllmjobs.rollout.samples import GAUGES, HISTOGRAMS, Timed

METRICS = tuple(field.name for field in fields(Limits))

# An answer of one token, as every probe's, has no time between tokens: where one side shows none, there is
# nothing to compare, and nothing to wait for.
_MAY_BE_MISSING = "inter_token_latency"
_SECONDS = tuple(HISTOGRAMS)
_SHARES = ("error_rate", "kv_cache_usage")


class Side(Value, frozen=True):
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


def side(analysis: Analysis, instances: Sequence[Sequence[Timed]], now: float) -> Side:
    """Take the last `window` of several instances together.

    Counts are added up, gauges are the mean over an instance's samples and then over the instances. Each
    inner sequence is one instance's, in order of time. The counts of its first sample may be older than the
    window, and are left out.

    error_rate is the share of answers with a 5xx, or the share of ended requests that ended in an error, if
    it is higher: the error that cuts a stream comes after its 200, and some servers show no answers.
    """
    since = now - seconds(analysis.window)
    windows = [window for samples in instances if len(window := _since(since, samples)) > 1]
    grown = histogram.total(histogram.increase([one.sample.counts for one in window]) for window in windows)
    count = {name: buckets.get(inf, 0.0) for name, buckets in grown.items()}

    def share(part: str, whole: str) -> float | None:
        return count[part] / count[whole] if count.get(whole) else None

    errors = (share("server_errors", "answers"), share("ended_in_error", "ended"))
    values = {
        "error_rate": max((one for one in errors if one is not None), default=None),
        "preemptions": share("preemptions", "ended"),
    }
    for metric in HISTOGRAMS:
        values[metric] = histogram.quantile(analysis.quantile, grown.get(metric, {}))
    for metric in GAUGES:
        gauges = [
            [one.sample.gauges[metric] for one in window[1:] if metric in one.sample.gauges]
            for window in windows
        ]
        values[metric] = _mean([_mean(one) for one in gauges if one])
    known = {metric: value for metric, value in values.items() if value is not None and not isnan(value)}
    return Side(round(count.get("requests", 0)), known)


def compare(analysis: Analysis, canary: Side, stable: Side, now: float) -> Measurement:
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
        others = f" and the stable instances {stable.requests}" if needs_stable else ""
        result = "undecided"
        reason = f"the canaries had {_requests(canary.requests)}{others}, where {least} are needed"
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
        allowed = f"failed {len(failures)} of {analysis.max_failures} times that are allowed"
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


def _sum_up(failed: list[str], undecided: list[str], canary: Side, stable: Side) -> tuple[Result, str]:
    if failed:
        return "fail", "; ".join(failed)
    if undecided:
        return "undecided", "; ".join(undecided)
    return "pass", (
        f"within all limits over {_requests(canary.requests)} to the canaries and {stable.requests} to the "
        "stable instances"
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


def _requests(count: int) -> str:
    return f"{count} request" if count == 1 else f"{count} requests"
