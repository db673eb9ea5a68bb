"""What the templates of the balancers see."""

from dataclasses import dataclass
from typing import Any

from msgspec import structs

from vllmjobs.environment.derive import (
    KILL_MARGIN_S,
    balancer_name,
    balancer_port,
    deadlines,
    service_name,
)
from vllmjobs.environment.model import Balancer, Environment, Route
from vllmjobs.environment.quantity import seconds
from vllmjobs.render.arguments import KEEP_ALIVE_S

IMAGES = {"fabio": "fabiolb/fabio:1.7.3", "nginx": "nginx:1.30-alpine"}
USERS = {"docker": "65534", "exec": "nobody", "raw_exec": None}
START_S = 360.0  # the docker driver's own limit for a pull is 5 minutes
SHUTDOWN_DELAY_S = 5.0  # for clients that find it through Consul
MIN_READ_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Backend:
    """One model, as a balancer sees it."""

    name: str
    service: str
    variable: str
    route: Route
    weight: str
    weight_key: str
    wanted: bool


def shows_metrics(balancer: Balancer) -> bool:
    """Whether it shows Prometheus its metrics: as the environment says, else where it is sure to start so.

    nginx needs ngx_http_stub_status_module, which the official image has. Fabio can from 1.6 on
    (feature/metrics in its manual), and an older one ends on the flags.
    """
    if balancer.metrics is not None:
        return balancer.metrics and balancer.kind != "none"
    return balancer.kind == "nginx" and balancer.driver == "docker" and balancer.image is None


def balancer_context(environment: Environment) -> dict[str, Any]:
    """The context of `fabio.nomad.hcl.j2` and `nginx.nomad.hcl.j2`."""
    balancer = environment.balancer
    docker = balancer.driver == "docker"
    backends = [_backend(environment, name) for name in sorted(environment.models)]
    longest_stream = max(deadlines(model, balancer).longest_stream for model in environment.models.values())
    kill_timeout = min(longest_stream + KILL_MARGIN_S, seconds(environment.nomad.max_kill_timeout))
    return {
        "environment": environment,
        # Of the job as a whole, a balancer shares what is not about GPUs.
        "nomad": structs.replace(environment.nomad, node_pool=balancer.node_pool),
        "balancer": balancer,
        "name": balancer_name(environment),
        "port": balancer_port(balancer),
        "metrics": shows_metrics(balancer),
        "image": balancer.image or IMAGES[balancer.kind],
        "command": balancer.command or balancer.kind,
        "user": balancer.user or USERS[balancer.driver],
        # Only there may a user who is not root listen on a port below 1024.
        "bridged": docker and balancer.kind == "nginx",
        "backends": backends,
        "instances": [],  # on one box, each has a route of its own
        "servers": _servers(backends),
        "longest_stream": longest_stream,
        "kill_timeout": kill_timeout,
        "shutdown_delay": SHUTDOWN_DELAY_S,
        "healthy_deadline": START_S,
        "progress_deadline": START_S + SHUTDOWN_DELAY_S + kill_timeout + 60,
        # A server that answers at once says nothing until all is generated.
        "read_timeout": max(MIN_READ_TIMEOUT_S, longest_stream),
        "keep_alive": KEEP_ALIVE_S // 2,
    }


def _backend(environment: Environment, name: str) -> Backend:
    model = environment.models[name]
    return Backend(
        name=name,
        service=service_name(environment, name),
        variable=name.replace("-", "_"),
        route=model.route,
        # split_clients and Fabio alike resolve 0.01 %.
        weight=f"{model.rollout.weight:.4f}".rstrip("0").rstrip("."),
        weight_key=f"vllmjobs/{environment.job}/{name}/canary_weight",
        wanted=model.replicas > 0,
    )


def _servers(backends: list[Backend]) -> dict[str, list[Backend]]:
    """What each host name serves, as Fabio would: its own models, then those of any host ("")."""
    hosts: dict[str, list[Backend]] = {"": []}
    for backend in backends:
        hosts.setdefault(backend.route.host, []).append(backend)
    for host, own in hosts.items():
        if host:
            covered = tuple(backend.route.path for backend in own)
            own += [other for other in hosts[""] if not other.route.path.startswith(covered)]
    return hosts
