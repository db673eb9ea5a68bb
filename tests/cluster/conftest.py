"""A test that wants a job of its own takes `release`; one that leaves its engines in peace takes `kept`."""

from collections.abc import Iterator

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Load
from vllmjobs_sandbox.traffic.served import OLD, Served, on, serving


@pytest.fixture
def release(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[NewRelease]:
    """Make jobs that are named after the test, and purge them after it: `release(replicas=1)`."""
    yield from releases(sandbox, request.node.name)


@pytest.fixture(scope="module")
def kept(sandbox: Sandbox) -> Iterator[Release]:
    """Two engines on one node, for all tests of a module after which the very same serve on."""
    for new in releases(sandbox, "kept"):
        kept = new(**QUICK, **{"placement.constraints": on("=", "gpu-1")})
        kept.run()
        kept.wait_until_routed(OLD)
        yield kept


@pytest.fixture
def unbroken(kept: Release) -> Iterator[Served]:
    """Ask the engines that are kept."""
    with Load(kept.address, per_second=10) as load:
        yield Served(kept, load)


@pytest.fixture
def served(release: NewRelease) -> Iterator[Served]:
    """Two engines on one node, so that nothing that befalls the other touches them."""
    with serving(release(**QUICK), **{"placement.constraints": on("=", "gpu-1")}) as old:
        yield old
