"""What the templates see. Names here are the template author's interface."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from vllmjobs.environment.derive import KILL_MARGIN_S, Deadlines, canaries, deadlines, service_name
from vllmjobs.environment.model import Balancer, Environment, Images, Model, Route
from vllmjobs.environment.quantity import duration, mebibytes, seconds, size_bytes, spaced
from vllmjobs.render.arguments import KEEP_ALIVE_S, arguments, is_bridged, variables
from vllmjobs.render.hcl import quote, quote_lines

RESTART_ATTEMPTS = 2
MIN_RESTART_INTERVAL_S = 1800.0
BALANCER_IMAGES = {"fabio": "fabiolb/fabio:1.7.3", "nginx": "nginx:1.30-alpine"}
BALANCER_PORTS = {"fabio": 9999, "nginx": 80}
BALANCER_USERS = {"docker": "65534", "exec": "nobody", "raw_exec": None}
BALANCER_START_S = 360.0  # the docker driver's own limit for a pull is 5 minutes
BALANCER_SHUTDOWN_DELAY_S = 5.0  # for clients that find it through Consul
MIN_READ_TIMEOUT_S = 300.0

FILTERS: dict[str, Callable[..., Any]] = {
    "hcl": quote,
    "hcl_lines": quote_lines,
    "duration": duration,
    "mebibytes": mebibytes,
    "bytes": size_bytes,
    "spaced": spaced,
}


@dataclass(frozen=True, slots=True)
class Group:
    """One model, as the job template writes it."""

    name: str
    model: Model
    service: str
    tags: list[str]
    canary_tags: list[str]
    canaries: int
    deadlines: Deadlines
    restart_attempts: int
    restart_interval: float
    image: str
    command: str | None
    args: list[str]
    env: dict[str, str]
    secrets: dict[str, dict[str, list[tuple[str, str]]]]
    device: str
    shm_bytes: int
    bridged: bool


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


def vllm_context(environment: Environment, only: str | None = None) -> dict[str, Any]:
    """The context of `vllm.nomad.hcl.j2`; with `only`, a single group."""
    names = [only] if only else list(environment.models)
    return {"environment": environment, "groups": [_group(environment, name) for name in names]}


def balancer_context(environment: Environment) -> dict[str, Any]:
    """The context of `fabio.nomad.hcl.j2` and `nginx.nomad.hcl.j2`."""
    balancer = environment.balancer
    docker = balancer.driver == "docker"
    backends = [_backend(environment, name) for name in environment.models]
    longest_stream = max(deadlines(model, balancer).longest_stream for model in environment.models.values())
    kill_timeout = min(longest_stream + KILL_MARGIN_S, seconds(environment.nomad.max_kill_timeout))
    return {
        "environment": environment,
        # Of the job as a whole, a balancer shares what is not about GPUs.
        "nomad": structs.replace(environment.nomad, node_pool=balancer.node_pool),
        "balancer": balancer,
        "name": f"{environment.job}-{balancer.kind}",
        "port": balancer.port or BALANCER_PORTS[balancer.kind],
        "image": balancer.image or BALANCER_IMAGES[balancer.kind],
        "command": balancer.command or balancer.kind,
        "user": balancer.user or BALANCER_USERS[balancer.driver],
        # Only there may a user who is not root listen on a port below 1024.
        "bridged": docker and balancer.kind == "nginx",
        "backends": backends,
        "servers": _servers(backends),
        "longest_stream": longest_stream,
        "kill_timeout": kill_timeout,
        "shutdown_delay": BALANCER_SHUTDOWN_DELAY_S,
        "healthy_deadline": BALANCER_START_S,
        "progress_deadline": BALANCER_START_S + BALANCER_SHUTDOWN_DELAY_S + kill_timeout + 60,
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


def _group(environment: Environment, name: str) -> Group:
    model = environment.models[name]
    times = deadlines(model, environment.balancer)
    count = canaries(model)
    words = arguments(name, model, times)
    # The exec driver sets HOME to that of the task's user, after `env`: /nonexistent for nobody.
    isolated = ["/usr/bin/env", "HOME=${NOMAD_TASK_DIR}"] if model.driver == "exec" else []
    command, *before = [*isolated, *model.entrypoint] if model.driver != "docker" else [None]
    return Group(
        name=name,
        model=model,
        service=service_name(environment, name),
        tags=_tags(environment.balancer, model.route, None),
        canary_tags=_tags(environment.balancer, model.route, model.rollout.weight / count) if count else [],
        canaries=count,
        deadlines=times,
        restart_attempts=RESTART_ATTEMPTS,
        # Long enough that servers which crash while they load use the attempts up, and are rescheduled.
        restart_interval=max(MIN_RESTART_INTERVAL_S, (RESTART_ATTEMPTS + 1) * times.healthy_deadline),
        image=model.image or _image(environment.images, model),
        command=command,
        args=[*before, *words],
        env=variables(environment, model, times),
        secrets=_secrets(model.secrets),
        device="/".join(filter(None, (model.gpus.vendor, model.gpus.type, model.gpus.model))),
        shm_bytes=size_bytes(model.resources.shm or ("1 GiB" if model.gpus.count == 1 else "8 GiB")),
        bridged=is_bridged(model),
    )


def _image(images: Images, model: Model) -> str:
    return images.gptoss if model.install == "gptoss" else images.standard


def _tags(balancer: Balancer, route: Route, canary_weight: float | None) -> list[str]:
    """Consul tags: what Fabio routes on, and `vllm`, by which Prometheus finds every instance."""
    tags = ["vllm"] if canary_weight is None else ["vllm", "canary"]
    if balancer.kind != "fabio":
        return tags
    options = [f"{route.host}{route.path}"]
    if route.strip:
        options.append(f"strip={route.strip}")
    if canary_weight is not None:
        # Per instance; Fabio resolves 0.01 % (fabiolb/fabio#352 for the option itself).
        options.append(f"weight={max(0.0001, round(canary_weight, 4)):g}")
    return [f"urlprefix-{' '.join(options)}", *tags]


def _secrets(references: dict[str, str]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """References by kind (`nomad`, `vault`), then by path: the variables and fields read from there."""
    by_kind: dict[str, dict[str, list[tuple[str, str]]]] = {"nomad": {}, "vault": {}}
    for variable, reference in references.items():
        path, _, key = reference.rpartition("#")
        kind = "vault" if path.startswith("vault:") else "nomad"
        place = path.removeprefix("vault:")
        by_kind[kind].setdefault(place, []).append((variable, key))
    return by_kind
