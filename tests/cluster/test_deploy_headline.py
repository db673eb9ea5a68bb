"""Under load from the first canary to the way back: what fails, and what is cut."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from sandbox.cluster import Sandbox
from sandbox.deploying import QUICK, Command, deploying, succeeded
from sandbox.load import Counts, Load
from sandbox.process import wait_until
from sandbox.release import NewRelease, Release

OLD, NEW = 1024, 2048
REQUESTS = 10_000
BY_HAND = 3_000
RATE, WORKERS = 50, 40  # begun a second, 40 are to be answered; at the same time
# Go's proxies, Fabio among them, cut a stream that begins while they look whether the request's body has
# ended (net/http, transferWriter.writeBody), with or without a release: within 3 ms where the machine is
# idle, within 100 where it is busy. They have closed the engine's connection themselves then, and say so.
CUT_BY_GO = "read error during body copy: .* use of closed network connection"
ENGINE = QUICK | {
    "env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": 50,
    "env.VLLMJOBS_STANDIN_ANSWER_SECONDS": '"0.2"',
    "rollout.analysis.window": "5s",
    "rollout.analysis.min_requests": 40,
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


def deploy_and_roll_back(release: Release, load: Load) -> int:
    """To the new version and back, until the load is done; how many times something was released."""
    releases = 0
    while load.seen().answered < REQUESTS:
        succeeded(deploying(release, max_model_len=NEW))
        succeeded(Command(release.sandbox, ["rollback", *release.words()]))
        releases += 2
    return releases


def run_and_run_back(sandbox: Sandbox, load: Load) -> int:
    """The same with the job written by hand."""
    releases = 0
    while load.seen().sent < BY_HAND:
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


def cut_by_go(sandbox: Sandbox) -> int:
    """How many answers Fabio has cut of itself since it was started."""
    logs = (
        sandbox.nomad_cli("alloc", "logs", "-stderr", one["ID"], "fabio").stdout
        for one in sandbox.allocations("vllm-dev-fabio")
    )
    return sum(len(re.findall(CUT_BY_GO, log)) for log in logs)


def test_no_request_fails(
    sandbox: Sandbox, release: NewRelease, behind_nginx: Release, plain: str, tmp_path: Path
) -> None:
    """Through Fabio and through nginx; after them, what becomes of requests to a job written by hand."""
    behind_fabio = release(**ENGINE)
    for ours in (behind_fabio, behind_nginx):
        succeeded(deploying(ours))
        ours.wait_until_routed(OLD)

    def load(address: str) -> Load:
        return Load(address, tmp_path, workers=WORKERS, per_second=RATE)

    cut_before = cut_by_go(sandbox)
    with (
        load(behind_fabio.address) as fabio,
        load(behind_nginx.address) as nginx,
        ThreadPoolExecutor() as lanes,
    ):
        releases = {
            "fabio": lanes.submit(deploy_and_roll_back, behind_fabio, fabio),
            "nginx": lanes.submit(deploy_and_roll_back, behind_nginx, nginx),
        }
        wait(releases.values())
    cut = cut_by_go(sandbox) - cut_before
    with load(plain) as other, ThreadPoolExecutor() as lanes:
        releases["by hand"] = lanes.submit(run_and_run_back, sandbox, other)
    counts = {"fabio": fabio.seen(), "nginx": nginx.seen(), "by hand": other.seen()}
    for name, seen in counts.items():
        print(f"{name}: {said(seen)}, {releases[name].result()} releases")
        print("  " + "\n  ".join((seen.failures + seen.truncated)[:5]))
    print(f"{cut} cut by Go's proxy")
    assert counts["nginx"].failures == []
    assert len(counts["fabio"].failures) <= cut <= REQUESTS / 1000, counts["fabio"].failures
    for seen in (counts["fabio"], counts["nginx"]):
        assert seen.truncated == []
        assert seen.answered >= REQUESTS
        assert seen.rate >= 40
        assert {"stand-in max_model_len=1024", "stand-in max_model_len=2048"} == {*seen.by_version}


def said(seen: Counts) -> str:
    return (
        f"{seen.answered} answered ({seen.rate:.0f}/s), {len(seen.failures)} failed, "
        f"{len(seen.truncated)} truncated"
    )
