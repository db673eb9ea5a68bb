"""Fabio: a system job that routes on the tags in Consul, and on lines in Consul's KV."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllmjobs.balancers import fabio_routes as routes
from vllmjobs.balancers.balancer import LoadBalancer, OwnRule
from vllmjobs.balancers.fabio_routes import TAG, parse, sources, unmatched
from vllmjobs.balancers.instances import Registered, canaries_of
from vllmjobs.balancers.paths import path_in_vllm
from vllmjobs.balancers.shares import Shares
from vllmjobs.environment.derive import service_name
from vllmjobs.environment.model import Environment, Route
from vllmjobs.environment.placement import Placement
from vllmjobs.environment.problems import KeyPath

MIN_WEIGHT = 0.0001  # Fabio resolves 0.01 %


def fabio_has_its_ports_to_itself(environment: Environment) -> Iterator[tuple[KeyPath, str]]:
    """Find a model's fixed port that is Fabio's. Fabio is on every node, so the model finds none."""
    fabio = Fabio(environment)
    if fabio.settings.node_pool or fabio.settings.placement != Placement():
        return
    for name, model in environment.models.items():
        if model.ports.static in (fabio.port, fabio.settings.admin_port):
            yield ("models", name, "ports", "static"), f"{model.ports.static} is Fabio's, on every node"


def routes_lead_to_the_api_alone(environment: Environment) -> Iterator[tuple[KeyPath, str]]:
    """Find a route that leads to all of vLLM. Fabio passes on what its prefix says, for operators or not.

    It also decodes a path before it passes it on: `/v1/..%2fmetrics` comes to vLLM as `/v1/../metrics`, which
    vLLM answers with 404 and another server may not.
    """
    for name, model in environment.models.items():
        route = model.route
        if not path_in_vllm(route):
            prefix = route.path.rstrip("/")
            yield (
                ("models", name, "route", "path"),
                f"{route.path} leads clients to all paths of vLLM, such as /metrics and /pause, which no key "
                f"guards; write {prefix}/v1/" + (f" with strip: {prefix}" if prefix else ""),
            )


class Fabio(LoadBalancer):
    """Fabio in front of an environment's models.

    It shows metrics where the environment says so: it can from 1.6 on (feature/metrics in its manual), and an
    older one ends on the flags.
    """

    kind = "fabio"
    title = "Fabio"
    default_port = 9999
    default_image = "fabiolb/fabio:1.7.3"
    shutdown_delay_s = 10.0  # it follows Consul by a blocking query
    keep_alive_s = 15.0  # proxy.idleconntimeout of Fabio 1.6 and later; before, it has no limit
    is_system_job = True
    shares_path = "/api/routes"
    kv_prefix = routes.PREFIX
    rules = (
        OwnRule("VJ407", "warning", fabio_has_its_ports_to_itself),
        OwnRule("VJ408", "warning", routes_lead_to_the_api_alone),
    )

    def route_tags(self, route: Route, weight: float | None) -> list[str]:
        """Return a `urlprefix-` tag for each form of the host under which clients reach a route."""
        options = []
        if route.strip:
            options.append(f"strip={route.strip}")
        if weight is not None:
            # Each instance has its own (fabiolb/fabio#352 for the option itself).
            options.append(f"weight={max(MIN_WEIGHT, round(weight, 4)):g}")
        hosts = [route.host]
        if route.host and self.port != 80:
            # Clients name the port in the Host header, and Fabio compares that (table.go, normalizeHost).
            hosts.append(f"{route.host}:{self.port}")
        return [" ".join([f"{TAG}{host}{route.path}", *options]) for host in hosts]

    def share_values(self, shares: Shares, asked: Shares, instances: Registered) -> dict[str, str] | str:
        """Return the lines of all groups, which are under one key, then the shares; or why that cannot be."""
        values = super().share_values(shares, asked, instances)
        if isinstance(values, str):
            return values
        key, text = routes.routes_key(self.environment.job or ""), ""
        earlier = {group: share for group, share in asked.items() if group not in shares}
        for group, share in {**earlier, **shares}.items():
            canaries, service = canaries_of(instances[group]), service_name(self.environment, group)
            if prefixes := sorted({source for one in canaries for source in sources(one.tags)}):
                text += routes.share_lines(service, prefixes, len(canaries), share)
            elif canaries:
                return (
                    f"the canaries of {group} are registered in Consul as {service} without a tag "
                    f"{TAG}…, by which Fabio finds them; run the job as `vllmjobs render` prints it"
                )
        commands, malformed = parse({key: text})
        if wrong := malformed + unmatched(commands, []):
            return f"Fabio could not read what was to be written: {wrong[0]}"
        return {key: text, **values}

    def given_to(self, name: str, answer: Any) -> float:
        """Return the share by Fabio's /api/routes."""
        return routes.fabio_share(answer, service_name(self.environment, name))

    @classmethod
    def own_keys(cls, job: str) -> list[str]:
        """Return the key of a job's lines."""
        return [routes.routes_key(job)]

    def needs_services(self, values: Mapping[str, str]) -> bool:
        """Tell whether a line gives a weight to what no other line adds."""
        commands, _ = parse(values)
        return bool(unmatched(commands, []))

    def services_to_ask(self, values: Mapping[str, str], catalog: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the services that have a route of which a line speaks."""
        commands, _ = parse(values)
        named = {command.source for command in commands}
        return [service for service, tags in catalog.items() if named & set(sources(tags))]

    def problems(self, values: Mapping[str, str], registered: Registered) -> list[str]:
        """Return each line for which Fabio keeps its table as it is, with its rule and the way out."""
        commands, malformed = parse(values)
        table = [target for service, found in registered.items() for target in routes.targets(service, found)]
        return [str(problem) for problem in sorted(malformed + unmatched(commands, table))]
