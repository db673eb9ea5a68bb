"""`vllmjobs up` and its kin: an environment, or an .env file, on this machine with a real nginx."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sandbox import nginx, programs
from sandbox.load import Load
from sandbox.ports import take_block
from sandbox.process import wait_until

SECONDS = 60.0
ENVIRONMENT = """\
balancer: {{kind: nginx, port: {port}, admin_port: {admin}}}
models:
  chat:
    model: a/small
    replicas: 2
    image: vllm/vllm-openai:v0.33.0
    entrypoint: [stand-in-engine, serve]
    ports: {{base: {base}}}
    drain: {{longest_stream: 10s}}
"""
DOTENV = """\
VLLM_MODEL=facebook/opt-125m
VLLM_MODEL_NAME=opt
VLLM_STRATEGY={strategy}
VLLM_GPU_COUNT=auto
VLLM_BASE_PORT={base}
NGINX_PORT={port}
HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz0123456789
"""


class Machine:
    """A person's folder, with programs on PATH and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._block = take_block()
        self.port, self.admin, self.base = (self._block.take() for _ in range(3))
        for _ in range(4):  # those after the first, for more servers
            self._block.take()
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "nginx").symlink_to(nginx.at_hand()[0])
        (folder / "bin" / "stand-in-engine").symlink_to(programs.programs()["stand-in-engine"])
        self.env = {
            **os.environ,
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
            "VLLMJOBS_STANDIN_EXIT_SECONDS": "0",
        }

    def write(self, name: str, text: str, **values: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(port=self.port, admin=self.admin, base=self.base, **values))
        return path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["vllmjobs", *words],
            cwd=self.folder,
            env=self.env,
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def done(self, *words: str) -> str:
        """What a command says that is to succeed."""
        ended = self.run(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    def ask(self, path: str, port: int | None = None) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=SECONDS) as client:
            return client.get(f"http://127.0.0.1:{port or self.port}{path}")

    def complete(self, path: str = "/v1/completions", model: str = "chat") -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=SECONDS) as client:
            asked = {"model": model, "prompt": "Why?", "max_tokens": 2}
            return client.post(f"http://127.0.0.1:{self.port}{path}", json=asked)

    def end(self) -> None:
        for job in (self.folder / "state" / "vllmjobs").glob("vllm-*"):
            self.run("down", job.name.removeprefix("vllm-"))
        self._block.release()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.end()


@pytest.fixture
def one(machine: Machine) -> Machine:
    """`up one -d`: two servers behind nginx."""
    machine.write("envs/one.yaml", ENVIRONMENT)
    machine.done("up", "one", "-d")
    return machine


def test_an_environment_is_up_when_its_model_answers(machine: Machine) -> None:
    machine.write("envs/one.yaml", ENVIRONMENT)
    said = machine.done("up", "one", "--detach")
    assert f"chat-0: chat on no GPU, port {machine.base}" in said
    assert "vllm-one is ready; its log is " in said
    assert machine.complete().json()["usage"]["completion_tokens"] == 2
    assert machine.ask("/health", machine.admin).json() == {
        "chat": {"stable": 2, "canary": 0, "canary_weight": 0}
    }
    assert "vllm-one is stopped" in machine.done("down", "one")
    with pytest.raises(httpx.ConnectError):
        machine.ask("/health", machine.admin)
    assert "vllm-one is not up on this machine" in machine.done("down", "one")


def test_each_server_has_a_route_of_its_own(one: Machine) -> None:
    for number in range(2):
        assert one.complete(f"/v1/chat-{number}/completions").status_code == 200
    assert one.complete("/v1/chat-2/completions").status_code == 404


def test_status_shows_the_servers_of_this_machine(one: Machine) -> None:
    shown = one.run("status", "one")
    assert shown.returncode == 0, shown.stderr
    first, *rows = shown.stdout.splitlines()
    assert re.fullmatch(r"vllm-one on this machine: ok, up for \d+s", first)
    assert [row.split()[:2] for row in rows] == [[name, "ready"] for name in ("chat-0", "chat-1", "nginx")]
    assert json.loads(one.run("status", "one", "--json").stdout)["status"] == "ok"


def test_logs_are_those_of_a_model_a_server_or_all(one: Machine) -> None:
    def shown(*words: str) -> list[str]:
        ended = one.run("logs", "one", *words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    assert {line.split(" | ")[0] for line in shown("chat", "-n", "500")} == {"chat-0", "chat-1"}
    assert {line.split(" | ")[0] for line in shown("nginx", "-n", "500")} == {"nginx"}
    assert len(shown("-n", "3")) == 3
    ready = [line for line in shown("chat-1", "-n", "500") if "instance_ready" in line]
    assert re.fullmatch(r"chat-1 \| \S+Z INFO instance_ready load_seconds=[\d.]+", ready[0])
    assert "has no server code; it has chat-0, chat-1, nginx" in one.run("logs", "one", "code").stderr


def test_logs_go_on_with_what_comes(one: Machine) -> None:
    following = subprocess.Popen(
        ["vllmjobs", "logs", "one", "nginx", "-f", "-n", "0"],
        cwd=one.folder,
        env=one.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout
        asked = threading.Event()

        def ask() -> None:
            while not asked.wait(0.2):
                one.complete()

        with ThreadPoolExecutor() as pool:
            pool.submit(ask)
            line = following.stdout.readline()
            asked.set()
        assert line.startswith("nginx | ")
        assert "POST /v1/completions" in line
    finally:
        following.send_signal(signal.SIGINT)
        assert following.wait(SECONDS) == 0


def test_it_is_not_started_twice(one: Machine) -> None:
    again = one.run("up", "one", "-d")
    assert again.returncode == 1
    assert "vllm-one is up already; vllmjobs down one stops it" in again.stderr
    assert one.complete().status_code == 200


def test_another_of_the_same_name_in_another_folder_is_another(one: Machine, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = Machine(tmp_path / "second")
    try:
        pid = server_pid(one, "chat-0")
        second.write("envs/one.yaml", ENVIRONMENT)
        second.done("up", "one", "-d")
        assert server_pid(one, "chat-0") == pid
        second.done("down", "one")
        assert one.complete().status_code == 200
    finally:
        second.end()


def test_one_servers_death_is_not_the_others(one: Machine) -> None:
    pid = server_pid(one, "chat-0")
    os.kill(pid, signal.SIGKILL)
    assert [one.complete().status_code for _ in range(10)] == [200] * 10
    wait_until(lambda: server_pid(one, "chat-0") != pid, SECONDS, "it is started again", ignoring=(KeyError,))


def test_health_is_503_while_no_server_is_ready(machine: Machine) -> None:
    machine.write("envs/one.yaml", ENVIRONMENT.replace("replicas: 2", "replicas: 1"))
    machine.done("up", "one", "-d")
    os.kill(server_pid(machine, "chat-0"), signal.SIGKILL)
    wait_until(lambda: machine.ask("/health", machine.admin).status_code == 503, SECONDS, "nobody is ready")
    assert machine.complete().json()["error"]["code"] == 503
    wait_until(
        lambda: machine.ask("/health", machine.admin).status_code == 200, SECONDS, "one is ready again"
    )


def test_servers_are_restarted_one_after_the_other_and_no_request_fails(one: Machine, tmp_path: Path) -> None:
    with Load(f"http://127.0.0.1:{one.port}", tmp_path, workers=10, per_second=30) as load:
        load.wait_for(30, SECONDS)
        assert one.done("restart", "one", "chat") == "chat-0 is ready again\nchat-1 is ready again\n"
        load.wait_for(30, SECONDS)
    assert (load.seen().failures, load.seen().truncated) == ([], [])


def test_a_server_that_is_not_there_is_named(one: Machine) -> None:
    ended = one.run("restart", "one", "code")
    assert ended.returncode == 1
    assert "vllm-one has no server code; it has chat-0, chat-1" in ended.stderr


BEFORE = """\
models:
  before:
    model: b/small
    image: vllm/vllm-openai:v0.33.0
    entrypoint: [stand-in-engine, serve]
    ports: {{base: {base}}}
    route: {{path: /before/v1/, strip: /before}}
"""


def changed(machine: Machine, old: str, new: str) -> None:
    machine.write("envs/one.yaml", ENVIRONMENT.replace(old, new))


def test_a_reload_changes_servers_one_after_the_other_and_no_request_fails(
    one: Machine, tmp_path: Path
) -> None:
    changed(one, "a/small", "a/small\n    max_model_len: 1024")
    with Load(f"http://127.0.0.1:{one.port}", tmp_path, workers=10, per_second=30) as load:
        load.wait_for(30, SECONDS)
        said = one.done("reload", "one").splitlines()
        load.wait_for(30, SECONDS)
    assert said[-3:] == ["chat-0 is ready", "chat-1 is ready", "vllm-one is reloaded"]
    assert (load.seen().failures, load.seen().truncated) == ([], [])
    for name in ("chat-0", "chat-1"):
        assert "--max-model-len=1024" in command_line(one, name)


def test_a_reload_leaves_servers_that_do_not_differ_alone(one: Machine) -> None:
    pids = [server_pid(one, name) for name in ("chat-0", "chat-1")]
    assert one.done("reload", "one").endswith("vllm-one: no server differs\n")
    one.write("envs/one.yaml", ENVIRONMENT.replace("models:\n", BEFORE))
    said = one.done("reload", "one")
    assert f"before-0: before on no GPU, port {one.base + 2}" in said
    assert said.endswith("before-0 is ready\nvllm-one is reloaded\n")
    assert one.complete("/before/v1/completions", "before").status_code == 200
    assert [server_pid(one, name) for name in ("chat-0", "chat-1")] == pids
    changed(one, "replicas: 2", "replicas: 1")
    assert one.done("reload", "one").endswith(
        "chat-1 is stopped\nbefore-0 is stopped\nvllm-one is reloaded\n"
    )
    assert one.complete("/before/v1/completions", "before").status_code == 404
    assert server_pid(one, "chat-0") == pids[0]


def test_a_reload_of_routes_restarts_nothing(one: Machine) -> None:
    pid = server_pid(one, "chat-0")
    changed(one, "    replicas: 2\n", "    replicas: 2\n    route: {{path: /talk/v1/, strip: /talk}}\n")
    one.done("reload", "one")
    wait_until(
        lambda: one.complete("/talk/v1/completions").status_code == 200, SECONDS, "it has the new route"
    )
    assert server_pid(one, "chat-0") == pid


def test_a_reload_ends_at_the_first_server_that_does_not_get_ready(one: Machine) -> None:
    pid = server_pid(one, "chat-1")
    changed(one, "[stand-in-engine, serve]", "[no-such-engine]")
    ended = one.run("reload", "one")
    assert ended.returncode == 1
    assert "chat-0 did not come back: exit code 127; see " in ended.stderr
    assert server_pid(one, "chat-1") == pid
    assert one.complete().status_code == 200
    one.write("envs/one.yaml", ENVIRONMENT)
    assert one.done("reload", "one").endswith("chat-0 is ready\nvllm-one is reloaded\n")
    assert server_pid(one, "chat-1") == pid


def test_a_reload_that_nginx_refuses_changes_nothing(one: Machine) -> None:
    folder = one.folder / "state" / "vllmjobs" / "vllm-one"
    before = (folder / "nginx" / "nginx.conf").read_text()
    one.write("jobs/nginx.conf.ctmpl.j2", "daemon off;\nworker_procesess 2;\n")
    ended = one.run("reload", "one")
    assert ended.returncode == 1
    assert 'unknown directive "worker_procesess" in nginx.conf:2' in ended.stderr
    assert (folder / "nginx" / "nginx.conf").read_text() == before
    assert one.complete().status_code == 200


def test_a_reload_brings_secrets_that_changed_and_writes_none(machine: Machine) -> None:
    changed(machine, "    replicas: 2\n", "    replicas: 1\n    secrets: {{HF_TOKEN: nomad/jobs#hf_token}}\n")
    machine.env["HF_TOKEN"] = "hf_first"
    machine.done("up", "one", "-d")
    machine.env["HF_TOKEN"] = "hf_second"
    assert machine.done("reload", "one").endswith("chat-0 is ready\nvllm-one is reloaded\n")
    environ = Path(f"/proc/{server_pid(machine, 'chat-0')}/environ").read_bytes()
    assert b"HF_TOKEN=hf_second" in environ
    written = [file.read_bytes() for file in (machine.folder / "state").rglob("*") if file.is_file()]
    assert not any(b"hf_second" in text for text in written)


def test_what_is_not_up_is_not_reloaded(machine: Machine) -> None:
    machine.write("envs/one.yaml", ENVIRONMENT)
    ended = machine.run("reload", "one")
    assert ended.returncode == 1
    assert ended.stderr == "vllm-one is not up on this machine; vllmjobs up one starts it\n"


def test_one_that_does_not_get_up_says_why(machine: Machine) -> None:
    machine.write("envs/one.yaml", ENVIRONMENT.replace("[stand-in-engine, serve]", "[no-such-engine]"))
    ended = machine.run("up", "one", "-d")
    assert ended.returncode == 1
    assert "vllm-one ended with exit code 1; the end of " in ended.stderr
    assert "no-such-engine: not found on its PATH" in ended.stderr


def test_in_front_it_ends_with_ctrl_c(machine: Machine) -> None:
    machine.write("envs/one.yaml", ENVIRONMENT)
    process = subprocess.Popen(
        ["vllmjobs", "up", "one"], cwd=machine.folder, env=machine.env, stdout=subprocess.DEVNULL
    )
    try:
        wait_until(
            lambda: machine.complete().status_code == 200, SECONDS, "it answers", ignoring=(httpx.HTTPError,)
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("strategy", ["multi_instance", "tensor_parallel"])
def test_an_env_file_of_balanced_vllm_docker_is_run_as_it_is(machine: Machine, strategy: str) -> None:
    machine.write(".env", DOTENV, strategy=strategy)
    engine = 'models.opt.entrypoint=["stand-in-engine","serve"]'
    machine.done(
        "up", "--env-file", ".env", "-d", "--set", engine, "--set", f"balancer.admin_port={machine.admin}"
    )
    assert machine.complete(model="opt").status_code == 200
    written = [file.read_bytes() for file in (machine.folder / "state").rglob("*") if file.is_file()]
    assert not any(b"hf_abcdef" in text for text in written)
    environ = Path(f"/proc/{server_pid(machine, 'opt-0', 'vllm-box')}/environ").read_bytes()
    assert b"HF_TOKEN=hf_abcdef" in environ
    assert "vllm-box is stopped" in machine.done("down")


def test_an_instances_config_is_run_as_it_is(machine: Machine) -> None:
    machine.write("instances.config", "chat:1:a/small:auto:2048:1\ncode:2:a/small:auto:1024:1\n")
    engine = 'defaults.entrypoint=["stand-in-engine","serve"]'
    port, admin = f"balancer.port={machine.port}", f"balancer.admin_port={machine.admin}"
    base = f"defaults.ports.base={machine.base}"
    machine.done(
        "up", "--env-file", "instances.config", "-d",
        *(word for one in (engine, port, admin, base) for word in ("--set", one)),
    )  # fmt: skip
    for name in ("chat", "code"):
        assert machine.complete(f"/{name}/v1/completions", model=name).status_code == 200


def command_line(machine: Machine, name: str) -> list[str]:
    return Path(f"/proc/{server_pid(machine, name)}/cmdline").read_text().split("\0")


def server_pid(machine: Machine, name: str, job: str = "vllm-one") -> int:
    socket = machine.folder / "state" / "vllmjobs" / job / "admin.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
        return int(client.get("http://box/health").json()["instances"][name]["pid"] or 0)
