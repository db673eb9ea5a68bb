"""Shares of canaries, carried to Consul's KV and back from the balancers.

The balancer's own module in `balancers/` says which keys are written, where an answer is, and what it means.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import requests

from vllmjobs.balancers import balancer_of, own_keys
from vllmjobs.balancers.instances import ServiceInstance
from vllmjobs.balancers.shares import group_of, least_given, read_share, share_folder, share_key
from vllmjobs.cluster.answers import LITTLE, Session, decoded, side_by_side
from vllmjobs.cluster.consul import ConsulApi, Key
from vllmjobs.environment.derive import service_name
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError

TIMEOUT = (2.0, 5.0)  # seconds until a balancer is connected, and for its answer
AT_ONCE = 8  # balancers that are asked


class TrafficError(UserError):
    """The reason why a share cannot be asked for: one line, with the way out."""


class Traffic:
    """The shares of one version of one job. Every method raises `ConsulError`.

    The share of a group is kept under one key whichever balancer there is; its flags are the job's
    version + 1, so that what another version left is not believed.
    """

    def __init__(self, environment: Environment, consul: ConsulApi, version: int) -> None:
        self._environment, self._consul = environment, consul
        self._balancer = balancer_of(environment)
        self._job = environment.job or ""
        self._flags = version + 1

    def asked(self) -> dict[str, float]:
        """Return the share by group, 0.001 to 1, of the groups for which this version has asked."""
        if not self._balancer.gives_shares:
            return {}
        own = [(group, key) for group, key in self._shares().items() if key.flags == self._flags]
        return {group: share for group, key in own if (share := read_share(key.value)) is not None}

    def ask(self, shares: Mapping[str, float]) -> None:
        """Write the shares of these groups; those asked for earlier stay. Can be repeated.

        Raises `TrafficError` where a group has no canary that its balancer could send anything to.
        """
        if not shares:
            return
        asked = self.asked()
        services = {group: service_name(self._environment, group) for group in {**asked, **shares}}
        instances = {group: self._consul.instances(service) for group, service in services.items()}
        values = self._balancer.share_values(shares, asked, instances)
        if isinstance(values, str):
            raise TrafficError(values)
        for key, value in values.items():
            self._consul.put(key, value, self._flags)

    def given(self) -> dict[str, float | None]:
        """Return the share of each group's canaries now, 0 to 1: the least that any balancer gives them.

        A group without canaries has 0. None where no balancer can be asked; one that does not answer is left
        out.
        """
        service = self._balancer.service
        instances = self._consul.instances(service) if service else []
        every = side_by_side(self._given, instances, AT_ONCE)
        answers = [answer for answer in every if answer is not None]
        return least_given(self._environment.models, answers)

    def problems(self) -> list[str]:
        """Return what in Consul's KV keeps the balancer from taking over any change, a sentence for each."""
        if self._balancer.kv_prefix is None:
            return []
        values = {key: one.value for key, one in self._consul.read(self._balancer.kv_prefix).items()}
        services: Iterable[str] = ()
        if self._balancer.needs_services(values):
            services = self._balancer.services_to_ask(values, self._consul.services())
        registered = {service: self._consul.instances(service) for service in services}
        return self._balancer.problems(values, registered)

    def clean(self) -> None:
        """Remove whatever was written for any version of this job. Can be repeated."""
        for key in [*own_keys(self._job), *(share_key(self._job, group) for group in self._shares())]:
            self._consul.delete(key)

    def withdraw(self) -> None:
        """Remove what was written for this version, and nothing that the release of another has written."""
        written = {share_key(self._job, group): key for group, key in self._shares().items()}
        for own in own_keys(self._job):
            written |= {name: key for name, key in self._consul.read(own).items() if name == own}
        for name, key in written.items():
            if key.flags == self._flags:
                self._consul.delete(name, key.modify_index)

    def _shares(self) -> dict[str, Key]:
        """Return the keys of shares by group: of any version, and of groups that are no more."""
        keys = self._consul.read(share_folder(self._job)).items()
        return {group: key for name, key in keys if (group := group_of(self._job, name))}

    def _given(self, balancer: ServiceInstance) -> dict[str, float] | None:
        """Return what one balancer gives, by its admin port; None without an answer, or with another's."""
        try:
            with Session(LITTLE) as session:  # no proxy leads to a node's own address
                # Any status will do: nginx's is 503 where a model has no instance.
                answer = session.get(self._balancer.shares_url(balancer), timeout=TIMEOUT)
            return self._balancer.given(decoded(answer, Any))
        except (requests.RequestException, ValueError, AttributeError):  # `given` reads what it is told
            return None
