"""The questions that every kind of balancer answers about an environment.

A kind is one module beside this one: its class overrides what differs. Nothing outside this room compares
`balancer.kind`; it asks the object that `balancer_of` returns.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from msgspec import structs

from vllmjobs.balancers.instances import (
    CANARY,
    IP_PATTERN,
    PORT_PATTERN,
    Registered,
    ServiceInstance,
    canaries_of,
    why_no_canary,
)
from vllmjobs.balancers.paths import passed
from vllmjobs.balancers.shares import Shares, share_key, share_text
from vllmjobs.environment import derive
from vllmjobs.environment.derive import Deadlines
from vllmjobs.environment.model import Environment, Model, Route
from vllmjobs.environment.problems import KeyPath, Severity
from vllmjobs.environment.quantity import seconds

START_S = 360.0  # the docker driver's own limit for a pull is 5 minutes
OWN_SHUTDOWN_DELAY_S = 5.0  # for clients that find the balancer through Consul
MIN_READ_TIMEOUT_S = 300.0


class OwnRule(NamedTuple):
    """A rule of `check` for the environments of one kind of balancer.

    `find` yields what is wrong as (path, sentence) pairs, the paths from the top of the environment. The rule
    has its name, with dashes, and its docstring, which begins with `Find`.
    """

    id: str
    severity: Severity
    find: Callable[[Environment], Iterator[tuple[KeyPath, str]]]


@dataclass(frozen=True, slots=True)
class Backend:
    """One model, as the template of a balancer writes it."""

    name: str
    service: str
    variable: str  # the name in nginx's variables, which hold no `-`
    route: Route
    passed: str  # the paths that reach vLLM, and how it gets them: a regular expression with the group `vllm`
    weight: str  # the share of its canaries until another is asked for
    weight_key: str  # the key of Consul's KV that holds another share
    wanted: bool  # the model is to have an instance


class LoadBalancer(ABC):
    """A balancer in front of an environment's models."""

    kind: ClassVar[str]
    """The value of `balancer.kind`; also the name of its job for `render --job`, and of its template."""
    title: ClassVar[str]  # the name in a sentence
    default_port: ClassVar[int]  # the port that clients use where the environment does not say
    default_image: ClassVar[str]  # the container image where the environment does not say
    shutdown_delay_s: ClassVar[float]  # in which it learns from Consul that an instance, serving on, stops
    keep_alive_s: ClassVar[float]  # for which it keeps an idle connection to vLLM, which must not close first
    is_system_job: ClassVar[bool] = False  # Nomad runs it on every node that fits: its ports are taken there
    routes_by_path: ClassVar[bool] = True  # the `route` of a model decides which requests reach it
    gives_shares: ClassVar[bool] = True  # the canaries' share of the requests can be changed while it runs
    shares_path: ClassVar[str]  # the path of its admin port that shows the shares it gives
    kv_prefix: ClassVar[str | None] = None
    """The beginning of the keys of Consul's KV in which others, too, configure it; None without such keys."""
    rules: ClassVar[tuple[OwnRule, ...]] = ()  # the rules of `check` that are of this kind only

    def __init__(self, environment: Environment) -> None:
        """Answer about the balancer of this environment."""
        self.environment, self.settings = environment, environment.balancer

    @property
    def job(self) -> str | None:
        """The name of its job for `render --job`; None where nothing is run."""
        return self.kind

    @property
    def service(self) -> str | None:
        """The name of its job in Nomad and of its service in Consul; None where nothing is run."""
        return derive.service_name(self.environment, self.kind)

    @property
    def port(self) -> int:
        """The port that clients use."""
        return self.settings.port or self.default_port

    @property
    def shows_metrics(self) -> bool:
        """Tell whether it shows Prometheus its metrics."""
        return bool(self.settings.metrics)

    @property
    def is_bridged(self) -> bool:
        """Tell whether it has a network namespace of its own, with other ports than clients use."""
        return False

    @property
    def may_listen_below_1024(self) -> bool:
        """Tell whether it has the right to ports below 1024, or needs none, being bridged."""
        if self.settings.driver == "docker":
            return self.is_bridged
        # exec gives NET_BIND_SERVICE; raw_exec runs as Nomad does, most often as root.
        return self.settings.driver == "exec" or not self.settings.user or derive.is_root(self.settings.user)

    def deadlines(self, model: Model) -> Deadlines:
        """Return the deadlines of a model behind it, in seconds."""
        return derive.deadlines(model, self.shutdown_delay_s)

    def tags(self, model: Model) -> list[str]:
        """Return the Consul tags of a model's instances: its routes, and `vllm` for Prometheus."""
        return [*self.route_tags(model.route, None), "vllm"]

    def canary_tags(self, model: Model) -> list[str]:
        """Return the Consul tags of a model's canaries; none where a release makes no canaries."""
        count = derive.canaries(model)
        if not count:
            return []
        return [*self.route_tags(model.route, model.rollout.weight / count), "vllm", CANARY]

    def route_tags(self, route: Route, weight: float | None) -> list[str]:
        """Return the tags by which it finds a route; `weight` is the share of one canary, None for others."""
        return []

    def context(self) -> dict[str, Any]:
        """Return the names that its template sees, and what each of them is."""
        environment, settings = self.environment, self.settings
        backends = [self._backend(name) for name in sorted(environment.models)]
        longest_stream = max(self.deadlines(model).longest_stream for model in environment.models.values())
        kill_timeout = min(longest_stream + derive.KILL_MARGIN_S, seconds(environment.nomad.max_kill_timeout))
        return {
            "environment": environment,
            # A balancer shares with the models' job what is not about GPUs.
            "nomad": structs.replace(environment.nomad, node_pool=settings.node_pool),
            "balancer": settings,
            "name": self.service,
            "port": self.port,
            "metrics": self.shows_metrics,
            "image": settings.image or self.default_image,
            "command": settings.command or self.kind,
            "user": settings.user or derive.TASK_USERS[settings.driver],
            "bridged": self.is_bridged,
            "backends": backends,
            "ip_pattern": IP_PATTERN,
            "port_pattern": PORT_PATTERN,
            "instances": [],  # on one box, each has a route of its own
            "servers": _servers(backends),
            "longest_stream": longest_stream,
            "kill_timeout": kill_timeout,
            "shutdown_delay": OWN_SHUTDOWN_DELAY_S,
            "healthy_deadline": START_S,
            "progress_deadline": START_S + OWN_SHUTDOWN_DELAY_S + kill_timeout + 60,
            # A server that answers at once says nothing until all is generated.
            "read_timeout": max(MIN_READ_TIMEOUT_S, longest_stream),
            "keep_alive": derive.KEEP_ALIVE_S // 2,
        }

    def share_values(self, shares: Shares, asked: Shares, instances: Registered) -> dict[str, str] | str:
        """Return what gives the canaries of these groups their shares: values by key, to write in this order.

        `asked` are the shares asked for before, which stay where `shares` has no other; `instances` are those
        of the groups of both. Returns a reason instead where a group has no canary to send anything to.
        """
        for group in shares:
            if not canaries_of(instances[group]):
                return why_no_canary(group, derive.service_name(self.environment, group), instances[group])
        job = self.environment.job or ""
        return {share_key(job, group): share_text(share) for group, share in shares.items()}

    def shares_url(self, instance: ServiceInstance) -> str:
        """Return the address at which an instance of the balancer shows the shares that it gives."""
        host = f"[{instance.address}]" if ":" in instance.address else instance.address
        return f"http://{host}:{self.settings.admin_port}{self.shares_path}"

    def given(self, answer: Any) -> dict[str, float] | None:
        """Return each model's share of canaries, 0 to 1, by the JSON at `shares_url`; None if not its own."""
        try:
            return {name: self.given_to(name, answer) for name in self.environment.models}
        except (KeyError, TypeError, ValueError):
            return None

    @abstractmethod
    def given_to(self, name: str, answer: Any) -> float:
        """Return one model's share of canaries, 0 to 1, by the JSON at `shares_url`."""

    @classmethod
    def own_keys(cls, job: str) -> list[str]:
        """Return the keys that `share_values` writes for a job beside those of the shares."""
        return []

    def needs_services(self, values: Mapping[str, str]) -> bool:
        """Tell whether `problems` in the values of `kv_prefix` depend on what is registered in Consul."""
        return False

    def services_to_ask(self, values: Mapping[str, str], catalog: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the services on which they depend; `catalog` has the tags of each service in Consul."""
        return []

    def problems(self, values: Mapping[str, str], registered: Registered) -> list[str]:
        """Return what in the values of `kv_prefix` keeps it from taking over changes, a sentence for each."""
        return []

    def _backend(self, name: str) -> Backend:
        """Return one model, as the template of a balancer writes it."""
        model = self.environment.models[name]
        return Backend(
            name=name,
            service=derive.service_name(self.environment, name),
            variable=name.replace("-", "_"),
            route=model.route,
            passed=passed(model.route, _root_path(model)),
            # split_clients and Fabio alike resolve 0.01 %.
            weight=share_text(model.rollout.weight).rstrip("0").rstrip("."),
            weight_key=share_key(self.environment.job or "", name),
            wanted=model.replicas > 0,
        )


def _root_path(model: Model) -> str:
    """Return vLLM's `--root-path`, if it is a path."""
    given = {derive.argument_name(name): value for name, value in model.args.items()}.get("root-path")
    return given if isinstance(given, str) and re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", given) else ""


def _servers(backends: list[Backend]) -> dict[str, list[Backend]]:
    """Return what each host name serves, as Fabio would: its own models, then those of any host ("")."""
    hosts: dict[str, list[Backend]] = {"": []}
    for backend in backends:
        hosts.setdefault(backend.route.host, []).append(backend)
    for host, own in hosts.items():
        if host:
            covered = tuple(backend.route.path for backend in own)
            own += [other for other in hosts[""] if not other.route.path.startswith(covered)]
    return hosts
