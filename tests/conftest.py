"""What all tests share: one sandbox, started by the first test that asks for it."""

from collections.abc import Iterator

import pytest

from sandbox.cluster import Sandbox


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden cases and outputs anew")


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Two nodes with four GPUs each, Fabio and nginx."""
    with Sandbox(clients=2, gpus=4) as running:
        yield running
        running.keep_files = bool(request.session.testsfailed)
