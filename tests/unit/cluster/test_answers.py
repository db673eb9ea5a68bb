"""Every answer has an end, in time, in size and in shape; one that has none is told, and others are read."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest
import requests

from vllmjobs.cluster.answers import LITTLE, EndlessError, Session, ShapeError, decoded, pieces, side_by_side
from vllmjobs.cluster.metrics import UNANSWERED, MetricsError, PrometheusApi, probe, scrape
from vllmjobs.cluster.reasons import Deadline, FailedError, retry
from vllmjobs.cluster.shapes import JobAllocation
from vllmjobs.rollout.samples import Sample
from vllmjobs_sandbox.fakes.listening import saying
from vllmjobs_sandbox.fakes.odd import ENDLESS, ODD_BODIES, OK, cut, whole

SHORT = 1.0  # seconds for an answer that does not come
PAGE = b"vllm:num_requests_waiting 3.0\n"


@pytest.fixture
def stack() -> Any:
    with ExitStack() as stack:
        yield stack


def test_an_answer_without_an_end_is_given_up_at_the_time_or_the_size(stack: ExitStack) -> None:
    addresses = {how: stack.enter_context(saying(say)) for how, say in ENDLESS.items()}

    def ask(how: str) -> str:
        with pytest.raises((EndlessError, requests.ReadTimeout)) as error:
            Session(LITTLE).get(addresses[how], timeout=(SHORT, SHORT))
        return str(error.value)

    said = dict(zip(ENDLESS, side_by_side(ask, ENDLESS, len(ENDLESS)), strict=True))
    assert "Read timed out" in said.pop("silent")
    for how in ("floods", "floods-a-chunk", "bomb"):
        assert said.pop(how) == "answers without end; given up after 8 MiB", how
    for how, text in said.items():
        assert text.startswith("does not answer within 1 s: "), how
        assert text.endswith("bytes came, and no end"), how


def test_a_stream_may_be_long_and_each_piece_of_it_has_an_end(stack: ExitStack) -> None:
    chunk = b"4\r\nline\r\n"
    streamed = cut(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5 + b"0\r\n\r\n")
    with Session().get(stack.enter_context(saying(streamed)), timeout=30, stream=True) as answer:
        assert b"".join(pieces(answer)) == b"line" * 5
    drips = stack.enter_context(saying(ENDLESS["drips-a-chunks-size"]))
    with Session().get(drips, timeout=SHORT, stream=True) as answer, pytest.raises(EndlessError):
        list(pieces(answer))


@pytest.mark.parametrize("odd", ODD_BODIES)
def test_what_is_not_the_json_that_was_asked_for_is_told(odd: str, stack: ExitStack) -> None:
    address = stack.enter_context(saying(ODD_BODIES[odd]))
    with pytest.raises((requests.RequestException, ShapeError)):
        decoded(Session().get(address, timeout=30), dict[str, list[JobAllocation]] | int)
        raise ShapeError("it was well") if odd in ("empty-map", "number") else AssertionError


def test_no_redirect_is_followed_wherever_it_leads(stack: ExitStack) -> None:
    asked = Event()
    other = stack.enter_context(saying(lambda *_: asked.set()))
    moved = stack.enter_context(saying(whole(b"", b"307 Moved", f"Location: {other}\r\n".encode())))
    answer = Session().get(moved, headers={"X-Consul-Token": "secret"}, timeout=30)
    assert (answer.status_code, asked.is_set()) == (307, False)


def test_one_bad_instance_is_named_and_the_others_are_judged(stack: ExitStack) -> None:
    good = stack.enter_context(saying(whole(PAGE))).removeprefix("http://")
    bad = {
        stack.enter_context(saying(say)).removeprefix("http://"): how
        for how, say in {**ENDLESS, **ODD_BODIES}.items()
    }
    found = scrape([good, *bad], 5)
    assert isinstance(sample := found.pop(good), Sample)
    assert sample.gauges == {"queue": 3.0}
    for address, how in bad.items():
        assert isinstance(error := found[address], MetricsError), how
        assert str(error).startswith(f"http://{address}/metrics "), how


def test_a_probe_that_is_never_answered_to_its_end_counts_as_unanswered(stack: ExitStack) -> None:
    drips = stack.enter_context(saying(ENDLESS["drips"])).removeprefix("http://")
    said = probe(drips, "chat", SHORT)
    assert said is not None
    assert UNANSWERED in said


def test_a_prometheus_without_an_end_is_named(stack: ExitStack) -> None:
    address = stack.enter_context(saying(ENDLESS["floods"]))
    with pytest.raises(
        MetricsError, match=f"^{address}/api/v1/query answers without end; given up after 8 MiB"
    ):
        PrometheusApi(address, timeout=30).samples(["a:1"])


def test_nothing_is_asked_again_after_the_deadline_and_what_is_under_way_ends_by_then() -> None:
    now = 0.0
    deadline = Deadline(30, clock=lambda: now)
    assert deadline.within((5, 60)) == (5, 30)
    tried: list[float] = []

    def fail() -> None:
        tried.append(now)
        raise FailedError(requests.ReadTimeout())

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    with pytest.raises(FailedError):
        retry(fail, [10.0] * 100, lambda _, pause: pause, sleep, deadline)
    assert tried == [0, 10, 20]
    assert Deadline().within((5, 60)) == (5, 60)


def test_who_waits_for_several_gets_them_in_order_and_the_first_error() -> None:
    assert side_by_side(lambda number: number * 2, range(50), 4) == list(range(0, 100, 2))
    assert side_by_side(str, [], 4) == []
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 // number, [1, 0], 2)
