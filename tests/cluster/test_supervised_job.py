"""A job whose entrypoint starts the supervisor: Nomad places, the supervisor restarts and drains."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import ask, http

SUPERVISED = "[vllmjobs-supervise, --, stand-in-engine, serve]"
TOKENS = 1000  # 5 s of the stand-in engine, and 3 s are for the balancer
SOON = 30.0


@pytest.fixture(scope="module")
def supervised(sandbox: Sandbox) -> Iterator[Release]:
    """One engine under a supervisor, for these tests in their order: the last stops it."""
    for new in releases(sandbox, "supervised"):
        released = new(entrypoint=SUPERVISED, replicas=1, **{"drain.longest_stream": "30s"})
        released.run()
        released.wait_until_routed(1024)
        yield released


def ask_supervisor(release: Release, path: str) -> httpx.Response:
    """Ask the admin port, where the service says that it is."""
    service = release.instance()["Service"]
    with http() as client:
        return client.get(f"http://{service['Address']}:{service['Meta']['supervisor_metrics_port']}{path}")


def engine(release: Release) -> int | None:
    """The process of the engine while it is ready."""
    seen = ask_supervisor(release, "/health").json()["instances"]["chat"]
    return int(seen["pid"]) if seen["phase"] == "ready" else None


def test_the_supervisor_says_when_requests_are_welcome(supervised: Release) -> None:
    checks = [check for check in supervised.instance()["Checks"] if check["Name"] == "ready"]
    assert [check["Status"] for check in checks] == ["passing"]
    assert '"ready": true' in checks[0]["Output"].replace('":true', '": true')
    assert ask(supervised.address).pieces
    assert "vllmjobs_supervisor_" in ask_supervisor(supervised, "/metrics").text


def test_an_engine_that_dies_is_restarted_in_its_allocation(supervised: Release) -> None:
    (before,) = supervised.allocations()
    first = engine(supervised)
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until(
        lambda: (pid := engine(supervised)) and pid != first,
        SOON,
        "another engine is ready",
        evidence=lambda: supervised.sandbox.evidence(supervised.job),
    )
    (after,) = supervised.allocations()
    assert after["ID"] == before["ID"]
    assert after["TaskStates"]["vllm"]["Restarts"] == 0
    supervised.wait_until_routed(1024)


def test_an_engine_that_is_given_up_is_placed_anew_by_nomad_alone(release: NewRelease) -> None:
    """The supervisor's budget is the only one: Nomad restarts nothing in place."""
    failing = {"env.VLLMJOBS_STANDIN_FAILURE": "exit-1-before-ready", "env.VLLMJOBS_RESTARTS": '"1"'}
    job = release(entrypoint=SUPERVISED, replicas=1, **failing)
    hcl = job.render()
    assert 'delay          = "30s"' in hcl  # until it is placed again: the only change
    job.sandbox.run(hcl.replace('delay          = "30s"', 'delay          = "5s"'))

    def placed_anew() -> list[Json] | None:
        found: list[Json] = job.sandbox.nomad.job.get_allocations(job.job)
        ended = [one for one in found if one["ClientStatus"] == "failed"]
        return ended if len(found) > len(ended) > 0 else None

    ended = wait_until(placed_anew, SOON, "it is placed anew", evidence=lambda: job.sandbox.evidence(job.job))
    for one in ended:
        task = one["TaskStates"]["vllm"]
        (terminated,) = (event for event in task["Events"] if event["Type"] == "Terminated")
        assert (terminated["ExitCode"], task["Restarts"]) == (1, 0)
        said = job.sandbox.nomad_cli("alloc", "logs", one["ID"], "vllm").stdout
        assert said.count('"event": "instance_started"') == 2


def test_a_stream_on_its_way_ends_whole_when_the_job_is_stopped(supervised: Release) -> None:
    (allocation,) = supervised.allocations()
    service = supervised.instance()["Service"]
    body = {"model": "chat", "prompt": "Why?", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    began, chunks = threading.Event(), []

    def stream() -> None:
        address = f"http://{service['Address']}:{service['Port']}/v1/completions"
        with http() as client, client.stream("POST", address, json=body, timeout=60) as answer:
            for line in filter(None, answer.iter_lines()):
                chunks.append(line.removeprefix("data: "))
                began.set()

    client = threading.Thread(target=stream, daemon=True)
    client.start()
    assert began.wait(SOON)
    supervised.sandbox.nomad_cli("job", "stop", "-detach", supervised.job)
    client.join(60)
    assert chunks[-1] == "[DONE]"
    assert json.loads(chunks[-2])["choices"][0]["finish_reason"] == "length"

    def ended() -> dict[str, Any] | None:
        found = supervised.sandbox.nomad.allocation.get_allocation(allocation["ID"])
        return found["TaskStates"]["vllm"] if found["ClientStatus"] == "complete" else None

    state = wait_until(ended, SOON, "the allocation is complete")
    (terminated,) = (event for event in state["Events"] if event["Type"] == "Terminated")
    assert (terminated["ExitCode"], terminated["Signal"]) == (0, 0), "it was killed"
    said = supervised.sandbox.nomad_cli("alloc", "logs", allocation["ID"], "vllm").stdout
    (drained,) = (one for one in map(json.loads, said.splitlines()) if one.get("event") == "instance_drained")
    assert drained["unanswered"] == 0
    assert drained["drain_seconds"] > 0


def test_no_instance_is_placed_on_a_fenced_node(release: NewRelease) -> None:
    sandbox = release().sandbox
    node = sandbox.node("gpu-1")["ID"]
    sandbox.nomad_cli("node", "meta", "apply", "-node-id", node, "vllmjobs_gpu_fenced=GPU-1 XID 79")
    try:
        wait_until(
            lambda: "vllmjobs_gpu_fenced" in sandbox.node("gpu-1")["Meta"],
            SOON,
            "the servers know of the fence",
        )
        job = release(entrypoint=SUPERVISED, replicas=5)
        failed = job.plan()["FailedTGAllocs"]["chat"]  # one more than gpu-2 has GPUs
        assert sum(failed["ConstraintFiltered"].values()) == 1
        plain = release(replicas=5)
        assert not plain.plan()["FailedTGAllocs"]
    finally:
        sandbox.nomad_cli("node", "meta", "apply", "-node-id", node, "-unset", "vllmjobs_gpu_fenced")
        wait_until(lambda: "vllmjobs_gpu_fenced" not in sandbox.node("gpu-1")["Meta"], SOON, "it is lifted")
