"""images/vllm as scripts/build makes it, on a base with the stand-in engine, and as Nomad runs it."""

import io
import json
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from vllmjobs.environment.derive import vllm_version
from vllmjobs.environment.model import Environment, Images, Model
from vllmjobs.text.json import Json
from vllmjobs.vllm.releases import NEWEST
from vllmjobs_sandbox.cluster import image
from vllmjobs_sandbox.cluster.docker import IMAGE, Docker
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Answer, ask, http

NOBODY = 65534
SECONDS = 60.0
TOKEN = "hf_thisMustNotBeInAnyLayer"
TOKENS = 120  # of the answer during which it is told to stop: 6 s
# What looks packages up reaches nothing, wherever this runs; the build itself has Docker's network.
NOWHERE = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
ENVIRONMENT = """\
job: image
nomad: {max_kill_timeout: 2m}
balancer: {consul: CONSUL}
models:
  chat:
    model: facebook/opt-125m
    image: IMAGE
    max_model_len: 1024
    secrets: {HF_TOKEN: nomad/jobs#hf_token}
    cache: {bind: CACHE}
    resources: {cpu: 500, memory: 256 MiB, shm: 32 MiB, disk: 100 MiB}
    container: {tmp: 16 MiB}
    env:
      VLLMJOBS_STANDIN_TOKENS_PER_SECOND: "20"
      VLLMJOBS_STANDIN_ANSWER_TOKENS: "TOKENS"
      VLLMJOBS_STANDIN_EXIT_SECONDS: "0"
    health: {interval: 1s, timeout: 1s}
    drain: {longest_stream: 20s, shutdown_delay: 2s}
    pull_time: 5s
    load_time: 30s
    rollout: {min_healthy_time: 1s, healthy_deadline: 50s, progress_deadline: 2m}
"""


@dataclass(frozen=True)
class Build:
    """scripts/build in a copy of the checkout."""

    checkout: Path
    docker: Docker
    path: str
    options: tuple[str, ...]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts/build", "--base", image.BASE, *words, "--", *self.options],
            env={**os.environ, **NOWHERE, "PATH": self.path, "DOCKER_HOST": self.docker.host},
            check=False,
            capture_output=True,
            text=True,
        )


class Server:
    """The one allocation of the job, with its container and its ports."""

    def __init__(self, docker: Docker, sandbox: Sandbox) -> None:
        self.docker, self.sandbox = docker, sandbox
        (self.allocation,) = sandbox.allocations("image")
        self.container = f"vllm-{self.allocation['ID']}"
        found = sandbox.nomad.allocation.get_allocation(self.allocation["ID"])
        self.ports = {one["Label"]: one["Value"] for one in found["AllocatedResources"]["Shared"]["Ports"]}

    def inspect(self) -> Json:
        return self.docker.inspect(self.container)

    def inside(self, *command: str) -> str:
        return self.docker.cli("exec", self.container, *command)

    def admin(self, path: str) -> tuple[int, Json]:
        try:
            with http() as client:
                answer = client.get(f"http://127.0.0.1:{self.ports['admin']}{path}")
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def instance(self) -> Json:
        found: Json = self.admin("/health")[1].get("instances", {}).get("chat", {})
        return found

    def task(self) -> Json:
        found: Json = self.sandbox.nomad.allocation.get_allocation(self.allocation["ID"])["TaskStates"][
            "vllm"
        ]
        return found


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with Docker() as running:
        image.import_base(running)
        yield running


@pytest.fixture(scope="module")
def build(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("build")
    checkout = folder / "checkout"
    checkout.mkdir()
    image.checkout_copy(checkout)
    for place in (".", "generator/vllmjobs/supervisor", "images/vllm"):
        (checkout / place / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    (checkout / "images/vllm/hf_token").write_text(TOKEN)
    options = image.network(folder, TOKEN)
    return Build(checkout, docker, image.builder(folder / "bin"), tuple(options))


@pytest.fixture(scope="module")
def refused(build: Build) -> tuple[subprocess.CompletedProcess[str], str]:
    """The first build, whose packages cannot be looked up, and the images that are there after it."""
    return build.run("--out", "refused"), build.docker.cli("image", "ls", "--quiet", "vllmjobs-vllm")


@pytest.fixture(scope="module")
def built(build: Build, refused: object) -> str:
    """The image's name."""
    done = build.run("--allow-unscanned")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def cluster(docker: Docker, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(clients=1, docker=docker.host) as running:
        yield running
        running.keep_files = bool(request.session.testsfailed)


@pytest.fixture(scope="module")
def server(docker: Docker, cluster: Sandbox, built: str) -> Iterator[Server]:
    """The image as a rendered job, healthy; the tests live through its life in their order."""
    cache = cluster.folder / "models"
    cache.mkdir(exist_ok=True)
    os.chown(cache, NOBODY, NOBODY)
    consul = cluster.consul_address.removeprefix("http://")
    text = ENVIRONMENT.replace("IMAGE", built).replace("CONSUL", consul).replace("CACHE", str(cache))
    text = text.replace('"TOKENS"', f'"{TOKENS}"')
    (cluster.folder / "envs/image.yaml").write_text(text)
    cluster.run(cluster.render("image"))
    cluster.wait_until_healthy("image")
    yield Server(docker, cluster)
    cluster.purge("image")


def test_an_image_that_could_not_be_scanned_is_not_tagged(
    build: Build, refused: tuple[subprocess.CompletedProcess[str], str]
) -> None:
    done, images = refused
    assert done.returncode == 1
    assert "vulnerabilities: not scanned: pip-audit failed: " in done.stderr
    assert "not scanned: not tagged" in done.stderr
    report = json.loads((build.checkout / "refused/vulnerabilities.json").read_text())
    assert (report["scanned"], report["vulnerabilities"]) == (False, None)
    assert images == ""


def test_it_serves_through_fabio_once_it_is_ready(server: Server) -> None:
    assert server.admin("/ready") == (200, {"ready": True, "instances": {"chat": True}})
    (service,) = server.sandbox.consul.health.service("image-chat", passing=True)[1]
    assert service["Service"]["Port"] == server.ports["http"]
    wait_until(lambda: _serves(server.sandbox.fabio_address), SECONDS, "Fabio routes to it")
    assert ask(server.sandbox.fabio_address, max_tokens=5).tokens == 5


def test_it_has_no_rights_and_one_gpu(server: Server) -> None:
    found = server.inspect()
    for pid in ("1", str(server.instance()["pid"])):
        lines = server.inside("cat", f"/proc/{pid}/status").splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        assert {*status["Uid"].split(), *status["Gid"].split()} == {str(NOBODY)}
        assert {status[f"Cap{one}"] for one in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert found["HostConfig"]["Runtime"] == "nvidia"
    with pytest.raises(SandboxError, match="Read-only file system"):
        server.inside("touch", "/opt/vllmjobs/new")
    server.inside("touch", "/tmp/new", "/models/new")
    (gpu,) = server.instance()["gpus"]
    assert gpu in server.sandbox.gpus("gpu-1")


def test_the_supervisor_is_process_1_and_the_engine_its_child(server: Server) -> None:
    pid = server.instance()["pid"]
    assert "vllmjobs-supervise" in server.inside("cat", "/proc/1/cmdline")
    assert "\0serve\0facebook/opt-125m\0" in server.inside("cat", f"/proc/{pid}/cmdline")
    assert server.inside("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()[1] == "1"


def test_an_engine_that_crashes_is_started_again_in_the_same_container(server: Server) -> None:
    before = server.inspect()
    server.inside("kill", "-9", str(server.instance()["pid"]))
    wait_until(lambda: server.instance().get("restarts") == 1, SECONDS, "it was started again")
    wait_until(lambda: server.admin("/ready")[0] == 200, SECONDS, "it is ready again")
    after = server.inspect()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert (server.task()["State"], server.task()["Restarts"]) == ("running", 0)


def test_an_answer_on_its_way_ends_whole_when_the_job_is_stopped(server: Server) -> None:
    wait_until(lambda: _serves(server.sandbox.fabio_address), SECONDS, "Fabio routes to it")
    answers: list[Answer] = []
    asking = threading.Thread(
        target=lambda: answers.append(ask(server.sandbox.fabio_address, max_tokens=TOKENS))
    )
    asking.start()
    wait_until(lambda: _running(server) == 1, SECONDS, "the answer has begun")
    assert server.sandbox.nomad_cli("job", "stop", "-detach", "image").returncode == 0
    wait_until(lambda: server.admin("/ready")[0] == 503, SECONDS, "it says that it stops")
    assert asking.is_alive()
    asking.join(SECONDS)
    assert [one.tokens for one in answers] == [TOKENS]
    wait_until(lambda: server.task()["State"] == "dead", SECONDS, "the task has ended")
    assert not server.task()["Failed"]
    (ended,) = (one for one in server.task()["Events"] if one["Type"] == "Terminated")
    assert ended["ExitCode"] == 0


def test_docker_itself_finds_it_healthy(docker: Docker, built: str) -> None:
    """As compose would run it: no Nomad, read-only, a volume for what is kept."""
    options = ["--read-only", "--cap-drop=ALL", "--volume=kept:/models", "--health-interval=1s"]
    container = docker.cli("run", "--detach", *options, built, "facebook/opt-125m").strip()
    wait_until(
        lambda: docker.inspect(container)["State"]["Health"]["Status"] == "healthy", SECONDS, "it is healthy"
    )
    docker.cli("exec", container, "touch", "/models/new")  # a new volume is the user's
    docker.cli("stop", container)
    assert docker.inspect(container)["State"]["ExitCode"] == 0
    docker.cli("rm", container)


def test_its_name_says_which_vllm_which_vllmjobs_and_which_revision(build: Build, built: str) -> None:
    git = ["git", "-C", str(build.checkout), "rev-parse", "--short=12", "HEAD"]
    revision = subprocess.check_output(git, text=True).strip()
    assert re.fullmatch(rf"vllmjobs-vllm:{re.escape(NEWEST)}-\d+\.\d+\.\d+-{revision}(-dirty)?", built)
    chat = Model(model="facebook/opt-125m", image=built)
    assert vllm_version(Environment(models={"chat": chat}), chat) == NEWEST


def test_its_labels_say_what_it_is(docker: Docker, built: str) -> None:
    config = docker.inspect(built)["Config"]
    version, revision = built.split("-", 3)[2:]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == "vllmjobs-vllm"
    assert (labels["version"], labels["revision"]) == (version, revision)
    assert labels["base.name"] == image.BASE
    assert labels["vllmjobs.install"] == "standard"
    assert labels["vllmjobs.vulnerabilities"] == "not scanned"
    assert (config["User"], config["StopSignal"]) == ("65534:65534", "SIGTERM")
    assert config["Entrypoint"] == ["vllmjobs-supervise", "--", "vllm", "serve"]


def test_no_layer_holds_a_secret_or_an_env_file(docker: Docker, built: str, tmp_path: Path) -> None:
    docker.cli("save", "--output", str(tmp_path / "image.tar"), built)
    names = []
    with tarfile.open(tmp_path / "image.tar") as saved:
        for blob in filter(tarfile.TarInfo.isfile, saved):
            content = saved.extractfile(blob)
            assert content
            data = content.read()
            assert TOKEN.encode() not in data
            if not blob.name.endswith(".json") and tarfile.is_tarfile(io.BytesIO(data)):
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    for file in layer:
                        names.append(file.name)
                        opened = layer.extractfile(file) if file.isfile() else None
                        assert not opened or TOKEN.encode() not in opened.read()
    assert "opt/vllmjobs/bin/vllmjobs-supervise" in names
    assert [name for name in names if Path(name).name.startswith((".env", "pip.conf", "ca.pem"))] == []
    assert TOKEN not in docker.cli("history", "--no-trunc", built)


def test_the_bill_of_materials_lists_the_packages_of_both_environments(build: Build, built: str) -> None:
    text = (build.checkout / "build/image/sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    listed = {one["name"]: one for one in bill["components"]}
    assert bill["metadata"]["component"]["name"] == "vllmjobs-vllm"
    assert {"uvicorn", "starlette", "nvidia-ml-py", "vllmjobs-supervisor"} <= listed.keys()
    assert (
        not {"msgspec", "hatchling"} & listed.keys()
    )  # what the supervisor does not need, and what built it
    assert listed["nvidia-ml-py"]["properties"] == [{"name": "vllmjobs:prefix", "value": "/opt/vllmjobs"}]
    assert listed["uvicorn"]["properties"] == [{"name": "vllmjobs:prefix", "value": image.VENV}]


@pytest.fixture(scope="module")
def other(build: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Json]:
    """An image for gpt-oss, of a base whose tag has moved on; that base by its digest, and the labels."""
    docker = build.docker
    with image.registry(docker, tmp_path_factory.mktemp("registry")) as address:
        name = f"{address}/vllm:0.33.0-pushed"
        # The second has no Python: nothing could be built on it.
        for tagged in (image.BASE, IMAGE):
            docker.cli("tag", tagged, name)
            docker.cli("push", name)
        pushed = docker.inspect(image.BASE)["RepoDigests"]
        (digest,) = (one.partition("@")[2] for one in pushed if one.startswith(address))
        docker.cli("rmi", name)
        base = ("--base", f"{name}@{digest}", "--out", "by-digest")
        done = build.run(*base, "--install", "gptoss", "--tag", "other:1", "--allow-unscanned")
    assert done.returncode == 0, done.stderr
    made = docker.inspect("other:1")
    assert made["Id"] == docker.inspect(done.stdout.strip())["Id"]
    return f"{name}@{digest}", made["Config"]["Labels"]


def test_an_image_for_gpt_oss_says_so_and_may_have_another_tag(other: tuple[str, Json]) -> None:
    assert other[1]["vllmjobs.install"] == "gptoss"


def test_a_base_is_taken_by_its_digest_whatever_its_tag_says_by_then(other: tuple[str, Json]) -> None:
    base, labels = other
    of_base = "org.opencontainers.image.base"
    assert f"{labels[f'{of_base}.name']}@{labels[f'{of_base}.digest']}" == base


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "vllm/vllm-openai@sha256:12"], "it has a tag, as in NAME:TAG, and maybe a digest"),
        (["--base", "vllm/vllm-openai"], "it has a tag, as in NAME:TAG"),
        (["--install", "nightly"], "it is standard or gptoss"),
        (["--tag"], "--tag needs a value"),
        (["--push"], "no such option: --push"),
    ],
)
def test_scripts_build_says_what_it_was_told_wrongly(words: list[str], said: str) -> None:
    done = subprocess.run([CHECKOUT / "scripts/build", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_default_base_is_the_image_of_the_environments() -> None:
    text = (CHECKOUT / "images/vllm/Dockerfile").read_text()
    default = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    assert f"{default['BASE']}:{default['TAG']}" == Images().standard == Images().gptoss


def test_hadolint_has_nothing_to_say() -> None:
    command = ["hadolint", str(CHECKOUT / "images/vllm/Dockerfile")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def _serves(address: str) -> bool:
    with http() as client:
        return client.get(f"{address}/v1/models").status_code == 200


def _running(server: Server) -> float:
    with http() as client:
        text = client.get(f"http://127.0.0.1:{server.ports['http']}/metrics").text
    found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
