"""What the supervisor decides, as stories and as random orders of events."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllmjobs.supervisor.core.engines import Engine, settled
from vllmjobs.supervisor.core.model import (
    GAVE_UP,
    GPU_FATAL,
    OVER,
    RUNNING,
    Added,
    Child,
    Clear,
    Cleared,
    Condemned,
    Exit,
    Exited,
    Fence,
    Kill,
    LogEvent,
    Operation,
    Probed,
    RemoveAsked,
    Start,
    StopAsked,
    SupervisionLimits,
    SupervisorSpec,
    Terminate,
    Tick,
    Trigger,
)
from vllmjobs.supervisor.core.step import JITTER, begin, due, is_ready, step

ONE = SupervisorSpec((Child("chat-0", ("GPU-0",)),))
TWO = SupervisorSpec((Child("chat-0", ("GPU-0",)), Child("chat-1", ("GPU-1",))))
SOON = 0.01


@dataclass
class Story:
    """One supervisor from its beginning; what was said is apart from what was done."""

    spec: SupervisorSpec = ONE
    now: float = 1000.0
    said: list[LogEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state, done = begin(self.spec, self.now)
        self.begun = done

    def take(self, event: Trigger, after: float = 0.0) -> list[Operation]:
        """What is done when this happens so many seconds later."""
        self.now += after
        self.state, operations = step(self.spec, self.state, event, self.now)
        self.said += [one for one in operations if isinstance(one, LogEvent)]
        return [one for one in operations if not isinstance(one, LogEvent)]

    def wait(self) -> list[Operation]:
        """Let time pass until something is due."""
        at = due(self.spec, self.state)
        assert at is not None
        return self.take(Tick(), max(0.0, at - self.now))

    def run(self, *names: str) -> None:
        """Bring children up to ready."""
        for name in names or [child.name for child in self.spec.children]:
            assert self.take(Cleared(name)) == [Start(name)]
            self.take(Probed(name, serves=True, progress=True, unanswered=0), after=20.0)
            assert self.state.children[name].phase == "ready"

    def fail(self, name: str = "chat-0", status: int = 1) -> list[Operation]:
        """Let a child's process end, and its tree be cleared away."""
        assert self.take(Exited(name, status), after=SOON) == [Clear(name)]
        return self.take(Cleared(name), after=SOON)

    def phases(self) -> dict[str, str]:
        return {name: one.phase for name, one in self.state.children.items()}

    def events(self) -> list[str]:
        return [one.name for one in self.said]


def probed(name: str = "chat-0", unanswered: int | None = 0, progress: bool = True) -> Probed:
    return Probed(name, serves=True, progress=progress, unanswered=unanswered)


class TestStart:
    def test_what_an_earlier_supervisor_left_is_cleared_away_first(self) -> None:
        story = Story(TWO)
        assert story.begun == [Clear("chat-0"), Clear("chat-1")]
        assert story.take(Cleared("chat-1")) == [Start("chat-1")]
        assert story.state.children["chat-0"].phase == "clearing"

    def test_it_is_ready_once_it_has_answered(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        story.take(Probed("chat-0", serves=False, progress=False), after=5.0)
        assert not is_ready(ONE, story.state)
        story.take(probed(), after=7.0)
        assert is_ready(ONE, story.state)
        assert story.said[-1] == LogEvent("instance_ready", "INFO", "chat-0", {"load_seconds": 12.0})

    def test_one_that_is_never_ready_is_killed_in_the_end(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        assert story.wait() == [Kill("chat-0")]
        assert story.state.children["chat-0"].why == "not ready after 1800 s"

    def test_one_whose_gpu_memory_is_never_free_is_not_started(self) -> None:
        story = Story()
        story.run()
        story.take(Exited("chat-0", -9))
        assert story.wait() == [Exit(GAVE_UP)]
        assert "gpu_memory_not_freed" in story.events()

    def test_what_is_cleared_twice_or_too_late_is_not_started_again(self) -> None:
        story = Story()
        story.run()
        assert story.take(Cleared("chat-0")) == []
        assert story.state.children["chat-0"].phase == "ready"
        story = Story(TWO)
        story.run("chat-1")
        for _ in range(2):
            story.take(probed("chat-1"), after=40.0)
        assert story.state.children["chat-0"].phase == "given_up"
        assert story.take(Cleared("chat-0")) == []
        assert story.state.children["chat-0"].phase == "given_up"


class TestRestart:
    @pytest.mark.parametrize("status", [0, 1, -9])
    def test_any_unplanned_end_is_a_failure(self, status: int) -> None:
        story = Story()
        story.run()
        assert story.fail(status=status) == []
        assert story.state.children["chat-0"].phase == "waiting"
        assert story.wait() == [Start("chat-0")]

    def test_it_waits_twice_as_long_each_time_and_up_to_a_quarter_more(self) -> None:
        story = Story(replace(ONE, limits=SupervisionLimits(restarts=9, restarts_never_ready=9)))
        story.take(Cleared("chat-0"))
        for expected in (1, 2, 4, 8, 16, 32, 60, 60):
            story.fail()
            wait = story.state.children["chat-0"].due - story.state.children["chat-0"].failures[-1]
            assert expected <= wait <= expected * (1 + JITTER)
            assert story.wait() == [Start("chat-0")]

    def test_two_supervisors_do_not_wait_the_same(self) -> None:
        waits = set()
        for seed in range(20):
            story = Story(replace(ONE, seed=seed))
            story.run()
            story.fail()
            waits.add(story.state.children["chat-0"].due)
        assert len(waits) == 20

    def test_the_wait_begins_again_after_five_minutes_of_service(self) -> None:
        story = Story()
        story.run()
        story.fail()
        story.wait()
        story.take(probed(), after=5.0)
        story.take(probed(), after=50.0)
        for _ in range(6):
            story.take(probed(), after=50.0)
        story.fail()
        one = story.state.children["chat-0"]
        assert 1 <= one.due - one.failures[-1] <= 1 + JITTER

    def test_the_fourth_failure_in_ten_minutes_gives_it_up(self) -> None:
        story = Story()
        story.run()
        for _ in range(3):
            story.fail()
            assert story.wait() == [Start("chat-0")]
            story.take(probed(), after=5.0)
        assert story.fail() == [Exit(GAVE_UP)]
        assert "instance_given_up" in story.events()

    def test_the_third_failure_of_one_that_was_never_ready_gives_it_up(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        for _ in range(2):
            story.fail()
            assert story.wait() == [Start("chat-0")]
        assert story.fail() == [Exit(GAVE_UP)]

    def test_failures_of_long_ago_do_not_count(self) -> None:
        story = Story()
        story.run()
        for _ in range(10):
            for _ in range(5):
                story.take(probed(), after=50.0)
            story.fail()
            assert story.wait() == [Start("chat-0")]
            story.take(probed(), after=1.0)

    def test_one_that_is_asked_for_drains_first_and_is_no_failure(self) -> None:
        story = Story(TWO)
        story.run()
        assert story.take(RemoveAsked("chat-0")) == []
        assert story.phases() == {"chat-0": "leaving", "chat-1": "ready"}
        assert is_ready(TWO, story.state)  # the other serves on
        assert story.take(probed(unanswered=3), after=1.0) == []
        assert story.take(probed(unanswered=0), after=1.0) == [Terminate("chat-0")]
        assert story.fail(status=0) == []
        assert story.phases()["chat-0"] == "ended"
        assert story.take(Added(("chat-0",))) == [Clear("chat-0")]
        assert story.take(Cleared("chat-0")) == [Start("chat-0")]
        one = story.state.children["chat-0"]
        assert (one.failures, one.restarts) == ((), 1)


class TestAChangedPlan:
    def test_a_child_that_is_new_is_cleared_and_started(self) -> None:
        story = Story(ONE)
        story.run()
        story.spec = TWO
        assert story.take(Added(("chat-1",))) == [Clear("chat-1")]
        assert story.take(Cleared("chat-1")) == [Start("chat-1")]
        assert story.state.children["chat-0"].phase == "ready"

    def test_a_child_that_is_gone_is_forgotten(self) -> None:
        story = Story(TWO)
        story.run()
        story.take(RemoveAsked("chat-1"))
        story.take(probed("chat-1"))
        story.fail("chat-1", 0)
        story.spec = ONE
        assert story.take(Exited("chat-1", 0)) == []
        assert list(story.state.children) == ["chat-0"]

    def test_one_that_was_given_up_begins_anew(self) -> None:
        story = Story(TWO)
        story.run("chat-1")
        for _ in range(2):
            story.take(probed("chat-1"), after=40.0)
        assert story.state.children["chat-0"].phase == "given_up"
        assert story.take(Added(("chat-0",))) == [Clear("chat-0")]

    def test_one_on_a_condemned_gpu_is_given_up_at_once(self) -> None:
        story = Story(ONE)
        story.run()
        story.take(Condemned("GPU-1", "XID 79"))
        story.spec = TWO
        assert story.take(Added(("chat-1",))) == []
        one = story.state.children["chat-1"]
        assert (one.phase, one.why) == ("given_up", "GPU GPU-1: XID 79")

    def test_one_that_loads_or_waits_is_ended_without_a_drain(self) -> None:
        story = Story(TWO)
        story.take(Cleared("chat-0"))
        assert story.take(RemoveAsked("chat-0")) == [Terminate("chat-0")]
        story.run("chat-1")
        story.fail("chat-1")
        assert story.take(RemoveAsked("chat-1")) == []
        assert story.state.children["chat-1"].phase == "ended"

    def test_nothing_is_added_once_it_stops(self) -> None:
        story = Story(ONE)
        story.run()
        story.take(StopAsked())
        story.spec = TWO
        assert story.take(Added(("chat-1",))) == []
        assert story.state.children["chat-1"].phase == "ended"


class TestGivingUp:
    def test_the_others_serve_on(self) -> None:
        story = Story(TWO)
        story.run()
        for _ in range(3):
            story.fail()
            story.wait()
            for name in ("chat-0", "chat-1"):
                story.take(probed(name), after=1.0)
        assert story.fail() == []
        assert story.state.children["chat-0"].phase == "given_up"
        assert is_ready(TWO, story.state)

    def test_of_one_too_many_ends_all(self) -> None:
        story = Story(replace(TWO, min_alive=2))
        story.run()
        for _ in range(3):
            story.fail()
            story.wait()
            for name in ("chat-0", "chat-1"):
                story.take(probed(name), after=1.0)
        story.fail()
        assert not is_ready(story.spec, story.state)
        assert story.take(probed("chat-1")) == [Terminate("chat-1")]
        assert story.fail("chat-1", 0) == [Exit(GAVE_UP)]


class TestHang:
    def test_one_without_progress_is_killed_and_restarted(self) -> None:
        story = Story()
        story.run()
        for _ in range(23):
            assert story.take(probed(unanswered=2, progress=False), after=5.0) == []
        assert story.take(probed(unanswered=2, progress=False), after=5.0) == [Kill("chat-0")]
        story.fail(status=-9)
        assert story.state.children["chat-0"].why == "no progress for 120 s"
        assert story.wait() == [Start("chat-0")]

    def test_one_that_answers_nothing_at_all_is_killed_too(self) -> None:
        story = Story()
        story.run()
        assert story.wait() == [Kill("chat-0")]

    def test_one_that_cannot_be_killed_is_given_up(self) -> None:
        story = Story()
        story.run()
        story.wait()
        assert story.wait() == [Exit(GAVE_UP)]
        assert "instance_cannot_be_killed" in story.events()


def asleep(is_sure: bool = True) -> Probed:
    return Probed("chat-0", serves=False, progress=is_sure, sleeps=True, reason="it sleeps")


class TestSleep:
    """vLLM's sleep mode: unready on purpose, and neither broken nor restarted."""

    def test_one_that_sleeps_is_unready_for_as_long_as_it_likes(self) -> None:
        story = Story()
        story.run()
        for _ in range(100):
            assert story.take(asleep(), after=100.0) == []
            assert story.phases() == {"chat-0": "sleeping"}
            assert not is_ready(ONE, story.state)
        story.take(probed(), after=3.0)
        assert is_ready(ONE, story.state)
        assert story.events() == ["instance_ready", "instance_sleeps", "instance_awake"]

    def test_one_that_sleeps_before_it_was_ready_has_no_load_timeout(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        for _ in range(100):
            story.take(asleep(), after=100.0)
        story.take(probed())
        assert is_ready(ONE, story.state)

    @pytest.mark.parametrize("woken", [asleep(is_sure=False), Probed("chat-0", serves=False, progress=True)])
    def test_one_that_says_nothing_or_does_not_answer_when_it_is_woken_is_killed(self, woken: Probed) -> None:
        story = Story()
        story.run()
        story.take(asleep())
        done = [story.take(woken, after=5.0) for _ in range(24)]
        assert done == [*([[]] * 23), [Kill("chat-0")]]

    def test_one_that_sleeps_is_stopped_without_a_drain(self) -> None:
        story = Story()
        story.run()
        story.take(asleep())
        assert story.take(StopAsked()) == [Terminate("chat-0")]
        assert story.fail(status=0) == [Exit(0)]

    def test_one_that_sleeps_on_a_condemned_gpu_is_given_up(self) -> None:
        story = Story(TWO)
        story.run()
        story.take(asleep())
        assert Terminate("chat-0") in story.take(Condemned("GPU-0", "XID 79"))


class TestReasons:
    def test_what_keeps_one_from_getting_ready_is_said_once_and_again_when_it_is_another(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        for reason in ("401", "401", "500", "502"):  # another is not news at once: it may hold a number
            story.take(Probed("chat-0", serves=False, progress=False, reason=reason), after=25.0)
        said = [one.fields["reason"] for one in story.said if one.name == "instance_not_ready"]
        assert said == ["401", "502"]
        assert story.wait() == [Kill("chat-0")]
        assert story.state.children["chat-0"].why == "not ready after 1800 s: 502"

    def test_one_for_which_no_probe_fits_is_ready_and_that_is_said(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        story.take(Probed("chat-0", serves=True, progress=True, reason="404", is_unprobed=True))
        assert is_ready(ONE, story.state)
        assert story.said[-1] == LogEvent("instance_not_probed", "WARNING", "chat-0", {"reason": "404"})


class TestStop:
    def test_it_leaves_drains_and_ends(self) -> None:
        story = Story()
        story.run()
        assert story.take(StopAsked()) == []
        assert not is_ready(ONE, story.state)
        assert story.take(probed(unanswered=1), after=5.0) == []
        assert story.take(probed(unanswered=0), after=5.0) == [Terminate("chat-0")]
        assert story.fail(status=0) == [Exit(0)]

    def test_a_balancer_has_time_to_notice(self) -> None:
        story = Story(replace(ONE, limits=SupervisionLimits(leave=3.0)))
        story.run()
        story.take(StopAsked())
        assert story.take(probed(unanswered=0), after=2.9) == []
        assert story.take(probed(unanswered=0), after=0.2) == [Terminate("chat-0")]

    def test_it_does_not_drain_for_ever(self) -> None:
        story = Story()
        story.run()
        story.take(StopAsked())
        story.take(probed(unanswered=4))
        assert story.wait() == [Terminate("chat-0")]
        assert story.said[-1].fields == {"drain_seconds": 15.0, "unanswered": 4}
        assert story.wait() == [Kill("chat-0")]
        assert story.fail(status=-9) == [Exit(0)]

    def test_the_second_signal_ends_the_drain_and_the_third_kills(self) -> None:
        story = Story()
        story.run()
        story.take(probed(unanswered=4))
        assert story.take(StopAsked()) == []
        assert story.take(StopAsked()) == [Terminate("chat-0")]
        assert story.take(StopAsked()) == [Kill("chat-0")]

    def test_what_cannot_be_cleared_away_is_said(self) -> None:
        story = Story()
        story.run()
        story.take(StopAsked())
        story.take(probed())
        story.take(Exited("chat-0", 0))
        assert story.wait() == [Exit(0)]
        assert story.said[-1].name == "instance_not_cleared"

    def test_one_that_loads_is_not_waited_for(self) -> None:
        story = Story()
        story.take(Cleared("chat-0"))
        assert story.take(StopAsked()) == [Terminate("chat-0")]
        assert story.fail(status=-15) == [Exit(0)]

    def test_one_that_waits_for_its_restart_is_not_started(self) -> None:
        story = Story()
        story.run()
        story.fail()
        assert story.take(StopAsked()) == [Exit(0)]

    def test_one_that_fails_meanwhile_is_not_restarted(self) -> None:
        story = Story(TWO)
        story.run()
        story.take(probed("chat-1", unanswered=1))
        story.take(StopAsked())
        assert story.fail("chat-0", 1) == []
        assert story.state.children["chat-0"].phase == "ended"

    def test_it_ends_even_if_nothing_can_be_killed(self) -> None:
        story = Story(TWO)
        story.run()
        story.take(StopAsked())
        while not story.state.is_over:
            story.wait()
        assert "instance_cannot_be_killed" in story.events()
        limits = story.spec.limits
        assert story.now - 1040.0 <= limits.leave + limits.drain + limits.term + limits.gone


class TestACondemnedGpu:
    def test_of_the_only_instance_ends_all_with_exit_code_70(self) -> None:
        story = Story()
        story.run()
        assert story.take(Condemned("GPU-0", "XID 79")) == [Fence("GPU-0", "XID 79")]
        assert not is_ready(ONE, story.state)
        assert story.take(probed(unanswered=3), after=1.0) == []
        assert story.wait() == [Terminate("chat-0")]
        assert story.now == pytest.approx(1020.0 + SupervisionLimits().drain_condemned)
        assert story.fail(status=0) == [Exit(GPU_FATAL)]

    def test_leaves_the_instances_on_others(self) -> None:
        story = Story(TWO)
        story.run()
        story.take(Condemned("GPU-1", "XID 79"))
        assert story.take(probed("chat-1")) == [Terminate("chat-1")]
        assert story.fail("chat-1", 0) == []
        one = story.state.children["chat-1"]
        assert (one.phase, one.why) == ("given_up", "GPU GPU-1: XID 79")
        assert is_ready(TWO, story.state)

    def test_and_then_the_other_one_too_ends_all_with_exit_code_70(self) -> None:
        story = Story(TWO)
        story.run()
        story.take(Condemned("GPU-0", "XID 79"))
        story.take(Condemned("GPU-1", "XID 79"))
        for name in ("chat-0", "chat-1"):
            story.take(probed(name))
            ended = story.fail(name, 0)
        assert ended == [Exit(GPU_FATAL)]

    def test_is_fenced_also_where_nothing_runs_on_it(self) -> None:
        story = Story()
        assert story.take(Condemned("GPU-7", "lost")) == [Fence("GPU-7", "lost")]
        assert not story.state.is_stopping


class TestABalancerInFront:
    FRONTED = SupervisorSpec((*TWO.children, Child("nginx", is_front=True)))

    def test_belongs_to_what_is_ready(self) -> None:
        story = Story(self.FRONTED)
        story.run("chat-0", "chat-1")
        assert not is_ready(story.spec, story.state)
        story.take(Cleared("nginx"))
        story.take(Probed("nginx", serves=True, progress=True))
        assert is_ready(story.spec, story.state)

    def test_is_stopped_last(self) -> None:
        story = Story(self.FRONTED)
        story.run()
        story.take(StopAsked())
        for name in ("chat-0", "chat-1"):
            assert story.state.children["nginx"].phase == "ready"
            assert story.take(probed(name)) == [Terminate(name)]
            ended = story.fail(name, 0)
        assert ended == [Terminate("nginx")]
        assert story.fail("nginx", 0) == [Exit(0)]

    def test_that_is_given_up_ends_all(self) -> None:
        story = Story(self.FRONTED)
        story.run("chat-0", "chat-1")
        story.take(Cleared("nginx"))
        for _ in range(3):
            story.fail("nginx")
            story.wait()
            for name in ("chat-0", "chat-1"):
                story.take(probed(name))
        assert story.state.code == GAVE_UP

    def test_is_not_enough_alone(self) -> None:
        story = Story(replace(self.FRONTED, children=self.FRONTED.children[1:]))
        story.run()
        story.take(Condemned("GPU-1", "XID 79"))
        assert story.state.code == GPU_FATAL

    def test_is_not_restarted_by_request(self) -> None:
        story = Story(self.FRONTED)
        story.run()
        story.take(RemoveAsked("nginx"))
        assert story.state.children["nginx"].phase == "ready"


# Random orders: a world that does, or does not do, what it is told.

GPUS = ("GPU-0", "GPU-1", "GPU-2", "GPU-3")
FRONT = Engine("nginx", ("nginx",), {}, port=9998, is_front=True)


def engine(number: int, gpu: str) -> Engine:
    return Engine(f"chat-{number}", ("serve",), {}, port=8000 + number, gpus=(gpu,))


@dataclass
class World:
    """What really runs; it checks each action against that."""

    engines: tuple[Engine, ...]
    min_alive: int
    chance: random.Random
    is_stubborn: bool
    now: float = 1000.0
    awaited: dict[str, Engine | None] = field(default_factory=dict)
    alive: dict[str, str] = field(default_factory=dict)  # the engine on each GPU, or what is left of it
    running: set[str] = field(default_factory=set)
    starts: int = 0
    failures: dict[str, list[float]] = field(default_factory=dict)
    in_a_row: dict[str, int] = field(default_factory=dict)
    ready_at: dict[str, float] = field(default_factory=dict)  # of the life it is in
    was_ready: set[str] = field(default_factory=set)
    clearing: set[str] = field(default_factory=set)
    ending: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)  # which SIGKILL did not end in time
    code: int | None = None

    def __post_init__(self) -> None:
        self.take_on(self.engines)
        self.state, operations = begin(self.spec, self.now)
        self.do(operations)

    def take_on(self, engines: tuple[Engine, ...]) -> None:
        self.engines = engines
        children = tuple(Child(one.name, one.gpus, one.is_front) for one in engines)
        self.spec = SupervisorSpec(children, min_alive=self.min_alive)

    def go(self, event: Trigger, after: float) -> None:
        """Let it happen, and do what is decided; then let go of engines, and take on others."""
        self.now += after
        if isinstance(event, Exited):
            one = self.state.children.get(event.child)
            if one and one.phase in RUNNING and not one.is_planned:
                self.failed(event.child)
        self.state, done = step(self.spec, self.state, event, self.now)
        self.do(done)
        if Terminate("nginx") in done:
            behind = {one.phase for name, one in self.state.children.items() if name != "nginx"}
            assert behind <= set(OVER), "stopped before what is behind it"
        over = {name for name, one in self.state.children.items() if one.phase in OVER}
        engines, coming = settled(self.engines, self.awaited, over)
        if not self.state.is_stopping and (coming or len(engines) < len(self.engines)):
            names = {one.name for one in engines}
            self.take_on(engines)
            self.awaited = {
                name: to for name, to in self.awaited.items() if name not in coming and (to or name in names)
            }
            for name in coming:
                for forgotten in (self.failures, self.in_a_row, self.ready_at):
                    forgotten.pop(name, None)
                self.was_ready.discard(name)
            self.go(Added(coming), 0.0)

    def do(self, operations: list[Operation]) -> None:
        gpus = {one.name: one.gpus for one in self.engines}
        for action in operations:
            match action:
                case Start(name):
                    assert not self.clearing & {name}
                    for gpu in gpus[name]:
                        assert gpu not in self.alive, f"two engines on {gpu}"
                        self.alive[gpu] = name
                    self.running.add(name)
                    self.starts += 1
                    self.see_that_it_may_start(name)
                    self.ready_at.pop(name, None)
                case Clear(name):
                    assert name not in self.running - self.stuck
                    self.clearing.add(name)
                case LogEvent("instance_ready", _, str(name)):
                    self.ready_at[name] = self.now
                    self.was_ready.add(name)
                case LogEvent("instance_awake", _, str(name)):  # it may have slept before it was ready
                    self.ready_at.setdefault(name, self.now)
                    self.was_ready.add(name)
                case LogEvent("instance_cannot_be_killed", _, str(name)):
                    self.stuck.add(name)
                case Terminate(name) | Kill(name):
                    self.ending.add(name)
                case Exit(code):
                    assert self.code is None
                    self.code = code

    def failed(self, name: str) -> None:
        limits = self.spec.limits
        self.failures.setdefault(name, []).append(self.now)
        if name in self.ready_at and self.now - self.ready_at[name] >= limits.steady:
            self.in_a_row[name] = 0
        self.in_a_row[name] = self.in_a_row.get(name, 0) + 1

    def see_that_it_may_start(self, name: str) -> None:
        """The budget of restarts, and the pause since the last failure."""
        limits, failures = self.spec.limits, self.failures.get(name, [])
        recent = [at for at in failures if at > self.now - limits.window]
        budget = limits.restarts if name in self.was_ready else limits.restarts_never_ready
        assert len(recent) <= budget, "more restarts than there are"
        if failures:
            pause = min(limits.backoff_most, limits.backoff * 2 ** (self.in_a_row[name] - 1))
            assert self.now >= failures[-1] + pause - 0.001, "started too soon"

    def cleared(self) -> list[str]:
        """Those of which nothing runs, and whose GPUs nobody else has."""
        gpus = {one.name: one.gpus for one in self.engines}
        return [
            name
            for name in sorted(self.clearing - self.running)
            if all(self.alive.get(gpu, name) == name for gpu in gpus.get(name, ()))
        ]

    def happen(self) -> Trigger:
        """Anything that may happen next."""
        name = self.chance.choice(self.engines).name
        kind = self.chance.choices(
            ["tick", "seen", "exit", "clear", "end", "become", "condemn"], [8, 6, 2, 6, 6, 1.5, 0.1]
        )[0]
        if kind == "exit" and name in self.running:
            self.running.discard(name)
            self.ending.discard(name)
            return Exited(name, self.chance.choice([0, 1, -9]))
        if kind == "end" and self.ending & self.running and not self.is_stubborn:
            name = sorted(self.ending & self.running)[0]
            self.running.discard(name)
            self.ending.discard(name)
            return Exited(name, 0)
        if kind == "clear" and (cleared := self.cleared()):
            name = cleared[0]
            self.clearing.discard(name)
            self.alive = {gpu: on for gpu, on in self.alive.items() if on != name}
            return Cleared(name)
        if kind == "seen" and name in self.running:
            serves, progress = self.chance.random() < 0.7, self.chance.random() < 0.8
            sleeps = not serves and self.chance.random() < 0.3
            return Probed(name, serves, progress, self.chance.choice([None, 0, 1, 7]), sleeps)
        if kind == "become" and not self.state.is_stopping:
            number = self.chance.randrange(3)
            to = engine(number, self.chance.choice(GPUS)) if self.chance.random() < 0.8 else None
            self.awaited[f"chat-{number}"] = to
            return RemoveAsked(f"chat-{number}")
        if kind == "condemn":
            return Condemned(self.chance.choice(GPUS), "XID 79")
        return Tick()


@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 120),
)
@example(3, 1, 1, False, True, 6)  # a front that seems to sleep is a front all the same
@example(2751451800, 1, 3, True, False, 68)  # one that slept before it was ready has been ready since
def test_whatever_happens(
    seed: int, children: int, min_alive: int, is_stubborn: bool, has_front: bool, stop_at: int
) -> None:
    """Never two engines on one GPU, budget and pauses are kept, and it ends after a stop.

    Meanwhile, engines move from GPU to GPU, as with a configuration that is read again.
    """
    chance = random.Random(seed)
    engines = tuple(engine(number, GPUS[number]) for number in range(children))
    world = World((*engines, *([FRONT] if has_front else [])), min(min_alive, children), chance, is_stubborn)
    for _ in range(stop_at):
        if world.state.is_over:
            break
        world.go(world.happen(), chance.choice([0.0, 0.1, 1.0, 5.0, 40.0]))
    if world.state.is_over:
        assert world.code in (GAVE_UP, GPU_FATAL)
        return
    world.go(StopAsked(), 0.0)
    began, starts = world.now, world.starts
    while not world.state.is_over:
        at = due(world.spec, world.state)
        assert at is not None, "nothing is due, and it has not ended"
        event = world.happen() if chance.random() < 0.5 else Tick()
        world.go(event, max(0.0, at - world.now) if isinstance(event, Tick) else 0.0)
    assert world.code is not None
    # Each phase of the way has its limit, however late in another it was when the stop came.
    limits = world.spec.limits
    longest = limits.leave + limits.drain + limits.term + 2 * limits.gone
    assert world.now - began <= longest + has_front * (limits.term + 2 * limits.gone) + 0.001
    assert world.starts == starts, "started after the stop"
