"""A test that wants a job of its own takes `release`."""

from collections.abc import Iterator

import pytest

from sandbox.cluster import Sandbox
from sandbox.release import NewRelease, releases


@pytest.fixture
def release(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[NewRelease]:
    """Make jobs that are named after the test, and purge them after it: `release(replicas=1)`."""
    yield from releases(sandbox, request.node.name)
