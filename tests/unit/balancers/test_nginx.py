"""What nginx's answers mean, and the nginx of one box."""

import pytest

from vllmjobs.balancers.nginx import Nginx, without_container
from vllmjobs.environment.model import Balancer, Environment, Model

MODELS = {"chat": Model(model="a/model")}
NGINX = Nginx(Environment(job="edge", balancer=Balancer(kind="nginx"), models=MODELS))


def test_the_share_that_nginx_gives_depends_on_what_there_is() -> None:
    assert NGINX.given({"chat": {"stable": 3, "canary": 2, "canary_weight": 0.25}}) == {"chat": 0.25}
    assert NGINX.given({"chat": {"stable": 3, "canary": 0, "canary_weight": 0.25}}) == {"chat": 0.0}
    assert NGINX.given({"chat": {"stable": 0, "canary": 2, "canary_weight": 0.25}}) == {"chat": 1.0}


def test_a_model_that_nginx_was_not_yet_told_of_has_no_share() -> None:
    assert NGINX.given({}) == {"chat": 0.0}


@pytest.mark.parametrize(
    ("balancer", "metrics"),
    [
        (Balancer(kind="nginx"), True),
        (Balancer(kind="nginx", metrics=False), False),
        (Balancer(kind="fabio", metrics=False), True),  # not said of an nginx
        (Balancer(kind="none"), True),
    ],
)
def test_one_box_has_an_nginx_whichever_balancer_its_cluster_has(balancer: Balancer, metrics: bool) -> None:
    nginx = without_container(Environment(job="edge", balancer=balancer, models=MODELS), metrics=True)
    assert (nginx.settings.kind, nginx.settings.driver, nginx.shows_metrics) == ("nginx", "raw_exec", metrics)
