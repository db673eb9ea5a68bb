"""The faults of the runbooks, by name: each is a context in which the fault is there."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sandbox.live import GIB, Live, library, uuid
from sandbox.night import BALANCER, JOB, SOON, SUPERVISED, Night
from sandbox.nvml import build
from sandbox.process import wait_until
from sandbox.secured import published, secured_server
from sandbox.traffic import http
from vllmjobs.supervisor.fence import META

Fault = Callable[[Night, Path], AbstractContextManager[None]]
HOG = """
job "nightly-eval" {
  group "eval" {
    count = 7
    task "sleep" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
      resources {
        cpu    = 50
        memory = 32
        device "nvidia/gpu" {}
      }
    }
  }
}
"""
# One request at a time, of 2 s; the cache is full of one.
SLOW = {"env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "4", "args.max-num-seqs": 1}
SMALL_CACHE = {"env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "10", "env.VLLMJOBS_STANDIN_KV_TOKENS": "20"}


def failing(mode: str) -> dict[str, Any]:
    return {"env.VLLMJOBS_STANDIN_FAILURE": mode}


@contextmanager
def none(night: Night, _: Path) -> Iterator[None]:
    """All is well."""
    night.well(entrypoint=SUPERVISED)
    yield


@contextmanager
def no_node_takes_it(night: Night, _: Path) -> Iterator[None]:
    """Both nodes were taken out, and then the instance ended."""
    night.well()
    nodes = [night.sandbox.node(name)["ID"] for name in night.sandbox.nodes]
    try:
        for node in nodes:
            night.sandbox.nomad.node.eligible_node(node, eligible=False)
        night.sandbox.nomad_cli("alloc", "stop", "-detach", "-no-shutdown-delay", night.words["ALLOCATION"])
        wait_until(lambda: not night.serves(), SOON, "nothing serves")
        yield
    finally:
        for node in nodes:
            night.sandbox.nomad.node.eligible_node(node, eligible=True)


@contextmanager
def balancer_stopped(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.sandbox.nomad_cli("job", "stop", "-detach", BALANCER)
    wait_until(lambda: not night.sandbox.allocations(BALANCER), SOON, "it has ended")
    try:
        yield
    finally:
        night.sandbox.run(night.render("--job", "fabio"))


@contextmanager
def errors_after_a_release(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.deployed(**failing("error-rate=0.5"))
    night.ask(20)
    yield


@contextmanager
def requests_wait(night: Night, _: Path) -> Iterator[None]:
    night.well(**SLOW)
    night.away_later()
    with night.asked(6):
        wait_until(lambda: night.metric("vllm:num_requests_waiting") >= 4, SOON, "they wait")
        yield


@contextmanager
def cache_full(night: Night, _: Path) -> Iterator[None]:
    night.well(**SMALL_CACHE)
    night.away_later()
    with night.asked(4, tokens=40):
        wait_until(lambda: night.metric("vllm:kv_cache_usage_perc") == 1, SOON, "it is full")
        yield


@contextmanager
def preempts(night: Night, _: Path) -> Iterator[None]:
    night.well(**SMALL_CACHE, **failing("preempts"))
    night.away_later()
    with night.asked(4, tokens=40):
        wait_until(lambda: night.metric("vllm:num_preemptions_total") >= 4, SOON, "it preempts")
        yield


@contextmanager
def restarts_after_a_release(night: Night, _: Path) -> Iterator[None]:
    night.well(entrypoint=SUPERVISED)
    night.deployed(entrypoint=SUPERVISED, **failing("exit-0-after=4"))

    def twice() -> bool:
        night.ask()
        return night.metric("vllmjobs_supervisor_instance_failures_total", "ADMIN") >= 2

    wait_until(twice, SOON, "its engine has ended twice")
    yield


@contextmanager
def given_up(night: Night, _: Path) -> Iterator[None]:
    night.well(entrypoint=SUPERVISED, **{"env.VLLMJOBS_RESTARTS": "0"})
    with http() as client:
        health = client.get(f"http://{night.words['ADMIN']}/health").json()
    os.kill(health["instances"]["chat"]["pid"], signal.SIGKILL)
    wait_until(lambda: night.last()["ClientStatus"] == "failed", SOON, "its supervisor has given it up")
    night.away_later()
    yield


@contextmanager
def gpu_breaks(night: Night, folder: Path) -> Iterator[None]:
    gpus = [gpu for node in night.sandbox.nodes for gpu in night.sandbox.gpus(node)]
    live = Live(library(folder), folder / "live", gpus)
    night.well(entrypoint=SUPERVISED, **{f"env.{name}": value for name, value in live.env.items()})
    broken = night.last()
    try:
        found = night.sandbox.nomad.allocation.get_allocation(broken["ID"])
        (device,) = found["AllocatedResources"]["Tasks"]["vllm"]["Devices"]
        live.xid(device["DeviceIDs"][0], 79)
        wait_until(lambda: META in night.sandbox.node(broken["NodeName"])["Meta"], SOON, "it is fenced")
        night.away_later()
        yield
    finally:
        live.close()
        lift(night, broken["NodeName"])


def lift(night: Night, name: str) -> None:
    """Take the fence away from a node."""
    night.sandbox.nomad_cli(
        "node", "meta", "apply", "-node-id", night.sandbox.node(name)["ID"], "-unset", META
    )
    wait_until(lambda: META not in night.sandbox.node(name)["Meta"], SOON, "the fence is lifted")


@contextmanager
def node_fenced(night: Night, _: Path) -> Iterator[None]:
    """The fence as the supervisor writes it, around the node on which the canary has room."""
    night.away()
    node = night.sandbox.node("gpu-2")
    reason = f"{uuid(0)} XID 79 (GPU has fallen off the bus) 2026-11-28T03:00:00Z"
    night.sandbox.nomad_cli("node", "meta", "apply", "-node-id", node["ID"], f"{META}={reason}")
    wait_until(lambda: META in night.sandbox.node("gpu-2")["Meta"], SOON, "it is fenced")
    night.words = {"NODE": node["ID"][:8]}
    night.write(entrypoint=SUPERVISED, replicas=5)
    try:
        yield
    finally:
        lift(night, "gpu-2")


@contextmanager
def gpu_memory_taken(night: Night, folder: Path) -> Iterator[None]:
    """Somebody's process holds memory of a GPU; NVML is a library here."""
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
def waits_for_its_promotion(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.start(max_model_len=2048)
    night.sandbox.wait_until_healthy(JOB)
    yield


@contextmanager
def no_free_gpu(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.sandbox.run(HOG)
    night.sandbox.wait_until_healthy("nightly-eval")
    night.write(max_model_len=2048)
    try:
        yield
    finally:
        night.sandbox.purge("nightly-eval")


@contextmanager
def canary_answers_500(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.write(**failing("error-rate=1"))
    yield
    night.write()


@contextmanager
def canary_crashes(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.start(
        **failing("exit-1-before-ready"),
        **{"rollout.healthy_deadline": "40s", "rollout.progress_deadline": "1m"},
    )
    wait_until(night.has_failed_once, SOON, "it has ended")
    night.point_at(night.last())
    yield


@contextmanager
def loads_slowly(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.write(
        **{
            "env.VLLMJOBS_STANDIN_LOAD_SECONDS": "6",
            "load_time": "1s",
            "rollout.healthy_deadline": "3s",
            "rollout.progress_deadline": "5s",
            "drain.kill_timeout": "4s",
        }
    )
    yield


@contextmanager
def fabio_frozen(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.sandbox.consul.kv.put("fabio/config/broken", "route wieght everything 1")
    night.write(max_model_len=2048)
    try:
        yield
    finally:
        night.sandbox.consul.kv.delete("fabio/config/broken")
        night.write()


@contextmanager
def consul_agent_down(night: Night, _: Path) -> Iterator[None]:
    night.well()
    agent = f"consul-{night.node}"
    down = True

    def start() -> None:
        nonlocal down
        night.sandbox.start_again(agent)
        down = False

    night.units["consul"] = start
    night.sandbox.kill(agent)
    try:
        yield
    finally:
        if down:
            start()


@contextmanager
def disk_full(night: Night, folder: Path) -> Iterator[None]:
    """The folder of the models is a disk of 1 MiB, with an old model on it."""
    models = folder / "models"
    models.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", models], check=True)
    try:
        (models / "models--old").mkdir()
        with (models / "models--old" / "weights").open("wb") as weights:
            weights.write(bytes(1000 * 1024))
        night.away()
        load = 'head -c 500000 /dev/zero >$HF_HOME/weights && exec stand-in-engine serve "$@"'
        deadlines = {"rollout.healthy_deadline": "40s", "rollout.progress_deadline": "1m"}
        night.start(entrypoint=["sh", "-c", load, "sh"], **{"env.HF_HOME": str(models)}, **deadlines)
        wait_until(night.has_failed_once, SOON, "its disk is full")
        night.words = {"MODELS": str(models)}
        yield
    finally:
        night.away()
        subprocess.run(["umount", models], check=True)


@contextmanager
def secret_missing(night: Night, _: Path) -> Iterator[None]:
    night.away()
    night.start(secrets={"HF_TOKEN": f"nomad/jobs/{JOB}#hf_token"})
    wait_until(lambda: night.sandbox.allocations(JOB), SOON, "it is placed")
    night.point_at(night.last())
    try:
        yield
    finally:
        night.sandbox.nomad_cli("var", "purge", f"nomad/jobs/{JOB}")


@contextmanager
def token_expired(night: Night, folder: Path) -> Iterator[None]:
    """At a Nomad with ACLs and TLS, beside the sandbox."""
    before = night.env
    with secured_server(folder) as server:
        server.nomad("acl", "policy", "apply", "deploy", "-", text=published("deploy.md", "Nomad"))
        night.write()
        night.env = before | server.environ | {"NOMAD_TOKEN": "11111111-2222-3333-4444-555555555555"}
        night.words = {"MANAGER": server.manager}
        try:
            yield
        finally:
            night.env = before


@contextmanager
def bad_release(night: Night, _: Path) -> Iterator[None]:
    night.well()
    night.deployed(max_model_len=2048)
    yield


FAULTS: dict[str, Fault] = {
    "none": none,
    "no-ready-instance": no_node_takes_it,
    "balancer-down": balancer_stopped,
    "error-rate": errors_after_a_release,
    "requests-wait": requests_wait,
    "kv-cache-full": cache_full,
    "preemptions": preempts,
    "restarts": restarts_after_a_release,
    "given-up": given_up,
    "gpu-breaks": gpu_breaks,
    "gpu-fenced": node_fenced,
    "gpu-memory": gpu_memory_taken,
    "deployment-stuck": waits_for_its_promotion,
    "no-free-gpu": no_free_gpu,
    "canary-answers-500": canary_answers_500,
    "engine-crash-loop": canary_crashes,
    "loads-slowly": loads_slowly,
    "fabio-table-frozen": fabio_frozen,
    "consul-agent-down": consul_agent_down,
    "disk-full": disk_full,
    "secret-missing": secret_missing,
    "token-expired": token_expired,
    "bad-release": bad_release,
}
