"""Faults of GPUs: broken, fenced, or held by others."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs_sandbox.cluster.jobs import holder
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.gpus.live import GIB, Live, library, uuid
from vllmjobs_sandbox.gpus.nvml import build
from vllmjobs_sandbox.story.night import SOON, SUPERVISED, Night

HOG = f'job "nightly-eval" {{\n{holder("eval", count=7)}}}\n'


@contextmanager
def gpu_breaks(night: Night, folder: Path) -> Iterator[None]:
    """Break the GPU of an instance, so that its node is fenced."""
    gpus = [gpu for node in night.sandbox.nodes for gpu in night.sandbox.gpus(node)]
    live = Live(library(folder), folder / "live", gpus)
    night.well(entrypoint=SUPERVISED, **{f"env.{name}": value for name, value in live.env.items()})
    broken = night.last()
    try:
        found = night.sandbox.nomad.allocation.get_allocation(broken["ID"])
        (device,) = found["AllocatedResources"]["Tasks"]["vllm"]["Devices"]
        live.xid(device["DeviceIDs"][0], 79)
        wait_until(lambda: FENCE_META in night.sandbox.node(broken["NodeName"])["Meta"], SOON, "it is fenced")
        night.changes()
        yield
    finally:
        live.close()
        lift(night, broken["NodeName"])


def lift(night: Night, name: str) -> None:
    """Take the fence away from a node."""
    night.sandbox.nomad_cli(
        "node", "meta", "apply", "-node-id", night.sandbox.node(name)["ID"], "-unset", FENCE_META
    )
    wait_until(lambda: FENCE_META not in night.sandbox.node(name)["Meta"], SOON, "the fence is lifted")


@contextmanager
def node_fenced(night: Night, _: Path) -> Iterator[None]:
    """Fence the node on which the canary has room, as the supervisor does it."""
    night.away()
    node = night.sandbox.node("gpu-2")
    reason = f"{uuid(0)} XID 79 (GPU has fallen off the bus) 2026-11-28T03:00:00Z"
    night.sandbox.nomad_cli("node", "meta", "apply", "-node-id", node["ID"], f"{FENCE_META}={reason}")
    wait_until(lambda: FENCE_META in night.sandbox.node("gpu-2")["Meta"], SOON, "it is fenced")
    night.words = {"NODE": node["ID"][:8]}
    night.write(entrypoint=SUPERVISED, replicas=5)
    try:
        yield
    finally:
        lift(night, "gpu-2")


@contextmanager
def gpu_memory_taken(night: Night, folder: Path) -> Iterator[None]:
    """Let somebody's process hold memory of a GPU; NVML is a library here."""
    other = subprocess.Popen(["sleep", "600"])
    threading.Thread(target=other.wait, daemon=True).start()
    said = {
        "NAME": "NVIDIA H100 80GB HBM3",
        "UUID": uuid(0),
        "MEMORY": 80 * GIB,
        "USED": 79 * GIB,
        "COMPUTE": f"{os.getpid()}:{72 * GIB},{other.pid}:{7 * GIB}",
    }
    before = night.env
    night.env = before | {f"GPU0_{key}": str(value) for key, value in said.items()}
    night.env |= {"NVML_GPUS": "1", "LD_LIBRARY_PATH": str(build(folder))}
    night.words = {"PID": str(other.pid)}
    try:
        yield
    finally:
        night.env = before
        other.kill()


@contextmanager
def no_free_gpu(night: Night, _: Path) -> Iterator[None]:
    """Let another job hold all GPUs but those of one instance."""
    night.well()
    night.sandbox.run(HOG)
    night.sandbox.wait_until_healthy("nightly-eval")
    night.write(max_model_len=2048)
    try:
        yield
    finally:
        night.sandbox.purge("nightly-eval")
