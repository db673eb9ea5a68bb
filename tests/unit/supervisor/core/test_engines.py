"""From the engines that run to those of a configuration that was read again."""

from __future__ import annotations

import random

import pytest

from vllmjobs.supervisor.core.engines import Engine, differences, rounds, settled


def engine(name: str, gpu: int | None = None, port: int | None = None, words: str = "") -> Engine:
    """On a GPU of its own number, and a port that nobody else has."""
    number = int(name.rpartition("-")[2])
    gpu = number if gpu is None else gpu
    return Engine(name, ("serve", words), {}, port=port or 8000 + number, gpus=(f"GPU-{gpu}",))


FRONT = Engine("nginx", ("nginx",), {}, port=9998, is_front=True)
THERE = (engine("chat-0"), engine("chat-1"), FRONT)


def test_engines_differ_in_anything_that_they_are_started_with() -> None:
    wanted = (engine("chat-1", words="--max-model-len=8"), engine("chat-2"), FRONT)
    assert differences(THERE, wanted) == {"added": ["chat-2"], "changed": ["chat-1"], "removed": ["chat-0"]}
    assert differences(THERE, THERE) == {"added": [], "changed": [], "removed": []}


def test_a_balancer_is_never_one_of_them() -> None:
    assert rounds(THERE, (*THERE[:2], Engine("nginx", ("other",), {}, port=1, is_front=True))) == []


def test_they_are_changed_one_by_one_and_who_is_to_go_comes_last() -> None:
    wanted = (engine("chat-0", words="x"), engine("chat-2"), FRONT)
    assert rounds(THERE, wanted) == [["chat-0"], ["chat-2"], ["chat-1"]]


@pytest.mark.parametrize(
    "wanted",
    [
        (engine("chat-0", gpu=1), engine("chat-1", gpu=0)),
        (engine("chat-0"), engine("chat-2", gpu=1)),
        (engine("chat-0"), engine("chat-2", port=8001)),
    ],
    ids=["two that trade GPUs", "one on the GPU of one that goes", "one on its port"],
)
def test_who_needs_what_another_has_is_changed_together_with_it(wanted: tuple[Engine, ...]) -> None:
    assert len(rounds(THERE, (*wanted, FRONT))) == 1


def test_what_is_over_makes_room_for_what_was_asked_for() -> None:
    new = engine("chat-0", words="x")
    assert settled(THERE, {"chat-0": new}, set()) == (THERE, ())
    assert settled(THERE, {"chat-0": new}, {"chat-0"}) == ((new, *THERE[1:]), ("chat-0",))
    assert settled(THERE, {"chat-0": None}, {"chat-0"}) == (THERE[1:], ())


def test_what_comes_waits_for_its_gpus() -> None:
    new = engine("chat-2", gpu=1)
    awaited = {"chat-2": new, "chat-1": None}
    assert settled(THERE, awaited, set()) == (THERE, ())
    assert settled(THERE, awaited, {"chat-1"}) == ((THERE[0], new, FRONT), ("chat-2",))


def test_the_last_one_stays_until_another_comes() -> None:
    there = (THERE[0], FRONT)
    assert settled(there, {"chat-0": None}, {"chat-0"}) == (there, ())
    assert settled(there, {"chat-0": None, "chat-1": THERE[1]}, {"chat-0"})[1] == ("chat-1",)


@pytest.mark.parametrize("seed", range(300))
def test_no_two_ever_have_the_same_gpu_and_all_that_was_asked_for_comes(seed: int) -> None:
    chance = random.Random(seed)

    def some() -> tuple[Engine, ...]:
        gpus = chance.sample(range(4), chance.randint(1, 4))
        names = chance.sample([f"chat-{number}" for number in range(4)], len(gpus))
        return (*(engine(name, gpu) for name, gpu in zip(names, gpus, strict=True)), FRONT)

    there, wanted = some(), some()
    new = {one.name: one for one in wanted}
    for names in rounds(there, wanted):
        awaited: dict[str, Engine | None] = {}
        for name in names:  # asked for one after the other, while any of them may be over already
            awaited[name] = new.get(name)
            over = {one for one in awaited if chance.random() < 0.5}
            there, coming = settled(there, awaited, over)
            awaited = {one: to for one, to in awaited.items() if one not in coming}
            held = [gpu for one in there for gpu in one.gpus]
            assert len(held) == len(set(held))
        there, coming = settled(there, awaited, set(awaited))
        assert set(coming) == {name for name in awaited if name in new}
    assert {one.name: one for one in there} == new
