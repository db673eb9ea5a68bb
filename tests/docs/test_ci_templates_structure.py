"""What the templates of docs/ci promise, read off the files."""

import re
import subprocess
from typing import Any

import pytest

from vllmjobs_sandbox.fakes.forge import CI, evaluate, extended, template

STAGES = ("lint", "security", "build", "test", "integration", "deploy")
ENVIRONMENTS = ("dev", "staging", "prod")
GITHUB = template("github-actions.yaml")
GITLAB = template("gitlab-ci.yaml")
GITLAB_JOBS = [
    name
    for name, value in GITLAB.items()
    if isinstance(value, dict) and name[0] != "." and {"stage", "extends"} & {*value}
]


def pull_request(repository: str, user: str = "ada") -> dict[str, Any]:
    head = {"repo": {"full_name": repository}}
    event = {"pull_request": {"number": 7, "head": head, "user": {"login": user}}}
    return {"github": {"event_name": "pull_request", "repository": "ada/llms", "event": event}}


PUSH = {"github": {"event_name": "push", "repository": "ada/llms", "event": {}}}


def trusted(context: dict[str, Any]) -> bool:
    return bool(evaluate(GITHUB["jobs"]["lint"]["outputs"]["trusted"], context))


def runs(job: str, context: dict[str, Any]) -> bool:
    """Whether a job and all that it needs are run."""
    spec = GITHUB["jobs"][job]
    needs = [spec["needs"]] if isinstance(spec.get("needs"), str) else spec.get("needs", [])
    seen = context | {"needs": {"lint": {"outputs": {"trusted": str(trusted(context)).lower()}}}}
    return ("if" not in spec or bool(evaluate(spec["if"], seen))) and all(
        runs(need, context) for need in needs
    )


def test_both_have_the_six_stages_in_order() -> None:
    assert GITLAB["stages"] == [*STAGES]
    assert {extended(GITLAB, job)["stage"] for job in GITLAB_JOBS} == {*STAGES}
    listed = [job.split("-")[0] for job in GITHUB["jobs"]]
    assert [stage for stage in dict.fromkeys(listed) if stage in STAGES] == [*STAGES]


def test_every_job_has_a_deadline() -> None:
    assert all(0 < job["timeout-minutes"] <= 120 for job in GITHUB["jobs"].values())
    assert GITLAB["default"]["timeout"]
    assert {extended(GITLAB, job).get("timeout") for job in GITLAB_JOBS} == {None, "1 hour", "2 hours"}


def test_a_pull_request_is_planned_and_not_deployed() -> None:
    ours = pull_request("ada/llms")
    assert {job for job in GITHUB["jobs"] if runs(job, ours)} == {
        "lint", "security", "build", "test", "plan", "integration",
    }  # fmt: skip


@pytest.mark.parametrize(
    "theirs",
    [pull_request("eve/llms"), pull_request("ada/llms", "dependabot[bot]")],
    ids=["fork", "dependabot"],
)
def test_a_pull_request_without_secrets_reaches_no_cluster(theirs: dict[str, Any]) -> None:
    assert {job for job in GITHUB["jobs"] if runs(job, theirs)} == {"lint", "security", "build", "test"}
    written = [step for step in GITHUB["jobs"]["test"]["steps"] if step.get("name") == "Comment"]
    assert all("trusted" in step["if"] for step in written)
    needs = "$CI_MERGE_REQUEST_SOURCE_PROJECT_ID == $CI_MERGE_REQUEST_PROJECT_ID"
    assert all(needs in rule["if"] for rule in GITLAB["plan"]["rules"])
    assert [rule["if"] for rule in GITLAB["integration"]["rules"]] == [
        "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH",
        needs,
    ]


def test_a_merge_is_deployed_and_not_planned() -> None:
    assert {job for job in GITHUB["jobs"] if not runs(job, PUSH)} == {"plan"}
    deploys = [job for job in GITLAB_JOBS if extended(GITLAB, job)["stage"] == "deploy"]
    for job in deploys:
        assert [rule["if"] for rule in extended(GITLAB, job)["rules"]] == [
            "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"
        ]


def test_what_a_push_changes_is_not_told() -> None:
    said = [step["if"] for step in GITHUB["jobs"]["test"]["steps"] if "if" in step]
    assert len(said) == 2
    assert not any(
        evaluate(one, PUSH | {"needs": {"lint": {"outputs": {"trusted": "true"}}}}) for one in said
    )


def test_a_job_deploys_the_environment_that_it_is_named_after() -> None:
    for name in ENVIRONMENTS:
        assert GITHUB["jobs"][f"deploy-{name}"]["environment"] == name
        assert GITHUB["jobs"][f"deploy-{name}"]["steps"] == GITHUB["jobs"]["deploy-dev"]["steps"]
        assert extended(GITLAB, f"deploy-{name}")["environment"] == name
        assert extended(GITLAB, f"deploy-{name}")["script"] == GITLAB[".deploy"]["script"]


def chain(job: str) -> list[str]:
    """The jobs that have to end before this one, nearest first."""
    needs = GITHUB["jobs"][job].get("needs")
    before = needs[-1] if isinstance(needs, list) else needs
    return [before, *chain(before)] if before else []


def test_dev_needs_no_approval_staging_one_and_prod_two_more() -> None:
    def approvals(job: str) -> list[str]:
        return [GITHUB["jobs"][one]["environment"] for one in chain(job) if one.startswith("approve")]

    assert approvals("deploy-dev") == []
    assert approvals("deploy-staging") == ["approve-staging"]
    assert approvals("deploy-prod") == ["approve-prod-2", "approve-prod-1", "approve-staging"]


def test_on_gitlab_staging_takes_one_person_and_prod_two() -> None:
    def is_manual(job: str) -> bool:
        return any(rule.get("when") == "manual" for rule in extended(GITLAB, job)["rules"])

    assert [job for job in GITLAB_JOBS if "rules" in extended(GITLAB, job) and is_manual(job)] == [
        "deploy-staging", "approve-prod-1", "approve-prod-2",
    ]  # fmt: skip
    assert GITLAB["deploy-prod"]["needs"] == ["approve-prod-2"]
    assert GITLAB["approve-prod-2"]["needs"] == ["approve-prod-1"]
    assert GITLAB["approve-prod-1"]["needs"] == ["deploy-staging"]


def test_two_deployments_never_run_at_once() -> None:
    for name in ENVIRONMENTS:
        one = {"group": f"deploy-{name}", "cancel-in-progress": False}
        assert GITHUB["jobs"][f"deploy-{name}"]["concurrency"] == one
        assert GITLAB[f"deploy-{name}"]["resource_group"] == name


def test_an_approval_that_waits_holds_up_no_deployment_and_gives_way_to_a_newer_one() -> None:
    """A job that waits for its reviewers holds its concurrency group."""
    for name, job in GITHUB["jobs"].items():
        if name.startswith("approve"):
            assert job["concurrency"]["group"].startswith("approve-")
            assert job["concurrency"]["cancel-in-progress"] is True
        if name.startswith("deploy"):
            assert not job["environment"].startswith("approve")


def test_a_job_may_do_only_what_it_has_to() -> None:
    assert GITHUB["permissions"] == {}
    writing = {
        name: [what for what, how in job["permissions"].items() if how == "write"]
        for name, job in GITHUB["jobs"].items()
        if "write" in job.get("permissions", {}).values()
    }
    assert writing == {"security": ["security-events"], "test": ["pull-requests"], "plan": ["pull-requests"]}
    text = (CI / "github-actions.yaml").read_text()
    assert "pull_request_target" not in text
    assert "persist-credentials: false" in text


def test_nothing_that_a_person_can_name_is_put_into_a_script() -> None:
    """`${{ }}` in `run:` is text of the script: a branch's name could be a command."""
    for job in GITHUB["jobs"].values():
        assert not [step["run"] for step in job["steps"] if "${{" in step.get("run", "")]


def test_every_action_is_pinned_to_a_commit() -> None:
    used = re.findall(r"uses: (\S+)(.*)", (CI / "github-actions.yaml").read_text())
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize(
    ("schema", "name"), [("github-workflows", "github-actions.yaml"), ("gitlab-ci", "gitlab-ci.yaml")]
)
def test_the_forges_own_schema_accepts_it(schema: str, name: str) -> None:
    command = [
        "check-jsonschema",
        "--builtin-schema",
        f"vendor.{schema}",
        str(CI / name),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_pass_shellcheck() -> None:
    scripts = sorted(CI.glob("*.sh"))
    assert scripts
    done = subprocess.run(["shellcheck", *scripts], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_steps_pass_shellcheck() -> None:
    steps = [step["run"] for job in GITHUB["jobs"].values() for step in job["steps"] if "run" in step]
    for job in GITLAB_JOBS:
        spec = extended(GITLAB, job)
        steps += ["\n".join(spec["script"]), "\n".join(spec.get("after_script", []))]
    for step in dict.fromkeys(steps):
        # SC2154: variables of the forge are set elsewhere.
        done = subprocess.run(
            ["shellcheck", "--shell=bash", "--exclude=SC2154", "-"],
            input=f"{step}\n",
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}"
