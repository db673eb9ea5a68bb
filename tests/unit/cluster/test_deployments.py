"""A server that misbehaves while a release is under way: what is asked again, and what is not sure."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from unit.cluster.test_nomad import (
    DEPLOYMENT,
    Script,
    hangs_up,
    hangs_up_in_the_middle,
    says_nothing,
    server,
    timeout,
)
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import (
    ConflictError,
    DeploymentEndedError,
    NomadError,
    NotHealthyError,
    UnsureError,
)
from vllmjobs.cluster.logs import TaskLogs
from vllmjobs.cluster.nomad import NomadApi, Where
from vllmjobs.rollout.deployments import address

__all__ = ["server"]
CHAT = Where("chat", "default", "global")
JOB = {"ID": "chat", "Namespace": "default", "Region": "global"}
NO_LEADER = (500, "No cluster leader")
OK = (200, "{}")
LEADER_GONE = (500, "rpc error: leadership lost while committing log")

WRITES: dict[str, Callable[[Deployments], object]] = {
    "register": lambda nomad: nomad.register(JOB, 7),
    "promote": lambda nomad: nomad.promote("1a2b", CHAT),
    "fail": lambda nomad: nomad.fail("1a2b", CHAT),
    "revert": lambda nomad: nomad.revert(CHAT, 3, 4),
    "write_variable": lambda nomad: nomad.write_variable("vllmjobs/a", {"b": "c"}, 7, CHAT),
}
READS: dict[str, Callable[[Deployments], object]] = {
    "versions": lambda nomad: nomad.versions(CHAT),
    "deployment_by_id": lambda nomad: nomad.deployment_by_id("1a2b", CHAT),
    "variable": lambda nomad: nomad.variable("vllmjobs/a", CHAT)[0],
}


def releases(script: Script, *answers: Any, patience: float = 0) -> Deployments:
    script.answers = list(answers)
    clock = count()
    return Deployments(
        NomadApi(
            {"NOMAD_ADDR": script.address},
            timeout=timeout(answers),
            sleep=script.pauses.append,
            patience=patience,
            clock=lambda: float(next(clock)),  # a second at each look
        )
    )


# Writes


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize(
    "fault",
    [says_nothing, hangs_up, hangs_up_in_the_middle, (502, ""), (504, ""), LEADER_GONE,
     (500, "rpc error: EOF")],
    ids=lambda fault: getattr(fault, "__name__", str(fault)),
)  # fmt: skip
def test_a_write_whose_answer_is_lost_is_not_repeated_and_called_unsure(
    server: Script, name: str, fault: Any
) -> None:
    for patience in (0, 60):
        server.asked.clear()
        with pytest.raises(UnsureError, match="Nomad may have done it, or not"):
            WRITES[name](releases(server, fault, OK, patience=patience))
        assert len(server.asked) == 1


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize(
    "fault",
    [NO_LEADER, (429, "slow down"), (500, "rpc error: failed to get conn: dial tcp: connection refused")],
)
def test_a_write_that_nomad_has_not_begun_with_is_repeated(server: Script, name: str, fault: Any) -> None:
    WRITES[name](releases(server, fault, fault, OK))
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("Enforcing job modify index 7: job does not exist", ConflictError, "has changed the job"),
        ("rpc error: Enforcing job modify index 0: job already exists", ConflictError, "already exists"),
        ("Current job has version 5; enforcing version 4", ConflictError, "has version 5"),
        (
            '2 errors occurred:\n\t* Task group "a" has 0/1 healthy allocations\n'
            '\t* Task group "b" has 1/2 healthy allocations\n\n',
            NotHealthyError,
            'not promoted: Task group "a" has 0/1 healthy allocations, Task group "b" has 1/2',
        ),
        ("can't promote terminal deployment", DeploymentEndedError, "the deployment has ended"),
        ("deployment not found", DeploymentEndedError, "deployment not found"),
        ("job type cannot be changed", NomadError, "500: job type cannot be changed"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_from_others_and_asked_for_once(
    server: Script, text: str, kind: type[NomadError], said: str
) -> None:
    with pytest.raises(NomadError) as error:
        WRITES["promote"](releases(server, (500, text), patience=60))
    assert type(error.value) is kind
    assert said in str(error.value)
    assert len(server.asked) == 1


def test_a_variable_that_someone_else_wrote_is_a_conflict(server: Script) -> None:
    with pytest.raises(ConflictError):
        WRITES["write_variable"](releases(server, (409, "{}")))


# Patience


@pytest.mark.parametrize("name", READS)
def test_who_is_patient_asks_until_the_server_is_back(server: Script, name: str) -> None:
    faults = [(500, "rpc error: shutdown"), NO_LEADER, (503, ""), hangs_up, NO_LEADER, NO_LEADER, NO_LEADER]
    READS[name](releases(server, *faults, (404, "variable not found"), patience=60))
    assert len(server.asked) == 8
    server.asked.clear()
    with pytest.raises(NomadError, match="rpc error: shutdown"):
        READS[name](releases(server, *faults))


def test_who_is_patient_waits_for_a_port_to_be_opened_and_not_for_ever() -> None:
    gone = Script(address="http://127.0.0.1:9")
    for ask in (READS["versions"], WRITES["promote"]):
        gone.pauses.clear()
        with pytest.raises(NomadError, match="cannot be reached") as error:
            ask(releases(gone, patience=30))
        assert not isinstance(error.value, UnsureError)
        assert len(gone.pauses) == 29  # at one second each
        gone.pauses.clear()
        with pytest.raises(NomadError, match="cannot be reached"):
            ask(releases(gone))
        assert gone.pauses == []


# What is asked


def test_a_waiting_look_tells_index_and_time_and_what_comes_next(server: Script) -> None:
    nomad = releases(server, (200, json.dumps(DEPLOYMENT), {"X-Nomad-Index": "12"}))
    assert nomad.deployment_by_id("1a2b", CHAT) == (DEPLOYMENT, 12)
    assert nomad.deployment_by_id("1a2b", CHAT, 12, 1.5) == (DEPLOYMENT, 12)
    assert nomad.deployment_by_id("1a2b", CHAT, 13, 1.5) == (DEPLOYMENT, 0)  # it went back
    first, second, _ = server.asked
    assert "index" not in first
    assert "index=12&wait=1500ms" in second


def test_names_are_escaped_and_the_namespace_is_sent(server: Script) -> None:
    there = Where("a/b c", "team", "eu")
    nomad = releases(server, OK)
    nomad.revert(there, 3, 4)
    nomad.write_variable("vllmjobs/releases/a", {}, 5, there)
    assert server.asked == [
        "POST /v1/job/a%2Fb%20c/revert?namespace=team&region=eu",
        "POST /v1/var/vllmjobs/releases/a?namespace=team&region=eu&cas=5",
    ]


def test_a_log_comes_in_frames_however_they_are_cut_and_a_heartbeat_is_empty(server: Script) -> None:
    frames = [{"Data": base64.b64encode(b"one\n").decode(), "File": "x"}, {}, {"Data": "dHdv"}]
    text = "".join(json.dumps(frame) for frame in frames)
    nomad = releases(server, (200, text))
    assert list(TaskLogs(nomad.nomad).read("1a2b", "vllm", "stdout", CHAT)) == [b"one\n", b"", b"two"]
    with pytest.raises(NomadError, match='no log of 1a2b: task "vllm" not started yet'):
        nomad = releases(server, (404, 'task "vllm" not started yet'))
        list(TaskLogs(nomad.nomad).read("1a2b", "vllm", "stdout", CHAT))


# Addresses


def test_an_address_is_of_the_group_or_of_a_task() -> None:
    ports = [{"Label": "http", "Value": 8000, "HostIP": "::1"}]
    assert address({"AllocatedResources": {"Shared": {"Ports": ports}, "Tasks": {}}}) == "[::1]:8000"
    network = {"IP": "10.0.0.1", "DynamicPorts": [{"Label": "http", "Value": 8000}], "ReservedPorts": None}
    of_task = {"AllocatedResources": {"Shared": {}, "Tasks": {"vllm": {"Networks": [network]}}}}
    assert address(of_task) == "10.0.0.1:8000"
    assert address({}) is None
