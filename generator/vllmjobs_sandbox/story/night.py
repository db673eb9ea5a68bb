"""The project of the runbooks, and all that they are for: `prod` on a sandbox, with one fault at a time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from nomad.api.exceptions import URLNotFoundNomadException

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import QUESTION, http

JOB = "vllm-prod"
BALANCER = f"{JOB}-fabio"
SUPERVISED = ["vllmjobs-supervise", "--", "stand-in-engine", "serve"]
# The job of the pages about supervisors: an engine that ends is given up at once.
WATCHED: dict[str, Any] = {"entrypoint": SUPERVISED, "env.VLLMJOBS_RESTARTS": "0"}
SOON = 60.0  # seconds
# Minutes in production.
QUICK: dict[str, Any] = {
    "replicas": 1,
    "pull_time": "1s",
    "load_time": "4s",
    "rollout.healthy_deadline": "2m",
    "rollout.progress_deadline": "3m",
    "rollout.steps": [],
    "rollout.placement_deadline": "5s",
    "rollout.analysis.interval": "1s",
    "rollout.analysis.window": "2s",
    "rollout.analysis.min_requests": 5,
    "drain.longest_stream": "1s",
    "drain.shutdown_delay": "1s",
    "env.VLLMJOBS_STANDIN_LOAD_SECONDS": "0.1",
}


class Night:
    """A folder with envs/prod.yaml, its job and its balancer; `words` are what a page writes in capitals."""

    def __init__(self, sandbox: Sandbox, folder: Path, port: int, admin_port: int) -> None:
        self.sandbox, self.folder = sandbox, folder
        self.balancer = f"127.0.0.1:{port}"
        self.words: dict[str, str] = {}
        self.units: dict[str, Callable[[], None]] = {}
        """The effect of `systemctl start UNIT`, since the sandbox has no systemd."""
        self.env = sandbox.env | {"VLLMJOBS_PROJECT": str(folder), "COLUMNS": "100", "no_proxy": "127.0.0.1"}
        self._ports = {"port": port, "admin_port": admin_port}
        self._running: dict[str, Any] | None = None
        (folder / "envs").mkdir()
        self.write()
        self.sandbox.run(self.render("--job", "fabio"))

    def write(self, **chat: Any) -> None:
        """Write envs/prod.yaml, with keys of `models.chat` laid over."""
        environment = {
            "extends": str(self.sandbox.folder / "sandbox.yaml"),
            "job": JOB,
            "debug": False,
            "balancer": {
                "consul": self.sandbox.env["CONSUL_HTTP_ADDR"].removeprefix("http://"),
                **self._ports,
            },
            "models": {"chat": _nested(QUICK | chat)},
        }
        path = self.folder / "envs/prod.yaml"
        path.write_text(yaml.safe_dump(environment, sort_keys=False))

    def render(self, *words: str) -> str:
        """Render a job of the project."""
        return self.sandbox.render("prod", "--project", str(self.folder), *words)

    def well(self, **chat: Any) -> None:
        """Have one instance that serves, the same as before where that is so."""
        if self._running != chat:
            self.away()
            self.start(**chat)
            self.sandbox.wait_until_healthy(JOB)
            self._running = chat
        self.write(**chat)
        self.sandbox.wait_until_healthy(JOB)
        wait_until(self.serves, SOON, "it serves", ignoring=(httpx.HTTPError,))
        self._fill_in()

    def start(self, **chat: Any) -> None:
        """Run it, and wait for nothing."""
        self._running = None
        self.write(**chat)
        self.sandbox.run(self.render())

    def deployed(self, **chat: Any) -> None:
        """Have a newer version promoted over the one that is well."""
        self.start(**chat)
        self.sandbox.wait_until_healthy(JOB)
        self.sandbox.promote(JOB)
        wait_until(lambda: self.sandbox.deployment(JOB)["Status"] == "successful", SOON, "it is deployed")
        wait_until(lambda: len(self.routed()) == 1, SOON, "the old one has left")
        self._fill_in()

    def serves(self) -> bool:
        """Tell whether the balancer answers for the model."""
        with http() as client:
            return client.get(f"http://{self.balancer}/v1/models").is_success

    def routed(self) -> list[Json]:
        """Return the instances that Consul gives to the balancer."""
        found: list[Json] = self.sandbox.consul.health.service(f"{JOB}-chat", passing=True)[1]
        return found

    def ask(self, times: int = 1, tokens: int = 8) -> None:
        """Send requests, whatever comes of them."""
        with http() as client:
            for _ in range(times):
                with suppress(httpx.HTTPError):
                    client.post(self._completions, json=_body(tokens))

    @contextmanager
    def asked(self, at_a_time: int, tokens: int = 8) -> Iterator[None]:
        """Have so many clients ask again and again."""
        done = threading.Event()

        def client() -> None:
            with http() as one:
                while not done.is_set():
                    with suppress(httpx.HTTPError):
                        one.post(self._completions, json=_body(tokens), timeout=5)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(at_a_time)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def metric(self, pattern: str, port: str = "ADDRESS") -> float:
        """Return the sum of the series of an instance that match, which is 0 without any."""
        with http() as client:
            page = client.get(f"http://{self.words[port]}/metrics").text
        return sum(float(line.split()[-1]) for line in page.splitlines() if re.match(pattern, line))

    def away(self) -> None:
        """Take the job away."""
        self._running = None
        if any(job["ID"] == JOB for job in self.sandbox.nomad.jobs.get_jobs()):
            self.sandbox.purge(JOB)
        with suppress(URLNotFoundNomadException):
            self.sandbox.nomad.variable.delete_variable(f"vllmjobs/releases/{JOB}")

    def changes(self) -> None:
        """Let the next page start anew, unless this one makes it well again."""
        self._running = None

    def well_again(self, **chat: Any) -> None:
        """Let the next page go on with the job, which a page has brought back to what it was."""
        self._running = chat

    def state(self) -> object:
        """Return what differs as soon as Nomad or Consul know something new."""
        nomad = self.sandbox.nomad
        listed = (*nomad.allocations.get_allocations(), *nomad.deployments.get_deployments(), *nomad.nodes)
        consul, _ = self.sandbox.consul.health.state("any")
        return consul, [one["ModifyIndex"] for one in listed]

    def has_failed_once(self) -> bool:
        """Tell whether the newest instance has ended and is to be started again."""
        states = self.last()["TaskStates"] or {} if self.sandbox.allocations(JOB) else {}
        return any(event["Type"] == "Terminated" for one in states.values() for event in one["Events"])

    def end(self) -> None:
        """Take all of it away."""
        known = {job["ID"] for job in self.sandbox.nomad.jobs.get_jobs()}
        self.sandbox.purge(*known & {JOB, BALANCER})

    def last(self) -> Json:
        """Return the newest allocation of the job."""
        found: list[Json] = self.sandbox.nomad.job.get_allocations(JOB)
        return max(found, key=lambda one: int(one["CreateIndex"]))

    def point_at(self, allocation: Json) -> None:
        """Let ALLOCATION and NODE stand for it and its node."""
        self.node = allocation["NodeName"]
        self.words |= {"ALLOCATION": allocation["ID"][:8], "NODE": allocation["NodeID"][:8]}

    @property
    def _completions(self) -> str:
        return f"http://{self.balancer}/v1/chat/completions"

    def _fill_in(self) -> None:
        self.words = {"BALANCER": self.balancer}
        self.point_at(self._newest())
        service = wait_until(self._service, SOON, "Consul knows it")
        self.words["ADDRESS"] = f"{service['Address']}:{service['Port']}"
        if admin := service["Meta"].get("supervisor_metrics_port"):
            self.words["ADMIN"] = f"{service['Address']}:{admin}"

    def _newest(self) -> Json:
        """Return the newest allocation that is to run on."""
        found = [one for one in self.sandbox.allocations(JOB) if one["DesiredStatus"] == "run"]
        return max(found, key=lambda one: int(one["CreateIndex"]))

    def _service(self) -> Json | None:
        """Return the newest allocation as Consul knows it."""
        services = (one["Service"] for one in self.routed())
        return next((one for one in services if self._newest()["ID"] in one["ID"]), None)


def _body(tokens: int) -> dict[str, Any]:
    return {"model": "chat", "messages": QUESTION, "max_tokens": tokens}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return `{"a.b": 1}` as `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *folders, name = key.split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return nested
