"""A release from the first run to the promotion, on a real Nomad, Consul and Fabio."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import ROUTED, NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Trickle, ask, http, versions

OLD, NEW = 1024, 2048
TOKENS_PER_SECOND = 200  # of the stand-in engine


def on(node: str) -> str:
    return f'[{{attribute: "${{node.unique.name}}", value: {node}}}]'


def variable(release: Release, allocation: dict[str, Any], name: str) -> str:
    """What a variable is inside an engine."""
    command = ("alloc", "exec", "-task", "vllm", allocation["ID"], "printenv", name)
    return release.sandbox.nomad_cli(*command).stdout.strip()


@pytest.fixture(scope="module")
def running(sandbox: Sandbox) -> Iterator[Release]:
    """Two engines on one node, for tests that change nothing."""
    for new in releases(sandbox, "running"):
        release = new(**{"replicas": 2, "placement.constraints": on("gpu-1")})
        release.run()
        yield release


@pytest.fixture(scope="module")
def canary(sandbox: Sandbox) -> Iterator[Release]:
    """An engine of the old version, and a canary of the new, beside `running`: one node stays free."""
    for new in releases(sandbox, "canary"):
        released = new(**{"replicas": 1, "placement.constraints": on("gpu-1")})
        released.run()
        released.run(max_model_len=NEW)
        released.wait_until_routed(NEW)
        yield released


def test_a_first_run_needs_no_promotion(running: Release) -> None:
    deployment = running.sandbox.deployment(running.job)
    assert deployment["Status"] == "successful"
    assert deployment["TaskGroups"]["chat"]["DesiredCanaries"] == 0
    assert deployment["TaskGroups"]["chat"]["HealthyAllocs"] == 2


def test_a_chat_is_streamed_through_fabio(running: Release) -> None:
    running.wait_until_routed(OLD)
    answer = ask(running.address)
    assert len(answer.pieces) > 1
    # However busy the machine, the engine does not write faster; what is buffered comes at once.
    written_in = len(answer.pieces) / TOKENS_PER_SECOND
    assert answer.seconds - answer.first_after > written_in / 2, "buffered: all of it came at once"
    assert answer.fingerprint == f"stand-in max_model_len={OLD}"


def test_a_host_name_is_matched_with_fabios_port_and_without(release: NewRelease) -> None:
    """Clients name every port but 80 in the Host header, and Fabio compares it."""
    named = release(**{"replicas": 1, "route.host": "chat.example.com"})
    named.run()
    with http() as client:

        def status(host: str) -> int:
            return client.get(f"{named.address}/v1/models", headers={"Host": host}).status_code

        port = httpx.URL(named.address).port
        for host in ("chat.example.com", f"chat.example.com:{port}"):
            wait_until(lambda host=host: status(host) == 200, ROUTED, f"{host} is routed")  # type: ignore[misc]
        assert status("other.example.com") != 200


def test_rendering_and_running_again_is_no_change(running: Release) -> None:
    assert running.plan()["Diff"]["Type"] == "None"
    assert running.sandbox.nomad_cli("job", "plan", "-", input=running.render()).returncode == 0


def test_a_change_of_the_model_length_is_planned_as_a_canary(running: Release) -> None:
    updates = running.plan(max_model_len=NEW)["Annotations"]["DesiredTGUpdates"]["chat"]
    assert {kind: n for kind, n in updates.items() if n} == {"Canary": 1, "Ignore": 2}


def test_the_engine_has_the_secret_and_the_job_does_not(running: Release) -> None:
    sandbox = running.sandbox
    assert variable(running, running.allocations()[0], "HF_TOKEN") == sandbox.hf_token
    inspected = sandbox.nomad_cli("job", "inspect", running.job).stdout
    assert 'nomadVar \\"nomad/jobs\\"' in inspected
    assert sandbox.hf_token not in inspected


def test_engines_on_one_node_get_ports_of_their_own(running: Release) -> None:
    allocations = running.allocations()
    assert {allocation["NodeName"] for allocation in allocations} == {"gpu-1"}
    ports = {variable(running, allocation, "VLLM_PORT") for allocation in allocations}
    assert len(ports) == 2
    assert all(ports)


def test_engines_on_one_node_get_gpus_of_their_own(running: Release) -> None:
    seen = set()
    for allocation in running.allocations():
        found = running.sandbox.nomad.allocation.get_allocation(allocation["ID"])
        (device,) = found["AllocatedResources"]["Tasks"]["vllm"]["Devices"]
        assert variable(running, allocation, "CUDA_VISIBLE_DEVICES") == device["DeviceIDs"][0]
        seen |= {*device["DeviceIDs"]}
    assert len(seen) == 2


def test_old_and_canary_both_answer_through_fabio(canary: Release) -> None:
    counts = versions(canary.address, 200)
    assert set(counts) == {OLD, NEW}
    # weight: 0.1 for the canary, to within what 200 requests can tell.
    assert 5 <= counts[NEW] <= 40


def test_a_promotion_leaves_only_the_new_version_and_fails_no_request(canary: Release) -> None:
    old = {one["ID"] for one in canary.allocations() if one["JobVersion"] == 0}
    with Trickle(canary.address) as load:
        canary.sandbox.promote(canary.job)
        promoted = canary.sandbox.wait_until_healthy(canary.job)
        wait_until(lambda: not old & {one["ID"] for one in canary.allocations()}, 90, "the old ones stopped")
        wait_until(lambda: load.answered > 10, 90, "requests are answered")
    assert promoted["Status"] == "successful"
    assert load.failures == []
    assert versions(canary.address, 50) == {NEW: 50}


def test_a_canary_without_a_free_gpu_shows_in_the_plan(release: NewRelease) -> None:
    """And only there: Nomad would run it, and wait for ever."""
    whole_node = {"strategy": "tensor_parallel", "gpus.count": 4, "placement.constraints": on("gpu-2")}
    full = release(replicas=1, **whole_node)
    full.run()
    failed = full.plan(max_model_len=NEW)["FailedTGAllocs"]["chat"]
    assert failed["DimensionExhausted"] == {"devices: no devices match request": 1}
    assert full.sandbox.nomad_cli("job", "plan", "-", input=full.render(max_model_len=NEW)).returncode == 1
