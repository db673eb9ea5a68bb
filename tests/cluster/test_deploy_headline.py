"""Under load from the first canary to the way back: what fails, and what is cut."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK, Command, deploying, succeeded
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.cuts import cut_by_go, not_cut_by_go
from vllmjobs_sandbox.traffic.load import Counts, Load

# Beside others the machine is too busy for the balancers to learn in time that an instance leaves.
pytestmark = [pytest.mark.long, pytest.mark.alone]
OLD, NEW = 1024, 2048
REQUESTS = 1_000  # of each balancer
REQUESTS_LONG, RATE_LONG = 10_000, 40  # in full, and so many are to be answered a second
RATE, WORKERS = 50, 40  # begun a second; at the same time
FEW, FEW_WORKERS = 10, 10  # the same of the job written by hand: enough for it to fail
SHIFTED, PROMOTED = {"shifted"}, {"promoting", "promoted", "stopping", "stopped"}
ENGINE = QUICK | {
    "env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": 50,
    "env.VLLMJOBS_STANDIN_ANSWER_SECONDS": '"0.2"',
    "rollout.analysis.window": "5s",
    "rollout.analysis.min_requests": 40,
    # A machine that is busy with this load is no slow canary, and starts engines late.
    "rollout.healthy_deadline": "40s",
    "rollout.progress_deadline": "1m",
    "rollout.analysis.limits.time_to_first_token.floor": 2,
    "rollout.analysis.limits.inter_token_latency.floor": 1,
}

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
def behind_nginx(sandbox: Sandbox) -> Iterator[Release]:
    yield Release.behind_nginx(sandbox, **ENGINE)
    sandbox.purge("vllm-dev")


@pytest.fixture
def plain(sandbox: Sandbox) -> Iterator[str]:
    """The address of a job that was written by hand, and is released with `nomad job run`."""
    sandbox.run(PLAIN % OLD)
    sandbox.wait_until_healthy("plain")
    yield f"{sandbox.fabio_address}/plain"
    sandbox.purge("plain")


def deploy_and_roll_back(release: Release, load: Load, requests: int) -> int:
    """Release the new version and go back, until so many are answered; return how many releases it took."""
    releases = 0
    while load.seen().answered < requests:
        deployed = succeeded(deploying(release, max_model_len=NEW))
        assert {*deployed.kinds()} >= SHIFTED | PROMOTED, deployed.evidence()
        back = succeeded(Command(release.sandbox, ["rollback", *release.words()]))
        assert {*back.kinds()} >= PROMOTED, back.evidence()
        releases += 2
    return releases


def run_and_run_back(sandbox: Sandbox, ours: Sequence[Future[int]]) -> int:
    """The same with the job written by hand, until ours are done."""
    releases = 0
    while not all(one.done() for one in ours):
        for length in (NEW, OLD):
            sandbox.run(PLAIN % length)
            wait_until(
                lambda: sandbox.deployment("plain")["Status"] == "successful",
                60,
                "it is promoted",
                evidence=lambda: sandbox.evidence("plain"),
            )
            releases += 1
    return releases


def test_no_request_fails(
    sandbox: Sandbox,
    release: NewRelease,
    behind_nginx: Release,
    plain: str,
    tmp_path: Path,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """Through Fabio and through nginx; beside them, what becomes of requests to a job written by hand."""
    requests = REQUESTS_LONG if long else REQUESTS
    behind_fabio = release(**ENGINE)
    for ours in (behind_fabio, behind_nginx):
        succeeded(deploying(ours))
        ours.wait_until_routed(OLD)

    with (
        Load(behind_fabio.address, tmp_path, workers=WORKERS, per_second=RATE) as fabio,
        Load(behind_nginx.address, tmp_path, workers=WORKERS, per_second=RATE) as nginx,
        Load(plain, tmp_path, workers=FEW_WORKERS, per_second=FEW) as other,
        ThreadPoolExecutor() as lanes,
    ):
        releases = {
            "fabio": lanes.submit(deploy_and_roll_back, behind_fabio, fabio, requests),
            "nginx": lanes.submit(deploy_and_roll_back, behind_nginx, nginx, requests),
        }
        releases["by hand"] = lanes.submit(run_and_run_back, sandbox, [*releases.values()])
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
        assert not long or seen.rate >= RATE_LONG
        assert {"stand-in max_model_len=1024", "stand-in max_model_len=2048"} == {*seen.by_version}
    assert counts["by hand"].failures or counts["by hand"].truncated, "the contrast"


def said(seen: Counts) -> str:
    return (
        f"{seen.answered} answered ({seen.rate:.0f}/s), {len(seen.failures)} failed, "
        f"{len(seen.truncated)} truncated"
    )
