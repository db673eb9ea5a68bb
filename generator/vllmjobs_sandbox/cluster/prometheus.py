"""A Prometheus on loopback, which scrapes what it is told to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx

from vllmjobs_sandbox.cluster import ports, process
from vllmjobs_sandbox.cluster.programs import packaged
from vllmjobs_sandbox.fakes.listening import listening

READY = 30.0  # seconds


@contextmanager
def discovering(targets: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Serve `host:port`s that change, until the context ends; yields the URL where `running` finds them."""

    class Handler(BaseHTTPRequestHandler):
        """The targets, as Prometheus' HTTP discovery asks for them."""

        def do_GET(self) -> None:
            body = json.dumps([{"targets": sorted(targets())}]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as address:
        yield f"{address}/"


@contextmanager
def running(folder: Path, targets: Iterable[str] | str, interval: str = "1s") -> Iterator[str]:
    """Run one over these `host:port`s until the context ends; yields its address.

    In place of them, the URL of `discovering`.
    """
    found = (
        {"http_sd_configs": [{"url": targets, "refresh_interval": interval}]}
        if isinstance(targets, str)
        else {"static_configs": [{"targets": sorted(targets)}]}
    )
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{"job_name": "vllm", **found}],
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
    """Ask `scripts/packaged`, which fetches it where there is none."""
    return packaged("prometheus")
