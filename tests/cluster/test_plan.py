"""`vllmjobs plan`, as a person or a pipeline runs it, against a real cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from vllmjobs.cli import main
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox

SCHEMA = Path(__file__).parents[2] / "docs/changes.schema.json"
LARGER = "models.chat.max_model_len=512"
DEPLOYED = 30.0  # seconds until a deployment is there


def planned(sandbox: Sandbox, *arguments: str, **env: str) -> Result:
    """Run `vllmjobs plan dev` in this process."""
    return CliRunner().invoke(main, ["plan", "dev", *arguments], env=sandbox.env | env)


class Plans:
    """A job that runs, and plans of it."""

    def __init__(self, release: Release) -> None:
        self.sandbox, self.job = release.sandbox, release.job
        self.settings = [
            word for key, value in release.settings.items() for word in ("--set", f"{key}={value}")
        ]

    def __call__(self, *arguments: str, **env: str) -> Result:
        return planned(self.sandbox, "--job", "vllm", *self.settings, *arguments, **env)

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
    """Plans of a job that runs with one instance, for all tests, in their order: the last ones change it."""
    for release in releases(sandbox, "planned"):
        running = release(replicas=1)
        running.run()
        yield Plans(running)


def test_the_same_job_is_no_change(plan: Plans) -> None:
    command = ["vllmjobs", "plan", "dev", "--job", "vllm", *plan.settings]
    done = subprocess.run(command, env=plan.sandbox.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"dev: {plan.job}: no changes (against http://127.0.0.1:")


def test_a_change_is_2_or_0_for_those_who_want_that(plan: Plans) -> None:
    done = plan("--set", LARGER)
    assert done.exit_code == 2
    assert "  chat  destructive: 1 canary first, then the old one stops after the promotion\n" in done.stdout
    assert (
        "~ task.vllm.config.args: --max-model-len=1024 → --max-model-len=512  # forces replacement"
        in done.stdout
    )
    assert plan("--set", LARGER, "--no-detailed").exit_code == 0


def test_no_room_is_3_for_everybody(plan: Plans) -> None:
    many = ("--set", "models.chat.replicas=9")
    done = plan(*many)
    assert done.exit_code == 3
    assert "1 of 8 instances of chat cannot be placed: 2 nodes have nvidia/gpu" in done.stdout
    assert plan(*many, "--no-detailed").exit_code == 3
    assert plan(*many, "--format", "markdown").stdout.splitlines()[1] == (
        "### ⛔ `dev`: 1 of 8 instances of `chat` cannot be placed"
    )


def test_instances_that_wait_for_room_are_a_change_of_an_unchanged_job(release: NewRelease) -> None:
    """Two that need all GPUs of one node."""
    on_one = '[{attribute: "${node.unique.name}", value: gpu-2}]'
    waiting = release(
        replicas=2, strategy="tensor_parallel", **{"gpus.count": 4, "placement.constraints": on_one}
    )
    own = Plans(waiting)
    own.sandbox.run(waiting.render())
    wait_until(lambda: own.read()["action"] == "none", DEPLOYED, "it is registered")
    done = own()
    assert done.exit_code == 3
    assert "cannot be placed" in done.stdout


def test_a_job_that_does_not_run_is_a_change_and_all_jobs_of_an_environment_are_planned(
    sandbox: Sandbox,
) -> None:
    done = planned(sandbox, "--set", "job=not-there", "--format", "json")
    assert done.exit_code == 2, done.stderr
    jobs = json.loads(done.stdout)["environments"][0]["jobs"]
    assert [(job["job"], job["action"], job["plan"]["modify_index"]) for job in jobs] == [
        ("vllm", "new", 0), ("fabio", "new", 0),
    ]  # fmt: skip
    assert not [job for job in sandbox.nomad.jobs.get_jobs() if job["ID"].startswith("not-there")]


def test_what_check_calls_an_error_is_not_planned(plan: Plans) -> None:
    done = plan("--set", "models.chat.gpus.count=2")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "[VJ318]" in done.stderr


def test_a_job_that_the_environment_does_not_have_is_an_error(plan: Plans) -> None:
    done = plan("--job", "nginx")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("has no job 'nginx'; it has vllm, fabio\n")


def test_without_a_cluster_there_is_one_line(plan: Plans) -> None:
    done = plan(NOMAD_ADDR="http://127.0.0.1:1")
    assert (done.exit_code, done.stdout) == (1, "")
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
        done = planned(sandbox, "--job", "vllm", "--set", f"job={name}")
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"{name} runs as a batch job, and Nomad refuses to make it a service job; " in done.stderr
    finally:
        sandbox.purge(name)


def test_the_command_names_the_namespace_that_the_plan_was_for(sandbox: Sandbox) -> None:
    sandbox.nomad.namespace.create_namespace({"Name": "team"})
    try:
        done = planned(sandbox, "--job", "vllm", "--set", "job=of-a-team", NOMAD_NAMESPACE="team")
        assert done.exit_code == 2, done.stderr
        assert "| nomad job run -namespace team -check-index 0 -\n" in done.stdout
    finally:
        sandbox.nomad.namespace.delete_namespace("team")


def test_what_other_groups_of_the_job_get_is_told_where_there_is_no_room(sandbox: Sandbox) -> None:
    """Nomad places groups in the order of a Go map (`computeDeploymentComplete`): large may be first."""
    gpus = "strategy: tensor_parallel, gpus: {count: 4}, drain: {longest_stream: 10s}"
    settings = (
        "job=two-groups",
        "models.chat.replicas=5",
        f"models.large={{model: facebook/opt-125m, {gpus}}}",
        "models.large.route={path: /l/v1/, strip: /l}",
    )

    def told() -> str | None:
        done = planned(sandbox, "--job", "vllm", *(word for one in settings for word in ("--set", one)))
        assert done.exit_code == 3, done.stdout + done.stderr
        return done.stdout if "1 of 1 instance of large cannot be placed" in done.stdout else None

    assert "this plan gives 5 to chat" in wait_until(told, 60, "chat is placed first")


# From here on, the job is changed


def test_the_command_that_is_shown_makes_this_change_and_is_refused_after_another(plan: Plans) -> None:
    command = plan.read("--set", LARGER)["plan"]["run"].replace(" run -check", " run -detach -check")
    assert f"--set {LARGER}" in command

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], env=plan.sandbox.env, capture_output=True, text=True, check=False
        )

    assert run().returncode == 0
    assert plan("--set", LARGER).exit_code == 0
    again = run()
    assert again.returncode == 1
    assert "Enforcing job modify index" in again.stderr


def test_a_deployment_in_the_way_is_named(plan: Plans) -> None:
    plan.sandbox.wait_until_healthy(plan.job)
    deployment = plan.sandbox.deployment(plan.job)["ID"]
    done = plan("--set", "models.chat.max_model_len=256")
    assert done.exit_code == 2
    warning = f"warning: running this job cancels deployment {deployment[:8]} of version 1 (running;"
    assert warning in done.stdout
    assert "chat: 1 of 1 canaries healthy, not promoted" in done.stdout


def test_to_go_back_stops_the_canary_and_nothing_else(plan: Plans) -> None:
    plan.sandbox.wait_until_healthy(plan.job)
    done = plan()
    assert done.exit_code == 2
    assert (
        "note: chat: Nomad stops 1 instance that the deployment of version 1 has started; the older ones "
        "keep running" in done.stdout
    )
    assert "forces replacement" not in done.stdout


def test_tokens_of_the_job_that_runs_are_shown_in_no_format(plan: Plans) -> None:
    hcl = plan.sandbox.render("dev", *plan.settings)
    marked = "      env {\n"
    assert marked in hcl
    secret = (
        f'{marked}        HF_TOKEN = "very-secret-one"\n        URL = "http://me:very-secret-two@host/"\n'
    )
    plan.sandbox.run(hcl.replace(marked, secret))
    wait_until(lambda: plan.read()["action"] == "changed", DEPLOYED, "it is registered")
    for form in ("text", "markdown", "json"):
        done = plan("--format", form)
        assert done.exit_code == 2
        assert "HF_TOKEN" in done.stdout
        assert "URL" in done.stdout
        assert "very-secret" not in done.stdout + done.stderr
