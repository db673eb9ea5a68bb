"""`deploy` behind nginx: a verdict that refuses, and one switch of all requests."""

from collections.abc import Iterator
from typing import Any

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK, deploying, succeeded
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Trickle, versions

OLD, NEW = 1024, 2048
REFUSED = 4
SETTLED = 30.0  # seconds


@pytest.fixture(scope="module")
def release(sandbox: Sandbox) -> Iterator[Release]:
    """Two instances of the old version."""
    behind = Release.behind_nginx(sandbox, **QUICK | {"drain.shutdown_delay": "3s"})
    behind.run()
    behind.wait_until_routed(OLD)
    yield behind
    sandbox.purge(behind.job)


def settles_at(release: Release, length: int) -> None:
    """Two instances of one version serve alone, and no share is left."""
    wait_until(
        lambda: len(release.allocations()) == 2 and versions(release.address, 20) == {length: 20},
        SETTLED,
        f"two instances of {length} serve alone",
        evidence=lambda: release.sandbox.evidence(release.job),
    )
    assert not release.sandbox.consul.kv.get(f"vllmjobs/{release.job}", keys=True)[1]


def test_a_canary_that_answers_500_is_refused(release: Release) -> None:
    old = {one["ID"] for one in release.allocations()}
    broken: dict[str, Any] = {"env.VLLMJOBS_STANDIN_FAILURE": "error-rate=1"}
    with (
        Trickle(release.address, per_second=20) as load,
        deploying(release, max_model_len=NEW, **broken) as deploy,
    ):
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "error_rate" in deploy.wait_for("done")["text"]
    settles_at(release, OLD)
    assert {one["ID"] for one in release.allocations()} == old
    assert [said for said in load.failures if "500 Internal" not in said] == [], "the canary's share"


def test_blue_green_switches_all_requests_at_once(release: Release) -> None:
    both: dict[str, Any] = {"max_model_len": NEW, "rollout.strategy": "blue_green"}
    with Trickle(release.address, per_second=20) as load:
        deployed = succeeded(deploying(release, **both))
    assert load.failures == []
    kinds = [event["kind"] for event in deployed.events]
    assert kinds[: kinds.index("shifted")].count("healthy") == 2, "as many as there are"
    assert [event["data"]["share"] for event in deployed.events if event["kind"] == "shifted"] == [1.0]
    settles_at(release, NEW)
