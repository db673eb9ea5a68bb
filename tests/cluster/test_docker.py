"""What the docker jobs ask for, as Nomad's docker driver and a real Docker carry it out."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.docker import ENGINE, IMAGE, Docker
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import http

NOBODY = 65534
MIB = 1024**2
# Short waits and the image; all else about the container is what an environment gets that says nothing.
ENVIRONMENT = """\
job: JOB
nomad: {max_kill_timeout: 2m}
balancer: {image: IMAGE, consul: CONSUL}
models:
  chat:
    model: facebook/opt-125m
    image: IMAGE
    entrypoint: [ENGINE]
    max_model_len: 1024
    secrets: {HF_TOKEN: nomad/jobs#hf_token}
    cache: {bind: CACHE}
    resources: {cpu: 500, memory: 64 MiB, memory_max: 128 MiB, shm: 32 MiB, disk: 100 MiB}
    container: {pids: 100, tmp: 16 MiB}
    health: {interval: 1s, timeout: 1s}
    drain: {longest_stream: 5s, shutdown_delay: 0s}
    pull_time: 5s
    load_time: 15s
    rollout: {min_healthy_time: 1s, healthy_deadline: 30s, progress_deadline: 1m}
"""
CACHE = "/models"  # where an engine sees it


class Container:
    """A task of the newest allocation of a job, as Nomad and Docker see it."""

    def __init__(self, docker: Docker, sandbox: Sandbox, job: str, task: str) -> None:
        self.docker, self.sandbox, self.job, self.task = docker, sandbox, job, task

    def allocation(self) -> Json:
        return max(self.sandbox.allocations(self.job), key=lambda one: one["CreateIndex"])

    def inspect(self) -> Json:
        return self.docker.inspect(f"{self.task}-{self.allocation()['ID']}")

    def host(self) -> Json:
        found: Json = self.inspect()["HostConfig"]
        return found

    def variables(self) -> dict[str, str]:
        """The environment of its process 1."""
        return dict(line.split("=", 1) for line in self.inside("cat", "/proc/1/environ").split("\0") if line)

    def inside(self, *command: str) -> str:
        """Run a command in it; `nomad alloc exec` would lose the output of every fiftieth or so."""
        return self.docker.cli("exec", f"{self.task}-{self.allocation()['ID']}", *command)

    def can_write(self, path: str) -> bool:
        try:
            self.inside("touch", path)
        except SandboxError as error:
            assert "Read-only file system" in str(error)
            return False
        return True

    def port(self, label: str = "http") -> int:
        found = self.sandbox.nomad.allocation.get_allocation(self.allocation()["ID"])
        ports = {one["Label"]: one["Value"] for one in found["AllocatedResources"]["Shared"]["Ports"]}
        return int(ports[label])

    def has_no_rights(self) -> bool:
        lines = self.inside("cat", "/proc/1/status").splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        return (
            {*status["Uid"].split(), *status["Gid"].split()} == {str(NOBODY)}
            and {status[f"Cap{one}"] for one in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            and status["NoNewPrivs"] == "1"
        )


class Engine(Container):
    """A job of one engine."""

    def __init__(self, docker: Docker, sandbox: Sandbox, job: str, cache: Path) -> None:
        super().__init__(docker, sandbox, job, "vllm")
        text = ENVIRONMENT.replace("JOB", job).replace("IMAGE", IMAGE).replace("ENGINE", ENGINE)
        consul = sandbox.consul_address.removeprefix("http://")
        text = text.replace("CONSUL", consul).replace("CACHE", str(cache))
        (sandbox.folder / f"envs/{job}.yaml").write_text(text)

    def render(self, **chat: Any) -> str:
        settings = (f"models.chat.{key}={value}" for key, value in chat.items())
        return self.sandbox.render(self.job, *(word for one in settings for word in ("--set", one)))

    def run(self, **chat: Any) -> Json:
        self.sandbox.run(self.render(**chat))
        return self.sandbox.wait_until_healthy(self.job)


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with Docker() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(docker: Docker, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(clients=1, balancers=False, docker=docker.host) as running:
        done = running.nomad_cli("operator", "scheduler", "set-config", "-memory-oversubscription=true")
        assert done.returncode == 0, done.stderr
        yield running
        running.keep_files = bool(request.session.testsfailed)


@pytest.fixture(scope="module")
def cache(cluster: Sandbox) -> Path:
    """A model cache on the node, which the engine's user owns."""
    folder = cluster.folder / "models"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    return folder


@pytest.fixture(scope="module")
def engine(docker: Docker, cluster: Sandbox, cache: Path) -> Iterator[Engine]:
    """One engine, for tests that change nothing."""
    made = Engine(docker, cluster, "engine", cache)
    made.run()
    yield made
    cluster.purge("engine")


@pytest.fixture(scope="module")
def other(docker: Docker, cluster: Sandbox, cache: Path) -> Iterator[Engine]:
    """One with other settings, until a canary takes its place."""
    made = Engine(docker, cluster, "other", cache)
    logs = {"logs.driver": "fluentd", "logs.fluentd_address": "127.0.0.1:24224"}
    made.run(**{"container.network": "host"}, **logs)
    yield made
    cluster.purge("other")


def test_an_engine_is_healthy_through_its_mapped_port(engine: Engine) -> None:
    (service,) = engine.sandbox.consul.health.service("engine-chat", passing=True)[1]
    assert service["Service"]["Port"] == engine.port()
    assert engine.host()["PortBindings"]["8000/tcp"][0]["HostPort"] == str(engine.port())
    with http() as client:
        assert client.get(f"http://127.0.0.1:{engine.port()}/health").status_code == 200


def test_an_engine_gets_its_gpu_through_the_nvidia_runtime(engine: Engine) -> None:
    found = engine.sandbox.nomad.allocation.get_allocation(engine.allocation()["ID"])
    (device,) = found["AllocatedResources"]["Tasks"]["vllm"]["Devices"]
    assert engine.host()["Runtime"] == "nvidia"
    assert [engine.variables()["NVIDIA_VISIBLE_DEVICES"]] == device["DeviceIDs"]


def test_an_engine_has_no_rights(engine: Engine) -> None:
    assert engine.has_no_rights()
    assert not engine.host()["Privileged"]


def test_an_engine_writes_only_where_it_has_to(engine: Engine) -> None:
    variables = engine.variables()
    assert not engine.can_write("/new")
    assert engine.can_write("/tmp/new")
    assert engine.can_write(f"{variables['HOME']}/new")
    assert engine.can_write(f"{CACHE}/new")
    assert variables["HF_HOME"].startswith(f"{CACHE}/")


def test_an_engine_is_held_to_its_limits(engine: Engine) -> None:
    host = engine.host()
    assert host["PidsLimit"] == 100
    assert (host["MemoryReservation"], host["Memory"]) == (64 * MIB, 128 * MIB)
    sizes = {line.split()[5]: line.split()[1] for line in engine.inside("df", "-k").splitlines()[1:]}
    assert (sizes["/dev/shm"], sizes["/tmp"]) == (str(32 * 1024), str(16 * 1024))


def test_the_log_of_an_engine_is_rotated(engine: Engine) -> None:
    assert engine.host()["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}


def test_an_engine_has_the_secret_and_the_job_does_not(engine: Engine) -> None:
    assert engine.variables()["HF_TOKEN"] == engine.sandbox.hf_token
    assert engine.sandbox.hf_token not in json.dumps(engine.sandbox.nomad.job.get_job(engine.job))


def test_rendering_and_running_again_is_no_change(engine: Engine) -> None:
    assert engine.sandbox.plan(engine.render())["Diff"]["Type"] == "None"


def test_on_the_hosts_network_an_engine_has_the_ports_that_nomad_gives_it(other: Engine) -> None:
    assert other.host()["NetworkMode"] == "host"
    assert f"--port={other.port()}" in other.inspect()["Args"]
    assert other.variables()["VLLM_PORT"] == str(other.port("engine"))
    with http() as client, pytest.raises(httpx.ConnectError):
        client.get(f"http://127.0.0.2:{other.port()}/health")  # nowhere but at the allocation's address
    with http() as client:
        assert client.get(f"http://127.0.0.1:{other.port()}/health").status_code == 200


def test_logs_can_go_to_fluentd(other: Engine) -> None:
    log = other.host()["LogConfig"]
    assert log["Type"] == "fluentd"
    assert log["Config"]["tag"] == "other-chat"


def test_a_canary_gets_healthy_beside_the_old_one(other: Engine) -> None:
    deployment = other.run(max_model_len=2048)
    assert deployment["TaskGroups"]["chat"]["HealthyAllocs"] == 1
    assert not deployment["TaskGroups"]["chat"]["Promoted"]
    assert "--max-model-len=2048" in other.inspect()["Args"]
    assert len(other.sandbox.consul.health.service("other-chat", passing=True)[1]) == 2
    other.sandbox.promote(other.job)
    wait_until(lambda: len(other.sandbox.allocations(other.job)) == 1, 30, "the old one stopped")


@pytest.mark.parametrize(
    ("kind", "port", "path"), [("fabio", "http", "/v1/models"), ("nginx", "admin", "/health")]
)
def test_a_balancer_finds_the_engine_and_has_no_rights(
    engine: Engine, kind: str, port: str, path: str
) -> None:
    """Nginx does not reach it: the engine listens on loopback here, which is another one in a container."""
    sandbox, name = engine.sandbox, f"{engine.job}-{kind}"
    at = {"kind": kind, "port": engine.docker.ports.take(), "admin_port": engine.docker.ports.take()}
    at["metrics"] = "false"  # this nginx does not count its connections
    settings = (word for key, value in at.items() for word in ("--set", f"balancer.{key}={value}"))
    sandbox.run(sandbox.render(engine.job, "--job", kind, *settings))
    try:
        balancer = Container(engine.docker, sandbox, name, kind)
        with http() as client:
            wait_until(
                lambda: client.get(f"http://127.0.0.1:{balancer.port(port)}{path}").status_code == 200,
                20,
                f"{kind} answers",
                ignoring=(httpx.HTTPError, ValueError),
                evidence=lambda: sandbox.evidence(name),
            )
        assert balancer.has_no_rights()
        assert balancer.host()["ReadonlyRootfs"]
    finally:
        sandbox.purge(name)
