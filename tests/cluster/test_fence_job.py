"""A GPU that breaks under a job: its node is fenced, and the job goes on elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.supervisor.core.model import GPU_FATAL
from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.gpus.live import Live, library

SUPERVISED = "[vllmjobs-supervise, --, stand-in-engine, serve]"
SOON = 60.0


@pytest.fixture
def live(sandbox: Sandbox, tmp_path: Path) -> Iterator[Live]:
    """An NVML that knows the GPUs of all nodes; at the end, no node is fenced."""
    gpus = [gpu for node in sandbox.nodes for gpu in sandbox.gpus(node)]
    live = Live(library(tmp_path), tmp_path / "live", gpus)
    yield live
    live.close()
    for node in fenced(sandbox):
        lifted = sandbox.nomad_cli("node", "meta", "apply", "-node-id", node, "-unset", FENCE_META)
        assert lifted.returncode == 0, lifted.stderr
    wait_until(lambda: not fenced(sandbox), SOON, "the fence is lifted")


def fenced(sandbox: Sandbox) -> list[str]:
    """The IDs of the nodes that are fenced, as far as Nomad's servers know."""
    return [node["ID"] for name in sandbox.nodes if FENCE_META in (node := sandbox.node(name))["Meta"]]


def test_a_broken_gpu_fences_its_node_and_the_job_goes_on_at_another(release: NewRelease, live: Live) -> None:
    """The job is as it is rendered, but for 30 s until Nomad places it again."""
    env = {f"env.{name}": json.dumps(value) for name, value in live.env.items()}
    job = release(entrypoint=SUPERVISED, replicas=1, **env)
    sandbox, hcl = job.sandbox, job.render()
    assert 'delay          = "30s"' in hcl
    sandbox.run(hcl.replace('delay          = "30s"', 'delay          = "10s"'))
    sandbox.wait_until_healthy(job.job)
    (first,) = job.allocations()
    live.xid(gpu := used(sandbox, first), 79)

    def ended() -> Json | None:
        found: Json = sandbox.nomad.allocation.get_allocation(first["ID"])
        return found if found["ClientStatus"] == "failed" else None

    state = wait_until(ended, SOON, "it has failed", evidence=lambda: sandbox.evidence(job.job))
    task = state["TaskStates"]["vllm"]
    (terminated,) = (event for event in task["Events"] if event["Type"] == "Terminated")
    assert (terminated["ExitCode"], task["Restarts"]) == (GPU_FATAL, 0)
    said = sandbox.nomad_cli("alloc", "logs", first["ID"], "vllm").stdout
    (fenced,) = (one for one in map(json.loads, said.splitlines()) if one.get("event") == "node_fenced")
    assert fenced["gpu"] == gpu

    (second,) = wait_until(
        job.allocations, SOON, "it is placed again", evidence=lambda: sandbox.evidence(job.job)
    )
    assert second["NodeName"] != first["NodeName"]
    assert sandbox.node(first["NodeName"])["Meta"][FENCE_META].startswith(f"{gpu} XID 79 ")
    placed = sandbox.nomad.allocation.get_allocation(second["ID"])
    assert placed["PreviousAllocation"] == first["ID"]
    assert placed["Metrics"]["ConstraintFiltered"] == {"${meta.vllmjobs_gpu_fenced} is_not_set ": 1}
    job.wait_until_routed(1024)


def used(sandbox: Sandbox, allocation: Json) -> str:
    """The GPU of an allocation."""
    found = sandbox.nomad.allocation.get_allocation(allocation["ID"])
    (device,) = found["AllocatedResources"]["Tasks"]["vllm"]["Devices"]
    (gpu,) = device["DeviceIDs"]
    return str(gpu)
