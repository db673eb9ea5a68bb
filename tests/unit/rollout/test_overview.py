"""The screens of `status` and `history`, from what Nomad answers."""

from __future__ import annotations

import re
from typing import Any

from vllmjobs.cluster.logs import select
from vllmjobs.rollout.history import image, model, past_releases
from vllmjobs.rollout.model import Number, Record, Verdict
from vllmjobs.rollout.overview import Overview, Weight, overview
from vllmjobs.rollout.overview_text import history_text, status_text
from vllmjobs.text.json import Json

AT = "2026-11-23T21:04:05.678Z"


def job(version: int, count: int = 2, **more: Any) -> Json:
    config = {"image": f"vllm/vllm-openai:v0.3{version}.0", "args": ["org/model", "--port=8000"]}
    group = {"Name": "chat", "Count": count, "Tasks": [{"Name": "vllm", "Config": config}]}
    known = {"ID": "vllm-prod", "Namespace": "team", "Version": version, "SubmitTime": version * 10**9}
    return {**known, "TaskGroups": [group], **more}


def deployment(version: int, status: str = "running", **state: Any) -> Json:
    known = {"DesiredCanaries": 1, "DesiredTotal": 2, "Promoted": False, "PlacedCanaries": [],
             "HealthyAllocs": 0, "UnhealthyAllocs": 0,
             "RequireProgressBy": "0001-01-01T00:00:00Z"}  # fmt: skip
    return {
        "ID": "1a2b3c4d-0000", "JobVersion": version, "Status": status, "StatusDescription": "as Nomad says",
        "TaskGroups": {"chat": {**known, **state}},
    }  # fmt: skip


def allocation(version: int, id: str = "x", healthy: bool | None = True, **more: Any) -> Json:
    device = {"Vendor": "nvidia", "Type": "gpu", "Name": "H100", "DeviceIDs": ["a", "b"]}
    return {
        "ID": id, "JobVersion": version, "TaskGroup": "chat", "NodeName": "gpu-1", "CreateIndex": version,
        "ClientStatus": "running", "DesiredStatus": "run", "DeploymentStatus": {"Healthy": healthy},
        "TaskStates": {"vllm": {"State": "running", "Restarts": 1, "Events": []}},
        "AllocatedResources": {"Shared": {}, "Tasks": {"vllm": {"Devices": [device]}}}, **more,
    }  # fmt: skip


def command(name: str, *arguments: str) -> str:
    return " ".join(["vllmjobs", name, "prod", *arguments])


def overview_of(current: Json, of: Json | None, *allocations: Json, **more: Any) -> Overview:
    return overview(command, current, [job(0), job(1)], of, allocations, **more)


def first_line(shown: Overview) -> str:
    return status_text(shown).splitlines()[0]


STABLE = [allocation(0, "a"), allocation(0, "b")]


def test_all_is_well_when_as_many_as_wanted_are_healthy() -> None:
    shown = overview_of(job(0), deployment(0, "successful"), *STABLE)
    assert shown.is_well
    assert shown.next == ()
    assert first_line(shown) == "vllm-prod: all is well: version 0, 2 of 2 instances healthy"
    (part,) = shown.groups[0].parts
    assert (part.gpus, part.restarts, part.nodes) == (4, 2, ("gpu-1",))
    assert (part.image, part.model) == ("vllm/vllm-openai:v0.30.0", "org/model")


def test_what_lacks_instances_is_named_with_its_logs() -> None:
    dead = allocation(0, "c", ClientStatus="failed")
    shown = overview_of(job(0), deployment(0, "successful"), STABLE[0], dead)
    assert not shown.is_well
    assert first_line(shown) == "vllm-prod: chat lacks instances: version 0, 1 of 2 instances healthy"
    assert shown.next == (("vllmjobs logs prod chat", "see what its instances say"),)
    assert "version 0: 1 without a node; 1 failed\n" in status_text(shown)


def test_a_canary_is_healthy_only_when_its_deployment_says_so() -> None:
    for healthy, text in ((None, "is being deployed: 0 of 1"), (True, "waits for its promotion: 1 of 1")):
        canary = allocation(1, "c", healthy, DeploymentStatus={"Healthy": healthy, "Canary": True})
        shown = overview_of(job(1), deployment(1, PlacedCanaries=["c"]), *STABLE, canary)
        assert f"version 1 {text} canaries healthy" in shown.summary
        new, old = shown.groups[0].parts
        assert (new.role, new.desired, old.role, old.desired, old.healthy) == ("canary", 1, "current", 2, 2)
        assert ("vllmjobs promote prod" in dict(shown.next)) is bool(healthy)
        assert "vllmjobs abort prod" in dict(shown.next)


def test_a_canary_without_a_node_is_told() -> None:
    shown = overview_of(job(1), deployment(1), *STABLE)
    assert shown.summary == "version 1 is being deployed: 0 of 1 canaries healthy, 1 without a node"


def test_after_the_promotion_the_old_are_on_their_way_out() -> None:
    shown = overview_of(job(1), deployment(1, Promoted=True), allocation(1, "c"), STABLE[0])
    assert [(part.role, part.desired) for part in shown.groups[0].parts] == [("new", 2), ("old", 0)]
    assert shown.summary == "version 1 is being deployed: 1 of 2 healthy, 1 without a node"
    assert "vllmjobs abort prod" not in dict(shown.next), "it refuses: no canaries wait any more"
    assert dict(shown.next)["vllmjobs rollback prod"] == "go back to the version before"
    assert shown.groups[0].weight is None


def test_a_way_back_is_gone_on_with_by_rollback() -> None:
    record = Record(version=1, at=AT, by="alice", is_way_back=True)
    shown = overview_of(job(1), deployment(1), *STABLE, records=[record])
    assert shown.next[0] == ("vllmjobs rollback prod", "go on with the rollback")
    assert "vllmjobs deploy prod" not in dict(shown.next)


def test_after_a_deployment_has_failed_the_version_before_serves() -> None:
    shown = overview_of(job(1), deployment(1, "failed"), *STABLE)
    assert not shown.is_well
    assert shown.summary == (
        "the deployment of version 1 has failed (as Nomad says); version 0 serves: 2 of 2 healthy"
    )
    assert "vllmjobs rollback prod" in dict(shown.next)


def test_a_stopped_job_wants_nothing() -> None:
    shown = overview_of(job(1, Stop=True), deployment(1, "cancelled"))
    assert first_line(shown) == "vllm-prod: the job is stopped"
    assert dict(shown.next) == {"vllmjobs deploy prod": "start it again"}


def test_the_screen() -> None:
    canary = allocation(1, "c", DeploymentStatus={"Healthy": True, "Canary": True})
    numbers = (
        Number(metric="error_rate", canary=0.0, stable=0.004, limit="at most 0.05", result="pass"),
        Number(metric="queue", canary=None, stable=1.0, limit="at most 3 times as many", result="undecided"),
    )
    verdict = Verdict(
        result="undecided", reason="too few requests", numbers=numbers, canary_requests=12, stable_requests=40
    )
    record = Record(version=1, at=AT, by="alice", steps={"chat": 1}, verdicts={"chat": verdict})
    state: Json = {"PlacedCanaries": ["c"], "RequireProgressBy": "2026-11-23T21:31:05.678Z"}
    shown = overview_of(
        job(1),
        deployment(1, **state),
        *STABLE,
        canary,
        records=[record],
        weights={"chat": Weight(asked=0.25, given=0.2487)},
    )
    assert status_text(shown) == SCREEN


SCREEN = """\
vllm-prod: version 1 waits for its promotion: 1 of 1 canaries healthy

deployment 1a2b3c4d of version 1, running: as Nomad says

chat
  version 1  canary   1/1 healthy  2 GPUs  1 restart   vllm/vllm-openai:v0.31.0  org/model
  version 0  current  2/2 healthy  4 GPUs  2 restarts  vllm/vllm-openai:v0.30.0  org/model
  weight    24.9 % given, 25 % asked
  deadline  the next instance has to be healthy by 2026-11-23 21:31:05 UTC
  verdict   undecided: too few requests (step 2, 12 requests to canaries, 40 to stable instances)
    METRIC      CANARY   STABLE  LIMIT                    RESULT
    error_rate  0        0.004   at most 0.05             pass
    queue       no data  1       at most 3 times as many  undecided

next:
  vllmjobs deploy prod   go on with the release
  vllmjobs promote prod  promote the canaries now, without a verdict
  vllmjobs abort prod    stop the new instances; the old version serves on
"""


def moment(nanoseconds: int) -> str:
    return f"2026-11-23T21:04:{nanoseconds // 10**9:02}.000Z"


def test_history_joins_versions_deployments_and_records() -> None:
    records = [
        Record(version=1, at=AT, by="alice", outcome="refused", reason="too slow", now="fire"),
        Record(version=9, at=AT, by="of a job that was purged"),
    ]
    versions = [job(2), job(1), job(0, Stable=True)]
    rows = past_releases(versions, [deployment(2), deployment(0, "successful")], records, moment)
    assert [(row.version, row.by, row.outcome) for row in rows] == [
        (2, None, "running"),
        (1, "alice", "refused"),
        (0, None, "successful"),
    ]
    text = history_text(rows)
    lines = [re.sub(" +", " ", line) for line in text.splitlines()]
    assert lines[1:4] == [
        "2 2026-11-23 21:04:02 - running - vllm/vllm-openai:v0.32.0 org/model current",
        "1 2026-11-23 21:04:01 alice refused - vllm/vllm-openai:v0.31.0 org/model",
        "0 2026-11-23 21:04:00 - successful - vllm/vllm-openai:v0.30.0 org/model stable",
    ]
    assert text.endswith(
        "\n\nversion 1: too slow\nversion 1 was deployed outside of the maintenance windows: fire\n"
    )


def test_status_and_history_name_the_gates_that_were_weakened() -> None:
    fewer, wider = "approvals: 2 → 0", "maintenance: any"
    recorded = [
        Record(version=1, at=AT, by="dan", weakened=(fewer, wider), approved=("ann", "ben"), now="fire"),
        Record(version=0, at=AT, by="dan", weakened=(wider,)),
    ]
    shown = overview_of(job(1), deployment(1, "successful"), *STABLE, records=recorded)
    assert f"\n\nversion 1 weakened the gates: {fewer}, {wider}\n" in status_text(shown)
    assert history_text(past_releases([job(1), job(0)], [], recorded, moment)).endswith(
        f"version 1 weakened the gates: {fewer}, {wider} (approved by ann, ben; --now: fire)\n"
        f"version 0 weakened the gates: {wider}\n"
    )


def test_history_leaves_out_the_records_of_a_job_that_was_purged() -> None:
    recorded = [Record(version=0, at=AT, by="dan", life=life) for life in (7, 40)]
    for record, by in zip(recorded, [None, "dan"], strict=True):
        (row,) = past_releases([job(0, CreateIndex=40)], [], [record], moment)
        assert row.by == by


def test_a_version_that_nomad_has_forgotten_is_known_from_its_record() -> None:
    rows = past_releases([job(2)], [], [Record(version=1, at=AT, by="alice", outcome="successful")], moment)
    assert [(row.version, row.at, row.images) for row in rows][1] == (1, AT, {})


def test_a_model_is_found_as_vllm_finds_it() -> None:
    def group(*args: str) -> Json:
        return {"Name": "chat", "Tasks": [{"Name": "vllm", "Config": {"args": list(args)}}]}

    assert model(group("serve", "org/model", "--port=1")) == "org/model"
    assert model(group("--port=1", "--model=org/model")) == "org/model"
    assert model(group("--model", "org/model")) == "org/model"
    assert model(group("--port=1")) is None
    assert image(group()) is None


def test_logs_are_of_what_runs_and_else_of_what_ended_last() -> None:
    ended = allocation(0, "a", ClientStatus="failed")
    canary = allocation(1, "c", DeploymentStatus={"Healthy": True, "Canary": True})

    def ids(allocations: list[Json], *which: Any) -> list[str]:
        return [one["ID"] for one in select(allocations, *which)]

    assert ids([canary, STABLE[1], ended], None, None) == ["b", "c"]
    assert ids([canary, STABLE[1]], "chat", "canary") == ["c"]
    assert ids([canary, STABLE[1]], "chat", "stable") == ["b"]
    assert ids([ended], None, None) == ["a"]
    assert ids([canary], "embed", None) == []
