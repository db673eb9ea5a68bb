"""How long a promotion takes, beside `nomad job run` with auto_promote; what deploy asks of Nomad; 50 groups.

    PATH="$PWD/.venv/bin:$(scripts/tools):$PATH" .venv/bin/python benchmarks/deploy.py [--runs N] [--groups N]

On the sandbox of the tests, with stand-in engines and simulated GPUs; all in one run, one after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import requests
import yaml
from timing import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.deploying import Command
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox

JOB = "vllm-dev"
LENGTHS = (1024, 2048)
END = 600.0  # seconds
QUICK = {
    "models.chat.replicas": 2,
    "models.chat.rollout.analysis": "null",
    "models.chat.rollout.min_healthy_time": "1s",
}
CLIENTS = 4


class Took(NamedTuple):
    """One release, in seconds."""

    to_stopped: float
    """From the first canary found healthy to the last old instance stopped, by Nomad's own records."""
    whole: float
    """Of the command."""
    cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--groups", type=int, default=50)
    asked = parser.parse_args()
    with Sandbox(clients=CLIENTS, gpus=(2 * asked.groups) // CLIENTS + 4) as sandbox:
        promotions(sandbox, asked.runs)
        calls(sandbox)
        many(sandbox, asked.groups)


def promotions(sandbox: Sandbox, runs: int) -> None:
    """Both ways in turn on the same job, the other one first each time."""
    print("## From the canary healthy to the old stopped, without analysis\n")
    deploy(sandbox, "dev", QUICK)
    lengths = cycle(LENGTHS[::-1])
    ways: list[tuple[str, Callable[..., Took]]] = [
        ("nomad job run, auto_promote", run),
        ("vllmjobs deploy", deploy),
    ]
    took: dict[str, list[Took]] = {name: [] for name, _ in ways}
    for _ in range(runs):
        for name, way in ways:
            took[name].append(way(sandbox, "dev", QUICK | {"models.chat.max_model_len": next(lengths)}))
        ways.reverse()
    show(took)
    sandbox.purge(JOB)


def show(took: dict[str, list[Took]]) -> None:
    """A table of medians; the first is what the others are held against."""
    print("| command | canary healthy to old stopped, s | min–max | whole, s | CPU s | × |")
    print("|---|---:|---:|---:|---:|---:|")
    first = statistics.median(one.to_stopped for one in next(iter(took.values())))
    for name, all in took.items():
        times = [one.to_stopped for one in all]
        middle = statistics.median(times)
        print(
            f"| {name} | {middle:.2f} | {min(times):.2f}–{max(times):.2f} "
            f"| {statistics.median(one.whole for one in all):.1f} "
            f"| {statistics.median(one.cpu for one in all):.2f} | {middle / first:.2f} |"
        )
    print()


def calls(sandbox: Sandbox) -> None:
    """What is asked of Nomad in a minute, from the registration on; half of the time a canary is judged."""
    print("## Requests to Nomad while a release is followed\n")
    settings = QUICK | {
        "models.chat.rollout.analysis": "{window: 60s, interval: 10s, min_requests: 5}",
    }
    deploy(sandbox, "dev", settings)
    with counting(sandbox.nomad_address) as (address, counts):
        changed = settings | {"models.chat.max_model_len": LENGTHS[1]}
        words = ["deploy", "dev", "--job", "vllm", *options(changed)]
        with Command(sandbox, words, env={"NOMAD_ADDR": address}) as command:
            command.wait_for("registered")
            counts.clear()  # of check, plan and gate
            began = time.monotonic()
            if code := command.end(END):
                sys.exit(f"exit {code}\n{command.evidence()}")
        minutes = (time.monotonic() - began) / 60
    print("| request | a minute |\n|---|---:|")
    for path, count in counts.most_common():
        print(f"| {path} | {count / minutes:.1f} |")
    print(f"| all, over {minutes:.1f} minutes | {counts.total() / minutes:.1f} |\n")
    sandbox.purge(JOB)


def many(sandbox: Sandbox, groups: int) -> None:
    """As many groups in one job, each with an instance and a canary."""
    print(f"## {groups} groups in one job\n")
    own = yaml.safe_load((ROOT / "generator/vllmjobs_sandbox/sandbox.yaml").read_text())["models"]["chat"]
    own |= {"model": "a/small", "replicas": 1, "gpus": {"count": 1, "memory": "7 GiB"}, "max_model_len": 1024}
    own["rollout"] |= {"analysis": None, "healthy_deadline": "8m", "progress_deadline": "10m"}
    own |= {"load_time": "5m", "gpu_memory_utilization": 0.7}
    models: dict[str, Any] = {"chat": own}
    for number in range(1, groups):
        name = f"model-{number}"
        models[name] = own | {"route": {"path": f"/{name}/v1/", "strip": f"/{name}"}}
    path = sandbox.folder / "envs" / "many.yaml"

    def write(length: int) -> None:
        changed = {name: model | {"max_model_len": length} for name, model in models.items()}
        path.write_text(yaml.safe_dump({"extends": "dev.yaml", "models": changed}))

    took: dict[str, list[Took]] = {}
    write(LENGTHS[0])
    deploy(sandbox, "many", {})
    write(LENGTHS[1])
    took["nomad job run, auto_promote"] = [run(sandbox, "many", {}, models=[*models])]
    write(LENGTHS[0])
    with counting(sandbox.nomad_address) as (address, counts):
        took["vllmjobs deploy"] = [deploy(sandbox, "many", {}, {"NOMAD_ADDR": address})]
    show(took)
    minutes = took["vllmjobs deploy"][0].whole / 60
    print(f"requests to Nomad: {counts.total()}, {counts.total() / minutes:.0f} a minute\n")


def deploy(sandbox: Sandbox, name: str, settings: dict[str, Any], env: dict[str, str] | None = None) -> Took:
    """Deploy with the command, and wait for its end."""
    command = ["vllmjobs", "deploy", name, "--job", "vllm", *options(settings), "--json"]
    return timed(sandbox, command, env)


def run(sandbox: Sandbox, name: str, settings: dict[str, Any], models: list[str] | None = None) -> Took:
    """Run the same job with auto_promote, and wait for its end as `nomad job run` does."""
    promoting = {f"models.{model}.rollout.auto_promote": "true" for model in models or ["chat"]}
    file = sandbox.folder / f"{name}.nomad.hcl"
    file.write_text(sandbox.render(name, *options(settings | promoting)))
    return timed(sandbox, ["nomad", "job", "run", str(file)])


def options(settings: dict[str, Any]) -> list[str]:
    """Write them as options."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def timed(sandbox: Sandbox, command: list[str], env: dict[str, str] | None = None) -> Took:
    """Run a command; ends the benchmark where it fails."""
    began = time.monotonic()
    with Path(sandbox.folder, "said").open("w+") as said:
        process = subprocess.Popen(
            command, env=sandbox.env | (env or {}), stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        whole = time.monotonic() - began
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{said.read()}")
    return Took(to_stopped(sandbox), whole, usage.ru_utime + usage.ru_stime)


def to_stopped(sandbox: Sandbox) -> float:
    """From the first healthy instance of the newest version to the last older one stopped."""
    version = sandbox.deployment(JOB)["JobVersion"]

    def stopped() -> list[Json] | None:
        found: list[Json] = sandbox.nomad.job.get_allocations(JOB)
        old = [one for one in found if one["JobVersion"] < version]
        return found if all(one["ClientStatus"] in ("complete", "failed", "lost") for one in old) else None

    found = wait_until(stopped, END, "the old ones have stopped")
    healthy = [
        moment(one["DeploymentStatus"]["Timestamp"])
        for one in found
        if one["JobVersion"] == version and (one["DeploymentStatus"] or {}).get("Canary") is not None
    ]
    last = [
        moment(task["FinishedAt"])
        for one in found
        if one["JobVersion"] == version - 1
        for task in one["TaskStates"].values()
    ]
    return (max(last) - min(healthy)).total_seconds() if last else 0


def moment(text: str) -> datetime:
    """Read Nomad's nanoseconds as microseconds."""
    day, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{day}.{(fraction[:6] or '0'):0<6}+00:00")


@contextmanager
def counting(address: str) -> Iterator[tuple[str, Counter[str]]]:
    """A proxy on loopback that counts what passes, by method and path without ids."""
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            words = ["ID" if len(word) == 36 or word == JOB else word for word in path.split("/")]
            counts[f"{self.command} {'/'.join(words)}"] += 1
            kept = {
                key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")
            }
            answer = requests.request(
                self.command,
                f"{address}{self.path}",
                data=body,
                headers=kept | {"Accept-Encoding": ""},
                timeout=END,
            )
            self.send_response(answer.status_code)
            for key, value in answer.headers.items():
                if key.lower() not in (
                    "content-length",
                    "content-encoding",
                    "transfer-encoding",
                    "connection",
                ):
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", counts
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
