"""Releases that go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.story.night import JOB, SOON, Night
from vllmjobs_sandbox.traffic.served import failure


@contextmanager
def errors_after_a_release(night: Night, _: Path) -> Iterator[None]:
    """Release an engine that answers every second request with an error."""
    night.well()
    night.deployed(**failure("error-rate=0.5"))
    night.ask(20)
    yield
    night.well_again()


@contextmanager
def waits_for_its_promotion(night: Night, _: Path) -> Iterator[None]:
    """Have a canary that nobody has promoted."""
    night.well()
    night.start(max_model_len=2048)
    night.sandbox.wait_until_healthy(JOB)
    yield
    night.well_again()


@contextmanager
def canary_answers_500(night: Night, _: Path) -> Iterator[None]:
    """Have a change whose canary answers every request with 500."""
    night.well()
    night.write(**failure("error-rate=1"))
    yield
    night.write()


@contextmanager
def canary_crashes(night: Night, _: Path) -> Iterator[None]:
    """Start a canary that ends before it is ready."""
    night.well()
    night.start(**failure("exit-1-before-ready"))
    wait_until(night.has_failed_once, SOON, "it has ended")
    night.point_at(night.last())
    yield
    night.well_again()


@contextmanager
def loads_slowly(night: Night, _: Path) -> Iterator[None]:
    """Have a change that loads longer than its deadline allows."""
    night.well()
    night.changes()
    night.write(
        **{
            "env.VLLMJOBS_STANDIN_LOAD_SECONDS": "6",
            "load_time": "1s",
            "rollout.healthy_deadline": "3s",
            "rollout.progress_deadline": "5s",
            "drain.kill_timeout": "4s",
        }
    )
    yield


@contextmanager
def fabio_frozen(night: Night, _: Path) -> Iterator[None]:
    """Freeze Fabio's table with a route that it cannot read."""
    night.well()
    night.sandbox.consul.kv.put("fabio/config/broken", "route wieght everything 1")
    night.write(max_model_len=2048)
    try:
        yield
    finally:
        night.sandbox.consul.kv.delete("fabio/config/broken")
        night.write()


@contextmanager
def bad_release(night: Night, _: Path) -> Iterator[None]:
    """Release a version that is worse than the one before."""
    night.well()
    night.deployed(max_model_len=2048)
    yield
    night.well_again()
