"""A job of a test's own, so that tests can share one sandbox."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import httpx

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import http, version

_numbers = count(1)
ROUTED = 15.0  # seconds from healthy in Nomad to served by Fabio


class Release:
    """The `dev` environment under another name, and under a path of its own at Fabio."""

    environment = "dev"

    def __init__(self, sandbox: Sandbox, job: str, settings: dict[str, Any]) -> None:
        self.sandbox = sandbox
        self.job = job
        self.address = f"{sandbox.fabio_address}/{job}"
        route = {"path": f"/{job}/v1/", "strip": f"/{job}"}
        self.settings = {"job": job, **{f"models.chat.route.{key}": value for key, value in route.items()}}
        self.settings |= settings

    @classmethod
    def behind_nginx(cls, sandbox: Sandbox, **chat: Any) -> Release:
        """Return the job that the sandbox's nginx serves: `dev-nginx` as it is."""
        self = cls(sandbox, "vllm-dev", {})
        self.environment = "dev-nginx"
        self.address = sandbox.nginx_address
        self.settings = {f"models.chat.{key}": value for key, value in chat.items()}
        return self

    def words(self, **chat: Any) -> list[str]:
        """Return the words after a command: the environment, with keys of `models.chat` laid over."""
        settings = self.settings | {f"models.chat.{key}": value for key, value in chat.items()}
        options = (word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
        return [self.environment, *options]

    def render(self, **chat: Any) -> str:
        """Render the release with keys of `models.chat` laid over: `max_model_len=2048`."""
        return self.sandbox.render(*self.words(**chat))

    def run(self, **chat: Any) -> Json:
        """Run it and wait until it is healthy, or its canaries are; return the deployment."""
        self.sandbox.run(self.render(**chat))
        return self.sandbox.wait_until_healthy(self.job)

    def run_nginx(self) -> None:
        """Run the sandbox's nginx with these settings; `behind_nginx` without any has it as it was."""
        self.sandbox.run(self.sandbox.render(*self.words(), "--job", "nginx"))
        self.sandbox.wait_until_healthy(f"{self.job}-nginx")

    def plan(self, **chat: Any) -> Json:
        """Ask Nomad what running it would do, with keys of `models.chat` laid over."""
        return self.sandbox.plan(self.render(**chat))

    def wait_until_routed(self, max_model_len: int) -> None:
        """Wait until that version answers through Fabio."""

        def answers() -> bool:
            with http() as client:
                return max_model_len in {version(client, self.address) for _ in range(20)}

        wait_until(answers, ROUTED, f"{self.job} answers", ignoring=(httpx.HTTPError,))

    def instance(self) -> Json:
        """Return the one instance as Consul knows it: its service, and its checks."""
        (found,) = self.sandbox.consul.health.service(f"{self.job}-chat")[1]
        entry: Json = found
        return entry

    def allocations(self) -> list[Json]:
        """Return its allocations that have not ended."""
        return self.sandbox.allocations(self.job)


NewRelease = Callable[..., Release]


def releases(sandbox: Sandbox, name: str) -> Iterator[NewRelease]:
    """Give out new releases; at the end, purge them.

    They share the sandbox's Fabio, which is registered under the name of each one's own: there `deploy` asks
    which share the canaries get.
    """
    made: list[Release] = []
    services = sandbox.consul.agent.service

    def new(**chat: Any) -> Release:
        job = f"{re.sub('[^a-z0-9]+', '-', name)[:30].strip('-')}-{next(_numbers)}"
        made.append(Release(sandbox, job, {f"models.chat.{key}": value for key, value in chat.items()}))
        services.register(f"{job}-fabio", address="127.0.0.1")
        return made[-1]

    yield new
    known = {job["ID"] for job in sandbox.nomad.jobs.get_jobs()}
    sandbox.purge(*(one.job for one in made if one.job in known))
    for one in made:
        services.deregister(f"{one.job}-fabio")
