"""A forge on this machine: it runs the jobs of the templates in docs/ci, and keeps their comments.

The shell steps of a job are run as the forge would run them, but for what needs the forge or the internet:

- GitHub's `uses:` steps: checkout, artifacts, code scanning. The working copy stays between the jobs instead.
- The step `Install`, and its two lines in GitLab's `before_script`: vllmjobs and nomad are on PATH already.
  tests/docs/test_ci_install.py runs it.
- GitLab's container images, and the waiting for an approval.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.fakes.listening import listening

CI = CHECKOUT / "docs/ci"
INSTALL = ("ci/install.sh", 'export PATH="$PWD/.tools/bin:$PATH"')
PAGE = 2  # comments; few, so that there are several pages
TOKENS = {"of-the-bot": "bot", "of-ada": "ada"}


def template(name: str) -> Json:
    """Read one of the two templates; YAML 1.1 takes `on` for a boolean."""
    read: Json = {
        ("on" if key is True else key): value
        for key, value in yaml.safe_load((CI / name).read_text()).items()
    }
    return read


def evaluate(text: str, context: Mapping[str, Any]) -> Any:
    """Work out a GitHub expression: names with dots, == != && || !, and always() or cancelled()."""

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("'"):
            return match[0]
        found: Any = context
        for part in match[0].split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return repr(found)

    python = re.sub(r"'[^']*'|[a-z_]+(?:\.\w+)+", value, text.strip().removeprefix("${{").removesuffix("}}"))
    python = python.replace("always()", "True").replace("cancelled()", "False").strip()
    python = re.sub(r"!(?!=)", " not ", python.replace("&&", " and ").replace("||", " or "))
    return eval(python.strip(), {})


def expand(text: object, context: Mapping[str, Any]) -> str:
    """Put the values of its expressions into a text; what is not there is empty, as on GitHub."""
    values = re.sub(r"\$\{\{.*?\}\}", lambda match: str(evaluate(match[0], context) or ""), str(text))
    return values.lower() if values in ("True", "False") else values


@dataclass(frozen=True)
class Ran:
    """The end of a job: its exit code and its output."""

    exit_code: int
    output: str
    skipped: bool = False


def run_github(
    job: str, project: Path, env: Mapping[str, str], context: Json, cancel_at: str | None = None
) -> Ran:
    """Run a job of the workflow in a working copy; `context` is what its expressions see.

    With `cancel_at`, it is cancelled when a step prints a line with that text.
    """
    workflow = template("github-actions.yaml")
    spec = workflow["jobs"][job]
    context = context | {"github": {**context["github"], "job": job}}
    if "if" in spec and not evaluate(spec["if"], context):
        return Ran(0, "", skipped=True)
    outer = _env(workflow, context) | _env(spec, context)
    result = Ran(0, "")
    for step in spec["steps"]:
        if "uses" in step or step["run"] in INSTALL:
            continue
        always = "always()" in step.get("if", "") or "cancelled()" in step.get("if", "")
        if (result.exit_code and not always) or ("if" in step and not evaluate(step["if"], context)):
            continue
        shell = workflow["defaults"]["run"]["shell"].replace("{0}", "/dev/stdin").split()
        ran = _run(shell, step["run"], project, {**env, **outer, **_env(step, context)}, cancel_at)
        result = Ran(result.exit_code or ran.exit_code, result.output + ran.output)
    return result


def run_gitlab(job: str, project: Path, env: Mapping[str, str]) -> Ran:
    """Run a job of the template in a working copy."""
    whole = template("gitlab-ci.yaml")
    spec = extended(whole, job)
    before = [
        line for line in spec.get("before_script", whole["default"]["before_script"]) if line not in INSTALL
    ]
    variables = {key: str(value) for key, value in (whole["variables"] | spec.get("variables", {})).items()}
    shell = ["bash", "-eo", "pipefail"]  # as the runner does
    ran = _run(shell, "\n".join([*before, *spec["script"]]), project, {**env, **variables})
    if "after_script" in spec:
        after = _run(shell, "\n".join(spec["after_script"]), project, {**env, **variables})
        return Ran(ran.exit_code, ran.output + after.output)
    return ran


def extended(whole: Json, job: str) -> Json:
    """Return a GitLab job with what it extends."""
    spec: Json = whole[job]
    return extended(whole, spec["extends"]) | spec if "extends" in spec else spec


def _env(holder: Json, context: Json) -> dict[str, str]:
    return {key: expand(value, context) for key, value in holder.get("env", {}).items()}


def _run(
    shell: list[str], script: str, project: Path, env: Mapping[str, str], cancel_at: str | None = None
) -> Ran:
    """Run a step; one that is cancelled gets SIGINT, its first process alone (GitHub's workflow cancellation
    reference).
    """
    output = []
    with subprocess.Popen(
        shell,
        cwd=project,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(script)
        process.stdin.close()
        for line in process.stdout:
            output.append(line)
            if cancel_at and cancel_at in line:
                process.send_signal(signal.SIGINT)
    return Ran(process.returncode, "".join(output))


@dataclass
class Forge:
    """The comments API of GitHub and of GitLab; `comments` are those of the one request that there is."""

    address: str
    comments: list[Json] = field(default_factory=list)

    def github(self, token: str = "of-the-bot") -> dict[str, str]:
        """Return the variables of a job on GitHub."""
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_API_URL": self.address,
            "GITHUB_GRAPHQL_URL": f"{self.address}/graphql",
            "GITHUB_REPOSITORY": "ada/llms",
            "GITHUB_REF": "refs/pull/7/merge",
            "GITHUB_TOKEN": token,
        }

    def gitlab(self, token: str = "of-the-bot") -> dict[str, str]:
        """Return the variables of a job on GitLab."""
        return {
            "GITLAB_CI": "true",
            "CI_API_V4_URL": f"{self.address}/api/v4",
            "CI_PROJECT_ID": "5",
            "CI_MERGE_REQUEST_IID": "7",
            "GITLAB_TOKEN": token,
        }

    def said(self, marker: str) -> list[str]:
        """Return the comments that begin with a marker."""
        return [comment["body"] for comment in self.comments if comment["body"].startswith(marker)]


GITHUB_COMMENTS = "/repos/ada/llms/issues/7/comments"
GITHUB_COMMENT = "/repos/ada/llms/issues/comments/"
GITLAB_NOTES = "/api/v4/projects/5/merge_requests/7/notes"


@contextmanager
def forge() -> Iterator[Forge]:
    """Serve both APIs on loopback."""

    class Handler(BaseHTTPRequestHandler):
        """The comments of a pull request, as a forge's API has them."""

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if path == "/api/v4/user":
                self._answer(200, {"username": self._me()})
            elif path in (GITHUB_COMMENTS, GITLAB_NOTES):
                page = int(query.get("page", ["1"])[0])
                there = serving.comments[(page - 1) * PAGE : page * PAGE]
                more = len(serving.comments) > page * PAGE
                url = f"{serving.address}{path}?per_page={PAGE}&page={page + 1}"
                self._answer(200, there, {"Link": f'<{url}>; rel="next", <x>; rel="last"'} if more else {})
            else:
                self._answer(404, {"message": "Not Found"})

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/graphql":
                self._answer(200, {"data": {"viewer": {"login": self._me()}}})
            elif self.path in (GITHUB_COMMENTS, GITLAB_NOTES):
                author = {"user": {"login": self._me()}, "author": {"username": self._me()}}
                serving.comments.append({"id": 100 + len(serving.comments), "body": body["body"], **author})
                self._answer(201, serving.comments[-1])
            else:
                self._answer(404, {"message": "Not Found"})

        def do_PATCH(self) -> None:
            self._change(GITHUB_COMMENT)

        def do_PUT(self) -> None:
            self._change(f"{GITLAB_NOTES}/")

        def _change(self, path: str) -> None:
            body = self._body()
            for comment in serving.comments:
                if self.path == f"{path}{comment['id']}":
                    comment["body"] = body["body"]
                    return self._answer(200, comment)
            return self._answer(404, {"message": "Not Found"})

        def _body(self) -> Json:
            read: Json = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return read

        def _me(self) -> str | None:
            given = self.headers["PRIVATE-TOKEN"] or self.headers.get("Authorization", "").removeprefix(
                "Bearer "
            )
            return TOKENS.get(given)

        def _answer(self, status: int, body: object, headers: Mapping[str, str] = {}) -> None:
            if self._me() is None:
                status, body = 401, {"message": "Bad credentials"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with listening(Handler) as address:
        serving = Forge(address)
        yield serving
