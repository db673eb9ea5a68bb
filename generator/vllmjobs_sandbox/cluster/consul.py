"""Consul: one server, and an agent for each Nomad client.

Nomad clients that share an agent deregister each other's services.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class ConsulAgent:
    """The name and the ports of one Consul agent, all of them on loopback."""

    name: str
    http: int
    serf: int
    rpc: int

    @property
    def address(self) -> str:
        """Return the address of its HTTP API."""
        return f"127.0.0.1:{self.http}"


def config(agent: ConsulAgent, data_dir: str, join: ConsulAgent | None = None) -> str:
    """Write the configuration of an agent: a server, unless it joins one."""
    settings: dict[str, object] = {
        "node_name": agent.name,
        "datacenter": "dc1",
        "data_dir": data_dir,
        "bind_addr": "127.0.0.1",
        "client_addr": "127.0.0.1",
        "ports": {
            "http": agent.http,
            "serf_lan": agent.serf,
            "server": agent.rpc,
            **dict.fromkeys(("dns", "grpc", "grpc_tls", "serf_wan"), -1),
        },
        "disable_update_check": True,
        "disable_coordinates": True,
        "gossip_lan": {"gossip_interval": "1s"},
        "leave_on_terminate": False,
        # All of a sandbox's clients have the same address.
        "limits": {"http_max_conns_per_client": 2000},
    }
    if join is None:
        settings |= {"server": True, "bootstrap_expect": 1, "performance": {"raft_multiplier": 1}}
    else:
        settings |= {"retry_join": [f"127.0.0.1:{join.serf}"], "retry_interval": "1s"}
    return json.dumps(settings, indent=2) + "\n"
