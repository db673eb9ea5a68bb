"""The balancers: one module a kind, each answers the same questions about an environment.

The questions are the methods of `LoadBalancer`. A kind is looked up here and nowhere else.
"""

from vllmjobs.balancers.balancer import LoadBalancer
from vllmjobs.balancers.fabio import Fabio
from vllmjobs.balancers.nginx import Nginx
from vllmjobs.balancers.none import NoBalancer
from vllmjobs.environment.model import Environment

KINDS: dict[str, type[LoadBalancer]] = {kind.kind: kind for kind in (Fabio, Nginx, NoBalancer)}
"""The class of each value of `balancer.kind`."""


def balancer_of(environment: Environment) -> LoadBalancer:
    """Return what stands in front of an environment's models; a `NoBalancer` where nothing does."""
    return KINDS[environment.balancer.kind](environment)


def own_keys(job: str) -> list[str]:
    """Return the keys of Consul's KV, beside those of shares, that a balancer of any kind has for a job.

    A release removes them whichever kind the environment has now: it may have had another before.
    """
    return [key for kind in KINDS.values() for key in kind.own_keys(job)]
