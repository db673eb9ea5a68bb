"""`vllmjobs plan`, as a person or a pipeline runs it, against a real cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox

SCHEMA = Path(__file__).parents[2] / "docs/changes.schema.json"
LARGER = "models.chat.max_model_len=512"
DEPLOYED = 30.0  # seconds until a deployment is there


class Plans:
    """A job of the test's own that runs, and plans of it."""

    def __init__(self, release: Release) -> None:
        self.sandbox, self.job = release.sandbox, release.job
        self.settings = [
            word for key, value in release.settings.items() for word in ("--set", f"{key}={value}")
        ]

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["vllmjobs", "plan", "dev", "--job", "vllm", *self.settings, *arguments],
            env=self.sandbox.env | env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def read(self, *arguments: str) -> dict[str, Any]:
        """The one job of the JSON."""
        done = self("--format", "json", *arguments)
        report = json.loads(done.stdout)
        Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
        (environment,) = report["environments"]
        (job,) = environment["jobs"]
        return dict(job)


@pytest.fixture(scope="module")
def plan(sandbox: Sandbox) -> Iterator[Plans]:
    """Plans of a job that runs with one instance, and that no test changes."""
    for release in releases(sandbox, "planned"):
        running = release(replicas=1)
        running.run()
        yield Plans(running)


@pytest.fixture
def own(release: NewRelease) -> Plans:
    """Plans of such a job of the test's own."""
    running = release(replicas=1)
    running.run()
    return Plans(running)


def test_the_same_job_is_no_change(plan: Plans) -> None:
    done = plan()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"dev: {plan.job}: no changes (against http://127.0.0.1:")


def test_a_change_is_2_or_0_for_those_who_want_that(plan: Plans) -> None:
    done = plan("--set", LARGER)
    assert done.returncode == 2
    assert "  chat  destructive: 1 canary first, then the old one stops after the promotion\n" in done.stdout
    assert (
        "~ task.vllm.config.args: --max-model-len=1024 → --max-model-len=512  # forces replacement"
        in done.stdout
    )
    assert plan("--set", LARGER, "--no-detailed").returncode == 0


def test_no_room_is_3_for_everybody(plan: Plans) -> None:
    many = ("--set", "models.chat.replicas=9")
    done = plan(*many)
    assert done.returncode == 3
    assert "1 of 8 instances of chat cannot be placed: 2 nodes have nvidia/gpu" in done.stdout
    assert plan(*many, "--no-detailed").returncode == 3
    assert plan(*many, "--format", "markdown").stdout.splitlines()[1] == (
        "### ⛔ `dev`: 1 of 8 instances of `chat` cannot be placed"
    )


def test_instances_that_wait_for_room_are_a_change_of_an_unchanged_job(own: Plans) -> None:
    many = ["--set", "models.chat.replicas=9"]
    own.sandbox.run(own.sandbox.render("dev", *own.settings, *many))
    wait_until(lambda: own.read(*many)["action"] == "none", DEPLOYED, "it is registered")
    done = own(*many)
    assert done.returncode == 3
    assert "cannot be placed" in done.stdout


def test_a_job_that_does_not_run_is_a_change_and_all_jobs_of_an_environment_are_planned(
    sandbox: Sandbox,
) -> None:
    done = subprocess.run(
        ["vllmjobs", "plan", "dev", "--set", "job=not-there", "--format", "json"],
        env=sandbox.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    jobs = json.loads(done.stdout)["environments"][0]["jobs"]
    assert [(job["job"], job["action"], job["plan"]["modify_index"]) for job in jobs] == [
        ("vllm", "new", 0), ("fabio", "new", 0),
    ]  # fmt: skip
    assert not [job for job in sandbox.nomad.jobs.get_jobs() if job["ID"].startswith("not-there")]


def test_the_command_that_is_shown_makes_this_change_and_is_refused_after_another(own: Plans) -> None:
    command = own.read("--set", LARGER)["plan"]["run"].replace(" run -check", " run -detach -check")
    assert f"--set {LARGER}" in command

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], env=own.sandbox.env, capture_output=True, text=True, check=False
        )

    assert run().returncode == 0
    assert own("--set", LARGER).returncode == 0
    again = run()
    assert again.returncode == 1
    assert "Enforcing job modify index" in again.stderr


def test_a_deployment_in_the_way_is_named(own: Plans) -> None:
    own.sandbox.run(own.sandbox.render("dev", *own.settings, "--set", LARGER))
    own.sandbox.wait_until_healthy(own.job)
    deployment = own.sandbox.deployment(own.job)["ID"]
    done = own("--set", "models.chat.max_model_len=256")
    assert done.returncode == 2
    assert f"warning: a run cancels deployment {deployment[:8]} of version 1 (running;" in done.stdout
    assert "chat: 1 of 1 canaries healthy, not promoted" in done.stdout


def test_tokens_of_the_job_that_runs_are_shown_in_no_format(own: Plans) -> None:
    hcl = own.sandbox.render("dev", *own.settings)
    marked = "      env {\n"
    assert marked in hcl
    secret = (
        f'{marked}        HF_TOKEN = "very-secret-one"\n        URL = "http://me:very-secret-two@host/"\n'
    )
    own.sandbox.run(hcl.replace(marked, secret))
    wait_until(lambda: own.read()["action"] == "changed", DEPLOYED, "it is registered")
    for form in ("text", "markdown", "json"):
        done = own("--format", form)
        assert done.returncode == 2
        assert "HF_TOKEN" in done.stdout
        assert "URL" in done.stdout
        assert "very-secret" not in done.stdout + done.stderr


def test_what_check_calls_an_error_is_not_planned(plan: Plans) -> None:
    done = plan("--set", "models.chat.gpus.count=2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[VJ318]" in done.stderr


def test_a_job_that_the_environment_does_not_have_is_an_error(plan: Plans) -> None:
    done = plan("--job", "nginx")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("has no job 'nginx'; it has vllm, fabio\n")


def test_without_a_cluster_there_is_one_line(plan: Plans) -> None:
    done = plan(NOMAD_ADDR="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "http://127.0.0.1:1: cannot be reached (Connection refused); is NOMAD_ADDR right, and Nomad "
        "running?\n"
    )


def test_what_nomad_would_refuse_is_an_error_though_its_plan_says_nothing(sandbox: Sandbox) -> None:
    name = "another-type"
    sandbox.run(
        f'''job "{name}" {{
  type = "batch"
  group "chat" {{
    task "vllm" {{
      driver = "raw_exec"
      config {{
        command = "true"
      }}
    }}
  }}
}}
'''
    )
    try:
        done = subprocess.run(
            ["vllmjobs", "plan", "dev", "--job", "vllm", "--set", f"job={name}"],
            env=sandbox.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{name} runs as a batch job, and Nomad refuses to make it a service one; " in done.stderr
    finally:
        sandbox.purge(name)


def test_the_command_names_the_namespace_that_the_plan_was_for(sandbox: Sandbox) -> None:
    sandbox.nomad.namespace.create_namespace({"Name": "team"})
    try:
        done = subprocess.run(
            ["vllmjobs", "plan", "dev", "--job", "vllm", "--set", "job=of-a-team"],
            env=sandbox.env | {"NOMAD_NAMESPACE": "team"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "| nomad job run -namespace team -check-index 0 -\n" in done.stdout
    finally:
        sandbox.nomad.namespace.delete_namespace("team")


def test_to_go_back_stops_the_canary_and_nothing_else(own: Plans) -> None:
    own.sandbox.run(own.sandbox.render("dev", *own.settings, "--set", LARGER))
    own.sandbox.wait_until_healthy(own.job)
    done = own()
    assert done.returncode == 2
    assert (
        "note: chat: 1 of version 1 stop, which its deployment has started; those of before run on"
        in done.stdout
    )
    assert "forces replacement" not in done.stdout


def test_what_other_groups_of_the_job_get_is_told_where_there_is_no_room(sandbox: Sandbox) -> None:
    """Nomad places groups in the order of a Go map (`computeDeploymentComplete`): large may be first."""
    gpus = "strategy: tensor_parallel, gpus: {count: 4}, drain: {longest_stream: 10s}"
    large = f"models.large={{model: facebook/opt-125m, {gpus}}}"

    def told() -> str | None:
        done = subprocess.run(
            ["vllmjobs", "plan", "dev", "--job", "vllm", "--set", "job=two-groups", "--set", large,
             "--set", "models.chat.replicas=5", "--set", "models.large.route={path: /l/v1/, strip: /l}"],
            env=sandbox.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done.stdout + done.stderr
        return done.stdout if "1 of 1 instance of large cannot be placed" in done.stdout else None

    assert "this plan gives 5 to chat" in wait_until(told, 60, "chat is placed first")
