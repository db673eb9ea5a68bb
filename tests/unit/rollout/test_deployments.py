"""Nomad's deployments and allocations in a release's words, and the events between two snapshots."""

from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from vllmjobs.rollout.deployments import (
    group_states,
    is_old,
    is_ready,
    is_way_back,
    parse_allocations,
    stable,
)
from vllmjobs.rollout.events import Snapshot, events
from vllmjobs.rollout.model import Observation, Record, Verdict

PASS = Verdict(result="pass", reason="within all limits", measurements=12)


def allocation(id: str, version: int = 7, **others: Any) -> dict[str, Any]:
    return {
        "ID": id,
        "TaskGroup": "chat",
        "NodeName": "gpu-1",
        "JobVersion": version,
        "DesiredStatus": "run",
        "ClientStatus": "running",
        "DeploymentStatus": {"Canary": version == 7, "Healthy": True},
        "TaskStates": {"vllm": {"State": "running", "Restarts": 0, "Events": []}},
        "AllocatedResources": {
            "Shared": {"Ports": [{"Label": "http", "HostIP": "10.0.0.1", "Value": 20000}]},
        },
        **others,
    }


def deployment(*canaries: str, promoted: bool = False) -> dict[str, Any]:
    state = {
        "DesiredCanaries": 1, "PlacedCanaries": [*canaries], "Promoted": promoted, "DesiredTotal": 2,
        "HealthyAllocs": len(canaries), "UnhealthyAllocs": 0,
    }  # fmt: skip
    return {"JobVersion": 7, "TaskGroups": {"chat": state}}


def snapshot(*answer: dict[str, Any], status: Any = "running") -> Snapshot:
    state = deployment(*(one["ID"] for one in answer if one["JobVersion"] == 7))
    allocations = parse_allocations(answer, state)
    groups = group_states(state, allocations)
    observation = Observation(now=0, version=7, status=status, groups=groups)
    return Snapshot(observation, {one.id: one for one in allocations})


def test_the_version_to_go_back_to_was_deployed_with_success_and_is_another_job() -> None:
    def version(number: int, image: str, stable: bool = True, stopped: bool = False) -> dict[str, Any]:
        return {"Version": number, "Image": image, "Stable": stable, "Stop": stopped}

    kept = [version(0, "a"), version(1, "b", stable=False), version(2, "b"), version(3, "c")]
    assert stable(kept, 3) == 2
    assert stable([*kept, version(4, "c")], 4) == 2, "of the same job Nomad would make no version"
    stopped = version(4, "c", stopped=True)
    assert stable([*kept, stopped, version(5, "d")], 5) == 3, "going back to a stopped job stops all"
    assert stable([version(0, "a", stable=False)], 0) is None


def test_a_way_back_is_known_by_its_record_and_without_one_by_what_it_is() -> None:
    def version(number: int, image: str, **others: Any) -> dict[str, Any]:
        return {"Version": number, "Image": image, "Stable": True, **others}

    kept = [version(0, "a"), version(1, "b", Stable=False), version(2, "a", Stable=False)]
    assert is_way_back(2, None, kept)
    assert not is_way_back(2, Record(version=2, at="", by="alice"), kept), "somebody deploys what once was"
    assert is_way_back(1, Record(version=1, at="", by="alice", is_way_back=True), kept)
    assert not is_way_back(1, None, kept), "there was no such job before"
    assert not is_way_back(3, None, [*kept, version(3, "b")]), "which was never deployed with success"
    assert not is_way_back(3, None, [*kept, version(3, "a", Stop=True)]), "it is stopped"


def test_a_canary_is_of_the_deployment_and_the_old_ones_serve() -> None:
    allocations = parse_allocations([allocation("a", 6), allocation("b")], deployment("b"))
    assert [(one.is_canary, is_old(one), is_ready(one)) for one in allocations] == [
        (False, True, True),
        (True, False, True),
    ]
    group = group_states(deployment("b"), allocations)["chat"]
    assert (group.placed_canaries, group.healthy_canaries) == (1, 1)
    assert (group.old_healthy, group.old_running) == (1, 1)


def test_what_is_told_to_stop_serves_no_more_but_still_runs() -> None:
    (stopping,) = parse_allocations([allocation("a", 6, DesiredStatus="stop")], deployment())
    assert not is_old(stopping)
    assert group_states(deployment(), [stopping])["chat"].old_running == 1


def test_a_canary_that_waits_to_be_restarted_is_not_healthy() -> None:
    tasks = {"vllm": {"State": "pending", "Restarts": 1, "Events": []}}
    (waiting,) = parse_allocations([allocation("b", TaskStates=tasks)], deployment("b"))
    assert not is_ready(waiting)
    assert waiting.restarts == 1


def test_a_lost_canary_is_placed_no_more() -> None:
    allocations = parse_allocations([allocation("b", ClientStatus="lost")], deployment("b"))
    assert group_states(deployment("b"), allocations)["chat"].placed_canaries == 0


def test_an_address_with_colons_is_bracketed() -> None:
    resources = {"Shared": {"Ports": [{"Label": "http", "HostIP": "fd00::1", "Value": 8000}]}}
    (parsed,) = parse_allocations([allocation("b", AllocatedResources=resources)], deployment("b"))
    assert parsed.address == "[fd00::1]:8000"


def test_each_thing_that_happens_is_one_line() -> None:
    loading: dict[str, Any] = {"DeploymentStatus": {"Canary": True, "Healthy": None}}
    first = snapshot(allocation("a", 6))
    placed = snapshot(allocation("a", 6), allocation("b", **loading))
    healthy = snapshot(allocation("a", 6), allocation("b"))
    stopping = snapshot(allocation("a", 6, DesiredStatus="stop"), allocation("b"))
    stopped = snapshot(allocation("a", 6, DesiredStatus="stop", ClientStatus="complete"), allocation("b"))
    snapshots = [first, placed, healthy, stopping, stopped]
    texts = [[one.text for one in events(*pair)] for pair in pairwise(snapshots)]
    assert texts == [
        ["canary b is placed on gpu-1"],
        ["canary b is healthy"],
        ["instance a of version 6 is told to stop"],
        ["instance a of version 6 has stopped"],
    ]


def test_nothing_new_is_no_event() -> None:
    same = snapshot(allocation("a", 6), allocation("b"))
    assert list(events(same, same)) == []


def test_a_crash_is_told_with_what_nomad_says_of_it() -> None:
    event = {"Type": "Terminated", "Time": 1, "DisplayMessage": "Exit Code: 1"}
    tasks = {"vllm": {"State": "pending", "Restarts": 1, "Events": [event]}}
    (crash,) = events(snapshot(allocation("b")), snapshot(allocation("b", TaskStates=tasks)))
    assert (crash.kind, crash.text) == ("restarted", "canary b ended and was restarted: Exit Code: 1")


def test_a_verdict_is_news_and_a_measurement_that_changes_nothing_is_not() -> None:
    def judged(verdict: Verdict) -> Snapshot:
        observation, allocations = snapshot(allocation("b"))
        group = replace(observation.groups["chat"], verdict=verdict)
        return Snapshot(replace(observation, groups={"chat": group}), allocations)

    undecided = Verdict(result="undecided", reason="watched for 10s of 2m", measurements=1)
    kinds = [
        one.kind
        for before, after in (
            (snapshot(allocation("b")), judged(undecided)),
            (judged(undecided), judged(PASS)),
            (judged(PASS), judged(PASS)),
        )
        for one in events(before, after)
    ]
    assert kinds == ["measured", "verdict"]


def test_instances_of_other_versions_are_no_event_at_the_first_snapshot() -> None:
    assert [one.text for one in events(None, snapshot(allocation("a", 6)))] == ["deployment running"]
