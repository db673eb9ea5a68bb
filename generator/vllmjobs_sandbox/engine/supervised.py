"""A real supervisor over stand-in engines, and what a person or a balancer sees of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.ports import Block, take_block
from vllmjobs_sandbox.cluster.process import indent, wait_until
from vllmjobs_sandbox.cluster.programs import SOURCES
from vllmjobs_sandbox.traffic.requests import Begun, begun, http

SECONDS = 60.0
ENGINE = [sys.executable, "-m", "vllmjobs_sandbox.engine", "serve", "a/small", "--served-model-name", "chat"]
# Quick ones, so that a test takes seconds.
LIMITS: Json = {"backoff": 0.1, "backoff_most": 0.4, "hang": 4.0, "drain": 5.0, "term": 3.0, "load": 15.0}


class Supervised:
    """One supervisor with engines `chat-0` and on; a context that leaves nothing behind."""

    def __init__(
        self,
        folder: Path,
        block: Block,
        engines: int = 1,
        commands: Sequence[Sequence[str]] = (),
        env: Mapping[str, str] | None = None,
        limits: Json | None = None,
        gpus: Sequence[Sequence[str]] = (),
        stdout: int = subprocess.PIPE,
        nginx: Path | None = None,
        **told: Any,
    ) -> None:
        self.ports = [block.take() for _ in range(engines)]
        self.admin = f"http://127.0.0.1:{(admin_port := block.take())}"
        self.events: list[Json] = []
        self._env = {"VLLMJOBS_STANDIN_EXIT_SECONDS": "0", **(env or {})}
        self._stdout = stdout
        config = {
            "identity": f"test-{admin_port}",
            "admin_host": "127.0.0.1",
            "admin_port": admin_port,
            "limits": LIMITS | (limits or {}),
            "engines": [
                {
                    "name": f"chat-{number}",
                    "command": [*(commands[number] if commands else ENGINE), "--port", str(port)],
                    "port": port,
                    "served_name": "chat",
                    "gpus": list(gpus[number]) if gpus else [],
                }
                for number, port in enumerate(self.ports)
            ],
            **told,
        }
        self.socket = told.get("admin_path")
        if nginx:
            self.front = f"http://127.0.0.1:{(port := block.take())}"
            for one, at in zip(config["engines"], self.ports, strict=True):
                one["line"] = {"pool": "chat", "text": f"  server 127.0.0.1:{at};"}
            config |= fronted(folder, nginx, port)
            config["engines"].append(config.pop("front"))
        self._config = folder / f"supervised-{admin_port}.json"
        self._config.write_text(json.dumps(config))
        self.start()

    def start(self) -> None:
        """Start it, or start it once more."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllmjobs.supervisor", "--config", str(self._config)],
            env={**os.environ, "PYTHONPATH": str(SOURCES), **self._env},
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.errors = ""
        self._readers = [threading.Thread(target=self._hear, daemon=True)]
        if self._stdout == subprocess.PIPE:
            self._readers.append(threading.Thread(target=self._read, daemon=True))
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_: object) -> None:
        for _number in range(3):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def wait_for(self, event: str, instance: str | None = None, count: int = 1) -> Json:
        """Wait until it has said an event so many times, of an instance; return the last."""

        def found() -> Json | None:
            said = self.said(event, instance)
            return said[count - 1] if len(said) >= count else None

        return wait_until(found, SECONDS, f"it says {event}", evidence=self.evidence)

    def said(self, event: str, instance: str | None = None) -> list[Json]:
        """Return all events of one kind."""
        return [
            one
            for one in list(self.events)
            if one.get("event") == event and instance in (None, one.get("instance"))
        ]

    def wait_until_ready(self) -> None:
        """Wait until a balancer may send requests."""
        wait_until(lambda: self.get("/ready")[0] == 200, SECONDS, "it is ready", evidence=self.evidence)

    def wait_until_phase(self, phase: str, instance: str = "chat-0") -> None:
        """Wait until an instance is in a phase."""
        wait_until(
            lambda: self.instance(instance)["phase"] == phase,
            SECONDS,
            f"{instance} is {phase}",
            evidence=self.evidence,
        )

    def get(self, path: str) -> tuple[int, Json]:
        """Return the answer of the admin port or socket, with status 0 while nobody listens."""
        transport = httpx.HTTPTransport(uds=self.socket) if self.socket else None
        try:
            with httpx.Client(transport=transport, trust_env=False, timeout=SECONDS) as client:
                answer = client.get(f"{self.admin}{path}")
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def instance(self, name: str = "chat-0") -> Json:
        """Return an instance as /health shows it."""
        found: Json = self.get("/health")[1].get("instances", {}).get(name, {"phase": None})
        return found

    def pid(self, name: str = "chat-0") -> int:
        """Return the process of an engine that runs."""
        pid: int | None = wait_until(lambda: self.instance(name).get("pid"), SECONDS, f"{name} runs")
        assert pid
        return pid

    def ask(self, path: str) -> tuple[int, Json]:
        """Send a POST to the admin socket."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket)) as client:
            answer = client.post(f"http://box{path}")
        return answer.status_code, answer.json()

    def complete(self, number: int = 0, max_tokens: int = 2, seconds: float = SECONDS) -> httpx.Response:
        """Ask an engine, past the supervisor."""
        with http() as client:
            return client.post(
                f"http://127.0.0.1:{self.ports[number]}/v1/completions",
                json={"model": "chat", "prompt": "Why?", "max_tokens": max_tokens, "ignore_eos": True},
                timeout=seconds,
            )

    def begun(self, max_tokens: int, number: int = 0) -> AbstractContextManager[Begun]:
        """Ask an engine for a streamed completion, and wait for its first token."""
        url = f"http://127.0.0.1:{self.ports[number]}/v1/completions"
        return begun(url, max_tokens, seconds=SECONDS)

    def stop(self) -> None:
        """Ask it to stop."""
        self.process.send_signal(signal.SIGTERM)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; return the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"it has not ended after {seconds:g} s\n{self.evidence()}") from None
        for reader in self._readers:
            reader.join()
        return code

    def evidence(self) -> str:
        """Say what it has said."""
        lines = [json.dumps(one) for one in self.events[-40:]]
        return f"vllmjobs-supervise:\n{indent(chr(10).join([*lines, self.errors]))}"

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _hear(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.errors += line.decode(errors="replace")


NGINX = """\
daemon off;
pid nginx.pid;
error_log stderr notice;
worker_processes 2;
events {}
http {
  client_body_temp_path client_body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  access_log off;
  keepalive_timeout 0;
  proxy_buffering off;
  proxy_next_upstream error timeout; # of a POST: while nothing was sent
  include upstreams.conf;
  server {
    listen 127.0.0.1:PORT;
    location / {
      if ($pool = "") {
        return 503;
      }
      proxy_pass http://$pool;
    }
  }
}
"""


def fronted(folder: Path, nginx: Path, port: int) -> Json:
    """Return the part of the configuration that puts an nginx in front of these engines."""
    home = folder / f"nginx-{port}"
    home.mkdir()
    (home / "nginx.conf").write_text(NGINX.replace("PORT", str(port)))
    return {
        "upstreams_path": str(home / "upstreams.conf"),
        "upstreams": [
            {
                "pool": "chat",
                "some": 'upstream chat {\n  least_conn;\n@SERVERS@\n}\nmap "" $pool { default chat; }\n',
                "none": 'map "" $pool { default ""; }\n',
            }
        ],
        "front": {
            "name": "nginx",
            "command": [str(nginx), "-e", "stderr", "-p", f"{home}/", "-c", "nginx.conf"],
            "port": port,
            "is_front": True,
            "stop_signal": signal.SIGQUIT,
        },
    }


def marked(supervised: Supervised) -> list[int]:
    """Return all processes that carry a mark, however they were started."""
    mark = f"VLLMJOBS_SUPERVISOR={supervised._config.stem.replace('supervised', 'test')}\0".encode()
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if mark in _environ(path)]


def _environ(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


Supervise = Callable[..., Supervised]


def supervising(folder: Path) -> Iterator[Supervise]:
    """Give out supervisors; at the end, stop them and see that nothing of them is left."""
    block = take_block()
    made: list[Supervised] = []

    def new(engines: int = 1, **how: Any) -> Supervised:
        made.append(Supervised(folder, block, engines, **how))
        return made[-1]

    yield new
    for one in made:
        one.__exit__()
        assert not marked(one), f"left behind: {marked(one)}"
    block.release()
