"""A test that wants a job of its own takes `release`; one that leaves one version alone takes `served`."""

from collections.abc import Iterator

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK
from vllmjobs_sandbox.cluster.release import NewRelease, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.served import Life, Served, asking, on, serving


@pytest.fixture
def release(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[NewRelease]:
    """Make jobs that are named after the test, and purge them after it: `release(replicas=1)`."""
    yield from releases(sandbox, request.node.name)


@pytest.fixture(scope="module")
def life(sandbox: Sandbox) -> Iterator[Life]:
    """One engine on one node, through whose life the tests of a module go.

    Nothing that befalls the other node touches it.
    """
    for new in releases(sandbox, "life"):
        yield serving(new(**QUICK | {"replicas": 1, "placement.constraints": on("=", "gpu-1")}))


@pytest.fixture
def served(life: Life) -> Iterator[Served]:
    """The same, asked ten times a second."""
    with asking(life) as served:
        yield served
