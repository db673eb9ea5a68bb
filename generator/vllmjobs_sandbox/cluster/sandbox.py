"""The sandbox: Consul, Nomad, Fabio and nginx on loopback, from the start to a stop that leaves nothing."""

from __future__ import annotations

import json
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from uuid import uuid4

import nomad
import requests
from consul import Consul
from consul.exceptions import ConsulException

from vllmjobs_sandbox.cluster import consul as consul_config
from vllmjobs_sandbox.cluster import leftovers, ports, secured
from vllmjobs_sandbox.cluster import nomad as nomad_config
from vllmjobs_sandbox.cluster.agents import READY, Agents
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.jobs import Jobs
from vllmjobs_sandbox.cluster.layout import Layout
from vllmjobs_sandbox.cluster.process import Process, wait_until
from vllmjobs_sandbox.cluster.programs import programs
from vllmjobs_sandbox.gpus.plugin.devices import Health

SECRET = "nomad/jobs"  # where sandbox.yaml says that it is
# raw_exec tasks get the agent's environment, and Fabio takes any variable for a setting.
INHERITED = ("HOME", "LANG", "LC_ALL", "TZ", "USER")
# Go's own 100 lets agents with so little in memory look for garbage all the time: a third of their time.
GARBAGE_PERCENT = "400"
# Linux allows 107 bytes for the path of a socket. Without its plugins' Nomad does not start; without that
# of the Task API a task starts all the same.
LONGEST_PARENT = 107 - len(f"/{leftovers.PREFIX}12345/tmp/plugin1234567890")
LONGEST_FOR_TASK_API = 107 - len(f"/gpu-1/alloc/{'x' * 36}/vllm/secrets/api.sock")
NOT_YET = (nomad.api.exceptions.BaseNomadException, ConsulException, requests.RequestException)

Say = Callable[[str], None]


class Sandbox(Jobs):
    """A context: up when it is entered, gone without a trace when it is left.

    `gpus` are per client. Without `balancers`, Fabio and nginx are left out. `docker` is the address of a
    Docker, for jobs with that driver. With `machines`, each client is one whose power can be cut, and is
    missed within seconds; that needs root. With `acls`, Nomad and Consul have them, and `token` is a
    manager's of both.
    """

    def __init__(
        self,
        clients: int = 2,
        gpus: int = 4,
        parent: Path | None = None,
        balancers: bool = True,
        say: Say = lambda _: None,
        docker: str | None = None,
        servers: int = 1,
        machines: bool = False,
        acls: bool = False,
    ) -> None:
        self.nodes = [f"gpu-{number}" for number in range(1, clients + 1)]
        self.hf_token = f"sandbox-{secrets.token_hex(8)}"
        self.keep_files = False
        self._parent = (parent or Path(tempfile.gettempdir())).absolute()
        self._gpus = [replace(nomad_config.H100, count=gpus)]
        self._balancers = balancers
        self._docker = docker
        self._names = [f"server-{number}" for number in range(1, servers + 1)] if servers > 1 else ["server"]
        self._machines = machines
        self.token = str(uuid4()) if acls else ""
        self._say = say
        self._block: ports.Block | None = None

    def __enter__(self) -> Sandbox:
        try:
            self._start()
        except BaseException as error:
            self._stop(keep_files=isinstance(error, Exception))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(keep_files=self.keep_files or isinstance(error, Exception))

    def set_gpu_health(self, node: str, gpu: str, health: Health) -> None:
        """Make a GPU unhealthy, absent or healthy again; Nomad sees it a few seconds later."""
        path = self._layout.health_file(node)
        states = json.loads(path.read_text()) if path.exists() else {}
        new = path.with_suffix(".new")
        new.write_text(json.dumps({**states, gpu: health}))
        new.replace(path)

    def ended(self) -> list[Process]:
        """List the agents that have ended by themselves."""
        return self._agents.ended()

    def kill(self, agent: str) -> None:
        """End `nomad-server`, `consul-gpu-1` … with SIGKILL. Its tasks run on, unless it is a machine."""
        self._agents.kill(agent)

    def start_again(self, agent: str) -> None:
        """Start what was killed, with its data, and wait until it is one of the cluster again."""
        self._agents.start_again(agent)
        program, _, name = agent.partition("-")
        if program == "consul":
            self._wait_for_consul(name)
        elif name in self.nodes:
            self._wait_for_client(name)
        else:
            self._wait_for_server(name)
            self._wake_clients()

    def servers(self) -> dict[str, str]:
        """Return the addresses of Nomad's servers by their names."""
        return {name: self._layout.nomad[name].address for name in self._names}

    def leader(self) -> str:
        """Return the name of the server that leads: `server-2`."""
        address = self.nomad.status.leader.get_leader()
        (name,) = (name for name, agent in self._layout.nomad.items() if address == f"127.0.0.1:{agent.rpc}")
        return name

    def _start(self) -> None:
        if len(str(self._parent)) > LONGEST_PARENT:
            raise SandboxError(f"{self._parent} is too long for Nomad's sockets; name a shorter --dir")
        self._parent.mkdir(parents=True, exist_ok=True)
        for folder in leftovers.clear(self._parent):
            self._say(f"removed what an earlier sandbox left in {folder}")
        self._programs = programs()
        block = ports.take_block()
        self.folder = leftovers.folder_of(self._parent, block)
        self._layout = Layout.take(self.folder, block, self._names, self.nodes)
        agent_env = {
            **{key: os.environ[key] for key in INHERITED if key in os.environ},
            "PATH": self._layout.path,
            "TMPDIR": str(self.folder / "tmp"),
            "GOGC": GARBAGE_PERCENT,
            leftovers.MARK: str(self.folder),
        }
        more = secured.acls(self.token) if self.token else {}
        self._agents = Agents(self.folder, self._programs, agent_env, more)
        self._block = block
        if self.folder.exists():
            leftovers.remove(self.folder)
        self._say(f"folder  {self.folder}")
        if len(str(self.folder)) > LONGEST_FOR_TASK_API:
            self._say("        too long a name for Nomad's Task API: tasks will not have it")
        self._lay_out()
        self._start_servers()
        self._start_clients()
        self.nomad.variable.create_variable(SECRET, {"Path": SECRET, "Items": {"hf_token": self.hf_token}})
        if self._balancers:
            self._start_balancers()

    def _lay_out(self) -> None:
        """Make the folder, and the clients of what is going to run."""
        layout = self._layout
        layout.write(self.nodes, self._programs)
        self.consul_address = f"http://{layout.consul['server'].address}"
        self.nomad_address = layout.nomad[self._names[0]].address
        self.fabio_address = f"http://127.0.0.1:{layout.fabio}"
        self.fabio_admin = f"http://127.0.0.1:{layout.fabio_admin}"
        self.nginx_address = f"http://127.0.0.1:{layout.nginx}"
        tokens = {"NOMAD_TOKEN": self.token, "CONSUL_HTTP_TOKEN": self.token} if self.token else {}
        self.env = layout.write_env(
            {
                "NOMAD_ADDR": self.nomad_address,
                "CONSUL_HTTP_ADDR": self.consul_address,
                "VLLMJOBS_PROJECT": str(self.folder),
                **tokens,
            }
        )
        self.consul = _consul_client(layout.consul["server"], self.token)
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy does not reach this loopback
        self.nomad = nomad.Nomad(
            address=self.nomad_address,
            token=self.token or None,
            namespace="default",
            region="global",
            verify=True,
            timeout=30,
            session=self._session,
        )

    def _start_servers(self) -> None:
        self._agents.start_consul(self._layout.consul["server"])
        servers = [self._layout.nomad[name] for name in self._names]
        for server in servers:
            config = nomad_config.server_config(
                server,
                str(self.folder / server.name),
                self._layout.consul["server"].address,
                servers=len(servers),
                join=servers,
                patient=not self._machines,
            )
            self._agents.start_nomad(server, config)
        self._wait_for_consul("server")
        self._say(f"consul  {self.consul_address}")
        for name in self._names:
            self._wait_for_server(name)
        if self.token:
            asked = {"BootstrapSecret": self.token}
            self._session.post(f"{self.nomad_address}/v1/acl/bootstrap", json=asked).raise_for_status()
        self._say(f"nomad   {self.nomad_address}")

    def _start_clients(self) -> None:
        for name in self.nodes:
            self._agents.start_consul(self._layout.consul[name], self._layout.consul["server"])
        for name in self.nodes:  # Nomad asks its agent once at the start, and then only every 15 s
            self._wait_for_consul(name)
        for number, name in enumerate(self.nodes, 1):
            self._start_client(number, name)
        for name in self.nodes:
            self._wait_for_client(name)
            gpu = self._gpus[0]
            self._say(f"node    {name}, with {gpu.count} x {gpu.model}")
        leftovers.weigh_tasks()  # the first client has made their cgroup

    def _start_client(self, number: int, name: str) -> None:
        assert self._block
        config = nomad_config.client_config(
            self._layout.nomad[name],
            str(self.folder / name),
            self._layout.consul[name].address,
            servers=[self._layout.nomad[server] for server in self._names],
            ports=self._block.dynamic(number),
            plugin_dir=str(self.folder / "plugins"),
            gpus=self._gpus,
            health_file=str(self._layout.health_file(name)),
            meta={"balancer": "true"} if number == 1 else {},
            docker=self._docker,
        )
        self._agents.start_nomad(self._layout.nomad[name], config, machine=self._machines)

    def _wait_for_consul(self, name: str) -> None:
        leader = _consul_client(self._layout.consul[name], self.token).status.leader
        self._agents.wait_until(f"consul-{name}", leader, "it knows a leader", ignoring=NOT_YET)

    def _wait_for_server(self, name: str) -> None:
        self._agents.wait_until(
            f"nomad-{name}", lambda: self._is_healthy(name), "it knows a leader", ignoring=NOT_YET
        )

    def _wait_for_client(self, name: str) -> None:
        self._agents.wait_until(
            f"nomad-{name}",
            lambda: self._is_healthy(name) and self._is_ready(name),
            "it is ready with its GPUs",
            ignoring=(*NOT_YET, KeyError),
        )

    def _wake_clients(self) -> None:
        """Have clients ask something: what they would try again after up to 60 s, they try at once."""
        for agent in self._clients():
            url = f"{self._layout.nomad[agent.removeprefix('nomad-')].address}/v1/status/leader"
            self._agents.wait_until(
                agent, partial(self._answers, url), "it reaches a server", ignoring=NOT_YET
            )

    def _is_healthy(self, name: str) -> bool:
        return self._answers(f"{self._layout.nomad[name].address}/v1/agent/health")

    def _answers(self, url: str) -> bool:
        return self._session.get(url, timeout=10).ok

    def _is_ready(self, name: str) -> bool:
        node = self.node(name)
        return (
            node["Status"] == "ready"
            and "consul.version" in node["Attributes"]
            and node["Drivers"]["raw_exec"]["Healthy"]
            and (not self._docker or node["Drivers"]["docker"]["Healthy"])
            # A plugin that does not start is no error to Nomad: the node has no devices, and nothing says so.
            and list(self.gpus(name).values()) == [True] * sum(gpu.count for gpu in self._gpus)
        )

    def _start_balancers(self) -> None:
        jobs = {
            "vllm-dev-fabio": self.render("dev", "--job", "fabio"),
            "vllm-dev-nginx": self.render("dev-nginx", "--job", "nginx"),
        }
        for hcl in jobs.values():
            self.run(hcl)
        for job, address in zip(jobs, (self.fabio_address, self.nginx_address), strict=True):
            port = int(address.rpartition(":")[2])
            wait_until(
                partial(ports.listens, port), READY, f"{job} listens", evidence=partial(self.evidence, job)
            )
            self._say(f"{job.rpartition('-')[2]:<7} {address}")

    def _stop(self, keep_files: bool) -> None:
        """Stop the jobs first: an agent that ends leaves its tasks running."""
        if not self._block:
            return
        self._say("stopping")
        with _undisturbed(self._say):
            with suppress(*NOT_YET, SandboxError):
                self._stop_jobs()
            self._agents.stop(self._clients())
            self._agents.stop()
            leftovers.remove(self.folder, keep_files)
            self._block.release()
        if keep_files:
            self._say(f"logs are in {self.folder}, until the next sandbox starts")

    def _clients(self) -> list[str]:
        return [name for name in self._agents.running if name.removeprefix("nomad-") in self.nodes]

    def _stop_jobs(self) -> None:
        if self._clients():
            self.purge(*(job["ID"] for job in self.nomad.jobs.get_jobs()))


def _consul_client(agent: consul_config.ConsulAgent, token: str) -> Consul:
    client = Consul(host="127.0.0.1", port=agent.http, token=token)
    client.http.session.trust_env = False
    return client


@contextmanager
def _undisturbed(say: Say) -> Iterator[None]:
    """Finish what is inside: a second Ctrl-C would leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def insist(_number: int, _frame: FrameType | None) -> None:
        say("still stopping")

    before = {number: signal.signal(number, insist) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
