"""What a command prints for a person to type next does, typed as printed, what was promised."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.cli import main
from vllmjobs.cli.common import Selection
from vllmjobs.cli.following import INTERRUPTS, following
from vllmjobs_sandbox.fakes.listening import listening

PROD = """
job: vllm-prod
balancer: {kind: none}
models:
  chat:
    model: facebook/opt-125m
    gpus: {memory: 7 GiB}
    cache: {bind: /srv/models}
"""
DENIED = (403, "Permission denied")
ARGUMENTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@dataclass
class Nomad:
    """A stand-in for Nomad's API: what it was asked to parse, register and keep, and what runs on it."""

    has_room: bool = True
    running: dict[str, Any] | None = None
    parsed: list[str] = field(default_factory=list)
    registered: list[str] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    address: str = ""

    def answer(self, method: str, path: str, body: Any, token: str) -> Any:
        """Return the answer as JSON, or its status and text."""
        match method, *path.removeprefix("/v1/").split("/"):
            case "POST", "jobs", "parse":
                self.parsed.append(body["JobHCL"])
                return self.job(body["JobHCL"])
            case "POST", "job", _, "plan":
                failed = {} if self.has_room else {"FailedTGAllocs": {"chat": {"NodesEvaluated": 0}}}
                diff: dict[str, Any] = {"Type": "Edited" if self.running else "Added", "TaskGroups": []}
                updates = {"DesiredTGUpdates": {"chat": {"Place": 1}}}
                index = self.running["JobModifyIndex"] if self.running else 0
                return {"Diff": diff, "Annotations": updates, "JobModifyIndex": index, **failed}
            case "POST", "jobs":
                self.registered.append(body["Submission"]["Source"])
                return DENIED
            case "GET", "acl", "token", "self":
                return {"AccessorID": token, "Name": token}
            case "GET", "var", *_:
                return self.variables.get(path, (404, "variable not found"))
            case "POST", "var", *_:
                self.variables[path] = body | {"ModifyIndex": 1}
                return self.variables[path]
            case "GET", "job", _:
                return self.running or (404, "job not found")
            case "GET", "job", _, "versions":
                return {"Versions": [self.running] if self.running else []}
            case "GET", "job", _, "deployment":
                return None
            case _:
                return []

    @staticmethod
    def job(hcl: str) -> dict[str, Any]:
        (id,) = re.findall(r'^job "(.*)" \{$', hcl, re.MULTILINE)
        group = {
            "Name": "chat",
            "Count": 1,
            "Tasks": [{"Name": "vllm", "Driver": "docker", "Config": {"args": ["a/model"]}}],
        }
        return {
            "ID": id,
            "Namespace": "default",
            "Region": "global",
            "Type": "service",
            "TaskGroups": [group],
        }


@pytest.fixture
def nomad(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nomad]:
    nomad = Nomad()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = unquote(urlsplit(self.path).path)
            answer = nomad.answer(self.command, path, body, self.headers.get("X-Nomad-Token") or "")
            status, text = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
            text = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815 (the name is BaseHTTPRequestHandler's)

        def log_message(self, *_: object) -> None: ...

    for name in ("NOMAD_TOKEN", "NOMAD_NAMESPACE", "NOMAD_REGION", "VLLMJOBS_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with listening(Handler) as nomad.address:
        monkeypatch.setenv("NOMAD_ADDR", nomad.address)
        yield nomad


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose folder a shell would read as two words."""
    folder = tmp_path / "my llms"
    (folder / "envs").mkdir(parents=True)
    (folder / "envs/prod.yaml").write_text(PROD)
    return folder


def run(*words: str, **env: str) -> Result:
    done = CliRunner().invoke(main, words, env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def typed(line: str, **env: str) -> Result:
    """Type what was printed, as a shell splits it."""
    program, *words = shlex.split(line)
    assert program == "vllmjobs"
    return run(*words, **env)


def selected_by(line: str) -> Selection:
    """Return what a printed command selects, read by the command itself."""
    name, *words = shlex.split(line)[1:]
    params = main.commands[name].make_context(name, words).params
    return Selection(params["env"], params["settings"], params["project"], params.get("job"))


def found(pattern: str, text: str) -> str:
    (match,) = re.findall(pattern, text)
    return str(match)


@given(env=ARGUMENTS, settings=st.lists(ARGUMENTS), project=ARGUMENTS, job=ARGUMENTS)
def test_a_command_selects_what_it_was_made_from_whatever_a_shell_would_read_into_it(
    env: str, settings: list[str], project: str, job: str
) -> None:
    selection = Selection(env.lstrip("-") or "prod", tuple(settings), Path(project), job)
    for command in ("plan", "deploy", "render"):
        assert selected_by(selection.command(command)) == selection
    for command in ("approve", "promote", "abort", "rollback", "status", "logs"):
        assert selected_by(selection.command(command)) == selection.of_all_jobs()


def test_the_project_is_named_where_a_shell_would_take_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLMJOBS_PROJECT", raising=False)
    assert Selection("prod").command("render") == "vllmjobs render prod"
    monkeypatch.setenv("VLLMJOBS_PROJECT", "/srv/llms")
    assert Selection("prod").command("render") == "vllmjobs render prod --project ."
    assert Selection("prod", project=Path("/srv/llms")).command("render") == "vllmjobs render prod"


def test_a_token_in_a_setting_is_not_printed() -> None:
    token = "hf_" + "a" * 30
    assert Selection("prod", (f"env.X={token}",)).command("plan") == "vllmjobs plan prod --set env.X=…"


@pytest.mark.parametrize("command", ["plan", "deploy"])
@pytest.mark.parametrize("job", [None, "vllm", "prometheus"])
def test_to_make_this_change_renders_the_job_that_was_planned(
    command: str, job: str | None, nomad: Nomad, project: Path
) -> None:
    nomad.has_room = False
    only = ["--job", job] if job else []
    settings = ["--set", "models.chat.max_model_len=512", "--set", "monitoring.prometheus={}"]
    done = run(command, "prod", *settings, "--project", str(project), *only)
    assert done.exit_code == 3, done.stderr
    lines = re.findall(r"to make this change: (.*) \| nomad job run", done.output)
    assert [typed(line).stdout for line in lines] == nomad.parsed
    assert len(lines) == (1 if job else 2)


def test_a_job_that_is_run_by_hand_is_refused_with_the_command_that_renders_it(project: Path) -> None:
    settings = ("--set", "models.chat.cache={bind: /srv/other}")
    done = run("plan", "prod", *settings, "--project", str(project), "--job", "prefetch")
    assert done.exit_code == 1
    rendered = typed(found(r"by hand: (.*) \| nomad job run -", done.stderr))
    assert rendered.stdout.startswith('job "vllm-prod-prefetch" {')
    assert "/srv/other" in rendered.stdout


def test_the_approval_that_others_are_asked_for_is_of_the_change_that_was_refused(
    nomad: Nomad, project: Path
) -> None:
    settings = ["--set", "approvals=1", "--set", "models.chat.replicas=3"]
    deploy = ["deploy", "prod", *settings, "--project", str(project)]
    refused = run(*deploy, NOMAD_TOKEN="dan")
    assert refused.exit_code == 4
    line = found(r"; one other person must run (vllmjobs .*)", refused.stderr)
    approved = typed(line, NOMAD_TOKEN="ann")
    assert "1 of 1 approvals" in approved.stdout, approved.stderr
    run(*deploy, NOMAD_TOKEN="dan")
    assert nomad.registered == nomad.parsed[-1:], "the gate is open"


def test_status_says_how_to_go_on_with_the_same_environment(nomad: Nomad, project: Path) -> None:
    words = ["prod", "--set", "models.chat.max_model_len=512", "--project", str(project)]
    rendered = run("render", *words).stdout
    nomad.running = Nomad.job(rendered) | {"Version": 3, "Stop": True, "JobModifyIndex": 7}
    line = found(r"next:\n  (vllmjobs .*)  start it again", run("status", *words).stdout)
    typed(line)
    assert nomad.registered == [rendered]


@pytest.mark.parametrize("command", ["status", "history"])
def test_a_job_that_is_not_there_is_started_by_the_command_that_is_printed(
    command: str, nomad: Nomad, project: Path
) -> None:
    words = ["prod", "--set", "models.chat.max_model_len=512", "--project", str(project)]
    nomad.has_room = False
    absent = run(command, *words)
    assert absent.exit_code == 1
    assert typed(found(r"`(vllmjobs .*)` starts it", absent.stderr)).exit_code == 3
    assert nomad.parsed == [run("render", *words).stdout]


def test_abort_without_canaries_names_the_rollback_of_the_same_job(nomad: Nomad, project: Path) -> None:
    words = ["prod", "--set", "job=other", "--project", str(project)]
    nomad.running = Nomad.job('job "other" {') | {"Version": 3, "JobModifyIndex": 7}
    refused = run("abort", *words)
    line = found(r"`(vllmjobs rollback .*)` goes back", refused.stderr)
    assert selected_by(line) == Selection("prod", ("job=other",), project)


@pytest.mark.parametrize("number", [signal.SIGINT, *INTERRUPTS])
@pytest.mark.parametrize("job, is_way_back", [("vllm-prod", False), ("vllm-prod", True), ("fabio", False)])
def test_an_interrupt_names_the_commands_that_go_on_with_this_release(
    number: signal.Signals, job: str, is_way_back: bool, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in INTERRUPTS]
    selection = Selection("prod", ("models.chat.replicas=3",), project, "vllm")
    resume = selection.command("deploy", "--now", "it cannot wait")
    with (
        pytest.raises(click.exceptions.Exit) as ended,
        following(selection, resume, False, (), is_release=True) as reporter,
    ):
        reporter.begin(job, 3, is_way_back)
        signal.raise_signal(number)
    assert ended.value.exit_code == 1
    lines = dict(re.findall(r"`(vllmjobs .*?)` (\w+ ?\w*)", capsys.readouterr().err))
    names = [line.split()[1] for line in lines]
    if is_way_back:
        assert names == ["rollback"]
    else:
        assert names == (["deploy", "promote", "abort"] if job == "vllm-prod" else ["deploy"])
        assert "--now 'it cannot wait'" in next(iter(lines))
    for line in lines:
        is_of_one_job = line.split()[1] == "deploy"
        assert selected_by(line) == (selection if is_of_one_job else selection.of_all_jobs())
    assert [signal.getsignal(each) for each in INTERRUPTS] == before, "as they were"


def test_the_way_back_of_a_balancer_is_not_the_rollback_of_the_models(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    selection = Selection("prod", project=project)
    with (
        pytest.raises(click.exceptions.Exit),
        following(selection, selection.command("deploy"), False, (), is_release=True) as reporter,
    ):
        reporter.begin("fabio", 3, is_way_back=True)
        raise KeyboardInterrupt
    hint = "the release is left as it is: Nomad goes on with the rollback of fabio\n"
    assert capsys.readouterr().err == hint


def test_a_box_that_is_not_up_is_started_by_the_command_that_is_printed(
    project: Path, tmp_path: Path
) -> None:
    state = str(tmp_path / "the state")
    done = run("reload", "prod", "--set", "job=other", "--state", state, "--project", str(project))
    line = found(r"other is not up on this machine; (vllmjobs up .*) starts it", done.stderr)
    assert selected_by(line) == Selection("prod", ("job=other",), project)
    assert shlex.split(line)[3:5] == ["--state", state]


def test_init_and_import_name_commands_that_work_in_a_folder_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "new project"
    line = found(r"next: (.*)\n", run("init", str(folder)).stderr)
    assert typed(line).stdout.startswith('job "vllm-dev" {\n')
    (tmp_path / ".env").write_text("VLLM_MODEL=facebook/opt-125m\n")
    done = run("import", str(tmp_path / ".env"), "--as", "one", "--project", str(folder))
    assert typed(found(r"next: (.*)\n", done.stderr)).exit_code == 0


def test_a_project_without_environments_is_filled_by_the_command_that_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "new project"
    refused = run("check", "--project", str(folder))
    assert typed(found(r"has no environments; (.*) writes some", refused.stderr)).exit_code == 0
    assert run("check", "--project", str(folder)).exit_code == 0
