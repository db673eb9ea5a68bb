"""The scripts of docs/ci/gitlab-ci.yaml, run against the sandbox in a repository with a remote.

The releases that fail are in test_ci_github.py: both templates deploy with the same command.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.story.pipelines import OnGitLab, passed, pipeline


@pytest.fixture(scope="module")
def on_gitlab(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnGitLab]:
    with pipeline(OnGitLab, "lab", sandbox, tmp_path_factory.mktemp("gitlab")) as made:
        yield made


def test_on_gitlab_a_change_goes_from_a_merge_request_to_prod(on_gitlab: OnGitLab) -> None:
    passed(on_gitlab.deploy("dev"))

    on_gitlab.git("checkout", "--quiet", "-b", "longer")
    on_gitlab.change("max_model_len: 1024", "max_model_len: 2048")
    for job in ("lint", "security", "build", "test", "diff", "diff"):  # again, as after another push
        passed(on_gitlab.run(job))
    for name in ("dev", "prod"):
        passed(on_gitlab.run("plan", ENVIRONMENT=name))
    markers = ["<!-- vllmjobs diff -->", *(f"<!-- vllmjobs plan {name} -->" for name in ("dev", "prod"))]
    assert [len(on_gitlab.there.said(marker)) for marker in markers] == [1, 1, 1]
    assert len(on_gitlab.there.comments) == 3
    assert passed(on_gitlab.run("integration")).count('"object":"text_completion"') == 1
    assert on_gitlab.jobs() == {"lab-dev", "lab-dev-fabio"}

    on_gitlab.git("checkout", "--quiet", "main")
    on_gitlab.git("merge", "--quiet", "--no-ff", "-m", "Merge longer", "longer")
    assert "promoting all canaries" in passed(on_gitlab.deploy("dev"))
    passed(on_gitlab.deploy("prod"))
    for name in ("dev", "prod"):
        assert on_gitlab.newest(name)["Status"] == "successful"
        assert on_gitlab.max_model_len(name) == "2048"


def test_what_has_no_room_is_commented_on_and_not_run(on_gitlab: OnGitLab) -> None:
    before = on_gitlab.jobs()
    with on_gitlab.branch("many"):
        on_gitlab.change("max_model_len: ", "replicas: 50\n    max_model_len: ")
        assert on_gitlab.run("plan", ENVIRONMENT="staging").exit_code == 3
        assert on_gitlab.deploy("staging").exit_code == 3
        integration = on_gitlab.run("integration")
    assert len(on_gitlab.there.said("<!-- vllmjobs plan staging -->")) == 1
    assert integration.exit_code == 3
    assert "vllm-ci-4711 is gone" in integration.output
    assert on_gitlab.jobs() == before
