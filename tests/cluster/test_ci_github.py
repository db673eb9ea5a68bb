"""The shell steps of docs/ci/github-actions.yaml, run against the sandbox in a repository with a remote.

The tests live through the life of one project. What is not run, and why, is listed in
generator/vllmjobs_sandbox/fakes/forge.py; what needs no cluster is in tests/docs/.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import secured_server
from vllmjobs_sandbox.fakes.forge import CI, Ran
from vllmjobs_sandbox.story.pipelines import ENVIRONMENTS, OnGitHub, passed, pipeline


@pytest.fixture(scope="module")
def on_github(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnGitHub]:
    with pipeline(OnGitHub, "hub", sandbox, tmp_path_factory.mktemp("github")) as made:
        yield made


@pytest.fixture
def prod(on_github: OnGitHub) -> OnGitHub:
    """The project, with a job of prod that runs."""
    if "hub-prod" not in on_github.jobs():
        passed(on_github.deploy("prod"))
    return on_github


def test_on_github_a_change_goes_from_a_pull_request_to_prod(on_github: OnGitHub) -> None:
    passed(on_github.deploy("dev"))
    assert on_github.jobs() == {"hub-dev", "hub-dev-fabio"}

    on_github.git("checkout", "--quiet", "-b", "longer")
    on_github.change("max_model_len: 1024", "max_model_len: 2048")
    for job in ("lint", "security", "build", "test"):
        passed(on_github.run(job))
    for name in (*ENVIRONMENTS, "prod"):  # the last one again, as after another push
        passed(on_github.run("plan", environment=name))
    (diff,) = on_github.there.said("<!-- vllmjobs diff -->")
    assert "1024" in diff
    assert "2048" in diff
    for name in ENVIRONMENTS:
        (plan,) = on_github.there.said(f"<!-- vllmjobs plan {name} -->")
        assert f"hub-{name}" in plan
    assert len(on_github.there.comments) == 4
    assert passed(on_github.run("integration")).count('"object":"text_completion"') == 1
    assert on_github.jobs() == {"hub-dev", "hub-dev-fabio"}
    assert on_github.max_model_len("dev") == "1024"

    on_github.git("checkout", "--quiet", "main")
    on_github.git("merge", "--quiet", "--no-ff", "-m", "Merge longer", "longer")
    printed = {name: passed(on_github.deploy(name)) for name in ENVIRONMENTS}
    assert {on_github.newest(name)["Status"] for name in ENVIRONMENTS} == {"successful"}
    assert {on_github.max_model_len(name) for name in ENVIRONMENTS} == {"2048"}
    assert "asking balancers to give canaries 50 % of the requests" in printed["dev"]
    assert printed["dev"].index("pass: ") < printed["dev"].index("promoting all canaries")
    assert on_github.newest("dev")["TaskGroups"]["chat"]["Promoted"]


def test_a_pull_request_of_a_fork_is_told_in_the_summary_only(on_github: OnGitHub) -> None:
    before = [*on_github.there.comments]
    with on_github.branch("more-at-once"):
        on_github.change("max_model_len: ", "args: {max-num-seqs: 77}\n    max_model_len: ")
        passed(on_github.run("build", head="eve/llms"))
        passed(on_github.run("test", head="eve/llms"))
        for job in ("plan", "integration"):
            assert on_github.run(job, head="eve/llms", environment="dev").skipped
    assert on_github.there.comments == before
    assert "77" in (on_github.folder.parent / "summary.md").read_text()


def test_a_deployment_that_changes_nothing_runs_nothing(prod: OnGitHub) -> None:
    version = prod.sandbox.nomad.job.get_job("hub-prod")["JobModifyIndex"]
    assert "nothing to do" in passed(prod.deploy("prod"))
    assert prod.sandbox.nomad.job.get_job("hub-prod")["JobModifyIndex"] == version


def test_what_has_no_room_is_commented_on_and_not_run(on_github: OnGitHub) -> None:
    before = on_github.jobs()
    with on_github.branch("many"):
        on_github.change("max_model_len: ", "replicas: 50\n    max_model_len: ")
        assert on_github.run("plan", environment="staging").exit_code == 3
        assert on_github.deploy("staging").exit_code == 3
        integration = on_github.run("integration")
    (plan,) = on_github.there.said("<!-- vllmjobs plan staging -->")
    assert "50" in plan
    assert integration.exit_code == 3
    assert "vllm-ci-4711 is gone" in integration.output
    assert on_github.jobs() == before


def test_a_gate_that_is_closed_fails_the_job_and_nothing_is_run(prod: OnGitHub) -> None:
    before = prod.statuses("prod")
    with prod.branch("approved"):
        prod.change("defaults:\n", "approvals: 2\ndefaults:\n")
        prod.change("max_model_len: ", "args: {max-num-seqs: 9}\n    max_model_len: ")
        ran = prod.deploy("prod")
    assert ran.exit_code == 4
    assert "approvals are required, and with ACLs off nobody can tell who deploys" in ran.output
    assert prod.statuses("prod") == before


def test_a_deployment_whose_run_is_cancelled_stays_as_it_is_and_the_next_run_goes_on(prod: OnGitHub) -> None:
    last = max(prod.statuses("prod"))
    with prod.branch("fewer-at-once"):
        prod.change("max_model_len: ", "args: {max-num-seqs: 8}\n    max_model_len: ")
        cancelled = prod.deploy("prod", cancel_at=" is healthy")
        assert cancelled.exit_code == 1
        assert "the release is left as it is: `vllmjobs deploy prod` goes on" in cancelled.output
        deployment = prod.newest("prod")
        assert (deployment["Status"], deployment["TaskGroups"]["chat"]["Promoted"]) == ("running", False)
        resumed = f"version {last + 1} is already registered; following its deployment"
        assert resumed in passed(prod.deploy("prod"))
    assert prod.statuses("prod", after=last) == {last + 1: "successful"}


def test_a_verdict_that_fails_fails_the_job_and_the_old_version_serves_on(prod: OnGitHub) -> None:
    last = max(prod.statuses("prod"))
    with prod.branch("broken"):
        prod.change(
            "{VLLMJOBS_STANDIN_LOAD", '{VLLMJOBS_STANDIN_FAILURE: "error-rate=1", VLLMJOBS_STANDIN_LOAD'
        )
        ran = prod.deploy("prod")
    assert ran.exit_code == 4
    assert "error_rate is 100 %, more than" in ran.output
    assert prod.statuses("prod", after=last) == {last + 1: "failed", last + 2: "successful"}


def test_canaries_that_never_become_healthy_fail_the_job_and_the_old_version_serves_on(
    prod: OnGitHub,
) -> None:
    last = max(prod.statuses("prod"))
    with prod.branch("slow"):
        prod.change('LOAD_SECONDS: "0.5"', 'LOAD_SECONDS: "600"')
        prod.change("load_time: 4s", "load_time: 1s")
        prod.change("drain: {", "drain: {kill_timeout: 4s, ")
        prod.change("longest_stream: 10s", "longest_stream: 1s")
        prod.change("healthy_deadline: 2m", "healthy_deadline: 3s")
        prod.change("progress_deadline: 3m", "progress_deadline: 5s")
        ran = prod.deploy("prod")
    assert ran.exit_code == 1
    assert "Failed due to progress deadline" in ran.output
    assert prod.statuses("prod", after=last) == {last + 1: "failed", last + 2: "successful"}


def test_a_throwaway_job_that_fails_is_stopped_all_the_same(on_github: OnGitHub) -> None:
    before = on_github.jobs()
    with on_github.branch("no-such-thing"):
        script = on_github.folder / "ci/integration.sh"
        script.write_text(script.read_text().replace("/v1/completions", "/v1/no-such-thing"))
        ran = on_github.run("integration")
    assert ran.exit_code == 22, ran.output  # curl's, for a status of 400 or more
    assert "vllm-ci-4711: version 0 is deployed" in ran.output
    assert "vllm-ci-4711 is gone" in ran.output
    assert on_github.jobs() == before
    assert on_github.sandbox.nomad_cli("var", "get", "vllmjobs/releases/vllm-ci-4711").returncode == 1


def policies(page: Path) -> list[str]:
    return re.findall(r"```hcl\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_tokens_that_the_pages_describe_may_do_what_they_have_to_and_no_more(
    on_github: OnGitHub, tmp_path: Path
) -> None:
    plan, integration = policies(CI / "README.md")
    deploy = next(text for text in policies(CI.parent / "deploy.md") if text.startswith("# Nomad"))
    (secured := tmp_path / "secured").mkdir()
    with secured_server(secured) as server:
        planner, tester, deployer = (
            server.token(name, text)
            for name, text in (("plan", plan), ("integration", integration), ("deploy", deploy))
        )

        def ran(token: str, command: str) -> Ran:
            env = on_github.env | server.environ | {"NOMAD_TOKEN": token}
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {command}"],
                cwd=on_github.folder,
                env=env,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            return Ran(done.returncode, done.stdout)

        def may(token: str, command: str) -> bool:
            return ran(token, command).exit_code == 0

        job = tmp_path / "prod.nomad.hcl"
        assert may(planner, f"vllmjobs render prod >{job}")
        run = f"nomad job run -detach {job}"
        fail = "nomad deployment fail -detach $(nomad job deployments -latest -t '{{.ID}}' hub-prod)"
        for token in (planner, tester, deployer):
            assert ran(token, "vllmjobs plan prod").exit_code == 3  # that server has no nodes
        for token in (tester, deployer):
            assert ran(token, "vllmjobs deploy prod").exit_code == 3
            assert may(token, run)
            assert may(token, fail)
            assert may(token, "ci/purge.sh hub-prod")
        assert not may(planner, run)
        assert may(deployer, run)
        assert not may(planner, "ci/purge.sh hub-prod")
        assert may(deployer, "vllmjobs history prod")

        def variable(token: str, does: str, path: str) -> bool:
            return may(token, f"nomad var {does} vllmjobs/{path} {'v0=seen' if does == 'put' else ''}")

        assert variable(tester, "put", "releases/vllm-ci-1")
        assert "is not recorded in the history" not in ran(tester, "ci/purge.sh vllm-ci-1").output
        assert not variable(server.manager, "get", "releases/vllm-ci-1")
        assert not variable(tester, "put", "releases/hub-prod")
        assert variable(deployer, "put", "releases/hub-prod")
        assert not variable(deployer, "put", "approvals/hub-prod")
        assert variable(server.manager, "put", "approvals/hub-prod")
        assert variable(deployer, "get", "approvals/hub-prod")
        approving = ran(deployer, "vllmjobs approve prod --set approvals=2")
        assert approving.exit_code == 1
        assert 'write on variable "vllmjobs/approvals/hub-prod"' in approving.output
