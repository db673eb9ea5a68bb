"""What all tests share: one sandbox, started by the first test that asks for it."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from vllmjobs_sandbox.cluster.sandbox import Sandbox

# A busy machine is slow, and nothing is wrong with the test: no property test measures time.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden cases and outputs anew")


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Two nodes with four GPUs each, Fabio and nginx."""
    with Sandbox(clients=2, gpus=4) as running:
        yield running
        running.keep_files = bool(request.session.testsfailed)
