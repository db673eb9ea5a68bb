"""The jobs of docs/ci's templates that need no cluster, run as GitHub and as GitLab do."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.fakes.forge import CI, Ran, run_github, run_gitlab, template

ENV = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "CI_"))}
PUSH = {"github": {"event_name": "push"}, "needs": {"lint": {"outputs": {"trusted": "true"}}}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with an environment of this one."""
    (tmp_path / "envs").mkdir()
    for name in ("base.yaml", "dev.yaml"):
        shutil.copy(CHECKOUT / "envs" / name, tmp_path / "envs")
    shutil.copytree(CI, tmp_path / "ci")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture(params=["github", "gitlab"])
def run(request: pytest.FixtureRequest, project: Path) -> Any:
    """Run a job as one of the forges does."""
    if request.param == "github":
        return lambda job: run_github(job, project, ENV, PUSH)
    return lambda job: run_gitlab(job, project, ENV)


def test_an_environment_with_a_mistake_ends_the_lint_stage(run: Any, project: Path) -> None:
    dev = project / "envs/dev.yaml"
    dev.write_text(f"{dev.read_text()}jobb: dev\n")
    ran: Ran = run("lint")
    assert ran.exit_code == 1
    assert "jobb" in ran.output


def test_a_secret_in_the_repository_ends_the_security_stage(run: Any, project: Path) -> None:
    (project / "notes.txt").write_text(f"the key is AKIA{'QRSTUVWXYZ234567'}\n")
    subprocess.run(["git", "add", "notes.txt"], cwd=project, check=True)
    ran: Ran = run("security")
    assert ran.exit_code != 0
    assert "notes.txt:1" in ran.output


@pytest.mark.parametrize(
    "line", [f"X: glpat-{'aB3dE' * 5}", "API_KEYS: correct-horse", f"url: https://x/?sig={'aB3' * 9}"]
)
def test_the_security_stage_knows_what_check_knows(project: Path, line: str) -> None:
    (project / "values.yaml").write_text(f"{line}\n")
    subprocess.run(["git", "add", "--all"], cwd=project, check=True)
    done = subprocess.run(["ci/secrets.sh"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Location:    values.yaml:1" in done.stdout
    assert "Location:    ci/" not in done.stdout


@pytest.mark.parametrize("name", ["--help", "--exclude-files=.*", "--only-verified", "-n", "@x", "-"])
def test_no_name_of_a_file_silences_the_security_stage(project: Path, name: str) -> None:
    (project / "notes.txt").write_text(f"the key is AKIA{'QRSTUVWXYZ234567'}\n")
    (project / name).write_text("x\n")
    subprocess.run(["git", "add", "--all"], cwd=project, check=True)
    done = subprocess.run(["ci/secrets.sh"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "notes.txt:1" in done.stdout


@pytest.mark.parametrize(("variables", "exit_code"), [({}, 1), ({"REVIEWED": "yes"}, 0)])
def test_an_approval_without_reviewers_is_refused(
    project: Path, variables: Mapping[str, str], exit_code: int
) -> None:
    for job in (job for job in template("github-actions.yaml")["jobs"] if job.startswith("approve")):
        ran = run_github(job, project, ENV, PUSH | {"vars": variables})
        assert ran.exit_code == exit_code
        assert ("give it reviewers" in ran.output) == bool(exit_code)


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [("ada", "bob", (0, 0)), ("ada", "ada", (0, 1)), ("eve", "bob", (1, 0)), ("ada", "eve", (0, 1))],
)
def test_on_gitlab_prod_takes_two_people_of_the_list(
    project: Path, first: str, second: str, passes: tuple[int, int]
) -> None:
    env = ENV | {"PROD_APPROVERS": "ada bob"}
    one = run_gitlab("approve-prod-1", project, env | {"GITLAB_USER_LOGIN": first})
    two = run_gitlab("approve-prod-2", project, env | {"GITLAB_USER_LOGIN": second, "FIRST_APPROVER": first})
    assert (one.exit_code, two.exit_code) == passes
