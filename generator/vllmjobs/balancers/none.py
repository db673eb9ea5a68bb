"""No balancer: clients find the instances through Consul by themselves."""

from typing import Any

from vllmjobs.balancers.balancer import LoadBalancer


class NoBalancer(LoadBalancer):
    """Nothing in front of the models: nothing is run, routes nothing, and can be asked for nothing."""

    kind = "none"
    title = "no balancer"
    default_port = 0
    default_image = ""
    shutdown_delay_s = 0.0
    keep_alive_s = 0.0
    routes_by_path = False
    gives_shares = False
    shares_path = ""
    job = None
    service = None
    shows_metrics = False

    def given_to(self, name: str, answer: Any) -> float:
        """Return 0: no share is given to anybody."""
        return 0.0
