"""The measurements of canaries and stable instances, each step from its beginning."""

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from vllmjobs.cluster import metrics
from vllmjobs.environment.model import Environment
from vllmjobs.environment.quantity import seconds
from vllmjobs.environment.rollout import Analysis
from vllmjobs.render.arguments import served_names
from vllmjobs.rollout.analysis import Figures, Measurement, compare, judge, side
from vllmjobs.rollout.model import Verdict
from vllmjobs.rollout.observe import Comparison
from vllmjobs.rollout.samples import Sample, Timed
from vllmjobs.supervisor.core.asking import OTHER_MODEL, AskedModel, ServerFacts, started_for

PROBE_S = 30.0  # until a probe has its answer
AT_ONCE = 16
UNANSWERED = 3  # in a row: one may meet a kernel that is compiled
ALL = 0.95  # of the requests: the others then have too few to be compared with
TIMEOUT_S = 5.0  # of one /metrics: the loop waits for the slowest


@dataclass
class _Step:
    """A step of a release that is being measured."""

    comparison: Comparison
    since: float
    due: float
    samples: dict[str, list[Timed]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    verdict: Verdict | None = None


class Evidence:
    """The verdicts on an environment's groups."""

    def __init__(self, environment: Environment, warn: Callable[[str], None]) -> None:
        """Probes have VLLM_API_KEY, where the servers want one; `warn` is called once for an address."""
        self._prober = Prober(os.environ.get("VLLM_API_KEY"), warn)
        self._warn = warn
        self._warned: set[str] = set()
        self._asked = {
            name: AskedModel(
                served_names(name, model)[0],
                started_for([*(model.entrypoint or ["vllm", "serve"]), model.model]),
            )
            for name, model in environment.models.items()
        }
        self._analyses = {
            name: model.rollout.analysis
            for name, model in environment.models.items()
            if model.rollout.analysis
        }
        self._steps: dict[str, _Step] = {}
        self._earlier: dict[str, Figures] = {}
        """The stable instances of a group while they still had requests."""

    def due(self, now: float) -> float:
        """Return the seconds until the next measurement; infinite while nothing is measured."""
        return min((max(0.0, step.due - now) for step in self._steps.values()), default=math.inf)

    def verdicts(self, comparisons: Mapping[str, Comparison], now: float) -> dict[str, Verdict]:
        """Measure these groups where they are due, and return the verdicts that there are.

        A group that was not among them before, or is now at another step or has other canaries, begins anew.
        """
        self._steps = {name: step for name, step in self._steps.items() if name in comparisons}
        for name, comparison in comparisons.items():
            step = self._steps.get(name)
            old = step and (step.comparison.step, step.comparison.canaries)
            if step and old == (comparison.step, comparison.canaries):
                step.comparison = comparison
            else:
                self._steps[name] = _Step(comparison, now, now)
        due = [name for name, step in self._steps.items() if step.due <= now]
        samples = self._samples(due)
        for name in due:
            self._measure(name, samples, now)
        return {name: step.verdict for name, step in self._steps.items() if step.verdict}

    def close(self) -> None:
        """Send no more probes."""
        self._prober.close()

    def _measure(self, name: str, samples: Mapping[str, Sample], now: float) -> None:
        step, analysis = self._steps[name], self._analyses[name]
        comparison = step.comparison
        for address in comparison.canaries | comparison.stable:
            if address in samples:
                kept = step.samples.setdefault(address, [])
                kept.append(Timed(at=now, sample=samples[address]))
                while len(kept) > 1 and kept[1].at <= now - seconds(analysis.window):
                    del kept[0]  # nothing looks back further than to the newest before the window
        canaries, stable = (
            side(analysis, [step.samples[one] for one in sorted(addresses) if one in step.samples], now)
            for addresses in (comparison.canaries, comparison.stable)
        )
        if comparison.share < ALL:
            self._earlier[name] = stable
        measurement = compare(analysis, canaries, self._earlier.get(name, stable), now)
        if now > step.since:
            step.measurements.append(self._with_silence(measurement, comparison))
            step.verdict = judge(analysis, step.measurements, now - step.since)
        step.due = now + seconds(analysis.interval)
        if analysis.probe:
            if measurement.canary_requests < analysis.min_requests:
                self._probe(name, comparison.canaries, analysis)
            if measurement.stable_requests < analysis.min_requests:
                self._probe(name, comparison.stable, analysis)

    def _with_silence(self, measurement: Measurement, comparison: Comparison) -> Measurement:
        """Return the measurement, failed where a canary answers no probe: one that hangs counts no error."""
        silent = [one for one in comparison.canaries if self._prober.unanswered(one) >= UNANSWERED]
        if not silent or measurement.result == "fail":
            return measurement
        reason = f"the canary at {', '.join(sorted(silent))} answered none of the last {UNANSWERED} probes"
        return replace(measurement, result="fail", reason=reason)

    def _samples(self, due: list[str]) -> dict[str, Sample]:
        """Return the samples of the groups' instances, by address, without those that do not answer."""
        samples: dict[str, Sample] = {}
        direct: set[str] = set()
        for name in due:
            comparison, prometheus = self._steps[name].comparison, self._analyses[name].prometheus
            addresses = comparison.canaries | comparison.stable
            if prometheus is None:
                direct |= addresses
                continue
            source = metrics.PrometheusApi(prometheus.address, prometheus.instance_label)
            try:
                samples |= source.samples(addresses)
            except metrics.MetricsError as error:
                self._warn_once(prometheus.address, error)
        for address, answer in metrics.scrape(sorted(direct), TIMEOUT_S).items():
            if isinstance(answer, Sample):
                samples[address] = answer
            else:
                self._warn_once(address, answer)
        return samples

    def _warn_once(self, address: str, error: Exception) -> None:
        if address not in self._warned:
            self._warned.add(address)
            self._warn(f"no metrics: {error}")

    def _probe(self, name: str, addresses: frozenset[str], analysis: Analysis) -> None:
        """Send as many requests an interval as make a window's `min_requests`, over a side's instances."""
        intervals = max(1.0, seconds(analysis.window) / seconds(analysis.interval) - 1)
        for address in addresses:
            each = math.ceil(analysis.min_requests / intervals / len(addresses))
            self._prober.send(address, self._asked[name], each)


class Prober:
    """The sender of probes, real requests for one token. It counts those that had no answer."""

    def __init__(self, key: str | None, warn: Callable[[str], None]) -> None:
        """`key` is for servers with --api-key; `warn` is called once for each server that cannot be asked."""
        self._key, self._warn = key, warn
        self._lock, self._slots = threading.Lock(), threading.Semaphore(AT_ONCE)
        self._open: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._known: dict[str, ServerFacts] = {}
        self._is_closed = False

    def send(self, address: str, wanted: AskedModel, count: int) -> None:
        """Ask an instance so many times more, unless as many requests are open."""
        with self._lock:
            fresh = count - self._open[address]
            self._open[address] += max(0, fresh)
        for _ in range(fresh):
            # Nobody waits at the end for one that has no answer, as for those of a pool.
            threading.Thread(target=self._ask, args=(address, wanted), daemon=True).start()

    def unanswered(self, address: str) -> int:
        """Return the count of probes in a row that had no answer of this model, though they were taken."""
        return self._unanswered[address]

    def close(self) -> None:
        """Send no more, and wait for none."""
        self._is_closed = True

    def _ask(self, address: str, wanted: AskedModel) -> None:
        name, root = wanted.served_name or "", wanted.root
        with self._slots:
            why = None
            if not self._is_closed:
                why = metrics.probe(address, name, PROBE_S, self._key, root, self._known)
        with self._lock:
            self._open[address] -= 1
            is_bad = why is not None and any(words in why for words in (metrics.UNANSWERED, OTHER_MODEL))
            self._unanswered[address] = self._unanswered[address] + 1 if is_bad else 0
            is_news = why is not None and address not in self._warned and not self._is_closed
            self._warned.add(address) if is_news else None
        if is_news:
            self._warn(f"probe: {why}")
