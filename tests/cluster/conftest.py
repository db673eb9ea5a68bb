"""A test that wants a job of its own takes `release`."""

from collections.abc import Iterator

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK
from vllmjobs_sandbox.cluster.release import NewRelease, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.served import Served, on, serving


@pytest.fixture
def release(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[NewRelease]:
    """Make jobs that are named after the test, and purge them after it: `release(replicas=1)`."""
    yield from releases(sandbox, request.node.name)


@pytest.fixture
def served(release: NewRelease) -> Iterator[Served]:
    """Two engines on one node, so that nothing that befalls the other touches them."""
    with serving(release(**QUICK), **{"placement.constraints": on("=", "gpu-1")}) as old:
        yield old
