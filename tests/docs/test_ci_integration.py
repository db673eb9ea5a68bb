"""docs/ci/integration.sh, with an engine that is not to be trusted."""

import json
import os
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from vllmjobs_sandbox.fakes.forge import CI
from vllmjobs_sandbox.fakes.listening import listening

KEY = "the key of the engines"
NAMES = [
    "facebook/opt-125m",
    'm","max_tokens":999999,"x":"',
    "'; touch here; '",
    "$(touch here) `touch here`",
    "@/etc/passwd",
    "a\nb\\",
    "模型\u2028",
]


def arguments() -> str:
    """Return the arguments of every process, as `ps` shows them to everybody."""
    read = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            read.append(file.read_bytes())
        except OSError:  # it has ended
            continue
    return b"\0".join(read).decode(errors="replace")


class Engine(BaseHTTPRequestHandler):
    """An engine that calls its model as it is told, and keeps what it is asked."""

    name = ""
    asked: list[Any]
    seen: list[str]  # the arguments of all processes during each request

    def do_GET(self) -> None:
        self._answer({"data": [{"id": self.name}]})

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer({"object": "text_completion"})

    def _answer(self, answer: object) -> None:
        self.seen.append(arguments())
        is_open = self.path == "/health" or self.headers["Authorization"] == f"Bearer {KEY}"
        self.send_response(200 if is_open else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A vllmjobs that deploys nothing, and a Nomad that knows one allocation, on PATH."""
    Engine.asked, Engine.seen = [], []
    with listening(Engine) as address:
        nomad = f'case $* in "job allocs"*) echo a1 ;; *) echo {address.removeprefix("http://")} ;; esac'
        for name, script in {"vllmjobs": "exit 0", "nomad": nomad}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        yield {"PATH": path, "VLLM_API_KEY": KEY, "no_proxy": "*"}


def integration(folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [str(CI / "integration.sh"), "dev", "vllm-ci-1"]
    return subprocess.run(words, cwd=folder, env=env, check=False, capture_output=True, text=True)


def test_the_name_of_a_model_is_data(tmp_path: Path, programs: dict[str, str]) -> None:
    for name in NAMES:
        Engine.name = name
        done = integration(tmp_path, programs)
        assert (done.returncode, done.stdout) == (0, '{"object": "text_completion"}\n'), done.stderr
        assert Engine.asked.pop() == {"model": name, "prompt": "Nomad is", "max_tokens": 8}
    assert not (tmp_path / "here").exists()


def test_the_key_is_sent_and_stands_in_no_process_s_arguments(
    tmp_path: Path, programs: dict[str, str]
) -> None:
    Engine.name = "m"
    assert integration(tmp_path, programs).returncode == 0
    assert len(Engine.seen) == 3, "health, models, a completion"
    assert all("/v1/" in seen or "/health" in seen for seen in Engine.seen), "curl's arguments are among them"
    assert not any(KEY in seen for seen in Engine.seen)
    assert integration(tmp_path, programs | {"VLLM_API_KEY": "another"}).returncode == 22  # curl's, for a 401
