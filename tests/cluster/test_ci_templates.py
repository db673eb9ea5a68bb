"""The shell steps of docs/ci's templates, run against the sandbox in a repository with a remote.

What is not run, and why, is listed in generator/vllmjobs_sandbox/fakes/forge.py.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import secured_server
from vllmjobs_sandbox.fakes.forge import CI, Forge, Ran, forge, run_github, run_gitlab, template

ENVS = Path(__file__).parents[2] / "envs"
DEV = """\
extends: base.yaml
job: {prefix}-dev
nomad:
  max_kill_timeout: 2m
balancer:
  driver: raw_exec # vllmjobs: ignore VJ505 a sandbox has no other
  consul: {consul}
  port: {port}
  admin_port: {admin_port}
  placement:
    constraints: [{{attribute: "${{meta.balancer}}", value: "true"}}]
defaults:
  driver: raw_exec # vllmjobs: ignore VJ505 a sandbox has no other
  vllm: 0.33.0
  entrypoint: [stand-in-engine, serve]
  cache: null
models:
  chat:
    model: facebook/opt-125m
    max_model_len: 1024
    gpu_memory_utilization: 0.7
    gpus: {{memory: 7 GiB}}
    resources: {{cpu: 100, memory: 256 MiB, disk: 100 MiB}}
    route: {{path: /{prefix}/v1/, strip: /{prefix}}}
    health: {{interval: 1s, timeout: 1s}}
    drain: {{longest_stream: 10s, shutdown_delay: 3s}} # vllmjobs: ignore VJ405 nobody waits here
    pull_time: 1s
    load_time: 4s
    env: {{VLLMJOBS_STANDIN_LOAD_SECONDS: "0.5", VLLMJOBS_STANDIN_EXIT_SECONDS: "0.2"}}
    rollout:
      steps: [0.5]
      analysis: {{interval: 1s, window: 3s, min_requests: 5}} # vllmjobs sends the requests itself
      min_healthy_time: 1s
      healthy_deadline: 30s
      progress_deadline: 1m
"""
OTHER = """\
extends: dev.yaml
job: {prefix}-{name}
balancer: {{kind: none}}
models: {{chat: {{rollout: {{steps: []}}}}}} # nobody could send canaries another share
"""
ENVIRONMENTS = ("dev", "staging", "prod")


class Project:
    """A user's working copy, its remote, and the forge that both are on."""

    def __init__(self, folder: Path, prefix: str, sandbox: Sandbox, there: Forge) -> None:
        self.folder, self.prefix, self.sandbox, self.there = folder / "work", prefix, sandbox, there
        own = ("GITHUB_", "GITLAB_", "CI_", "GIT_", "VLLMJOBS_")
        outside = {key: value for key, value in sandbox.env.items() if not key.startswith(own)}
        self.env = outside | {
            "NOMAD_TOKEN": "",
            "no_proxy": "*",
            **{
                f"GIT_{who}_{what}": "ada@example.com"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin.git"), at=folder)
        self.git("clone", "--quiet", str(folder / "origin.git"), str(self.folder), at=folder)
        self.git("checkout", "--quiet", "-b", "main")
        self._lay_out()
        self.commit("Three environments")
        self.git("push", "--quiet", "origin", "main")

    def git(self, *words: str, at: Path | None = None) -> str:
        return subprocess.check_output(
            ["git", *words], cwd=at or self.folder, env=self.env, text=True
        ).strip()

    def commit(self, message: str) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", message)

    def change(self, before: str, after: str) -> None:
        dev = self.folder / "envs/dev.yaml"
        text = dev.read_text()
        assert before in text
        dev.write_text(text.replace(before, after))
        self.commit(after)

    def newest(self, name: str) -> dict[str, Any]:
        """Return the newest deployment of an environment's models."""
        return self.sandbox.deployment(f"{self.prefix}-{name}")

    def max_model_len(self, name: str) -> str:
        """What the engines that run were started with."""
        job = self.sandbox.nomad.job.get_job(f"{self.prefix}-{name}")
        (task,) = (task for task in job["TaskGroups"][0]["Tasks"] if task["Name"] == "vllm")
        (said,) = (arg for arg in task["Config"]["args"] if arg.startswith("--max-model-len"))
        assert isinstance(said, str)
        return said.partition("=")[2]

    def statuses(self, name: str) -> dict[int, str]:
        """How the deployments of an environment's models ended, by version."""
        found = self.sandbox.nomad.job.get_deployments(f"{self.prefix}-{name}")
        return {one["JobVersion"]: one["Status"] for one in found}

    def jobs(self) -> set[str]:
        """The jobs that Nomad knows of this project, throwaway ones included."""
        known = (job["ID"] for job in self.sandbox.nomad.jobs.get_jobs())
        return {job for job in known if job.startswith((f"{self.prefix}-", "vllm-ci-"))}

    def _lay_out(self) -> None:
        envs = self.folder / "envs"
        envs.mkdir()
        shutil.copy(ENVS / "base.yaml", envs)
        consul = self.sandbox.consul_address.removeprefix("http://")
        port, admin_port = free_ports(2)
        dev = DEV.format(prefix=self.prefix, consul=consul, port=port, admin_port=admin_port)
        (envs / "dev.yaml").write_text(dev)
        for name in ("staging", "prod"):
            (envs / f"{name}.yaml").write_text(OTHER.format(prefix=self.prefix, name=name))
        shutil.copytree(CI, self.folder / "ci")
        (self.folder / ".gitignore").write_text("/rendered/\n/diff.md\n/plan.md\n/security.sarif\n")


class OnGitHub(Project):
    """As GitHub Actions runs it."""

    def deploy(self, name: str, cancel_at: str | None = None) -> Ran:
        return self.run(f"deploy-{name}", "push", cancel_at=cancel_at)

    def run(
        self,
        job: str,
        event: str = "pull_request",
        head: str = "ada/llms",
        cancel_at: str | None = None,
        **matrix: str,
    ) -> Ran:
        """Run a job; lint decides first whether the pull request is trusted."""
        request = {"number": 7, "head": {"repo": {"full_name": head}}, "user": {"login": "ada"}}
        context: dict[str, Any] = {
            "github": {
                "event_name": event,
                "repository": "ada/llms",
                "run_id": 4711,
                "token": "of-the-bot",
                "event": {"pull_request": request} if event == "pull_request" else {},
            },
            "vars": {
                "NOMAD_ADDR": self.sandbox.nomad_address,
                "CONSUL_HTTP_ADDR": self.sandbox.consul_address,
                "REVIEWED": "yes",
            },
            "secrets": {},
            "matrix": matrix,
            "needs": {"lint": {"outputs": {"trusted": "true" if head == "ada/llms" else "false"}}},
        }
        summary = self.folder.parent / "summary.md"
        env = {
            **{key: value for key, value in self.env.items() if not key.startswith(("NOMAD_", "CONSUL_"))},
            **self.there.github(),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_BASE_REF": "main",
        }
        return run_github(job, self.folder, env, context, cancel_at)


class OnGitLab(Project):
    """As GitLab runs it."""

    def deploy(self, name: str) -> Ran:
        return self.run(f"deploy-{name}", CI_ENVIRONMENT_NAME=name)

    def run(self, job: str, **variables: str) -> Ran:
        base = self.git("merge-base", "origin/main", "HEAD")
        env = {**self.env, **self.there.gitlab(), "CI_MERGE_REQUEST_DIFF_BASE_SHA": base, "CI_JOB_ID": "4711"}
        return run_gitlab(job, self.folder, env | variables)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that Linux gives to outgoing connections."""
    found: list[int] = []
    for port in range(19000, 30000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no port is free")


def project_of(kind: type[Project], prefix: str, sandbox: Sandbox, folder: Path) -> Iterator[Any]:
    with forge() as there:
        made = kind(folder, prefix, sandbox, there)
        yield made
        sandbox.purge(*made.jobs())


@pytest.fixture
def on_github(sandbox: Sandbox, tmp_path: Path) -> Iterator[OnGitHub]:
    yield from project_of(OnGitHub, "hub", sandbox, tmp_path)


@pytest.fixture
def on_gitlab(sandbox: Sandbox, tmp_path: Path) -> Iterator[OnGitLab]:
    yield from project_of(OnGitLab, "lab", sandbox, tmp_path)


def test_on_github_a_change_goes_from_a_pull_request_to_prod(on_github: OnGitHub) -> None:
    for job in ("lint", "security", "build", "test", "integration"):
        passed(on_github.run(job, "push"))
    for name in ENVIRONMENTS:
        passed(on_github.deploy(name))
    assert on_github.jobs() == {"hub-dev", "hub-dev-fabio", "hub-staging", "hub-prod"}

    on_github.git("checkout", "--quiet", "-b", "longer")
    on_github.change("max_model_len: 1024", "max_model_len: 2048")
    for job in ("lint", "security", "build", "test"):
        passed(on_github.run(job))
    for name in (*ENVIRONMENTS, "prod"):  # the last one again, as after another push
        passed(on_github.run("plan", environment=name))
    passed(on_github.run("test"))
    (diff,) = on_github.there.said("<!-- vllmjobs diff -->")
    assert "1024" in diff
    assert "2048" in diff
    for name in ENVIRONMENTS:
        (plan,) = on_github.there.said(f"<!-- vllmjobs plan {name} -->")
        assert f"hub-{name}" in plan
    assert len(on_github.there.comments) == 4
    assert passed(on_github.run("integration")).count('"object":"text_completion"') == 1
    assert on_github.jobs() == {"hub-dev", "hub-dev-fabio", "hub-staging", "hub-prod"}
    assert on_github.max_model_len("dev") == "1024"

    on_github.git("checkout", "--quiet", "main")
    on_github.git("merge", "--quiet", "--no-ff", "-m", "Merge longer", "longer")
    for name in ENVIRONMENTS:
        for approval in [job for job in approvals() if job.startswith(f"approve-{name}")]:
            passed(on_github.run(approval, "push"))
        said = passed(on_github.deploy(name))
        assert ("canaries are to get 50 % of the requests" in said) == (name == "dev")  # others: no balancer
        assert said.index("pass: ") < said.index("all canaries are to be promoted")
        deployment = on_github.newest(name)
        assert (deployment["Status"], deployment["TaskGroups"]["chat"]["Promoted"]) == ("successful", True)
        assert on_github.max_model_len(name) == "2048"


def test_on_gitlab_a_change_goes_from_a_merge_request_to_prod(on_gitlab: OnGitLab) -> None:
    for job in ("lint", "security", "build", "test", "integration"):
        passed(on_gitlab.run(job))
    for name in ENVIRONMENTS:
        passed(on_gitlab.deploy(name))

    on_gitlab.git("checkout", "--quiet", "-b", "longer")
    on_gitlab.change("max_model_len: 1024", "max_model_len: 2048")
    for job in ("diff", "diff"):  # again, as after another push
        passed(on_gitlab.run(job))
    for name in (*ENVIRONMENTS, "prod"):
        passed(on_gitlab.run("plan", ENVIRONMENT=name))
    markers = ["<!-- vllmjobs diff -->", *(f"<!-- vllmjobs plan {name} -->" for name in ENVIRONMENTS)]
    assert [len(on_gitlab.there.said(marker)) for marker in markers] == [1, 1, 1, 1]
    assert len(on_gitlab.there.comments) == 4

    on_gitlab.git("checkout", "--quiet", "main")
    on_gitlab.git("merge", "--quiet", "--no-ff", "-m", "Merge longer", "longer")
    for name in ENVIRONMENTS:
        assert "all canaries are to be promoted" in passed(on_gitlab.deploy(name))
        assert on_gitlab.newest(name)["Status"] == "successful"
        assert on_gitlab.max_model_len(name) == "2048"


def test_a_deployment_that_changes_nothing_runs_nothing(on_github: OnGitHub) -> None:
    passed(on_github.deploy("prod"))
    version = on_github.sandbox.nomad.job.get_job("hub-prod")["JobModifyIndex"]
    assert "nothing is to be done" in passed(on_github.deploy("prod"))
    assert on_github.sandbox.nomad.job.get_job("hub-prod")["JobModifyIndex"] == version


@pytest.mark.parametrize("kind", ["on_github", "on_gitlab"])
def test_what_has_no_room_is_commented_on_and_not_run(kind: str, request: pytest.FixtureRequest) -> None:
    project = request.getfixturevalue(kind)
    project.change("max_model_len: 1024", "replicas: 50")
    planned = project.run("plan", **{"environment" if kind == "on_github" else "ENVIRONMENT": "prod"})
    assert planned.exit_code == 3
    assert len(project.there.said("<!-- vllmjobs plan prod -->")) == 1
    assert project.deploy("prod").exit_code == 3
    assert project.run("integration").exit_code == 3
    assert project.jobs() == set()


@pytest.mark.parametrize("kind", ["on_github", "on_gitlab"])
def test_a_gate_that_is_closed_fails_the_job_and_nothing_is_run(
    kind: str, request: pytest.FixtureRequest
) -> None:
    project = request.getfixturevalue(kind)
    project.change("defaults:\n", "approvals: 2\ndefaults:\n")
    ran = project.deploy("prod")
    assert ran.exit_code == 4
    assert "approvals are required, and with ACLs off nobody can tell who deploys" in ran.output
    assert project.jobs() == set()


def test_a_verdict_that_fails_fails_the_job_and_the_old_version_serves_on(on_github: OnGitHub) -> None:
    passed(on_github.deploy("prod"))
    on_github.change(
        "{VLLMJOBS_STANDIN_LOAD", '{VLLMJOBS_STANDIN_FAILURE: "error-rate=1", VLLMJOBS_STANDIN_LOAD'
    )
    ran = on_github.deploy("prod")
    assert ran.exit_code == 4
    assert "error_rate is 100 %, more than" in ran.output
    assert on_github.statuses("prod") == {0: "successful", 1: "failed", 2: "successful"}


def test_canaries_that_never_become_healthy_fail_the_job_and_the_old_version_serves_on(
    on_github: OnGitHub,
) -> None:
    passed(on_github.deploy("prod"))
    on_github.change('LOAD_SECONDS: "0.5"', 'LOAD_SECONDS: "600"')
    on_github.change("healthy_deadline: 30s", "healthy_deadline: 8s")
    on_github.change("progress_deadline: 1m", "progress_deadline: 26s")
    assert on_github.deploy("prod").exit_code == 1
    assert on_github.statuses("prod") == {0: "successful", 1: "failed", 2: "successful"}


def test_a_deployment_whose_run_is_cancelled_stays_as_it_is_and_the_next_run_goes_on(
    on_github: OnGitHub,
) -> None:
    passed(on_github.deploy("prod"))
    on_github.change("max_model_len: 1024", "max_model_len: 2048")
    cancelled = on_github.deploy("prod", cancel_at=" is healthy")
    assert cancelled.exit_code == 1
    assert "left as it is: `vllmjobs deploy prod` goes on" in cancelled.output
    deployment = on_github.newest("prod")
    assert (deployment["Status"], deployment["TaskGroups"]["chat"]["Promoted"]) == ("running", False)
    assert "version 1 is registered already, and is followed" in passed(on_github.deploy("prod"))
    assert on_github.statuses("prod") == {0: "successful", 1: "successful"}


@pytest.mark.parametrize("kind", ["on_github", "on_gitlab"])
def test_a_throwaway_job_that_fails_is_stopped_all_the_same(
    kind: str, request: pytest.FixtureRequest
) -> None:
    project = request.getfixturevalue(kind)
    script = project.folder / "ci/integration.sh"
    script.write_text(script.read_text().replace("/v1/completions", "/v1/no-such-thing"))
    ran = project.run("integration")
    assert ran.exit_code == 22, ran.output  # curl's, for a status of 400 or more
    assert "vllm-ci-4711: version 0 is deployed" in ran.output
    assert "vllm-ci-4711 is gone" in ran.output
    assert project.jobs() == set()
    assert project.sandbox.nomad_cli("var", "get", "vllmjobs/releases/vllm-ci-4711").returncode == 1


def test_a_pull_request_of_a_fork_is_told_in_the_summary_only(on_github: OnGitHub) -> None:
    on_github.git("checkout", "--quiet", "-b", "longer")
    on_github.change("max_model_len: 1024", "max_model_len: 2048")
    for job in ("lint", "security", "build", "test"):
        passed(on_github.run(job, head="eve/llms"))
    for job in ("plan", "integration"):
        assert on_github.run(job, head="eve/llms", environment="dev").skipped
    assert on_github.there.comments == []
    assert "2048" in (on_github.folder.parent / "summary.md").read_text()


@pytest.mark.parametrize("kind", ["on_github", "on_gitlab"])
def test_a_secret_in_the_repository_ends_the_security_stage(
    kind: str, request: pytest.FixtureRequest
) -> None:
    project = request.getfixturevalue(kind)
    (project.folder / "notes.txt").write_text(f"the key is AKIA{'QRSTUVWXYZ234567'}\n")
    project.commit("Notes")
    ran = project.run("security")
    assert ran.exit_code != 0
    assert "notes.txt:1" in ran.output


@pytest.mark.parametrize("kind", ["on_github", "on_gitlab"])
def test_an_environment_with_a_mistake_ends_the_lint_stage(kind: str, request: pytest.FixtureRequest) -> None:
    project = request.getfixturevalue(kind)
    project.change("max_model_len: 1024", "max_model_lenn: 1024")
    ran = project.run("lint")
    assert ran.exit_code == 1
    assert "max_model_len" in ran.output


def test_an_approval_without_reviewers_is_refused(on_github: OnGitHub) -> None:
    context = {"github": {"event_name": "push"}, "vars": {}}
    for job in approvals():
        ran = run_github(job, on_github.folder, on_github.env, context)
        assert ran.exit_code == 1
        assert "give it reviewers" in ran.output


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [("ada", "bob", (0, 0)), ("ada", "ada", (0, 1)), ("eve", "bob", (1, 0)), ("ada", "eve", (0, 1))],
)
def test_on_gitlab_prod_takes_two_people_of_the_list(
    on_gitlab: OnGitLab, first: str, second: str, passes: tuple[int, int]
) -> None:
    listed = {"PROD_APPROVERS": "ada bob"}
    one = on_gitlab.run("approve-prod-1", GITLAB_USER_LOGIN=first, **listed)
    two = on_gitlab.run("approve-prod-2", GITLAB_USER_LOGIN=second, FIRST_APPROVER=first, **listed)
    assert (one.exit_code, two.exit_code) == passes


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

        run = "vllmjobs render prod | nomad job run -detach -"
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
        assert "no history is kept" not in ran(tester, "ci/purge.sh vllm-ci-1").output
        assert not variable(server.manager, "get", "releases/vllm-ci-1")
        assert not variable(tester, "put", "releases/hub-prod")
        assert variable(deployer, "put", "releases/hub-prod")
        assert not variable(deployer, "put", "approvals/hub-prod")
        assert variable(server.manager, "put", "approvals/hub-prod")
        assert variable(deployer, "get", "approvals/hub-prod")
        approving = ran(deployer, "vllmjobs approve prod --set approvals=2")
        assert approving.exit_code == 1
        assert 'write on variable "vllmjobs/approvals/hub-prod"' in approving.output


def approvals() -> list[str]:
    return [job for job in template("github-actions.yaml")["jobs"] if job.startswith("approve")]


def passed(ran: Ran) -> str:
    """Return what a job printed, once it is known that it was run and ended well."""
    assert not ran.skipped
    assert ran.exit_code == 0, ran.output
    return ran.output
