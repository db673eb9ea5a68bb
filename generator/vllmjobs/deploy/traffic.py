"""The canaries' share of the requests: asked for in Consul's KV, and looked up at the balancers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from vllmjobs.cluster.consul import Consul, Instance
from vllmjobs.environment.derive import balancer_name, service_name
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout import routes

TIMEOUT = (2.0, 5.0)  # seconds until a balancer is connected, and between two pieces of its answer
AT_ONCE = 8  # balancers that are asked


class TrafficError(UserError):
    """Why a share cannot be asked for: one line, with the way out."""


class Traffic:
    """The shares of one version of one job. Every method raises `ConsulError`.

    The share of a group is kept in the key from which nginx's template reads it, for Fabio too; its flags are
    the job's version + 1, so that what another version left is not believed.
    """

    def __init__(self, environment: Environment, consul: Consul, version: int) -> None:
        self._environment, self._consul = environment, consul
        self._kind = environment.balancer.kind
        self._flags = version + 1
        self._folder = f"vllmjobs/{environment.job}/"
        self._routes = routes.key(environment.job or "")

    def asked(self) -> dict[str, float]:
        """The share by group, 0.001 to 1, that was written for this version; nothing was asked for others."""
        if self._kind == "none":
            return {}
        return {
            group: float(kept.value)
            for group, kept in self._kept().items()
            if kept.flags == self._flags and re.fullmatch(r"[01]\.[0-9]+", kept.value)
        }

    def ask(self, shares: Mapping[str, float]) -> None:
        """Write the shares of these groups; those asked for earlier stay. Can be repeated.

        Raises `TrafficError` where a group has no canary that its balancer could send anything to.
        """
        if self._kind == "none" or not shares:
            return
        canaries = {group: self._canaries(group) for group in shares}
        if self._kind == "fabio":
            earlier = {group: share for group, share in self.asked().items() if group not in shares}
            canaries |= {group: self._canaries(group, needed=False) for group in earlier}
            self._consul.put(self._routes, self._lines({**earlier, **shares}, canaries), self._flags)
        for group, share in shares.items():
            self._consul.put(self._key(group), f"{share:.4f}", self._flags)

    def given(self) -> dict[str, float | None]:
        """The share of each group's canaries now, 0 to 1: the least that any balancer gives them.

        A group without canaries has 0. None where no balancer can be asked; one that does not answer is left
        out.
        """
        groups = list(self._environment.models)
        if self._kind == "none":
            return {}
        instances = self._consul.instances(balancer_name(self._environment))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = [answer for answer in pool.map(self._shares, instances) if answer]
        return {group: min((answer[group] for answer in answers), default=None) for group in groups}

    def problems(self) -> list[str]:
        """What in Consul's KV keeps Fabio from taking over any change, a sentence for each."""
        if self._kind != "fabio":
            return []
        values = {key: kept.value for key, kept in self._consul.read(routes.PREFIX).items()}
        commands, problems = routes.parse(values)
        if unmatched := routes.unmatched(commands, []):  # those that need what is registered
            wanted = {command.source for command in commands}
            registered = [
                target
                for service, tags in self._consul.services().items()
                if wanted & set(routes.sources(tags))
                for target in routes.targets(service, self._consul.instances(service))
            ]
            unmatched = routes.unmatched(commands, registered)
        return [str(problem) for problem in sorted(problems + unmatched)]

    def clean(self) -> None:
        """Remove whatever was written for any version of this job. Can be repeated."""
        if self._kind == "none":
            return
        for key in [self._routes, *map(self._key, self._kept())]:
            self._consul.delete(key)

    def withdraw(self) -> None:
        """Remove what was written for this version, and nothing that the release of another has written."""
        if self._kind == "none":
            return
        routes = self._consul.read(self._routes).get(self._routes)
        written = {self._routes: routes} if routes else {}
        written |= {self._key(group): kept for group, kept in self._kept().items()}
        for key, kept in written.items():
            if kept.flags == self._flags:
                self._consul.delete(key, kept.modify_index)

    def _lines(self, shares: Mapping[str, float], canaries: Mapping[str, list[Instance]]) -> str:
        """Fabio's lines for the groups that have canaries."""
        text = ""
        for group, share in shares.items():
            service = service_name(self._environment, group)
            if found := sorted({source for one in canaries[group] for source in routes.sources(one.tags)}):
                text += routes.lines(service, found, len(canaries[group]), share)
            elif canaries[group]:
                raise TrafficError(
                    f"the canaries of {group} are registered in Consul as {service} without a tag "
                    f"{routes.TAG}…, by which Fabio finds them; run the job as `vllmjobs render` prints it"
                )
        commands, problems = routes.parse({self._routes: text})
        if wrong := problems + routes.unmatched(commands, []):
            raise TrafficError(f"Fabio could not read what was to be written: {wrong[0]}")
        return text

    def _canaries(self, group: str, needed: bool = True) -> list[Instance]:
        service = service_name(self._environment, group)
        instances = self._consul.instances(service)
        canaries = [one for one in instances if one.passing and routes.CANARY in one.tags]
        if needed and not canaries:
            others = f"; {len(instances)} other instances are" if instances else ""
            raise TrafficError(
                f"no canary of {group} is registered in Consul as {service} with all checks passing{others}; "
                f"see `consul watch -type=service -service={service}`"
            )
        return canaries

    def _kept(self) -> dict[str, Any]:
        """The keys of shares by group: of any version, and of groups that are no more."""
        found = self._consul.read(self._folder).items()
        ours = (
            (re.fullmatch(r"([^/]+)/canary_weight", key.removeprefix(self._folder)), kept)
            for key, kept in found
        )
        return {match[1]: kept for match, kept in ours if match}

    def _key(self, group: str) -> str:
        return f"{self._folder}{group}/canary_weight"

    def _shares(self, balancer: Instance) -> dict[str, float] | None:
        """What one balancer says on its admin port; None without an answer."""
        host = f"[{balancer.address}]" if ":" in balancer.address else balancer.address
        address = f"http://{host}:{self._environment.balancer.admin_port}"
        groups = list(self._environment.models)
        try:
            if self._kind == "fabio":
                table = _json(f"{address}/api/routes")
                return {
                    group: routes.fabio_share(table, service_name(self._environment, group))
                    for group in groups
                }
            models = _json(f"{address}/health")
            # One that nginx was not yet told of has no share.
            return {group: routes.nginx_share(models[group]) if group in models else 0.0 for group in groups}
        except (requests.RequestException, KeyError, TypeError, ValueError):
            return None  # not there, or something else there


def _json(url: str) -> Any:
    """An answer of any status: nginx's is 503 where a model has no instance."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to a node's own address
        return session.get(url, timeout=TIMEOUT).json()
