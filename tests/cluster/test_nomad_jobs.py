"""Jobs of a real cluster: parsed, planned, read; and a real Nomad's words about a job that is wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import InvalidJobError, NomadError
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox

SEEN = 30.0  # seconds until a task runs
JOB = """
job "reads/plans" {
  group "g" {
    task "t" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
      identity {
        file = true
      }
      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
"""


@pytest.fixture
def cluster(sandbox: Sandbox) -> Cluster:
    return Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address}))


@pytest.fixture
def running(sandbox: Sandbox, cluster: Cluster) -> Iterator[Path]:
    """The folder of a task that runs, on the machine."""
    sandbox.run(JOB)
    try:
        yield wait_until(lambda: folder(sandbox), SEEN, "its task runs")
    finally:
        sandbox.nomad_cli("job", "stop", "-purge", "-detach", "reads/plans")
        wait_until(lambda: not cluster.job("reads/plans"), SEEN, "it is gone")


def folder(sandbox: Sandbox) -> Path | None:
    for allocation in sandbox.nomad.allocations.get_allocations():
        if allocation["JobID"] == "reads/plans" and allocation["ClientStatus"] == "running":
            return sandbox.folder.joinpath(allocation["NodeName"], "alloc", allocation["ID"], "t")
    return None


def test_a_job_is_parsed_with_nomads_defaults(sandbox: Sandbox, cluster: Cluster) -> None:
    job = cluster.parse(JOB)
    assert (job["ID"], job["Namespace"], job["Region"], job["Priority"]) == (
        "reads/plans",
        "default",
        "global",
        50,
    )
    assert job["TaskGroups"][0]["Count"] == 1
    assert cluster.parse(sandbox.render("dev"))["ID"] == "vllm-dev"


def test_a_new_job_is_planned_and_nothing_remembers_it(cluster: Cluster) -> None:
    plan = cluster.plan(cluster.parse(JOB))
    assert plan["Diff"]["Type"] == "Added"
    assert plan["Annotations"]["DesiredTGUpdates"]["g"]["Place"] == 1
    assert plan["JobModifyIndex"] == 0
    assert plan["FailedTGAllocs"] is None
    assert cluster.job("reads/plans") is None
    assert cluster.deployment("reads/plans") is None


@pytest.mark.usefixtures("running")
def test_a_job_that_runs_is_read_and_planned_against(cluster: Cluster) -> None:
    job, deployment = cluster.job("reads/plans"), cluster.deployment("reads/plans")
    assert job
    assert deployment
    assert (job["ID"], deployment["JobID"]) == ("reads/plans", "reads/plans")
    plan = cluster.plan(cluster.parse(JOB))
    assert plan["Diff"]["Type"] == "None"
    assert plan["JobModifyIndex"] == job["JobModifyIndex"]


def test_a_server_tells_its_version(sandbox: Sandbox, cluster: Cluster) -> None:
    version = cluster.nomad.version()
    assert version
    assert f"v{'.'.join(map(str, version))}" in sandbox.nomad_cli("version").stdout


# Where a job belongs


@pytest.fixture
def namespaces(sandbox: Sandbox) -> Iterator[None]:
    names = ("team-a", "team-b")
    for name in names:
        sandbox.nomad.namespace.create_namespace({"Name": name})
    yield
    for name in names:
        sandbox.nomad.namespace.delete_namespace(name)


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize(
    ("environ", "own", "namespace"),
    [({}, "", "default"), ({}, "team-a", "team-a"), ({"NOMAD_NAMESPACE": "team-b"}, "", "team-b"),
     ({"NOMAD_NAMESPACE": "team-b"}, "team-a", "team-a"),
     ({"NOMAD_NAMESPACE": "team-b"}, "default", "default")],
)  # fmt: skip
def test_the_namespace_is_the_one_in_which_the_nomad_command_would_plan_the_job(
    sandbox: Sandbox, environ: dict[str, str], own: str, namespace: str
) -> None:
    hcl = JOB.replace("{\n", f'{{\n  namespace = "{own}"\n', 1) if own else JOB
    cluster = Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address, **environ}))
    job = cluster.parse(hcl)
    assert job["Namespace"] == namespace
    env = {**sandbox.env, **environ}
    nomad = sandbox.folder / "bin" / "nomad"
    subprocess.run([nomad, "job", "run", "-detach", "-"], input=hcl, env=env, text=True, check=True)
    try:
        assert cluster.plan(job)["Diff"]["Type"] == "None"
        found = cluster.job(job["ID"], namespace)
        assert found
        assert found["Namespace"] == namespace
    finally:
        sandbox.nomad_cli("job", "stop", "-purge", "-detach", "-namespace", namespace, "reads/plans")
        wait_until(lambda: not cluster.job("reads/plans", namespace), SEEN, "it is gone")


def test_a_namespace_that_is_none_is_named_with_what_makes_it(sandbox: Sandbox) -> None:
    cluster = Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address, "NOMAD_NAMESPACE": "mars"}))
    assert cluster.job("reads/plans") is None
    assert refusal(lambda: cluster.plan(cluster.parse(JOB))) == (
        f"{sandbox.nomad_address}: there is no namespace 'mars', which NOMAD_NAMESPACE or the job names; "
        "`nomad namespace apply mars` creates it"
    )


def test_a_region_that_is_none_is_named(sandbox: Sandbox) -> None:
    cluster = Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address}))
    said = (
        f"{sandbox.nomad_address}: there is no region 'mars', which NOMAD_REGION or the job names: "
        "500: No path to region"
    )
    elsewhere = JOB.replace("{\n", '{\n  region = "mars"\n', 1)
    assert refusal(lambda: cluster.plan(cluster.parse(elsewhere))) == said
    assert refusal(lambda: cluster.job("reads/plans", region="mars")) == said
    assert refusal(lambda: cluster.devices("mars")) == said


# A job that Nomad does not take


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(NomadError) as error:
        call()
    return str(error.value)


def test_what_is_no_jobspec_is_told_line_by_line(sandbox: Sandbox, cluster: Cluster) -> None:
    hcl = JOB.replace("driver =", "diver =").replace("identity {", "wait {\nmin = 1\n}\nidentity {")
    with pytest.raises(InvalidJobError) as error:
        cluster.parse(hcl)
    assert str(error.value).splitlines() == [
        f"{sandbox.nomad_address}: the job cannot be read; input.hcl is what `vllmjobs render` prints:",
        '  input.hcl:5,7-12: Unsupported argument; An argument named "diver" is not expected here. '
        'Did you mean "driver"?',
        '  input.hcl:10,7-11: Unsupported block type; Blocks of type "wait" are not expected here.',
    ]


def test_a_job_that_nomad_refuses_is_told_error_by_error(sandbox: Sandbox, cluster: Cluster) -> None:
    job = cluster.parse(JOB.replace('"t" {', '"t" {\n kill_timeout = "1h"', 1)) | {"Priority": 1000}
    job["TaskGroups"][0]["Tasks"] *= 2
    with pytest.raises(InvalidJobError) as error:
        cluster.plan(job)
    # The misspelt word is Nomad's.
    assert str(error.value).splitlines() == [
        f"{sandbox.nomad_address}: the job is refused:",
        "  Task group g validation failed:",
        "    Task 2 redefines 't' from task 1",
        "    Task t validation failed:",
        "      KillTimout (1h0m0s) longer than the group's ProgressDeadline (10m0s)",
        "    Task t validation failed:",
        "      KillTimout (1h0m0s) longer than the group's ProgressDeadline (10m0s)",
        "  job priority must be between [1, 100]",
    ]


def test_a_token_that_stands_in_a_job_is_not_repeated(cluster: Cluster) -> None:
    token = "hf_" + "a" * 34
    for hcl in (
        JOB.replace("driver", f'kill_timeout = "{token}"\n driver', 1),
        JOB.replace('"g"', f'"{token}"'),
    ):
        said = refusal(lambda hcl=hcl: cluster.plan(cluster.parse(hcl) | {"Priority": 10**6}))  # type: ignore[misc]
        assert token not in said


# Over a unix socket


def test_a_task_asks_through_its_socket_with_its_own_identity(running: Path) -> None:
    socket, identity = running / "secrets" / "api.sock", (running / "secrets" / "nomad_token").read_text()
    for address in (f"unix://{socket}", f"unix:{socket}"):
        cluster = Cluster(NomadApi({"NOMAD_ADDR": address, "NOMAD_TOKEN": identity}))
        assert cluster.address == address
        assert len(cluster.devices()) == 8
        assert cluster.parse(JOB)["ID"] == "reads/plans"
        assert cluster.job("reads/plans")
        assert cluster.deployment("reads/plans")


def test_a_plan_needs_an_acl_token_and_takes_no_identity_for_one(running: Path) -> None:
    """Though this sandbox has no ACLs: Nomad looks it up all the same."""
    address = f"unix://{running}/secrets/api.sock"
    cluster = Cluster(
        NomadApi({"NOMAD_ADDR": address, "NOMAD_TOKEN": "11111111-2222-3333-4444-555555555555"})
    )
    job = cluster.parse(JOB)
    assert cluster.plan(job)["Diff"]["Type"] == "None"
    # What this agent, which is no server, is told by one, it wraps.
    assert refusal(lambda: cluster.plan(job | {"Priority": 1000})) == (
        f"{address}: the job is refused:\n  job priority must be between [1, 100]"
    )
    identity = Cluster(
        NomadApi({"NOMAD_ADDR": address, "NOMAD_TOKEN": (running / "secrets" / "nomad_token").read_text()})
    )
    assert refusal(lambda: identity.plan(job)).endswith(
        ": NOMAD_TOKEN is a workload identity, or no token; Nomad plans only with an ACL token"
    )


def test_a_socket_that_wants_a_token_says_so(running: Path) -> None:
    address = f"unix://{running}/secrets/api.sock"
    assert refusal(Cluster(NomadApi({"NOMAD_ADDR": address})).devices) == (
        f"{address}: 401 Unauthorized: a token is wanted here; set NOMAD_TOKEN"
    )


def test_a_socket_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, said in (("none", "No such file or directory"), ("file", "Connection refused")):
        address = f"unix://{tmp_path}/{name}"
        assert refusal(Cluster(NomadApi({"NOMAD_ADDR": address})).devices) == (
            f"{address}: cannot be reached ({said}); is NOMAD_ADDR right, and Nomad running?"
        )
