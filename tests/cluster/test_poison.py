"""A request that kills the engine that gets it: what it costs, behind each balancer."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import http

POISON = "poison"
ENGINE: dict[str, Any] = QUICK | {"env.VLLMJOBS_STANDIN_FAILURE": f"dies-of={POISON}"}
SECONDS = 60.0
OLD = 1024


@pytest.fixture(params=["nginx", "fabio"])
def released(request: pytest.FixtureRequest, sandbox: Sandbox, release: NewRelease) -> Iterator[Release]:
    """Two instances that die of a word."""
    is_behind_nginx = request.param == "nginx"
    ours = Release.behind_nginx(sandbox, **ENGINE) if is_behind_nginx else release(**ENGINE)
    ours.run()
    ours.wait_until_routed(OLD)
    yield ours
    if is_behind_nginx:
        sandbox.purge(ours.job)


def died(release: Release) -> list[str]:
    """The allocations whose engine has ended."""
    return [
        one["ID"]
        for one in release.sandbox.nomad.job.get_allocations(release.job)
        for task in (one["TaskStates"] or {}).values()
        if any(event["Type"] == "Terminated" for event in task["Events"])
    ]


def test_a_request_that_kills_its_engine_costs_one_instance(released: Release) -> None:
    with http() as client:
        url = f"{released.address}/v1/completions"
        answer = client.post(url, json={"model": "chat", "prompt": f"a {POISON} word", "max_tokens": 2})
        assert answer.status_code == httpx.codes.BAD_GATEWAY
        wait_until(lambda: died(released), SECONDS, "Nomad has seen that an engine died")
        # The other one answers, and Nomad starts the first anew.
        wait_until(
            lambda: client.post(url, json={"model": "chat", "prompt": "a word", "max_tokens": 2}).is_success,
            SECONDS,
            "the other one answers",
        )
    assert len(died(released)) == 1
