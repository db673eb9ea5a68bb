"""A person's machine, on which `vllmjobs up` runs: a folder, programs on PATH, ports of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from vllmjobs.vllm.releases import NEWEST
from vllmjobs_sandbox.cluster import nginx, programs
from vllmjobs_sandbox.cluster.ports import take_block
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.traffic.requests import Begun, begun, http

SECONDS = 60.0
WORKERS = 2  # of nginx: jobs/nginx.conf.ctmpl.j2
ENVIRONMENT = """\
balancer: {{kind: nginx, port: {port}, admin_port: {admin}}}
models:
  chat:
    model: a/small
    replicas: 2
    image: vllm/vllm-openai:v{newest}
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
        self.started: list[subprocess.Popen[str]] = []
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
        """Write a file of the folder, with its ports filled in."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            text.format(port=self.port, admin=self.admin, base=self.base, newest=NEWEST, **values)
        )
        return path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
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
        """Run a command that has to succeed; return what it prints."""
        ended = self.run(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command that stays; `end` sees that it does not stay for ever."""
        with (self.folder / "started.log").open("a") as log:
            started = subprocess.Popen(
                ["vllmjobs", *words], cwd=self.folder, env=self.env, stdout=log, stderr=log, text=True
            )
        self.started.append(started)
        return started

    def up(self, *changes: tuple[str, str]) -> str:
        """Run `up one -d` on ENVIRONMENT with changes."""
        self.environment(*changes)
        return self.done("up", "one", "-d")

    def environment(self, *changes: tuple[str, str]) -> None:
        """Write envs/one.yaml: ENVIRONMENT with changes."""
        text = ENVIRONMENT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.write("envs/one.yaml", text)

    def up_env_file(self, strategy: str = "multi_instance", more: str = "") -> str:
        """Run `up --env-file .env -d`, with the stand-in as vLLM."""
        self.write(".env", DOTENV + more, strategy=strategy)
        engine = 'models.opt.entrypoint=["stand-in-engine","serve"]'
        admin = f"balancer.admin_port={self.admin}"
        return self.done("up", "--env-file", ".env", "-d", "--set", engine, "--set", admin)

    def ask(self, path: str, port: int | None = None) -> httpx.Response:
        """Send a GET to nginx."""
        with http() as client:
            return client.get(f"http://127.0.0.1:{port or self.port}{path}", timeout=SECONDS)

    def complete(
        self,
        path: str = "/v1/completions",
        model: str = "chat",
        max_tokens: int = 2,
        prompt: str = "Why?",
        key: str | None = None,
    ) -> httpx.Response:
        """Ask for a completion through nginx, at 200 tokens a second; `key` is one of --api-key."""
        asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"http://127.0.0.1:{self.port}{path}"
        with http() as client:
            return client.post(url, json=asked, headers=headers, timeout=SECONDS)

    def begun(
        self, max_tokens: int, path: str = "/v1/completions", seconds: float = SECONDS
    ) -> AbstractContextManager[Begun]:
        """Ask for a streamed completion through nginx, and wait for its first token."""
        return begun(f"http://127.0.0.1:{self.port}{path}", max_tokens, seconds=seconds)

    def wait_until_it_answers(self) -> None:
        """Wait until every worker of nginx knows of a server.

        For 100 ms after a reload the old workers take requests, too (ngx_master_process_cycle).
        """
        wait_until(
            lambda: self.complete().status_code == httpx.codes.OK and self.workers() == WORKERS,
            SECONDS,
            "it answers, by new workers of nginx alone",
            ignoring=(httpx.HTTPError, OSError),
        )

    def wait_until_nobody_is_ready(self) -> None:
        """Wait until every worker of nginx knows of no server."""
        unavailable = httpx.codes.SERVICE_UNAVAILABLE
        wait_until(
            lambda: self.ask("/health", self.admin).status_code == unavailable and self.workers() == WORKERS,
            SECONDS,
            "nobody is ready",
            ignoring=(httpx.HTTPError, OSError),
        )

    def workers(self) -> int:
        """Return how many workers nginx has: WORKERS, and during a reload those before."""
        nginx = self.pid("nginx")
        return len(Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split())

    def instances(self, job: str = "vllm-one") -> dict[str, Any]:
        """Return the servers as their supervisor shows them."""
        socket = self.folder / "state" / "vllmjobs" / job / "admin.sock"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
            return dict(client.get("http://box/health").json()["instances"])

    def pid(self, name: str, job: str = "vllm-one") -> int:
        """Return the process of a server, or 0 while it does not run."""
        return int(self.instances(job)[name]["pid"] or 0)

    def command_line(self, name: str, job: str = "vllm-one") -> list[str]:
        """Return the command line of a server that runs."""
        return Path(f"/proc/{self.pid(name, job)}/cmdline").read_text().split("\0")

    def environ(self, name: str, job: str = "vllm-one") -> Mapping[str, str]:
        """Return the variables of a server that runs."""
        pairs = Path(f"/proc/{self.pid(name, job)}/environ").read_text().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the events of one kind that an `up` that was started has logged so far."""
        lines = (self.folder / "started.log").read_text().rpartition("\n")[0].splitlines()
        return [one for line in lines if f'"{event}"' in line and (one := json.loads(line))["event"] == event]

    def end(self) -> None:
        """Stop all of it, without a drain."""
        for job in (self.folder / "state" / "vllmjobs").glob("vllm-*"):
            self._stop(job / "admin.sock")
        for started in self.started:
            started.kill()
            started.wait()
        self._block.release()

    def _stop(self, socket: Path) -> None:
        """Ask a supervisor to stop at once, and wait until it has."""

        def is_gone() -> bool:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=SECONDS) as client:
                try:
                    client.post("http://box/stop")
                except httpx.TransportError:
                    return True
            return False

        wait_until(is_gone, SECONDS, f"{socket} is left")
