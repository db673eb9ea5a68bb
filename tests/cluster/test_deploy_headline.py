"""Under load from the first canary to the way back: what fails, and what is cut."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK, Command, deploying
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.cuts import cut_by_go, not_cut_by_go
from vllmjobs_sandbox.traffic.load import Counts, Load

# Beside others the machine is too busy for the balancers to learn in time that an instance leaves.
pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(1800)]
OLD, NEW = 1024, 2048
REQUESTS, RATE, WORKERS = 1_000, 25, 20  # of each balancer; begun a second; at the same time
# In full; and so many are to be answered a second.
REQUESTS_LONG, RATE_LONG, WORKERS_LONG, ANSWERED_LONG = 10_000, 50, 40, 40
FEW, FEW_WORKERS = 10, 10  # the same of the job written by hand: enough for it to fail
RELEASED = 400.0  # seconds for a release
SHIFTED, PROMOTED = {"shifted"}, {"promoting", "promoted", "stopping", "stopped"}
ENGINE: dict[str, Any] = QUICK | {
    "env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": 50,
    "env.VLLMJOBS_STANDIN_ANSWER_SECONDS": '"0.2"',
    # A machine that is busy with this load is no slow canary, and starts engines late.
    "load_time": "1m",
    "health.timeout": "10s",
    "rollout.healthy_deadline": "3m",
    "rollout.progress_deadline": "5m",
    "drain.shutdown_delay": "5s",  # nginx has to learn in it, under this load, that an instance leaves
    "rollout.analysis.limits.time_to_first_token.floor": 2,
    "rollout.analysis.limits.inter_token_latency.floor": 1,
}
ENGINE_LONG: dict[str, Any] = ENGINE | {"rollout.analysis.window": "5s", "rollout.analysis.min_requests": 40}

# As Nomad's guide to blue/green and canary deployments shows it, with what is not said there left as it is.
PLAIN = """
job "plain" {
  group "chat" {
    count = 2
    network {
      port "http" {}
    }
    update {
      canary       = 1
      auto_promote = true
      auto_revert  = true
    }
    task "vllm" {
      driver = "raw_exec"
      config {
        command = "stand-in-engine"
        args = [
          "serve", "a/small", "--served-model-name=chat", "--host=127.0.0.1", "--port=${NOMAD_PORT_http}",
          "--max-model-len=%d",
        ]
      }
      env {
        VLLMJOBS_STANDIN_TOKENS_PER_SECOND = "50"
        VLLMJOBS_STANDIN_ANSWER_SECONDS    = "0.2"
      }
      resources {
        cpu    = 500
        memory = 256
      }
      service {
        name = "plain"
        port = "http"
        tags = ["urlprefix-/plain/v1/ strip=/plain"]
        check {
          type     = "http"
          path     = "/health"
          interval = "1s"
          timeout  = "1s"
        }
      }
    }
  }
}
"""


@pytest.fixture
def behind_both(sandbox: Sandbox, release: NewRelease, long: bool) -> Iterator[tuple[Release, Release]]:
    """Two instances behind Fabio, and two behind nginx."""
    engine = ENGINE_LONG if long else ENGINE
    fabio, nginx = release(**engine), Release.behind_nginx(sandbox, **engine)
    with ThreadPoolExecutor() as lanes:
        list(lanes.map(lambda ours: succeeded(deploying(ours)), (fabio, nginx)))
    for ours in (fabio, nginx):
        ours.wait_until_routed(OLD)
    yield fabio, nginx
    sandbox.purge(nginx.job)


@pytest.fixture
def plain(sandbox: Sandbox) -> Iterator[str]:
    """The address of a job that was written by hand, and is released with `nomad job run`; it starts."""
    sandbox.run(PLAIN % OLD)
    yield f"{sandbox.fabio_address}/plain"
    sandbox.purge("plain")


def succeeded(command: Command) -> Command:
    with command:
        assert command.end(RELEASED) == 0, command.evidence()
    return command


def deploy_and_roll_back(release: Release, load: Load, requests: int) -> int:
    """Release the new version and go back, in turn, until so many are answered; return how many releases."""
    for releases, is_new in enumerate(cycle([True, False])):
        if releases > 1 and load.seen().answered >= requests:
            return releases
        if is_new:
            deployed = succeeded(deploying(release, max_model_len=NEW))
            assert {*deployed.kinds()} >= SHIFTED | PROMOTED, deployed.evidence()
        else:
            back = succeeded(Command(release.sandbox, ["rollback", *release.words()]))
            assert {*back.kinds()} >= PROMOTED, back.evidence()
    raise AssertionError("a cycle has no end")


def run_and_run_back(sandbox: Sandbox, load: Load, ours: Sequence[Future[int]]) -> int:
    """The same with the job written by hand, until ours are done and a request of its own has failed."""

    def is_enough() -> bool:
        return all(one.done() for one in ours) and is_broken(load.seen())

    def is_promoted(version: int) -> bool:
        deployment = sandbox.deployment("plain")
        return (deployment["JobVersion"], deployment["Status"]) == (version, "successful")

    for releases, length in enumerate(cycle([NEW, OLD])):
        if is_enough():
            return releases
        sandbox.run(PLAIN % length)
        version = sandbox.nomad.job.get_job("plain")["Version"]
        wait_until(
            lambda version=version: is_promoted(version) or is_enough(),  # type: ignore[misc]
            RELEASED,
            "it is promoted",
            evidence=lambda: sandbox.evidence("plain"),
        )
    raise AssertionError("a cycle has no end")


def is_broken(seen: Counts) -> bool:
    return bool(seen.failures or seen.truncated)


def test_no_request_fails(
    sandbox: Sandbox,
    plain: str,
    behind_both: tuple[Release, Release],
    tmp_path: Path,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """Through Fabio and through nginx; beside them, what becomes of requests to a job written by hand."""
    sandbox.wait_until_healthy("plain", RELEASED)
    behind_fabio, behind_nginx = behind_both
    requests = REQUESTS_LONG if long else REQUESTS
    rate, workers = (RATE_LONG, WORKERS_LONG) if long else (RATE, WORKERS)
    with (
        Load(behind_fabio.address, tmp_path, workers=workers, per_second=rate) as fabio,
        Load(behind_nginx.address, tmp_path, workers=workers, per_second=rate) as nginx,
        Load(plain, tmp_path, workers=FEW_WORKERS, per_second=FEW) as other,
        ThreadPoolExecutor() as lanes,
    ):
        releases = {
            "fabio": lanes.submit(deploy_and_roll_back, behind_fabio, fabio, requests),
            "nginx": lanes.submit(deploy_and_roll_back, behind_nginx, nginx, requests),
        }
        releases["by hand"] = lanes.submit(run_and_run_back, sandbox, other, [*releases.values()])
    cuts = cut_by_go(sandbox, behind_fabio.job)
    counts = {"fabio": fabio.seen(), "nginx": nginx.seen(), "by hand": other.seen()}
    for name, seen in counts.items():
        print(f"{name}: {said(seen)}, {releases[name].result()} releases")
        print("  " + "\n  ".join((seen.failures + seen.truncated)[:5]))
        record_property(name, f"{said(seen)}, {releases[name].result()} releases")
    print(f"{len(cuts)} cut by Go's proxy")
    record_property("cut by Go's proxy", len(cuts))
    assert counts["nginx"].failures == []
    assert not_cut_by_go(counts["fabio"].failures, cuts) == []
    assert len(counts["fabio"].failures) <= max(requests / 1000, 3)
    for seen in (counts["fabio"], counts["nginx"]):
        assert seen.truncated == []
        assert seen.answered >= requests
        assert not long or seen.rate >= ANSWERED_LONG
        assert {"stand-in max_model_len=1024", "stand-in max_model_len=2048"} == {*seen.by_version}
    assert is_broken(counts["by hand"]), "the contrast"


def said(seen: Counts) -> str:
    return (
        f"{seen.answered} answered ({seen.rate:.0f}/s), {len(seen.failures)} failed, "
        f"{len(seen.truncated)} truncated"
    )
