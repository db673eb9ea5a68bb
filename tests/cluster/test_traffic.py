"""A share of the requests that is asked for, on a real Consul, Fabio and nginx; and no request is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import httpx
import pytest

from vllmjobs.cluster.consul import Consul
from vllmjobs.deploy.traffic import Traffic, TrafficError
from vllmjobs.project.environments import load
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import http, version

OLD, NEW = 1024, 2048
JOB, SERVICE = "vllm-dev", "vllm-dev-chat"
SOON = 20.0  # seconds, from a change in Consul to all that follows from it
POINTS, POINTS_LONG = 0.05, 0.02  # of a share, and with --long
# By share, as many requests as make POINTS_LONG four standard deviations: both balancers choose by chance.
REQUESTS_LONG = {0.05: 2000, 0.25: 7500, 0.5: 10_000, 1.0: 1000}
WORKERS = 4
STREAMS = 8
COMPLETION = {"model": "chat", "prompt": "Why?", "max_tokens": 2}


@dataclass
class Job:
    """The job of the sandbox's own environments, for which its Fabio and its nginx stand."""

    sandbox: Sandbox
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = load(self.sandbox.folder / "envs" / f"{self._name}.yaml", self._settings())
        self.consul = Consul(self.sandbox.env)
        self.address = {"fabio": self.sandbox.fabio_address, "nginx": self.sandbox.nginx_address}[self.kind]
        self.headers = {"Host": self.settings.get("route.host") or httpx.URL(self.address).netloc.decode()}

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.environment, self.consul, self.version)

    @property
    def version(self) -> int:
        return int(self.sandbox.deployment(JOB)["JobVersion"])

    def run(self, change: Callable[[str], str] = lambda hcl: hcl, **chat: Any) -> None:
        """Run it with keys of `models.chat` laid over, and its HCL changed, and wait until it is healthy."""
        options = [word for setting in self._settings(chat) for word in ("--set", setting)]
        self.sandbox.run(change(self.sandbox.render(self._name, *options)))
        self.sandbox.wait_until_healthy(JOB)

    def run_canaries(self, change: Callable[[str], str] = lambda hcl: hcl, **chat: Any) -> None:
        """Beside the old version, run canaries of a new one, and wait until the balancer knows them."""
        self.run(change)
        self.run(change, max_model_len=NEW, **chat)
        wait_until(lambda: (self.given() or 0) > 0, SOON, "the balancer sends requests to canaries")

    def given(self) -> float | None:
        return self.traffic.given()["chat"]

    def ask(self, share: float) -> None:
        """Ask for a share, and wait until the balancer gives it."""
        self.traffic.ask({"chat": share})
        self.wait_until_given(share)

    def wait_until_given(self, share: float) -> None:
        wait_until(
            lambda: (given := self.given()) is not None and abs(given - share) < 0.001,
            SOON,
            f"the canaries are given {share}",
            evidence=lambda: f"given: {self.given()}, problems: {self.traffic.problems()}",
        )

    def versions(self, requests: int) -> Counter[int]:
        """Which versions answered so many requests."""

        def some(count: int) -> Counter[int]:
            with http() as client:
                client.headers.update(self.headers)
                return Counter(version(client, self.address) for _ in range(count))

        with ThreadPoolExecutor(WORKERS) as clients:
            return sum(clients.map(some, [requests // WORKERS] * WORKERS), Counter())

    def stop_canaries(self) -> None:
        self.sandbox.nomad.deployment.fail_deployment(self.sandbox.deployment(JOB)["ID"])
        self.wait_for_instances_of(1)

    def promote(self) -> None:
        self.sandbox.promote(JOB)
        self.sandbox.wait_until_healthy(JOB)
        self.wait_for_instances_of(1)

    def wait_for_instances_of(self, versions: int) -> None:
        def only() -> bool:
            return len({one["JobVersion"] for one in self.sandbox.allocations(JOB)}) == versions

        wait_until(only, SOON, f"instances of {versions} versions run")

    def purge(self) -> None:
        with suppress(Exception):
            self.traffic.clean()
        for key in ("fabio/", "vllmjobs/"):
            self.sandbox.consul.kv.delete(key, recurse=True)
        if any(job["ID"] == JOB for job in self.sandbox.nomad.jobs.get_jobs()):
            self.sandbox.purge(JOB)
        wait_until(lambda: not self.consul.instances(SERVICE), SOON, f"{SERVICE} left Consul")

    @property
    def _name(self) -> str:
        return {"fabio": "dev", "nginx": "dev-nginx"}[self.kind]

    def _settings(self, more: dict[str, Any] | None = None) -> list[str]:
        return [f"models.chat.{key}={value}" for key, value in {**self.settings, **(more or {})}.items()]


@dataclass
class Load:
    """Completions without a pause, of a few clients that keep their connections: what failed."""

    job: Job
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(WORKERS)]
        for thread in self._threads:
            thread.start()
        self.wait_for(50)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        goal = self.answered + len(self.failures) + more
        wait_until(lambda: self.answered + len(self.failures) >= goal, SOON, f"{more} more are answered")

    def _run(self) -> None:
        with http() as client:
            client.headers.update(self.job.headers)
            while not self._stopping.wait(0.01):
                try:
                    answer = client.post(f"{self.job.address}/v1/completions", json=COMPLETION)
                    answer.raise_for_status()
                    self.answered += 1
                except httpx.HTTPError as error:
                    self.failures.append(str(error))


@contextmanager
def paused(*pids: int) -> Iterator[None]:
    """Processes that do nothing for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def agent(sandbox: Sandbox, name: str) -> int:
    return sandbox._agents.running[name].popen.pid


def on(node: str) -> str:
    return f'[{{attribute: "${{node.unique.name}}", value: {node}}}]'


@pytest.fixture
def job(sandbox: Sandbox) -> Iterator[Callable[..., Job]]:
    """Make the job: `job("nginx", replicas=3)`. Its tests come one after the other."""
    with ExitStack() as stack:

        def new(kind: str, settings: dict[str, Any] | None = None, **chat: Any) -> Job:
            made = Job(sandbox, kind, {**(settings or {}), **chat})
            stack.callback(made.purge)
            return made

        yield new


@pytest.fixture(scope="module", params=["fabio", "nginx"])
def mixed(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Job]:
    """Three stable instances and two canaries."""
    made = Job(sandbox, request.param, {"replicas": 3, "rollout.canaries": 2})
    try:
        made.run_canaries()
        yield made
    finally:
        made.purge()


class TestAShareThatIsAskedFor:
    @pytest.mark.parametrize("share", REQUESTS_LONG)
    def test_arrives(
        self, mixed: Job, share: float, long: bool, record_property: Callable[[str, object], None]
    ) -> None:
        points = POINTS_LONG if long else POINTS
        mixed.ask(share)
        counts = mixed.versions(round(REQUESTS_LONG[share] * (POINTS_LONG / points) ** 2))
        found = counts[NEW] / counts.total()
        record_property(f"{mixed.kind} {share}", f"{found:.4f} of {counts.total()}")
        assert abs(found - share) < points
        assert mixed.traffic.asked() == {"chat": share}

    @pytest.mark.parametrize("share", [0.001, 0.999, 1.0])
    def test_is_given_however_near_to_nothing_or_to_all(self, mixed: Job, share: float) -> None:
        mixed.ask(share)
        assert mixed.given() == pytest.approx(share, abs=1e-5)

    def test_is_not_believed_when_another_version_wrote_it(self, mixed: Job) -> None:
        mixed.ask(0.5)
        assert Traffic(mixed.environment, mixed.consul, mixed.version + 1).asked() == {}
        assert Traffic(mixed.environment, mixed.consul, mixed.version).asked() == {"chat": 0.5}

    def test_is_gone_after_a_cleaning_by_any_version(self, mixed: Job) -> None:
        mixed.ask(0.5)
        for _ in range(2):
            Traffic(mixed.environment, mixed.consul, 77).clean()
        assert mixed.traffic.asked() == {}
        assert not mixed.consul.read(f"fabio/config/{JOB}")
        assert not mixed.consul.read(f"vllmjobs/{JOB}/")
        mixed.wait_until_given(0.1)  # rollout.weight


def test_a_share_of_a_route_with_a_host_arrives_with_its_port_and_without(job: Callable[..., Job]) -> None:
    named = job("fabio", {"route.host": "chat.example.com"}, replicas=2)
    named.run_canaries()
    named.ask(0.5)
    for host in ("chat.example.com", f"chat.example.com:{httpx.URL(named.address).port}"):
        named.headers["Host"] = host
        counts = named.versions(1000)
        assert 0.4 < counts[NEW] / counts.total() < 0.6, host


@pytest.mark.parametrize("kind", ["fabio", "nginx"])
def test_canaries_that_stop_while_a_share_is_asked_for_fail_no_request(
    job: Callable[..., Job], kind: str
) -> None:
    released = job(kind, replicas=2)
    released.run_canaries()
    released.ask(0.5)
    with Load(released) as load:
        released.stop_canaries()
        load.wait_for(50)
    assert load.failures == []
    assert released.given() == 0
    assert released.traffic.problems() == []
    with pytest.raises(TrafficError, match="no canary of chat is registered in Consul as vllm-dev-chat"):
        released.traffic.ask({"chat": 0.25})


@pytest.mark.parametrize("kind", ["fabio", "nginx"])
def test_a_promotion_while_a_share_is_asked_for_fails_no_request(job: Callable[..., Job], kind: str) -> None:
    released = job(kind, {"rollout.canaries": 2}, replicas=2)
    released.run_canaries()
    released.ask(0.5)
    with Load(released) as load:
        released.promote()
        load.wait_for(50)
    assert load.failures == []
    assert released.traffic.problems() == []
    assert set(released.versions(100)) == {NEW}
    released.traffic.clean()


def test_a_share_that_changes_again_and_again_fails_no_request_at_nginx(job: Callable[..., Job]) -> None:
    """Each change is a reload, and the workers of before it close their connections to clients."""
    released = job("nginx", replicas=2)
    released.run_canaries()
    with Load(released) as load:
        for share in (0.25, 0.5) * 25:
            released.ask(share)
    print(f"{load.answered} answered, {len(load.failures)} failed, {load.failures[:1]}")
    assert load.failures == []


@pytest.mark.parametrize("kind", ["fabio", "nginx"])
def test_a_share_is_asked_for_while_consul_is_restarted_and_no_request_fails(
    job: Callable[..., Job], kind: str
) -> None:
    released = job(kind, replicas=2)
    released.run_canaries()
    traffic = released.traffic
    traffic.ask({"chat": 0.25})
    with Load(released) as load, ThreadPoolExecutor(1) as pool:
        released.sandbox.kill("consul-server")
        asking = pool.submit(traffic.ask, {"chat": 0.5})
        load.wait_for(50)
        released.sandbox.start_again("consul-server")
        asking.result()
        released.wait_until_given(0.5)
        load.wait_for(50)
    assert load.failures == []


class TestFabiosTable:
    """Whether a change of another service gets through: else the table is frozen."""

    @pytest.fixture
    def released(self, job: Callable[..., Job]) -> Job:
        made: Job = job("fabio", replicas=1)
        made.run_canaries()
        return made

    def test_is_not_frozen_by_a_share_of_which_nothing_is_left(self, released: Job) -> None:
        released.ask(0.5)
        released.sandbox.purge(JOB)
        wait_until(lambda: not released.consul.instances(SERVICE), SOON, "it left Consul")
        assert takes_over_changes(released)
        assert Traffic(released.environment, released.consul, 0).problems() == []

    def test_would_be_frozen_by_a_weight_without_the_anchor(self, released: Job) -> None:
        weight = f'route weight {SERVICE} /v1/ weight 0.5 tags "canary"'
        released.consul.put(f"fabio/config/{JOB}", weight)
        released.wait_until_given(0.5)
        assert released.traffic.problems() == []
        released.stop_canaries()
        assert not takes_over_changes(released, seconds=2)  # a change takes 0.1 s
        (problem,) = released.traffic.problems()
        assert problem.startswith(
            f"fabio/config/{JOB}:1: {weight}: /v1/ leads to no instance of service {SERVICE}"
        )
        released.traffic.clean()
        assert takes_over_changes(released)

    def test_is_frozen_by_a_malformed_line_until_that_is_gone(self, released: Job) -> None:
        released.consul.put("fabio/config/other", "# of others\nroute wieght other /v1/ weight 0.5")
        assert not takes_over_changes(released, seconds=2)  # a change takes 0.1 s
        (problem,) = released.traffic.problems()
        assert problem.startswith("fabio/config/other:2: route wieght other /v1/ weight 0.5: is no command")
        assert problem.endswith("`consul kv delete fabio/config/other`")
        released.consul.delete("fabio/config/other")
        assert released.traffic.problems() == []
        assert takes_over_changes(released)


def takes_over_changes(job: Job, seconds: float = SOON) -> bool:
    """Whether Fabio learns of a service that is registered now."""
    agent = job.sandbox.consul.agent.service
    name = f"another-{os.urandom(4).hex()}"
    check = {"TTL": "10m", "Status": "passing"}  # Fabio takes only what has a check
    agent.register(name, address="127.0.0.1", port=1, tags=[f"urlprefix-/{name}"], check=check)
    try:
        with suppress(TimeoutError), http() as client:
            admin = f"http://127.0.0.1:{job.environment.balancer.admin_port}/api/routes"
            give_up = monotonic() + seconds
            while monotonic() < give_up:
                if any(route["service"] == name for route in client.get(admin).json() or ()):
                    return True
        return False
    finally:
        agent.deregister(name)


class TestNothingIsDropped:
    """Each of these shows the failures too, with the cure taken out."""

    @pytest.mark.parametrize("cured", [True, False], ids=["cured", "not-cured"])
    def test_at_a_promotion_that_nomads_client_learns_late(
        self, job: Callable[..., Job], cured: bool
    ) -> None:
        """Old instances stop at once, and each client tells Consul of its canaries: hashicorp/nomad#18149.

        The cure is a route among the canary_tags.
        """

        def unrouted(hcl: str) -> str:
            changed, count = re.subn(r"canary_tags = .*", 'canary_tags = ["vllm", "canary"]', hcl)
            assert count == 1
            return changed

        released = job("fabio", {"placement.constraints": on("gpu-1")}, replicas=1)
        released.run()
        released.settings["placement.constraints"] = on("gpu-2")
        released.run(*[] if cured else [unrouted], max_model_len=NEW)
        wait_until(lambda: len(released.consul.instances(SERVICE)) == 2, SOON, "both are registered")
        if cured:
            released.ask(0.5)
        with Load(released) as load:
            with paused(agent(released.sandbox, "nomad-gpu-2")):
                released.sandbox.promote(JOB)
                wait_until(lambda: len(released.consul.instances(SERVICE)) == 1, SOON, "the old one left")
                load.wait_for(50)
            released.sandbox.wait_until_healthy(JOB)
        print(f"cured: {cured}, {load.answered} answered, {len(load.failures)} failed, {load.failures[:1]}")
        assert bool(load.failures) != cured

    @pytest.mark.parametrize("cured", [True, False], ids=["cured", "not-cured"])
    def test_when_a_stop_is_known_in_consul_late(self, job: Callable[..., Job], cured: bool) -> None:
        """The cure is the time between leaving Consul and the signal: shutdown_delay."""
        delay = {} if cured else {"drain.shutdown_delay": "0s"}
        released = job("fabio", delay, replicas=2)
        released.run_canaries()
        released.ask(0.5)
        with Load(released) as load:
            with paused(agent(released.sandbox, "consul-server")):
                released.sandbox.promote(JOB)
                load.wait_for(100)
            released.wait_for_instances_of(1)
        print(f"cured: {cured}, {load.answered} answered, {len(load.failures)} failed, {load.failures[:1]}")
        assert bool(load.failures) != cured

    @pytest.mark.parametrize("cured", [True, False], ids=["cured", "not-cured"])
    def test_when_a_connection_is_used_again_as_the_engine_closes_it(
        self, job: Callable[..., Job], cured: bool
    ) -> None:
        """The cure is that the engine keeps idle connections for longer: VLLM_HTTP_TIMEOUT_KEEP_ALIVE.

        Fabio is held while the engine closes its idle connections, so that it finds the requests and the ends
        of the connections at once.
        """

        def hasty(hcl: str) -> str:
            changed, count = re.subn(r'(VLLM_HTTP_TIMEOUT_KEEP_ALIVE\s*)= "120"', r'\1= "1"', hcl)
            assert count == 1
            return changed

        released = job("fabio", replicas=1)
        released.run(*[] if cured else [hasty])
        wait_until(lambda: answers(released), SOON, "it is routed")
        fabio = pid_of("fabio", released.sandbox)
        (engine,) = released.consul.instances(SERVICE)
        failed = 0
        for _ in range(10):
            failed += at_the_close(released, fabio, engine.port)
            if failed:
                break
        print(f"cured: {cured}, {failed} failed")
        assert bool(failed) != cured

    @pytest.mark.parametrize("cured", [True, False], ids=["cured", "not-cured"])
    @pytest.mark.parametrize("kind", ["fabio", "nginx"])
    def test_at_a_promotion_while_streams_are_in_flight(
        self, job: Callable[..., Job], kind: str, cured: bool
    ) -> None:
        """The cure is the time that an engine has for what it has begun: --shutdown-timeout."""

        def hasty(hcl: str) -> str:
            changed, count = re.subn(r'"--shutdown-timeout=.*",', "", hcl)
            assert count == 1
            return changed

        slow = {"drain.shutdown_delay": "1s", "env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": 25}
        released = job(kind, slow, replicas=1)
        released.run_canaries(*[] if cured else [hasty])
        begun = threading.Barrier(STREAMS + 1)
        with ThreadPoolExecutor(STREAMS) as clients:
            streams = [clients.submit(stream, released, begun) for _ in range(STREAMS)]
            begun.wait(SOON)
            released.promote()
            failed = [said for one in streams if (said := one.result())]
        print(f"cured: {cured}, {len(failed)} of {STREAMS} failed, {failed[:1]}")
        assert bool(failed) != cured


def stream(job: Job, begun: threading.Barrier) -> str:
    """What is wrong with an answer of some six seconds; when it has its first piece, others are awaited."""
    asked = COMPLETION | {"max_tokens": 150, "ignore_eos": True, "stream": True}
    try:
        with (
            http() as client,
            client.stream("POST", f"{job.address}/v1/completions", json=asked, headers=job.headers) as answer,
        ):
            lines = answer.raise_for_status().iter_lines()
            next(lines)
            begun.wait(SOON)
            return "" if "data: [DONE]" in lines else "it has no end"
    except httpx.HTTPError as error:
        return repr(error)


def answers(job: Job) -> bool:
    with suppress(httpx.HTTPError):
        job.versions(WORKERS)
        return True
    return False


def at_the_close(job: Job, fabio: int, engine: int) -> int:
    """How many of a few requests fail that meet their connection's end."""
    url = httpx.URL(job.address)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((url.host, url.port), 10)) for _ in range(8)]
        send(clients, job.headers["Host"])
        assert {status(client) for client in clients} == {200}
        with paused(fabio):
            send(clients, job.headers["Host"])
            give_up = monotonic() + 2
            wait_until(lambda: half_closed(engine) or monotonic() > give_up, SOON, "idle connections end")
        return sum(status(client) != 200 for client in clients)


def send(clients: list[socket.socket], host: str) -> None:
    """All at the same time; each takes the engine a moment, so that each needs a connection of its own."""
    body = b'{"model": "chat", "prompt": "Why?", "max_tokens": 40, "ignore_eos": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for client in clients:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def status(client: socket.socket) -> int:
    """Read one answer."""
    stream = client.makefile("rb")
    code = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    stream.read(int(headers["content-length"]))
    return code


def half_closed(port: int) -> int:
    """Connections to a port that the other side has closed: CLOSE_WAIT in /proc/net/tcp."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(words[2].endswith(f":{port:04X}") and words[3] == "08" for words in lines)


def pid_of(program: str, sandbox: Sandbox) -> int:
    """The process of one of the sandbox's own jobs."""
    of_sandbox = f"{sandbox.folder}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, _, _ = (process / "cmdline").read_bytes().partition(b"\0")
            if command.endswith(program.encode()) and of_sandbox in (process / "environ").read_bytes():
                return int(process.name)
    raise AssertionError(f"{program} does not run")
