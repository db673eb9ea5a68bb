"""A line that Fabio cannot apply, before a change is deployed and while it is.

The old version is asked all the while; each test ends with which version serves, and with which share of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import httpx

from vllmjobs_sandbox.cluster.deploying import deploying, succeeded
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.fakes.listening import listening
from vllmjobs_sandbox.traffic.requests import Trickle, versions
from vllmjobs_sandbox.traffic.served import DEPLOYED, FAILED, REFUSED, SETTLED, Served


@contextmanager
def malformed_route(sandbox: Sandbox) -> Iterator[None]:
    """Fabio keeps its table as it is for as long as this is there."""
    sandbox.consul.kv.put("fabio/config/broken", "route wieght everything 1")
    try:
        yield
    finally:
        sandbox.consul.kv.delete("fabio/config/broken")


def test_a_malformed_route_refuses_a_deployment_before_it_begins(served: Served) -> None:
    version = served.life.version
    with malformed_route(served.sandbox), deploying(served.release, max_model_len=served.new) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "fabio/config/broken" in deploy.evidence()
    assert served.life.version == version
    served.still_serves()


@contextmanager
def counting(served: Served) -> Iterator[Callable[[], int]]:
    """How often deploy has looked at Fabio's table, which it does once in each turn of its loop."""
    looks: list[str] = []

    class Admin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = httpx.get(f"{served.sandbox.fabio_admin}{self.path}", trust_env=False)
            looks.append(self.path)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with listening(Admin) as address:
        served.release.settings["balancer.admin_port"] = address.rpartition(":")[2]
        try:
            yield lambda: len(looks)
        finally:
            del served.release.settings["balancer.admin_port"]


def test_a_malformed_route_that_comes_later_is_waited_for(served: Served) -> None:
    """Nothing is measured of a share that Fabio does not give."""
    with counting(served) as looks, deploying(served.release, max_model_len=served.new) as deploy:
        deploy.wait_for("healthy")
        with malformed_route(served.sandbox):
            deploy.wait_for("shifted")
            before = looks()
            wait_until(lambda: looks() >= before + 5, SETTLED, "it has looked", evidence=deploy.evidence)
            assert deploy.kinds()[-1] == "shifted", deploy.evidence()
        deploy.wait_for("routed")
        assert deploy.end() == DEPLOYED, deploy.evidence()
        told = [kind for kind in deploy.kinds() if kind in ("shifted", "routed", "verdict", "promoting")]
        assert told[-4:] == ["shifted", "routed", "verdict", "promoting"]
    served.serves_the_new()


def test_a_malformed_route_that_stays_leaves_the_canary_to_which_fabio_goes_on_sending(
    served: Served,
) -> None:
    """Its table would not lose a canary that is stopped, and a tenth of the requests would fail."""
    succeeded(deploying(served.release, "--detach", max_model_len=served.new))
    served.sandbox.wait_until_healthy(served.release.job)
    both = {served.old_length, served.new}
    wait_until(lambda: {*versions(served.release.address, 20)} == both, SETTLED, "the canary has its share")
    with malformed_route(served.sandbox):
        with deploying(served.release, "--timeout", "10s", max_model_len=served.new) as deploy:
            assert deploy.end() == FAILED, deploy.evidence()
            assert deploy.wait_for("done")["data"]["outcome"] == "left"
        with Trickle(served.release.address, per_second=10) as later:
            wait_until(lambda: later.answered > 20, SETTLED, "it is served")
        assert later.failures == []
        served.is_unhurt()
    succeeded(deploying(served.release, max_model_len=served.new))
    served.serves_the_new()
