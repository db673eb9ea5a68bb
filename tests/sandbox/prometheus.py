"""A Prometheus on loopback, which scrapes what it is told to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from sandbox import ports, process
from sandbox.errors import SandboxError
from sandbox.programs import CHECKOUT

READY = 30.0  # seconds


@contextmanager
def running(folder: Path, targets: Iterable[str], interval: str = "1s") -> Iterator[str]:
    """Run one over these `host:port`s until the context ends; yields its address."""
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{"job_name": "vllm", "static_configs": [{"targets": sorted(targets)}]}],
    }
    block = ports.take_block()
    address = f"127.0.0.1:{block.take()}"
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        str(program()),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    server = process.start("prometheus", command, folder / "prometheus.log", dict(os.environ))
    try:
        server.wait_until(
            lambda: httpx.get(f"http://{address}/-/ready").is_success,
            READY,
            "it is ready",
            ignoring=(httpx.HTTPError,),
        )
        yield f"http://{address}"
    finally:
        process.stop([server])
        block.release()


def program() -> Path:
    """Ask `scripts/prometheus`, which fetches it where there is none."""
    ended = subprocess.run(
        [CHECKOUT / "scripts" / "prometheus"], check=False, stdout=subprocess.PIPE, text=True
    )
    if ended.returncode:
        raise SandboxError("scripts/prometheus could not provide it; it says why above")
    return Path(ended.stdout.strip())
