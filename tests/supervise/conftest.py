"""A test that wants a supervisor takes `supervise`, GPUs `library`, a machine `machine`, or shares `one`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmjobs_sandbox.engine.machine import Machine
from vllmjobs_sandbox.engine.supervised import Supervise, supervising
from vllmjobs_sandbox.gpus import live


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start supervisors: `supervise(engines=2, limits={"drain": 1})`."""
    yield from supervising(tmp_path)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an NVML whose GPUs are made up, for LD_LIBRARY_PATH: nvml_live.c."""
    return live.library(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With nothing up yet; its path is short, as a socket's has to be."""
    yield from _made(tmp_path_factory)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The same for a whole module, whose tests live through its life in their order."""
    yield from _made(tmp_path_factory)


@pytest.fixture(scope="module")
def said(lasting: Machine) -> str:
    """`up one -d` on the lasting machine, two servers behind nginx: what it prints."""
    return lasting.up()


@pytest.fixture(scope="module")
def one(lasting: Machine, said: str) -> Machine:
    """The lasting machine, once `said` was printed."""
    assert said
    return lasting


def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("m"))
    yield made
    made.end()
