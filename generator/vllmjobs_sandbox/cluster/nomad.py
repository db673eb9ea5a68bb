"""Nomad: the configuration of a server, and of clients that have simulated GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vllmjobs_sandbox.gpus.plugin.config import GpuModel
from vllmjobs_sandbox.gpus.plugin.launcher import plugin_config

H100 = GpuModel("NVIDIA H100 80GB HBM3", memory_mib=81559, power_w=700, cores_clock_mhz=1980)
# Named in sandbox.yaml, too: Nomad cuts a longer kill_timeout in silence.
MAX_KILL_TIMEOUT = "2m"
# They would ask the metadata service of a cloud that is not there; env_aws can end the agent's start.
CLOUDS = "env_aws,env_azure,env_digitalocean,env_gce"


@dataclass(frozen=True)
class NomadAgent:
    """The name and the ports of one Nomad agent, all of them on loopback."""

    name: str
    http: int
    rpc: int
    serf: int

    @property
    def address(self) -> str:
        """Return the URL of its HTTP API."""
        return f"http://127.0.0.1:{self.http}"


def server_config(
    agent: NomadAgent,
    data_dir: str,
    consul: str,
    servers: int = 1,
    join: Sequence[NomadAgent] = (),
    patient: bool = True,
) -> str:
    """Write the configuration of a server, which elects no leader before there are so many of them.

    A client that is silent counts as lost: after some 5 s, or if it is patient after minutes. By default it
    is 20 s, for which a busy machine does keep a client waiting; what it runs is stopped when it is back.
    """
    grace, beat = ("5m", "10s") if patient else ("2s", "3s")
    others = [f"127.0.0.1:{other.serf}" for other in join if other != agent]
    joining = f"""
  server_join {{
    retry_join     = {json.dumps(others)}
    retry_interval = "1s"
  }}
"""
    return f"""\
{_common(agent, data_dir, consul)}
server {{
  enabled          = true
  bootstrap_expect = {servers}
  raft_multiplier  = 1
  heartbeat_grace   = "{grace}"
  min_heartbeat_ttl = "{beat}"
{joining if others else ""}}}
"""


def secured_config(agent: NomadAgent, folder: str, verify_clients: bool, is_client: bool = False) -> str:
    """Write the configuration of a server with ACLs and TLS, whose files `nomad tls` put into the folder.

    It may be its own only client.
    """
    client = f"""
client {{
  enabled           = true
  network_interface = "lo"

  options {{
    "driver.allowlist"     = "raw_exec"
    "fingerprint.denylist" = "{CLOUDS}"
  }}
}}

plugin "raw_exec" {{
  config {{
    enabled = true
  }}
}}
"""
    return f"""\
{_common(agent, f"{folder}/data", "127.0.0.1:1")}
server {{
  enabled          = true
  bootstrap_expect = 1
}}

acl {{
  enabled = true
}}

tls {{
  http                = true
  ca_file             = "{folder}/nomad-agent-ca.pem"
  cert_file           = "{folder}/global-server-nomad.pem"
  key_file            = "{folder}/global-server-nomad-key.pem"
  verify_https_client = {json.dumps(verify_clients)}
}}
{client if is_client else ""}"""


def client_config(
    agent: NomadAgent,
    data_dir: str,
    consul: str,
    *,
    servers: Sequence[NomadAgent],
    ports: range,
    plugin_dir: str,
    gpus: Sequence[GpuModel],
    health_file: str,
    meta: dict[str, str],
    docker: str | None = None,
) -> str:
    """Write the configuration of a client; the ports are those that it may give to tasks."""
    drivers = ["raw_exec", "docker"] if docker else ["raw_exec"]
    said = "\n".join(f"    {key} = {json.dumps(value)}" for key, value in meta.items())
    return f"""\
{_common(agent, data_dir, consul)}
plugin_dir = {json.dumps(plugin_dir)}

telemetry {{
  collection_interval = "1m" # every second, an idle node would look at all that runs on it
}}

client {{
  enabled           = true
  servers           = {json.dumps([f"127.0.0.1:{server.rpc}" for server in servers])}
  network_interface = "lo"
  min_dynamic_port  = {ports[0]}
  max_dynamic_port  = {ports[-1]}
  max_kill_timeout  = "{MAX_KILL_TIMEOUT}"

  # The same on every machine. Nothing holds a raw_exec task to what it asks for.
  cpu_total_compute = 32000
  memory_total_mb   = 65536

  options {{
    "driver.allowlist"     = "{",".join(drivers)}"
    "fingerprint.denylist" = "{CLOUDS}"
  }}

  meta {{
{said}
  }}
}}

plugin "raw_exec" {{
  config {{
    enabled = true
  }}
}}

{_docker(docker) if docker else ""}{plugin_config(gpus, agent.name, health_file)}"""


def _docker(endpoint: str) -> str:
    return f"""\
plugin "docker" {{
  config {{
    endpoint = {json.dumps(endpoint)}

    volumes {{
      enabled = true
    }}

    # There is no registry to pull it from again.
    gc {{
      image = false
    }}
  }}
}}

"""


def _common(agent: NomadAgent, data_dir: str, consul: str) -> str:
    return f"""\
name                 = "{agent.name}"
datacenter           = "dc1"
data_dir             = {json.dumps(data_dir)}
bind_addr            = "127.0.0.1"
disable_update_check = true

ports {{
  http = {agent.http}
  rpc  = {agent.rpc}
  serf = {agent.serf}
}}

advertise {{
  http = "127.0.0.1:{agent.http}"
  rpc  = "127.0.0.1:{agent.rpc}"
  serf = "127.0.0.1:{agent.serf}"
}}

consul {{
  address          = "{consul}"
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}}
"""
