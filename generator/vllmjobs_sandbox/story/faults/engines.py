"""Faults of an engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.story.night import JOB, SOON, SUPERVISED, WATCHED, Night
from vllmjobs_sandbox.traffic.requests import http
from vllmjobs_sandbox.traffic.served import failure

SMALL_CACHE = {"env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "10", "env.VLLMJOBS_STANDIN_KV_TOKENS": "20"}
# One request at a time, of 2 s; the cache is full of one.
SLOW = SMALL_CACHE | {"env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "4", "args.max-num-seqs": 1}


@contextmanager
def requests_wait(night: Night, _: Path) -> Iterator[None]:
    """Send more requests than one slow engine takes at a time."""
    night.well(**SLOW)
    with night.asked(6):
        wait_until(lambda: night.metric("vllm:num_requests_waiting") >= 4, SOON, "they wait")
        yield
    one_again(night)


@contextmanager
def cache_full(night: Night, _: Path) -> Iterator[None]:
    """Fill the KV cache with the tokens of long answers."""
    night.well(**SLOW)
    with night.asked(4, tokens=40):
        wait_until(lambda: night.metric("vllm:kv_cache_usage_perc") == 1, SOON, "it is full")
        yield
    one_again(night)


def one_again(night: Night) -> None:
    """Take away the instances that a page has added."""
    night.start(**SLOW)
    wait_until(lambda: len(night.sandbox.allocations(JOB)) == 1, SOON, "the others have ended")
    night.well_again(**SLOW)


@contextmanager
def preempts(night: Night, _: Path) -> Iterator[None]:
    """Have an engine that preempts requests again and again."""
    night.well(**SMALL_CACHE, **failure("preempts"))
    night.changes()
    with night.asked(2):  # as many as the page lets run at a time: with more, how long they wait is chance
        wait_until(lambda: night.metric("vllm:num_preemptions_total") >= 4, SOON, "it preempts")
        yield


@contextmanager
def restarts_after_a_release(night: Night, _: Path) -> Iterator[None]:
    """Release an engine that ends after a few requests."""
    night.well(**WATCHED)
    night.deployed(entrypoint=SUPERVISED, **failure("exit-0-after=4"))

    def twice() -> bool:
        night.ask()
        return night.metric("vllmjobs_supervisor_instance_failures_total", "ADMIN") >= 2

    wait_until(twice, SOON, "its engine has ended twice")
    yield
    night.well_again(**WATCHED)


@contextmanager
def given_up(night: Night, _: Path) -> Iterator[None]:
    """Kill an engine that its supervisor may not start again."""
    night.well(**WATCHED)
    night.changes()
    with http() as client:
        health = client.get(f"http://{night.words['ADMIN']}/health").json()
    os.kill(health["instances"]["chat"]["pid"], signal.SIGKILL)
    wait_until(lambda: night.last()["ClientStatus"] == "failed", SOON, "its supervisor has given it up")
    yield
    night.well_again(**WATCHED)
