"""nginx: a service job whose upstreams Nomad's template engine writes anew as Consul changes."""

from typing import Any

from msgspec import structs

from vllmjobs.balancers.balancer import LoadBalancer
from vllmjobs.environment.derive import KEEP_ALIVE_S
from vllmjobs.environment.model import Environment


class Nginx(LoadBalancer):
    """nginx in front of an environment's models."""

    kind = "nginx"
    title = "nginx"
    default_port = 80
    default_image = "nginx:1.30-alpine"
    shutdown_delay_s = 15.0  # a template that waits up to 5 s, then a reload
    keep_alive_s = KEEP_ALIVE_S / 2  # keepalive_timeout of an upstream
    shares_path = "/health"

    @property
    def is_bridged(self) -> bool:
        """A bridged container may listen on a port below 1024 without root: its own port is above."""
        return self.settings.driver == "docker"

    @property
    def shows_metrics(self) -> bool:
        """Tell whether it shows Prometheus its metrics: as the environment says, else where it can.

        It needs ngx_http_stub_status_module, which the official image has.
        """
        if self.settings.metrics is None:
            return self.settings.driver == "docker" and self.settings.image is None
        return self.settings.metrics

    def given_to(self, name: str, answer: Any) -> float:
        """Return the share by nginx's /health; a model that nginx was not yet told of has none."""
        if name not in answer or not answer[name]["canary"]:
            return 0.0
        return float(answer[name]["canary_weight"]) if answer[name]["stable"] else 1.0


def without_container(environment: Environment, *, metrics: bool) -> Nginx:
    """Return the nginx of one box, where it stands in front of the models whichever balancer the cluster has.

    `metrics` tells whether it shows them, where the environment does not say so of an nginx.
    """
    given = environment.balancer
    if given.kind == Nginx.kind and given.metrics is not None:
        metrics = given.metrics
    balancer = structs.replace(given, kind=Nginx.kind, driver="raw_exec", metrics=metrics)
    return Nginx(structs.replace(environment, balancer=balancer))
