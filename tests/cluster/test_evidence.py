"""Quantiles are a real Prometheus's, and real servers are judged by what they show."""

import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllmjobs.cluster.consul import ConsulApi
from vllmjobs.cluster.metrics import MetricsError, PrometheusApi, probe, scrape
from vllmjobs.environment.rollout import Analysis
from vllmjobs.rollout.analysis import Measurement, compare, judge, quantile, side
from vllmjobs.rollout.model import Verdict
from vllmjobs.rollout.samples import Sample, Timed
from vllmjobs_sandbox.cluster import ports, process, prometheus
from vllmjobs_sandbox.cluster.deploying import QUICK, deploying, succeeded
from vllmjobs_sandbox.cluster.programs import programs
from vllmjobs_sandbox.cluster.release import NewRelease
from vllmjobs_sandbox.fakes.listening import listening
from vllmjobs_sandbox.traffic.requests import Trickle

SECONDS = 20.0  # for what takes a moment on a busy machine
WINDOW = 120.0
HISTOGRAMS = 400
QUANTILES = (0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999)


# Against Prometheus


def histograms(seed: int) -> list[dict[float, float]]:
    """Make some of every kind: falling counts, empty ones, bounds below 0, without +Inf, with +Inf alone."""
    chance = random.Random(seed)
    made = []
    for _ in range(HISTOGRAMS):
        bounds = sorted({round(chance.uniform(-1, 20), 3) for _ in range(chance.randrange(9))})
        if chance.random() < 0.7:
            bounds = [bound for bound in bounds if bound > 0]
        if chance.random() < 0.95 or not bounds:
            bounds.append(math.inf)
        most = chance.choice((0, 3, 1000))
        counts = [float(chance.randint(0, most)) for _ in bounds]
        made.append(dict(zip(bounds, counts if chance.random() < 0.3 else sorted(counts), strict=True)))
    return made


@pytest.fixture
def exposed() -> Iterator[tuple[str, list[dict[float, float]]]]:
    """The `host:port` of a server that shows these histograms, and the histograms."""
    made = histograms(seed=6)
    page = "".join(
        f'h_bucket{{n="{n}",le="{"+Inf" if bound == math.inf else bound}"}} {counted}\n'
        for n, buckets in enumerate(made)
        for bound, counted in buckets.items()
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as address:
        yield address.removeprefix("http://"), made


def test_every_quantile_is_that_of_prometheus(
    exposed: tuple[str, list[dict[float, float]]], tmp_path: Path
) -> None:
    target, made = exposed

    def asked(query: str) -> list[Any]:
        answer = httpx.post(f"{server}/api/v1/query", data={"query": query})
        found: list[Any] = answer.raise_for_status().json()["data"]["result"]
        return found

    with prometheus.running(tmp_path, [target]) as server:
        process.wait_until(lambda: asked("h_bucket"), SECONDS, "the histograms are scraped")
        for q in QUANTILES:
            result = asked(f"histogram_quantile({q}, h_bucket)")
            theirs = {int(one["metric"]["n"]): float(one["value"][1]) for one in result}
            assert len(theirs) == HISTOGRAMS
            for n, buckets in enumerate(made):
                ours = quantile(q, buckets)
                assert ours == theirs[n] or (math.isnan(ours) and math.isnan(theirs[n])), (q, buckets)


# Against servers


@dataclass
class Server:
    """A stand-in for vLLM, and the samples that were taken of it, 10 seconds apart for whoever judges."""

    address: str
    samples: list[Timed]
    running: process.Process
    command: Sequence[str | Path]
    env: dict[str, str]

    def look(self) -> None:
        found = scrape([self.address], SECONDS)[self.address]
        assert isinstance(found, Sample), found
        at = self.samples[-1].at + 10 if self.samples else 0.0
        self.samples.append(Timed(at, found))

    def ask(self, times: int) -> list[int]:
        """Ask for completions, eight at a time; the statuses of the answers."""
        with httpx.Client(timeout=SECONDS) as client, ThreadPoolExecutor(8) as pool:
            url = f"http://{self.address}/v1/completions"
            body = {"model": "chat", "prompt": "one two", "max_tokens": 6, "ignore_eos": True}
            return list(pool.map(lambda _: client.post(url, json=body).status_code, range(times)))

    def wait_until_healthy(self) -> None:
        self.running.wait_until(
            lambda: httpx.get(f"http://{self.address}/health").is_success,
            SECONDS,
            f"{self.address} is healthy",
            ignoring=(httpx.HTTPError,),
        )

    def restart(self) -> None:
        self.running.popen.kill()
        self.running.popen.wait()
        self.running = process.start("stand-in", self.command, self.running.log, self.env)
        self.wait_until_healthy()


class Servers:
    """Starts them, on ports of their own."""

    def __init__(self, folder: Path, block: ports.Block) -> None:
        self.started: list[Server] = []
        self._folder = folder
        self._block = block
        self._number = count(1)

    def __call__(self, *args: str, **knobs: object) -> Server:
        port = self._block.take()
        settings = {"LOAD_SECONDS": 0, "TOKENS_PER_SECOND": 50} | knobs
        env = dict(os.environ) | {f"VLLMJOBS_STANDIN_{name}": str(value) for name, value in settings.items()}
        served = ("serve", "tiny/llama", "--served-model-name", "chat", "--host", "127.0.0.1")
        command: tuple[str | Path, ...] = (programs()["stand-in-engine"], *served, "--port", str(port), *args)
        running = process.start("stand-in", command, self._folder / f"{next(self._number)}.log", env)
        self.started.append(server := Server(f"127.0.0.1:{port}", [], running, command, env))
        server.wait_until_healthy()
        return server


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    block = ports.take_block()
    servers = Servers(tmp_path_factory.mktemp("servers"), block)
    yield servers
    process.stop([server.running for server in servers.started], grace=0)
    block.release()


@pytest.fixture(scope="module")
def well(start: Servers) -> tuple[Server, Server]:
    """Two that are well, for all tests."""
    return start(), start()


@pytest.fixture(scope="module")
def erring(start: Servers) -> Server:
    """One that answers every second request with 500, for all tests."""
    return start(FAILURE="error-rate=0.5")


@pytest.fixture(autouse=True)
def unseen(start: Servers) -> None:
    """Each test looks anew."""
    for server in start.started:
        server.samples.clear()


def judged(canary: Server, stable: Server, requests: int = 40) -> tuple[Measurement, Verdict]:
    """Look, let both answer, look again: the second look's measurement, and the verdict after the window."""
    for server in (canary, stable):
        server.look()
        server.ask(requests)
        server.look()
    return verdict(canary, stable)


def verdict(canary: Server, stable: Server) -> tuple[Measurement, Verdict]:
    analysis = Analysis(min_requests=20)
    now = canary.samples[-1].at
    shown, others = side(analysis, [canary.samples], now), side(analysis, [stable.samples], now)
    found = compare(analysis, shown, others, now)
    return found, judge(analysis, [found, found], WINDOW)


def test_a_canary_that_is_well_passes(well: tuple[Server, Server]) -> None:
    found, said = judged(*well)
    assert (found.canary_requests, found.stable_requests) == (40, 40)
    assert said.result == "pass", said
    assert {one.result for one in said.numbers} == {"pass"}


def test_a_canary_whose_first_token_is_slow_fails(start: Servers, well: tuple[Server, Server]) -> None:
    found, said = judged(start(FAILURE="slow-first-token=0.6"), well[0])
    assert said.result == "fail"
    assert found.reason.startswith("time_to_first_token is "), found.reason


def test_a_canary_that_is_slow_by_a_factor_of_five_fails(start: Servers, well: tuple[Server, Server]) -> None:
    found, said = judged(start(TOKENS_PER_SECOND=10), well[0])
    assert said.result == "fail"
    assert "inter_token_latency is " in found.reason


def test_a_canary_that_answers_500_fails(erring: Server, well: tuple[Server, Server]) -> None:
    found, said = judged(erring, well[0])
    assert said.result == "fail"
    assert found.reason == "error_rate is 50 %, more than 5 %"


def test_a_canary_without_traffic_is_judged_by_probes(well: tuple[Server, Server]) -> None:
    canary, stable = well
    for server in (canary, stable):
        server.look()
        server.look()
    found, said = verdict(canary, stable)
    assert (found.reason, said.result) == (
        "the canaries had 0 requests and the stable instances 0, but 20 are needed",
        "undecided",
    )
    for _ in range(20):
        assert {probe(one.address, "chat", SECONDS) for one in (canary, stable)} == {None}
    for server in (canary, stable):
        server.look()
    found, said = verdict(canary, stable)
    assert (found.canary_requests, found.stable_requests) == (20, 20)
    assert said.result == "pass", said


def test_probes_tell_of_a_canary_that_answers_500(erring: Server, well: tuple[Server, Server]) -> None:
    for server in (erring, well[0]):
        server.look()
        for _ in range(20):
            assert probe(server.address, "chat", SECONDS) is None
        server.look()
    assert verdict(erring, well[0])[0].reason == "error_rate is 50 %, more than 5 %"


def test_a_canary_that_knows_no_such_model_never_passes(start: Servers, well: tuple[Server, Server]) -> None:
    canary, stable = start("--served-model-name", "other"), well[0]
    said = probe(canary.address, "chat", SECONDS)
    assert said is not None
    assert "it serves another model: it lists other, and not chat" in said
    found, judgement = judged(canary, stable)
    assert (found.canary_requests, judgement.result) == (40, "undecided")
    assert "the canaries show no time_to_first_token" in found.reason


def test_a_canary_that_restarted_is_judged_by_all_that_it_counted_since(
    start: Servers, well: tuple[Server, Server]
) -> None:
    canary, stable = start(), well[0]
    canary.look()
    canary.ask(60)
    canary.look()
    canary.restart()
    canary.ask(25)
    canary.look()
    stable.look()
    stable.ask(40)
    stable.look()
    found, said = verdict(canary, stable)
    assert found.canary_requests == 60 + 25
    assert said.result == "pass", said


def test_a_probe_says_which_key_is_missing(start: Servers) -> None:
    guarded = start("--api-key", "sesame")
    assert probe(guarded.address, "chat", SECONDS, "sesame") is None
    assert "set VLLM_API_KEY" in str(probe(guarded.address, "chat", SECONDS))
    guarded.look()  # vLLM guards its API alone


def test_prometheus_shows_what_the_instances_show(
    erring: Server, well: tuple[Server, Server], tmp_path: Path
) -> None:
    servers = [erring, well[0]]
    addresses = [server.address for server in servers]

    def requests() -> float:
        here = scrape(addresses, SECONDS).values()
        return sum(of.counts["requests"][math.inf] for of in here if isinstance(of, Sample))

    with prometheus.running(tmp_path, addresses) as address:
        before = requests()
        for server in servers:
            server.ask(20)
        there = PrometheusApi(address)
        here = scrape(addresses, SECONDS)
        assert requests() == before + 40
        process.wait_until(lambda: there.samples(addresses) == here, SECONDS, "both show the same")
        assert set(there.samples([addresses[0], "127.0.0.1:1", 'a"}\\|.*'])) == {addresses[0]}
        with pytest.raises(MetricsError, match="is it a Prometheus"):
            PrometheusApi(f"{address}/nowhere").samples(addresses)


def test_a_release_is_judged_by_what_prometheus_shows(release: NewRelease, tmp_path: Path) -> None:
    """It finds the instances as they come and go, and nobody else asks them."""
    half = {"rollout.weight": 0.5, "rollout.steps": "[]", "rollout.analysis.window": "5s"}
    judged = release(**QUICK | half | {"replicas": 1, "rollout.analysis.probe": "false"})
    consul = ConsulApi(judged.sandbox.env)

    def instances() -> list[str]:
        return [f"{one.address}:{one.port}" for one in consul.instances(f"{judged.job}-chat")]

    def queries() -> float:
        shown = httpx.get(f"{address}/metrics").text
        counted = re.findall(r'^prometheus_http_requests_total{.*handler="/api/v1/query"} (\S+)', shown, re.M)
        return sum(map(float, counted))

    with prometheus.discovering(instances) as url, prometheus.running(tmp_path, url) as address:
        judged.settings["models.chat.rollout.analysis.prometheus.address"] = address
        judged.run()
        judged.wait_until_routed(1024)
        with Trickle(judged.address, per_second=20):
            broken: dict[str, Any] = {"env.VLLMJOBS_STANDIN_FAILURE": "error-rate=1"}
            with deploying(judged, max_model_len=2048, **broken) as refused:
                assert refused.end() == 4, refused.evidence()
                assert "error_rate is 100 %" in refused.wait_for("done")["text"]
            before = queries()
            assert before > 0
            promoted = succeeded(deploying(judged, max_model_len=2048))
            assert "pass" in {
                event["data"]["verdict"]["result"] for event in promoted.events if event["kind"] == "verdict"
            }
            assert queries() > before
