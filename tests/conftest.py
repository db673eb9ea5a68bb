"""Options, signals, and the one sandbox that tests share; the first test that asks for it starts it."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from vllmjobs_sandbox.cluster.sandbox import Sandbox

# A busy machine is slow, and nothing is wrong with the test: no property test measures time.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", PATIENT, max_examples=40)
settings.register_profile("long", PATIENT, max_examples=1000)
LONG_LIMIT_S = 3600  # for a test that runs in full; pyproject.toml has the limit of the others


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden cases and outputs anew")
    parser.addoption(
        "--long", action="store_true", help="run in full what is shorter by default; print its figures"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples a property test takes; give children bytecode, and signals as usual."""
    settings.load_profile("long" if config.getoption("--long") else "short")
    if config.getoption("--long") and not config.getoption("--timeout"):
        config.option.timeout = LONG_LIMIT_S
    _keep_bytecode()
    _hear_signals()


def _keep_bytecode() -> None:
    """Let Python write .pyc files also where the environment forbids it.

    Hundreds of `vllmjobs` commands and engines start in a run, and each would compile the package anew: that
    was half of the time of the cores.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _hear_signals() -> None:
    """Give children the default of each signal, also where the run itself has to ignore it.

    A shell's background job ignores SIGINT, `nohup` SIGHUP; children inherit that, and would never hear a
    Ctrl-C. A handler is no inheritance: it becomes the default when another program is executed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let nothing run beside a load that is measured in full, and long files begin first."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    for item in items:
        if config.getoption("--long") and item.get_closest_marker("long"):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Tell whether `--long` was given."""
    return bool(request.config.getoption("--long"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests have recorded, and with --durations the seconds of folders and files."""
    reports = [one for found in terminalreporter.stats.values() for one in found if hasattr(one, "duration")]
    figures = [(one.nodeid.rpartition("::")[2], *pair) for one in reports for pair in one.user_properties]
    if figures:
        terminalreporter.section("figures")
    for test, name, value in dict.fromkeys(figures):
        terminalreporter.line(f"{test}: {name}: {value}")
    if terminalreporter.config.getoption("durations") is not None:
        terminalreporter.section("seconds, added up over all processes")
        seconds: Counter[str] = Counter()
        for one in reports:
            _, folder, *_ = file = one.location[0].split("/")
            seconds[f"{folder}/"] += one.duration
            seconds["/".join(file[1:])] += one.duration
        for name, spent in seconds.most_common(30):
            terminalreporter.line(f"{spent:7.0f}  {name}")


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Two nodes with four GPUs each, Fabio and nginx."""
    with Sandbox(clients=2, gpus=4) as running:
        yield running
        running.keep_files = bool(request.session.testsfailed)
