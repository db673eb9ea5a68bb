"""Measures canaries and stable instances, each step from its begin."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from vllmjobs.cluster import metrics
from vllmjobs.deploy.probes import UNANSWERED, Prober
from vllmjobs.environment.model import Environment
from vllmjobs.environment.quantity import seconds
from vllmjobs.environment.rollout import Analysis
from vllmjobs.render.arguments import served_names
from vllmjobs.rollout.analysis import Measurement, Side, compare, judge, side
from vllmjobs.rollout.model import Value, Verdict
from vllmjobs.rollout.samples import Sample, Timed

ALL = 0.95  # of the requests: the others then have too few to be compared with
TIMEOUT_S = 5.0  # of one /metrics: the loop waits for the slowest


class Sides(Value, frozen=True):
    """Whom a step compares; addresses are `ip:port`."""

    step: int
    share: float
    """Of the requests that the canaries get."""
    canaries: frozenset[str]
    stable: frozenset[str]


@dataclass
class _Step:
    sides: Sides
    since: float
    due: float
    samples: dict[str, list[Timed]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    verdict: Verdict | None = None


class Evidence:
    """The verdicts of an environment's groups."""

    def __init__(
        self, environment: Environment, warn: Callable[[str], None], environ: Mapping[str, str] = os.environ
    ) -> None:
        """Probes have VLLM_API_KEY, where the servers want one; `warn` is told once what cannot be asked."""
        self._prober = Prober(environ.get("VLLM_API_KEY"), warn)
        self._warn = warn
        self._warned: set[str] = set()
        self._served = {name: served_names(name, model)[0] for name, model in environment.models.items()}
        self._analyses = {
            name: model.rollout.analysis
            for name, model in environment.models.items()
            if model.rollout.analysis
        }
        self._steps: dict[str, _Step] = {}
        self._earlier: dict[str, Side] = {}
        """What the stable instances of a group showed while they still had requests."""

    def due(self, now: float) -> float:
        """The seconds until the next measurement; infinite while nothing is judged."""
        return min((max(0.0, step.due - now) for step in self._steps.values()), default=math.inf)

    def verdicts(self, judged: Mapping[str, Sides], now: float) -> dict[str, Verdict]:
        """What is to be said now of these groups, whose canaries are healthy and get their share.

        A group that was not among them before, or is now at another step or has other canaries, begins anew.
        """
        self._steps = {name: step for name, step in self._steps.items() if name in judged}
        for name, sides in judged.items():
            step = self._steps.get(name)
            if step is None or (step.sides.step, step.sides.canaries) != (sides.step, sides.canaries):
                self._steps[name] = _Step(sides, now, now)
            else:
                step.sides = sides
        due = [name for name, step in self._steps.items() if step.due <= now]
        self._measure(due, now)
        return {name: step.verdict for name, step in self._steps.items() if step.verdict}

    def close(self) -> None:
        """Send no more probes."""
        self._prober.close()

    def _measure(self, due: list[str], now: float) -> None:
        shown = self._shown(due)
        for name in due:
            step, analysis = self._steps[name], self._analyses[name]
            for address in step.sides.canaries | step.sides.stable:
                if address in shown:
                    kept = step.samples.setdefault(address, [])
                    kept.append(Timed(at=now, sample=shown[address]))
                    while len(kept) > 1 and kept[1].at <= now - seconds(analysis.window):
                        del kept[0]  # nothing looks back further than to the newest before the window
            canaries, stable = (
                side(analysis, [step.samples[one] for one in sorted(among) if one in step.samples], now)
                for among in (step.sides.canaries, step.sides.stable)
            )
            if step.sides.share < ALL:
                self._earlier[name] = stable
            found = compare(analysis, canaries, self._earlier.get(name, stable), now)
            if now > step.since:
                step.measurements.append(self._with_silence(found, step.sides))
                step.verdict = judge(analysis, step.measurements, now - step.since)
            step.due = now + seconds(analysis.interval)
            if analysis.probe:
                if found.canary_requests < analysis.min_requests:
                    self._probe(name, step.sides.canaries, analysis)
                if found.stable_requests < analysis.min_requests:
                    self._probe(name, step.sides.stable, analysis)

    def _with_silence(self, found: Measurement, sides: Sides) -> Measurement:
        """The measurement, which fails where a canary answers no probe: what hangs counts no error."""
        silent = [address for address in sides.canaries if self._prober.unanswered(address) >= UNANSWERED]
        if not silent or found.result == "fail":
            return found
        said = f"{', '.join(sorted(silent))} answered none of the last {UNANSWERED} probes"
        return replace(found, result="fail", reason=f"the canary at {said}")

    def _shown(self, due: list[str]) -> dict[str, Sample]:
        """What the instances of these groups show; those that do not answer are missing."""
        shown: dict[str, Sample] = {}
        direct: set[str] = set()
        for name in due:
            sides, prometheus = self._steps[name].sides, self._analyses[name].prometheus
            if prometheus is None:
                direct |= sides.canaries | sides.stable
                continue
            there = metrics.Prometheus(prometheus.address, prometheus.instance_label)
            try:
                shown |= there.samples(sides.canaries | sides.stable)
            except metrics.MetricsError as error:
                self._warn_once(prometheus.address, error)
        for address, answer in metrics.scrape(sorted(direct), TIMEOUT_S).items():
            if isinstance(answer, Sample):
                shown[address] = answer
            else:
                self._warn_once(address, answer)
        return shown

    def _warn_once(self, address: str, error: Exception) -> None:
        if address not in self._warned:
            self._warned.add(address)
            self._warn(f"no metrics: {error}")

    def _probe(self, name: str, side: frozenset[str], analysis: Analysis) -> None:
        """As many requests an interval as make a window's `min_requests`, over the instances of a side."""
        for address in side:
            each = math.ceil(_each_interval(analysis) / len(side))
            self._prober.send(address, self._served[name], each)


def _each_interval(analysis: Analysis) -> float:
    intervals = max(1.0, seconds(analysis.window) / seconds(analysis.interval) - 1)
    return analysis.min_requests / intervals
