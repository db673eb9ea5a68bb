"""Real vLLM from `vllmjobs render` to requests: placed by Nomad on a simulated GPU, supervised, behind Fabio
and behind nginx; deployed on its own metrics, taken back, killed, and stopped in the middle of a stream.

Each life begins behind its balancer and ends there; `ONLY` names the parts that one of them has by default.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from openai.types import Completion

from vllmjobs_sandbox.cluster.deploying import Command, deploying
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.engine import real
from vllmjobs_sandbox.engine.real import model
from vllmjobs_sandbox.traffic.cuts import cut_by_go, not_cut_by_go
from vllmjobs_sandbox.traffic.load import TIME, Load
from vllmjobs_sandbox.traffic.requests import versions

pytestmark = [pytest.mark.first, pytest.mark.timeout(1800)]
START = 600.0  # seconds; three at a time, and under load
SAID = 10.0  # seconds until Nomad shows a line of Fabio's log
OLD, NEW = 4096, 2048
FAILED = 1
T = TypeVar("T")
SETTINGS: dict[str, Any] = {
    "vllm": "0.32.0",
    "replicas": 1,
    "max_model_len": OLD,
    "resources.memory": "4 GiB",
    "args.enforce-eager": "true",
    "args.dtype": "bfloat16",
    **{f"env.{name}": f'"{value}"' for name, value in real.VARIABLES.items()},
    "load_time": "8m",
    "health.timeout": "10s",
    "drain.longest_stream": "90s",
    "rollout.healthy_deadline": "11m",
    "rollout.progress_deadline": "13m",
    "rollout.steps": "[0.5]",
    "rollout.analysis.interval": "2s",
    "rollout.analysis.window": "10s",
    "rollout.analysis.min_requests": 3,
    # A canary that starts takes the time of the old one; the figures themselves are what is tried here.
    "rollout.analysis.limits.time_to_first_token.floor": 20,
    "rollout.analysis.limits.inter_token_latency.floor": 5,
    "rollout.analysis.limits.e2e_latency.floor": 60,
    "rollout.analysis.limits.queue.floor": 100,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, which answers, and `broken`, which dies at its first request."""
    folder = tmp_path_factory.mktemp("models")
    model.make(folder / "tiny")
    model.make(folder / "broken", head_dim=16)
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Live both lives; by default, without what `ONLY` leaves to the other one."""
    if "release" in metafunc.fixturenames:
        only = None if metafunc.config.getoption("--long") else ONLY.get(metafunc.function)
        metafunc.parametrize("release", [only] if only else ["fabio", "nginx"], indirect=True)


@pytest.fixture(scope="module")
def lives(sandbox: Sandbox, models: Path) -> Iterator[dict[str, Release]]:
    """One instance behind each balancer. Both start at once, since a start takes one core."""
    engine = ["vllmjobs-supervise", "--", str(real.folder() / "bin/vllm"), "serve"]
    chat = SETTINGS | {"model": models / "tiny", "entrypoint": json.dumps(engine)}
    given = releases(sandbox, "real-vllm")
    behind = {"fabio": next(given)(**chat), "nginx": Release.behind_nginx(sandbox, **chat)}
    behind["nginx"].run_nginx()  # that of the sandbox cuts streams 15 s after a reload
    for one in behind.values():
        sandbox.run(one.render())
    yield behind
    sandbox.purge(behind["nginx"].job)
    Release.behind_nginx(sandbox).run_nginx()
    next(given, None)


@pytest.fixture(scope="module")
def release(request: pytest.FixtureRequest, lives: dict[str, Release]) -> Release:
    """One instance that serves; the tests of this module live through its life in their order."""
    behind = lives[request.param]
    behind.sandbox.wait_until_healthy(behind.job, START)
    answers(behind)
    return behind


@pytest.fixture
def client(release: Release) -> openai.OpenAI:
    return real.client(release.address)


def test_chats_and_completions_are_answered_plain_and_streamed(
    release: Release, client: openai.OpenAI
) -> None:
    assert unless_cut_by_go(release, lambda: real.answered_tokens(client, 5)) == [5, 5, 5, 5]


def test_a_change_is_promoted_on_real_metrics(release: Release, tmp_path: Path) -> None:
    """Behind Fabio no probe counts, so that what is judged are the answers of its clients."""
    probes = release.environment == "dev-nginx"
    with load(release, tmp_path) as asking:
        judged: dict[str, Any] = {"rollout.analysis.probe": json.dumps(probes)}
        with deploying(release, max_model_len=NEW, **judged) as deploy:
            assert deploy.end(2 * START) == 0, deploy.evidence()
        assert versions(release.address, 3) == {NEW: 3}
        asking.wait_for(5, START)
    none_failed(release, asking)
    verdicts = [event["data"]["verdict"] for event in deploy.events if event["kind"] == "verdict"]
    decided = [one for one in verdicts if one["result"] != "undecided"]
    assert [one["result"] for one in decided] == ["pass", "pass"], "of the step, and of the end"
    for one in decided:
        seen = {number["metric"] for number in one["numbers"] if number["canary"] is not None}
        assert seen >= {"error_rate", "time_to_first_token", "kv_cache_usage"}
        # A busy machine gives a canary nothing but probes, of one token, for as long as a window is.
        assert probes or "inter_token_latency" in seen


def test_a_change_is_taken_back(release: Release, tmp_path: Path) -> None:
    with load(release, tmp_path) as asking:
        with Command(release.sandbox, ["rollback", *release.words()]) as back:
            assert back.end(2 * START) == 0, back.evidence()
        assert versions(release.address, 3) == {OLD: 3}
        asking.wait_for(5, START)
    none_failed(release, asking)


def test_a_model_that_dies_at_its_first_request_never_gets_one(
    release: Release, models: Path, tmp_path: Path
) -> None:
    """It passes /health; the supervisor asks it for a token before the balancer does."""
    broken: dict[str, Any] = {"model": models / "broken", "env.VLLMJOBS_RESTARTS": '"0"'}
    with serves_on(release), load(release, tmp_path) as asking, deploying(release, **broken) as deploy:
        died = wait_until(lambda: failed(release), 2 * START, "it has died", evidence=deploy.evidence)
        said = release.sandbox.nomad_cli("alloc", "logs", died["ID"]).stdout
        assert 'GET /health HTTP/1.1\\" 200' in said
        assert '"was_ready": false' in said
        with Command(release.sandbox, ["abort", *release.words()]) as abort:
            assert abort.end(START) == 0, abort.evidence()
        assert deploy.end(START) == FAILED, deploy.evidence()
        asking.wait_for(5, START)
    none_failed(release, asking)


def failed(release: Release) -> dict[str, Any] | None:
    """The canary of the newest version that has ended in a failure."""
    version = release.sandbox.nomad.job.get_job(release.job)["Version"]
    of_job: list[dict[str, Any]] = release.sandbox.nomad.job.get_allocations(release.job)
    canaries = [one for one in of_job if one["JobVersion"] == version]
    return next((one for one in canaries if one["ClientStatus"] == "failed"), None)


def test_while_a_killed_engine_starts_again_requests_fail_and_no_longer(
    release: Release, tmp_path: Path
) -> None:
    """There is no other instance that could answer them."""
    with serves_on(release), load(release, tmp_path) as asking:
        asking.wait_for(5, START)
        killed = datetime.now().replace(microsecond=0)
        os.kill(real.engine_core(port(release)), signal.SIGKILL)
        wait_until(lambda: not serves(release), START, "it is known to be gone")
        wait_until(lambda: serves(release), START, "it is ready again")
        answers(release)
        back = datetime.now()
        asking.wait_for(5, START)
    during = [said for said in asking.seen().failures if killed <= datetime.strptime(said[:19], TIME) <= back]
    assert during
    none_failed(release, asking, but=during)


def test_a_stop_lets_a_long_stream_end_whole(release: Release, client: openai.OpenAI) -> None:
    stream = unless_cut_by_go(release, lambda: begun(client))
    release.sandbox.nomad.job.deregister_job(release.job)
    *_, last = stream
    assert last.usage
    assert last.usage.completion_tokens == real.LONG
    wait_until(lambda: not release.allocations(), START, "it has ended")


def unless_cut_by_go(release: Release, ask: Callable[[], T]) -> T:
    """Ask, and once more for an answer that Fabio has cut of itself, and says so."""
    before = cut_by_go(release.sandbox, release.job)
    try:
        return ask()
    except openai.APIConnectionError:
        wait_until(
            lambda: len(cut_by_go(release.sandbox, release.job)) > len(before), SAID, "Fabio has cut it"
        )
    return ask()


def begun(client: openai.OpenAI) -> openai.Stream[Completion]:
    """A long stream whose first piece has come."""
    stream = real.stream(client, real.LONG)
    next(stream)
    return stream


# What a balancer sees of these is that an instance is ready, or is not any more; tests with the stand-in show
# the shares of both.
ONLY: dict[object, str] = {
    test_a_change_is_promoted_on_real_metrics: "nginx",
    test_a_change_is_taken_back: "nginx",
    test_a_model_that_dies_at_its_first_request_never_gets_one: "nginx",
    test_while_a_killed_engine_starts_again_requests_fail_and_no_longer: "nginx",
}


@contextmanager
def serves_on(release: Release) -> Iterator[None]:
    """The version that serves is the same before and after."""
    before = versions(release.address, 3)
    yield
    assert versions(release.address, 3) == before


def answers(release: Release) -> None:
    """Wait until it does, through its balancer."""
    wait_until(lambda: versions(release.address, 1), START, "it answers", ignoring=(httpx.HTTPError,))


def none_failed(release: Release, asking: Load, but: Sequence[str] = ()) -> None:
    """But for these, and for answers that Fabio has cut of itself, and says so."""
    seen = asking.seen()
    left = [said for said in seen.failures if said not in but]
    assert not_cut_by_go(left, cut_by_go(release.sandbox, release.job)) == []
    assert seen.truncated == []


def load(release: Release, folder: Path) -> Load:
    """As much as two servers on two cores answer while one of them starts."""
    return Load(release.address, folder, workers=2, per_second=2)


def port(release: Release) -> int:
    return int(release.instance()["Service"]["Port"])


def serves(release: Release) -> bool:
    return {check["Status"] for check in release.instance()["Checks"]} == {"passing"}
