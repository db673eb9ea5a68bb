"""Faults around a job: no node, balancer, Consul, disk, secret or token."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.secured import published, secured_server
from vllmjobs_sandbox.story.night import BALANCER, JOB, SOON, WATCHED, Night


@contextmanager
def none(night: Night, _: Path) -> Iterator[None]:
    """Have a job that is well."""
    night.well(**WATCHED)
    yield


@contextmanager
def no_node_takes_it(night: Night, _: Path) -> Iterator[None]:
    """Take both nodes out, and then end the instance."""
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
    """Stop the job of the balancer."""
    night.well()
    night.sandbox.nomad_cli("job", "stop", "-detach", BALANCER)
    wait_until(lambda: not night.sandbox.allocations(BALANCER), SOON, "it has ended")
    try:
        yield
    finally:
        night.sandbox.run(night.render("--job", "fabio"))


@contextmanager
def consul_agent_down(night: Night, _: Path) -> Iterator[None]:
    """Kill the Consul agent of the instance's node."""
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
    """Make the folder of the models a disk of 1 MiB, with an old model on it."""
    models = folder / "models"
    models.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", models], check=True)
    try:
        (models / "models--old").mkdir()
        with (models / "models--old" / "weights").open("wb") as weights:
            weights.write(bytes(1000 * 1024))
        night.away()
        load = 'head -c 500000 /dev/zero >$HF_HOME/weights && exec stand-in-engine serve "$@"'
        night.start(entrypoint=["sh", "-c", load, "sh"], **{"env.HF_HOME": str(models)})
        wait_until(night.has_failed_once, SOON, "its disk is full")
        night.words = {"MODELS": str(models)}
        yield
    finally:
        night.away()
        subprocess.run(["umount", models], check=True)


@contextmanager
def secret_missing(night: Night, _: Path) -> Iterator[None]:
    """Start a job whose secret does not exist."""
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
    """Have a token that has expired, at a Nomad with ACLs and TLS beside the sandbox."""
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
