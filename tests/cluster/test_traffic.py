"""A share of the requests that is asked for, on a real Consul, Fabio and nginx; and no request is lost."""

from __future__ import annotations

import json
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
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import httpx
import pytest

from vllmjobs.cli.common import Selection
from vllmjobs.cluster.consul import ConsulApi
from vllmjobs.deploy.traffic import Traffic, TrafficError
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import http

OLD, NEW, NEWER = 1024, 2048, 1536
KINDS = ["nginx", "fabio"]  # in this order: what is asked of Fabio, nginx hears too, some seconds later
JOB, SERVICE = "vllm-dev", "vllm-dev-chat"
SOON = 60.0  # seconds, from a change in Consul to all that follows from it
# By share, as many requests as leave it by POINTS one time in a million: both balancers choose by chance.
POINTS, REQUESTS = 0.1, {0.05: 200, 0.25: 500, 0.75: 500, 1.0: 50}
POINTS_LONG, REQUESTS_LONG = 0.02, {0.05: 3500, 0.25: 12_000, 0.75: 12_000, 1.0: 1000}
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
        self.environment = Selection(self._name, tuple(self._settings()), self.sandbox.folder).environment
        self.consul = ConsulApi(self.sandbox.env)
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

    def run_canaries(self, length: int = NEW, **chat: Any) -> None:
        """Beside the old version, run canaries of a new one, and wait until the balancer knows them."""
        self.run(max_model_len=length, **chat)
        wait_until(lambda: (self.given() or 0) > 0, SOON, "the balancer sends requests to canaries")

    def given(self) -> float | None:
        return self.traffic.given()["chat"]

    def ask(self, share: float, within: float = 0.001) -> None:
        """Ask for a share, and wait until the balancer gives it."""
        self.traffic.ask({"chat": share})
        self.wait_until_given(share, within)

    def wait_until_given(self, share: float, within: float = 0.001) -> None:
        wait_until(
            lambda: (given := self.given()) is not None and abs(given - share) < within,
            SOON,
            f"the canaries are given {share}",
            evidence=lambda: f"given: {self.given()}, problems: {self.traffic.problems()}",
        )

    def versions(self, requests: int) -> Counter[int]:
        """Which versions answered so many requests."""
        client = Client(self)
        answers = (json.loads(client.ask("GET", "/v1/models")) for _ in range(requests))
        return Counter(answer["data"][0]["max_model_len"] for answer in answers)

    def stop_canaries(self) -> None:
        self.sandbox.nomad.deployment.fail_deployment(self.sandbox.deployment(JOB)["ID"])
        self.wait_for_instances_of(1)

    def promote(self) -> None:
        self.sandbox.promote(JOB)
        self.promoted()

    def promoted(self) -> None:
        wait_until(
            lambda: self.sandbox.deployment(JOB)["Status"] == "successful", SOON, "the promotion is done"
        )
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


class Client:
    """A client that keeps its connection where it may, and does not look whether the other side has ended it.

    So a connection that ends while it is idle is as one that ends while a request is on its way.
    """

    def __init__(self, job: Job) -> None:
        url = httpx.URL(job.address)
        self._headers = job.headers
        self._connection = HTTPConnection(url.host, url.port, timeout=30)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        try:
            self._connection.request(
                method, path, body, {**self._headers, "Content-Type": "application/json"}
            )
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, HTTPException):
            self._connection.close()
            raise
        if answer.status != 200:
            raise HTTPException(f"{answer.status}: {text.decode()}")
        return text


class Load:
    """Completions without a pause, of a few clients of each balancer: how many ended, and what failed."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = jobs
        self.ended = [0] * len(jobs)
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        self._stopping = threading.Event()
        numbers = range(len(self.jobs))
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True)
            for number in numbers
            for _ in range(WORKERS // len(numbers))
        ]
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until each balancer has answered, or failed, so many more."""
        goals = [ended + more for ended in self.ended]
        wait_until(
            lambda: all(ended >= goal for ended, goal in zip(self.ended, goals, strict=True)),
            SOON,
            f"{more} more are answered",
        )

    def _run(self, number: int) -> None:
        job = self.jobs[number]
        client, body = Client(job), json.dumps(COMPLETION).encode()
        while not self._stopping.wait(0.02):
            try:
                client.ask("POST", "/v1/completions", body)
            except (OSError, HTTPException) as error:
                self.failures.append(f"{job.kind}: {error!r}")
            self.ended[number] += 1


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


@pytest.fixture(scope="class")
def both(sandbox: Sandbox) -> Iterator[dict[str, Job]]:
    """Two stable instances and two canaries: one job, asked through Fabio and through nginx."""
    settings = {"replicas": 2, "rollout.canaries": 2}
    jobs = {kind: Job(sandbox, kind, settings) for kind in KINDS}
    try:
        jobs["fabio"].run()
        jobs["fabio"].run_canaries()
        yield jobs
    finally:
        jobs["fabio"].purge()


class TestAShareThatIsAskedFor:
    """One job lives through these tests, in their order."""

    @pytest.mark.parametrize("share", REQUESTS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_arrives(
        self,
        both: dict[str, Job],
        kind: str,
        share: float,
        long: bool,
        record_property: Callable[[str, object], None],
    ) -> None:
        both[kind].ask(share)
        counts = both[kind].versions((REQUESTS_LONG if long else REQUESTS)[share])
        found = counts[NEW] / counts.total()
        record_property(f"{kind} {share}", f"{found:.4f} of {counts.total()}")
        assert abs(found - share) < (POINTS_LONG if long else POINTS)
        assert both[kind].traffic.asked() == {"chat": share}

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_given_however_near_to_nothing_or_to_all(self, both: dict[str, Job], kind: str) -> None:
        for share in (0.001, 0.999):
            both[kind].ask(share, within=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_gone_after_a_cleaning_by_any_version(self, both: dict[str, Job], kind: str) -> None:
        job = both[kind]
        job.ask(0.5)
        assert Traffic(job.environment, job.consul, job.version + 1).asked() == {}, "another version wrote it"
        assert job.traffic.asked() == {"chat": 0.5}
        for _ in range(2):
            Traffic(job.environment, job.consul, 77).clean()
        assert job.traffic.asked() == {}
        assert not job.consul.read(f"fabio/config/{JOB}")
        assert not job.consul.read(f"vllmjobs/{JOB}/")
        job.wait_until_given(0.1)  # rollout.weight

    def test_may_change_again_and_again_and_no_request_fails_at_nginx(self, both: dict[str, Job]) -> None:
        """Each change is a reload, and the workers of before it close their connections to clients."""
        with Load(both["nginx"]) as load:
            for share in (0.5, 0.25, 0.5, 0.25):
                both["nginx"].ask(share)
                load.wait_for(10)
        assert load.failures == []

    def test_may_be_asked_for_while_consul_is_restarted_and_no_request_fails(
        self, both: dict[str, Job]
    ) -> None:
        released = both["fabio"]  # what it writes, nginx reads too
        traffic = released.traffic
        traffic.ask({"chat": 0.25})
        with Load(*both.values()) as load, ThreadPoolExecutor(1) as pool:
            released.sandbox.kill("consul-server")
            asking = pool.submit(traffic.ask, {"chat": 0.5})
            load.wait_for(50)
            released.sandbox.start_again("consul-server")
            asking.result()
            for job in both.values():
                job.wait_until_given(0.5)
            load.wait_for(50)
        assert load.failures == []

    def test_fails_no_request_when_the_canaries_stop(self, both: dict[str, Job]) -> None:
        both["fabio"].ask(0.5)
        both["nginx"].wait_until_given(0.5)
        with Load(*both.values()) as load:
            both["fabio"].stop_canaries()
            load.wait_for(50)
        assert load.failures == []
        for job in both.values():
            assert job.given() == 0
            assert job.traffic.problems() == []
            with pytest.raises(TrafficError, match="no canary of chat is registered in Consul as vllm-dev-c"):
                job.traffic.ask({"chat": 0.25})

    def test_fails_no_request_at_a_promotion(self, both: dict[str, Job]) -> None:
        both["fabio"].run_canaries()
        both["fabio"].ask(0.5)
        both["nginx"].wait_until_given(0.5)
        with Load(*both.values()) as load:
            both["fabio"].promote()
            load.wait_for(50)
        assert load.failures == []
        for job in both.values():
            assert job.traffic.problems() == []
            assert set(job.versions(50)) == {NEW}
        both["fabio"].traffic.clean()

    # Fabio's table takes over the changes of other services, or it is frozen.

    def test_may_freeze_fabios_table_by_a_malformed_line_until_that_is_gone(
        self, both: dict[str, Job]
    ) -> None:
        released = both["fabio"]
        released.consul.put("fabio/config/other", "# of others\nroute wieght other /v1/ weight 0.5")
        assert not takes_over_changes(released, seconds=2)  # a change takes 0.1 s
        (problem,) = released.traffic.problems()
        assert problem.startswith("fabio/config/other:2: route wieght other /v1/ weight 0.5: is no command")
        assert problem.endswith("`consul kv delete fabio/config/other`")
        released.consul.delete("fabio/config/other")
        assert released.traffic.problems() == []
        assert takes_over_changes(released)

    def test_would_freeze_fabios_table_without_the_anchor(self, both: dict[str, Job]) -> None:
        released = both["fabio"]
        released.run_canaries(NEWER, **{"rollout.canaries": 1})
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

    def test_freezes_no_table_when_nothing_of_the_job_is_left(self, both: dict[str, Job]) -> None:
        released = both["fabio"]
        released.run_canaries(NEWER, **{"rollout.canaries": 1})
        released.ask(0.5)
        released.sandbox.purge(JOB)
        wait_until(lambda: not released.consul.instances(SERVICE), SOON, "it left Consul")
        assert takes_over_changes(released)
        assert Traffic(released.environment, released.consul, 0).problems() == []


def test_a_share_of_a_route_with_a_host_arrives_with_its_port_and_without(job: Callable[..., Job]) -> None:
    named = job("fabio", {"route.host": "chat.example.com"}, replicas=1)
    named.run()
    named.run_canaries()
    named.ask(0.9)
    for host in ("chat.example.com", f"chat.example.com:{httpx.URL(named.address).port}"):
        named.headers["Host"] = host
        assert named.versions(100)[NEW] > 70, host  # without a share it were half of them


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

    def test_at_a_promotion_that_nomads_client_learns_late(self, job: Callable[..., Job]) -> None:
        """Old instances stop at once, and each client tells Consul of its canaries: hashicorp/nomad#18149.

        The cure is a route among the canary_tags.
        """

        def unrouted(hcl: str) -> str:
            return changed(hcl, r"canary_tags = .*", 'canary_tags = ["vllm", "canary"]')

        released = job("fabio", {"placement.constraints": on("gpu-1")}, replicas=1)
        released.run()
        for length, node, cure in ((NEW, "gpu-2", [unrouted]), (NEWER, "gpu-1", [])):
            released.settings["placement.constraints"] = on(node)
            released.run(*cure, max_model_len=length)
            wait_until(lambda: len(released.consul.instances(SERVICE)) == 2, SOON, "both are registered")
            if not cure:
                released.ask(0.5)
            with Load(released) as load:
                with paused(agent(released.sandbox, f"nomad-{node}")):
                    released.sandbox.promote(JOB)
                    wait_until(lambda: len(released.consul.instances(SERVICE)) == 1, SOON, "the old one left")
                    load.wait_for(50)
                released.promoted()
            assert bool(load.failures) == bool(cure), load.failures[:1]

    def test_when_a_stop_is_known_in_consul_late(self, job: Callable[..., Job]) -> None:
        """The cure is the time between leaving Consul and the signal: shutdown_delay."""
        released = job("fabio", {"drain.shutdown_delay": "0s"}, replicas=1)
        released.run()
        released.settings["drain.shutdown_delay"] = "15s"  # of which a busy machine takes some
        for length, is_cured in ((NEW, False), (NEWER, True)):
            released.run_canaries(length)
            released.ask(0.5)
            with Load(released) as load:
                with paused(agent(released.sandbox, "consul-server")):
                    released.sandbox.promote(JOB)
                    load.wait_for(50)
                    if not is_cured:
                        wait_until(lambda: load.failures, SOON, "a request fails")
                released.promoted()
            assert bool(load.failures) != is_cured, load.failures[:1]

    @pytest.mark.parametrize("cured", [True, False], ids=["cured", "not-cured"])
    def test_when_a_connection_is_used_again_as_the_engine_closes_it(
        self, job: Callable[..., Job], cured: bool
    ) -> None:
        """The cure is that the engine keeps idle connections for longer: VLLM_HTTP_TIMEOUT_KEEP_ALIVE.

        Fabio is held while the engine closes its idle connections, so that it finds the requests and the ends
        of the connections at once.
        """

        def hasty(hcl: str) -> str:
            return changed(hcl, r'(VLLM_HTTP_TIMEOUT_KEEP_ALIVE\s*)= "120"', r'\1= "1"')

        released = job("fabio", replicas=1)
        released.run(*[] if cured else [hasty])
        wait_until(lambda: answers(released), SOON, "it is routed")
        fabio = pid_of("fabio", released.sandbox)
        (engine,) = released.consul.instances(SERVICE)
        rounds = (at_the_close(released, fabio, engine.port) for _ in range(3 if cured else 10))
        assert any(rounds) != cured

    def test_at_a_promotion_while_streams_are_in_flight(
        self, job: Callable[..., Job], sandbox: Sandbox
    ) -> None:
        """The cure is the time that an engine has for what it has begun: --shutdown-timeout."""

        def hasty(hcl: str) -> str:
            return changed(hcl, r'"--shutdown-timeout=.*",', "")

        slow = {"drain.shutdown_delay": "1s", "env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": 25}
        released = job("fabio", slow, replicas=1)
        kinds = [released, Job(sandbox, "nginx")]
        released.run(hasty)
        for length, tokens, is_cured in ((NEW, 1000, False), (NEWER, 150, True)):
            released.run_canaries(length)
            begun = threading.Barrier(len(kinds) * STREAMS + 1)
            with ThreadPoolExecutor(len(kinds) * STREAMS) as clients:
                streams = {
                    kind.kind: [clients.submit(stream, kind, tokens, begun) for _ in range(STREAMS)]
                    for kind in kinds
                }
                begun.wait(SOON)
                released.promote()
                failed = {
                    kind: [said for one in some if (said := one.result())] for kind, some in streams.items()
                }
            assert all(bool(failures) != is_cured for failures in failed.values()), failed


def changed(hcl: str, pattern: str, by: str) -> str:
    """Some words of a job, which are there once, written otherwise."""
    text, count = re.subn(pattern, by, hcl)
    assert count == 1
    return text


def stream(job: Job, tokens: int, begun: threading.Barrier) -> str:
    """What is wrong with an answer at 25 tokens a second; when it has its first piece, others are awaited."""
    asked = COMPLETION | {"max_tokens": tokens, "ignore_eos": True, "stream": True}
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
    with suppress(OSError, HTTPException):
        return bool(job.versions(1))
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
            give_up = monotonic() + 1.5
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
