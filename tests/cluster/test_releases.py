"""What a release asks of a real Nomad: writes that conflict, canaries, versions, variables, waiting, logs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal

import pytest

from vllmjobs.cluster.deployments import Deployments, where, where_of
from vllmjobs.cluster.failures import (
    ConflictError,
    DeploymentEndedError,
    ForbiddenError,
    NomadError,
    NotHealthyError,
)
from vllmjobs.cluster.logs import TaskLogs
from vllmjobs.cluster.nomad import NomadApi, Where
from vllmjobs.deploy import records
from vllmjobs.rollout.deployments import address
from vllmjobs.rollout.model import Number, Record, Verdict
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import Secured, secured_server

NOWHERE = Where("no-such-job", "default", "")
NO_DEPLOYMENT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def nomad(sandbox: Sandbox) -> Deployments:
    return Deployments(NomadApi(sandbox.env))


@pytest.fixture(scope="module")
def two(sandbox: Sandbox) -> Iterator[Release]:
    """Two instances, for tests that change nothing."""
    for new in releases(sandbox, "two"):
        two = new(replicas=2)
        two.run()
        yield two


def register(nomad: Deployments, release: Release, index: int, **chat: Any) -> Where:
    job = nomad.cluster.parse(release.render(**chat))
    nomad.register(job, index)
    return where_of(job)


def index_of(nomad: Deployments, there: Where) -> int:
    job = nomad.cluster.job(*there)
    assert job
    index: int = job["JobModifyIndex"]
    return index


# Writes


def test_a_job_is_registered_only_where_it_is_as_it_was_read(nomad: Deployments, release: NewRelease) -> None:
    new = release(replicas=1)
    job = nomad.cluster.parse(new.render())
    with pytest.raises(ConflictError, match="job does not exist"):
        nomad.register(job, 7)
    answer = nomad.register(job, 0, source=new.render())
    assert answer["EvalID"]
    assert answer["JobModifyIndex"] == index_of(nomad, where_of(job))
    with pytest.raises(
        ConflictError, match=r"someone else has changed the job in the meantime: .*already exists"
    ):
        nomad.register(job, 0)
    with pytest.raises(ConflictError, match="conflicting job modify index"):
        nomad.register(job, answer["JobModifyIndex"] + 1)
    assert [one["Version"] for one in nomad.versions(where_of(job))] == [0]


def test_canaries_are_promoted_when_healthy_and_once_more_changes_nothing(
    sandbox: Sandbox, nomad: Deployments, release: NewRelease
) -> None:
    new = release(replicas=1)
    there = register(nomad, new, 0)
    sandbox.wait_until_healthy(new.job)
    register(nomad, new, index_of(nomad, there), max_model_len=2048)
    wait_until(lambda: len(nomad.of_job(there)) == 2, 30, "the canary has a deployment")
    deployment = nomad.of_job(there)[0]
    with pytest.raises(NotHealthyError, match=r'not promoted: Task group "chat" has 0/1 healthy allocations'):
        nomad.promote(deployment["ID"], there)
    sandbox.wait_until_healthy(new.job)
    nomad.promote(deployment["ID"], there)
    with suppress(DeploymentEndedError):  # nothing is left to do, and it may have ended already
        nomad.promote(deployment["ID"], there)
    wait_until(lambda: nomad.of_job(there)[0]["Status"] == "successful", 60, "promoted")
    for write in (nomad.promote, nomad.fail):
        with pytest.raises(DeploymentEndedError, match="terminal deployment"):
            write(deployment["ID"], there)
    assert [one["Stable"] for one in nomad.versions(there)] == [True, True]


def test_waiting_for_a_deployment_ends_with_its_next_change_and_a_revert_goes_where_it_was_read(
    sandbox: Sandbox, nomad: Deployments, release: NewRelease
) -> None:
    """A deployment that is failed leaves the stable version."""
    new = release(**{"replicas": 1, "rollout.auto_revert": "false"})
    there = register(nomad, new, 0)
    sandbox.wait_until_healthy(new.job)
    register(nomad, new, index_of(nomad, there), max_model_len=2048)
    sandbox.wait_until_healthy(new.job)
    id = nomad.of_job(there)[0]["ID"]
    seen, index = nomad.deployment_by_id(id, there)
    assert seen
    assert index == seen["ModifyIndex"]
    assert nomad.deployment_by_id(id, there, index, 0.1) == (seen, index)
    waiter = Deployments(NomadApi(sandbox.env))
    woken: list[Any] = []
    waiting = threading.Thread(target=lambda: woken.append(waiter.deployment_by_id(id, there, index, 60)))
    waiting.start()
    nomad.fail(id, there)
    waiting.join(20)
    ((changed, later),) = woken
    assert changed["Status"] == "failed"
    assert later > index
    # Nomad's index is lower after a restore: then the next look must not wait.
    assert nomad.deployment_by_id(id, there, later + 1_000_000, 0.1)[1] == 0

    with pytest.raises(ConflictError, match="Current job has version 1; enforcing version 0"):
        nomad.revert(there, 0, 0)
    with pytest.raises(NomadError, match="version 9 not found"):
        nomad.revert(there, 9, 1)
    assert nomad.revert(there, 0, 1)["EvalID"]
    assert [one["Version"] for one in nomad.versions(there)] == [2, 1, 0]
    assert {one["JobID"] for one in nomad.evaluations(there)} == {new.job}


def test_what_is_not_there_is_none_empty_or_ended(nomad: Deployments) -> None:
    assert nomad.versions(NOWHERE) == nomad.of_job(NOWHERE) == nomad.allocations(NOWHERE) == []
    assert nomad.evaluations(NOWHERE) == []
    assert nomad.deployment_by_id(NO_DEPLOYMENT, NOWHERE, 5, 1) == (None, 0)
    for write in (nomad.promote, nomad.fail):
        with pytest.raises(DeploymentEndedError, match="not found"):
            write(NO_DEPLOYMENT, NOWHERE)
    with pytest.raises(NomadError, match='job "no-such-job" not found'):
        nomad.revert(NOWHERE, 0, 1)


# Reads


def test_allocations_come_with_their_address_and_gpus_and_only_those_of_the_job(
    nomad: Deployments, two: Release, release: NewRelease
) -> None:
    release(replicas=1).run()
    allocations = nomad.allocations(where(two.job))
    assert {one["JobID"] for one in allocations} == {two.job}
    assert len({address(one) for one in allocations}) == 2
    for one in allocations:
        assert one["DeploymentStatus"]["Healthy"]
        assert one["TaskStates"]["vllm"]["State"] == "running"
        (device,) = one["AllocatedResources"]["Tasks"]["vllm"]["Devices"]
        assert len(device["DeviceIDs"]) == 1
        assert (address(one) or "").startswith("127.0.0.1:")
        assert address(one, "nothing") is None


# Variables


def test_a_variable_is_written_only_where_it_is_as_it_was_read(
    nomad: Deployments, release: NewRelease
) -> None:
    there = where(release().job)
    path = f"vllmjobs/tests/{there.id}"
    assert nomad.variable(path, there) == ({}, 0)
    nomad.write_variable(path, {"a": "1"}, 0, there)
    with pytest.raises(ConflictError, match="someone else has written the variable in the meantime"):
        nomad.write_variable(path, {"a": "2"}, 0, there)
    items, index = nomad.variable(path, there)
    assert items == {"a": "1"}
    nomad.write_variable(path, {"a": "2"}, index, there)
    assert nomad.variable(path, there)[0] == {"a": "2"}


def entry(version: int, **more: Any) -> Record:
    return Record(version=version, at="2026-11-23T21:04:05.678Z", by="me", **more)


def test_records_are_kept_of_the_newest_versions_whoever_else_writes(
    sandbox: Sandbox, nomad: Deployments, release: NewRelease
) -> None:
    there = where(release().job)
    assert records.read(nomad, there) == []
    writers = [
        threading.Thread(
            target=records.write, args=(Deployments(NomadApi(sandbox.env)), there, entry(version))
        )
        for version in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [one.version for one in records.read(nomad, there)] == [3, 2, 1, 0]
    for version in range(4, 24):
        records.write(nomad, there, entry(version))
    records.write(nomad, there, entry(23, outcome="successful"))
    kept = records.read(nomad, there)
    assert [one.version for one in kept] == list(range(23, 3, -1))
    assert kept[0].outcome == "successful"


def test_older_records_lose_their_numbers_before_the_variable_is_too_large(
    nomad: Deployments, release: NewRelease
) -> None:
    there = where(release().job)
    numbers = tuple(
        Number(metric=f"metric_{n}", canary=1.5, stable=1.25, limit="x" * 60, result="pass") for n in range(7)
    )
    verdicts = {f"group-{n}": Verdict(result="pass", reason="x" * 80, numbers=numbers) for n in range(10)}
    for version in range(8):
        records.write(nomad, there, entry(version, verdicts=verdicts))
    kept = records.read(nomad, there)
    assert [one.version for one in kept] == list(range(7, -1, -1))
    assert kept[0].verdicts["group-0"].numbers == numbers
    assert kept[-1].verdicts["group-0"].numbers == ()


# Logs


def test_a_log_is_read_from_its_start_or_end_and_followed(nomad: Deployments, two: Release) -> None:
    allocation, _ = two.allocations()
    there, logs = where(two.job), TaskLogs(nomad.nomad)

    def log(offset: int = 0, origin: Literal["start", "end"] = "start") -> bytes:
        id = allocation["ID"]
        return b"".join(logs.read(id, "vllm", "stdout", there, offset=offset, origin=origin))

    whole = log()
    assert b"GET /health" in whole
    assert log(offset=10).startswith(whole[10:])
    assert len(log(offset=10, origin="end")) == 10
    following = logs.read(allocation["ID"], "vllm", "stdout", there, follow=True, origin="end")
    new_line = next(piece for piece in following if piece)  # the next check's
    assert b"GET /health" in new_line
    following.close()
    with pytest.raises(NomadError, match='unknown task name "none"'):
        list(logs.read(allocation["ID"], "none", "stdout", there))
    with pytest.raises(NomadError, match="nknown allocation"):
        list(logs.read(NO_DEPLOYMENT, "vllm", "stdout", there))


# Who may


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_server(tmp_path_factory.mktemp("releases")) as server:
        server.nomad("namespace", "apply", "team")
        server.nomad("job", "run", "-detach", "-", text=JOB)
        yield server


JOB = """
job "team/chat" {
  namespace = "team"
  group "g" {
    task "t" {
      driver = "raw_exec"
      config {
        command = "sleep"
      }
    }
  }
}
"""
TEAM = Where("team/chat", "team", "global")
VARIABLE = "vllmjobs/releases/chat"


def deployment(secured: Secured) -> str:
    """Of the job, which waits for a node."""
    nomad = Deployments(NomadApi(secured.environ | {"NOMAD_TOKEN": secured.manager}))
    found = wait_until(lambda: nomad.of_job(TEAM), 30, "the job has a deployment")
    id: str = found[0]["ID"]
    return id


def calls(id: str) -> dict[str, Callable[[Deployments], object]]:
    return {
        "versions": lambda nomad: nomad.versions(TEAM),
        "deployments": lambda nomad: nomad.of_job(TEAM),
        "deployment_by_id": lambda nomad: nomad.deployment_by_id(id, TEAM),
        "allocations": lambda nomad: nomad.allocations(TEAM),
        "evaluations": lambda nomad: nomad.evaluations(TEAM),
        "register": lambda nomad: nomad.register(
            {"ID": TEAM.id, "Namespace": "team", "Datacenters": ["*"], "Type": "service", "TaskGroups": [
                {"Name": "g", "Tasks": [{"Name": "t", "Driver": "raw_exec"}]}]}, 0),
        "promote": lambda nomad: nomad.promote(id, TEAM),
        "fail": lambda nomad: nomad.fail(id, TEAM),
        "revert": lambda nomad: nomad.revert(TEAM, 7, 8),
        "variable": lambda nomad: nomad.variable(VARIABLE, TEAM),
        "write_variable": lambda nomad: nomad.write_variable(VARIABLE, {"a": "1"}, 7, TEAM),
    }  # fmt: skip


NEEDS = {
    **dict.fromkeys(
        ("versions", "deployments", "deployment_by_id", "allocations", "evaluations"),
        'lacks the ACL capability read-job in namespace "team"',
    ),
    "register": r"capability submit-job \(or register-job, since Nomad 1.11.2\) in",
    "promote": r"capability submit-job \(or promote-deployment, since",
    "fail": r"capability submit-job \(or fail-deployment, since",
    "revert": r"capability submit-job \(or revert-job, since",
    "variable": 'capability read on variable "vllmjobs/releases/chat" in namespace "team"',
    "write_variable": 'capability write on variable "vllmjobs/releases/chat" in',
}
READS = {"versions", "deployments", "allocations", "evaluations"}
WRITES = {"register", "promote", "fail", "revert"}


def policy(*capabilities: str, variables: str = "") -> str:
    listed = ", ".join(f'"{capability}"' for capability in capabilities)
    there = f'variables {{ path "vllmjobs/*" {{ capabilities = [{variables}] }} }}' if variables else ""
    return f'namespace "team" {{ capabilities = [{listed}] \n {there} }}'


@pytest.mark.parametrize(
    ("name", "rules", "may"),
    [
        ("looks", policy("read-job"), READS | {"deployment_by_id"}),
        ("submits", policy("submit-job"), WRITES),
        ("registers", policy("register-job"), {"register"}),
        ("promotes", policy("promote-deployment"), {"promote"}),
        ("fails", policy("fail-deployment"), {"fail"}),
        ("reverts", policy("revert-job"), {"revert"}),
        ("remembers", policy("list-jobs", variables='"read", "write"'), {"variable", "write_variable"}),
        ("recalls", policy("list-jobs", variables='"read"'), {"variable"}),
    ],
    ids=lambda value: value if isinstance(value, str) and "{" not in value else "",
)
def test_each_call_needs_the_capability_that_it_names(
    secured: Secured, name: str, rules: str, may: set[str]
) -> None:
    nomad = Deployments(NomadApi(secured.environ | {"NOMAD_TOKEN": secured.token(name, rules)}))
    allowed = set()
    for call, ask in calls(deployment(secured)).items():
        try:
            ask(nomad)
        except ForbiddenError as error:
            assert re.search(NEEDS[call], str(error))
        except NomadError:
            allowed.add(call)
        else:
            allowed.add(call)
    assert allowed == may


def test_who_asks_is_told_by_the_token(secured: Secured, sandbox: Sandbox) -> None:
    secret = secured.token("alice", policy("read-job"))
    token = Deployments(NomadApi(secured.environ | {"NOMAD_TOKEN": secret})).token()
    assert token
    assert len(token.accessor) == 36
    assert Deployments(NomadApi(sandbox.env)).token() is None
    for unknown in ("", NO_DEPLOYMENT, "not-even-a-uuid"):
        with pytest.raises(ForbiddenError):
            Deployments(NomadApi(secured.environ | {"NOMAD_TOKEN": unknown})).token()
