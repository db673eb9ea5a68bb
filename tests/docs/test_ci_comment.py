"""docs/ci/comment.py keeps one comment for each report."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vllmjobs_sandbox.fakes.forge import CI, Forge, forge

DIFF = "<!-- vllmjobs diff -->"
REPORT = f"{DIFF}\n### 1 change\n"


@pytest.fixture
def there() -> Iterator[Forge]:
    with forge() as serving:
        yield serving


@pytest.fixture(params=["github", "gitlab"])
def env(there: Forge, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what each of the forges sets."""
    set_by: dict[str, str] = getattr(there, request.param)()
    return set_by


def comment(report: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run it with these variables and no others of a forge."""
    outside = {"PATH": os.environ["PATH"], "no_proxy": "*"}
    return subprocess.run(
        [sys.executable, CI / "comment.py"],
        input=report,
        env=outside | env,
        check=False,
        capture_output=True,
        text=True,
    )


def by(author: str, body: str, id: int) -> dict[str, object]:
    return {"id": id, "body": body, "user": {"login": author}, "author": {"username": author}}


def test_the_first_report_makes_a_comment(there: Forge, env: dict[str, str]) -> None:
    done = comment(REPORT, env)
    assert (done.returncode, done.stdout) == (0, "wrote comment 100\n"), done.stderr
    assert [one["body"] for one in there.comments] == [REPORT]


def test_the_second_report_is_written_over_the_first(there: Forge, env: dict[str, str]) -> None:
    comment(REPORT, env)
    newer = f"{DIFF}\n### no change; ümläuts, 100 %\n"
    assert comment(newer, env).stdout == "updated comment 100\n"
    assert [one["body"] for one in there.comments] == [newer]


def test_the_comment_is_found_on_a_later_page(there: Forge, env: dict[str, str]) -> None:
    there.comments += [by("ada", f"remark {number}", number) for number in range(5)]
    there.comments.append(by("bot", REPORT, 50))
    comment(f"{DIFF}\nnew\n", env)
    assert there.said(DIFF) == [f"{DIFF}\nnew\n"]
    assert len(there.comments) == 6


def test_reports_with_other_markers_have_comments_of_their_own(there: Forge, env: dict[str, str]) -> None:
    for marker in ("<!-- vllmjobs plan prod -->", "<!-- vllmjobs plan production -->", DIFF):
        comment(f"{marker}\nreport\n", env)
    assert len(there.comments) == 3


def test_what_somebody_else_wrote_is_left_alone(there: Forge, env: dict[str, str]) -> None:
    there.comments += [by("ada", REPORT, 1), by("bot", f"as in:\n{REPORT}", 2)]
    there.comments.append({"id": 3, "body": REPORT, "user": None, "author": None})
    comment(f"{DIFF}\nnew\n", env)
    assert [one["body"] for one in there.comments] == [
        REPORT,
        f"as in:\n{REPORT}",
        REPORT,
        f"{DIFF}\nnew\n",
    ]


def test_a_forge_may_store_line_ends_of_its_own(there: Forge, env: dict[str, str]) -> None:
    there.comments.append(by("bot", REPORT.replace("\n", "\r\n"), 1))
    assert comment(REPORT, env).stdout == "updated comment 1\n"


@pytest.mark.parametrize("forge", ["github", "gitlab"])
def test_without_a_token_it_says_which_one_is_missing(there: Forge, forge: str) -> None:
    name = f"{forge.upper()}_TOKEN"
    done = comment(REPORT, getattr(there, forge)(token=""))
    assert (done.returncode, done.stderr) == (1, f"comment.py: {name} is not set\n")


@pytest.mark.parametrize("forge", ["github", "gitlab"])
def test_a_wrong_token_is_what_the_forge_says_of_it(there: Forge, forge: str) -> None:
    done = comment(REPORT, getattr(there, forge)(token="wrong"))
    assert done.returncode == 1
    assert "401 Unauthorized" in done.stderr
    assert "Bad credentials" in done.stderr
    assert "wrong" not in done.stderr


def test_a_forge_that_does_not_answer_is_named(there: Forge) -> None:
    done = comment(REPORT, there.gitlab() | {"CI_API_V4_URL": "http://127.0.0.1:1"})
    assert done.returncode == 1
    assert done.stderr.startswith("comment.py: GET http://127.0.0.1:1/user: ")


@pytest.mark.parametrize("report", ["", "### no marker\n"])
def test_a_report_without_a_marker_is_refused(env: dict[str, str], there: Forge, report: str) -> None:
    done = comment(report, env)
    assert done.returncode == 1
    assert "the first line of the report is no marker" in done.stderr
    assert there.comments == []


def test_a_run_without_a_pull_request_is_refused(there: Forge) -> None:
    done = comment(REPORT, there.github() | {"GITHUB_REF": "refs/heads/main"})
    assert (done.returncode, done.stderr) == (1, "comment.py: refs/heads/main is no pull request\n")
