"""Whatever others wrote, no command prints what a terminal or a runner obeys, or a reader does not see.

Others are whoever writes environments, commits, logs and names, and whatever answers at an address.
"""

import base64
import contextlib
import json
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllmjobs.box.overview import log_line
from vllmjobs.cli import main
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.environment.problems import UserError
from vllmjobs.model_cache import files
from vllmjobs.rollout.events import Event
from vllmjobs.supervisor.log.lines import event
from vllmjobs.terminal.printing import readable, show, tell
from vllmjobs.text.english import columns
from vllmjobs.text.visible import visible, visible_json
from vllmjobs_sandbox.fakes.listening import listening

UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # Unicode's categories
PIECES = [
    "\x1b]0;owned\x07", "\x1b[2J", "\x1bc", "\x9b31m", "\x7f", "\x00", "\r", "\n", "\n::stop-commands::x\n",
    "::error::x", "##[add-mask]x", "\t", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u200b", "\ufeff",
    "\xad", "\ue000", "\U000e0041", "\U0010fffd", "\ufe0f", "\u3164", "é", "a", "/", " ", "'", '"', "{", "%",
]  # fmt: skip
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def some(share: float) -> settings:
    """So much of the usual number of examples, each of which runs commands."""
    return settings(max_examples=max(2, int(settings().max_examples * share)), suppress_health_check=SHARED)


def unseen(text: str) -> str:
    """The characters of a printed text that should not be there."""
    return "".join(ascii(one) for one in text if one != "\n" and unicodedata.category(one) in UNSEEN)


def harm(text: str) -> str:
    """These, and the lines that a runner obeys; empty where all is well."""
    return unseen(text) + "".join(
        line for line in text.split("\n") if line.lstrip().startswith("::") or "##[" in line
    )


def run(*arguments: str, code: tuple[int, ...] = (0, 1, 2, 3, 4), orders: bool = False) -> str:
    """Run a command; assert that its output is harmless, and return it."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in code, done.output
    for stream in (done.stdout, done.stderr):
        assert not harm(re.sub("(?m)^::(error|warning|notice) ", "", stream) if orders else stream), arguments
    return done.output


def environment(text: str) -> dict[str, Any]:
    """An environment with a text wherever one may stand that is not held to a form."""
    return {
        "nomad": {"datacenters": [text], "constraints": [{"attribute": "${node.class}", "value": text}]},
        "models": {
            "chat": {
                "model": f"m{text}", "served_name": f"s{text}", "image": f"i{text}", "entrypoint": [text],
                "env": {"PLAIN": text}, "args": {"revision": text, "chat-template": text}, "vllm": "0.24.0",
                "config": text, "gpus": {"model": text},
            },
        },
    }  # fmt: skip


def wrong(text: str) -> dict[str, Any]:
    """An environment with errors that quote a text: as a key, a name, and a value of another type."""
    return {
        text: 1,
        "job": text,
        "models": {
            text: {"model": "a"},
            "chat": {"model": "a", "replicas": text, "vllm": text, f"k{text}": text},
        },
    }


def write(project: Path, given: dict[str, Any], name: str = "dev") -> None:
    (project / "envs").mkdir(exist_ok=True)
    (project / "envs" / f"{name}.yaml").write_text(yaml.safe_dump(given))


def git(project: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    subprocess.run(["git", *who, *arguments], cwd=project, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    write(tmp_path, {"models": {"chat": {"model": "a"}}})
    git(tmp_path, "init", "-qb", "main")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


@given(HOSTILE)
def test_a_text_is_readable_and_json_stays_the_same_value(text: str) -> None:
    assert not harm(readable(text))
    assert "\n" not in visible(text)
    assert visible(visible(text)) == visible(text)
    written = json.dumps({"a": text}, indent=2, ensure_ascii=False)
    assert json.loads(visible_json(written)) == {"a": text}
    assert not unseen(visible_json(written))


@some(0.5)
@given(HOSTILE, st.sampled_from([environment, wrong]))
def test_a_hostile_environment_commands_nothing(project: Path, text: str, kind: Any) -> None:
    write(project, kind(text))
    run("check")
    run("check", "dev", "--format", "github", orders=True)
    for form in ("json", "sarif"):
        printed = CliRunner().invoke(main, ["check", "--format", form]).stdout
        assert not harm(printed)
        json.loads(printed)
    run("check", "--against", "HEAD")
    run("diff", "dev")
    run("diff", "dev", "--format", "markdown")
    run("size", "dev")
    stderr = CliRunner().invoke(main, ["render", "dev"]).stderr  # stdout is HCL, byte by byte
    assert not harm(stderr)


@some(0.5)
@given(HOSTILE)
def test_a_hostile_env_file_commands_nothing(project: Path, text: str) -> None:
    """The environment is a text with escapes of YAML; the notes beside it are for people."""
    keys = ("VLLM_MODEL", "VLLM_MODEL_NAME", "VLLM_EXTRA_ARGS", "HF_HOME", text)
    (project / ".env").write_bytes("".join(f"{key}={text}\n" for key in keys).encode())
    done = CliRunner().invoke(main, ["import", ".env", "--as", "-"])
    assert not unseen(done.stdout)
    assert not harm(done.stderr)


@some(0.2)
@given(HOSTILE)
def test_a_hostile_commit_commands_nothing(project: Path, text: str) -> None:
    """Its branch, its files, its environment and its template."""
    git(project, "switch", "-qC", "evil", "main")
    write(project, environment(text))
    name = text.replace("/", "").replace("\0", "") or "x"
    with contextlib.suppress(OSError):
        write(project, wrong(text), name)
    (project / "jobs").mkdir(exist_ok=True)
    (project / "jobs/vllm.nomad.hcl.j2").write_bytes(f'[[ nothing["{text}"] ]] [% {text} %]'.encode())
    git(project, "add", "-A")
    git(project, "commit", "-qm", text.replace("\0", "") or "x", "--allow-empty", "--allow-empty-message")
    git(project, "switch", "-q", "main")
    run("diff", "--against", "evil")
    run("check", "--against", "evil")
    run("diff", "--against", text.replace("\0", ""))
    run("check", "--against", text.replace("\0", ""))
    git(project, "clean", "-qfd")


WITHOUT_PROJECT = {"schema", "explain", "init", "import", "gpus", "up"}
COMMANDS = sorted(main.commands)


@some(0.1)
@given(HOSTILE.map(lambda text: text.replace("\0", "")))
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_typed_commands_nothing_when_it_is_quoted(command: str, project: Path, text: str) -> None:
    run(text)
    run(command, f"--{text}")
    run(command, "dev", "a", "b", text)
    if command not in WITHOUT_PROJECT:
        run(command, f"x{text}", "--project", str(project / f"p{text}"))
        run(command, "dev", "--set", f"{text}={text}", "--project", str(project))


@contextlib.contextmanager
def answering(status: int, body: Any, reason: str) -> Iterator[str]:
    """A server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = body(self.path) if callable(body) else body
            line = f"HTTP/1.0 {status} {reason}".replace("\r", "").replace("\n", "")
            self.wfile.write(line.encode() + b"\r\nX-Nomad-Index: 1\r\n\r\n" + content.encode())

        def log_message(self, *_: Any) -> None:
            pass

    for method in ("PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.do_GET)
    with listening(Handler) as address:
        yield address


ASKING = [
    ["status", "dev"], ["history", "dev"], ["logs", "dev"], ["plan", "dev"], ["deploy", "dev"],
    ["gpus", "--nomad"], ["promote", "dev"], ["abort", "dev"], ["rollback", "dev"],
    ["deploy", "dev", "--json", "--timeout", "1s"],
]  # fmt: skip


@some(0.1)
@given(text=HOSTILE, status=st.sampled_from([400, 403, 404]))
def test_a_hostile_server_commands_nothing(project: Path, text: str, status: int) -> None:
    """Whichever error it answers: as its body, its reason phrase, and in JSON."""
    with pytest.MonkeyPatch.context() as patch:
        for body in (text, json.dumps({"errors": [text]})):
            with answering(status, body, text) as address:
                patch.setenv("NOMAD_ADDR", address)
                patch.setenv("CONSUL_HTTP_ADDR", address)
                for command in ASKING:
                    run(*command)


def of_nomad(text: str) -> Any:
    """A Nomad whose every name, description and log is a text."""
    config = {"image": text, "args": ["serve", text]}
    group = {"Name": "chat", "Count": 1, "Tasks": [{"Name": "vllm", "Driver": "docker", "Config": config}]}
    job = {
        "ID": "vllm-dev", "Name": "vllm-dev", "Version": 1, "Stable": True, "SubmitTime": 1,
        "TaskGroups": [group], "Status": text, "Type": "service", "Namespace": "default", "JobModifyIndex": 1,
        "Stop": False, "Meta": {"a": text}, "CreateIndex": 1, "StatusDescription": text,
    }  # fmt: skip
    deployment = {
        "ID": text, "JobVersion": 1, "Status": text, "StatusDescription": text, "TaskGroups": {},
        "CreateIndex": 1, "JobID": "vllm-dev", "ModifyIndex": 1, "JobCreateIndex": 1, "JobModifyIndex": 1,
        "Namespace": "default",
    }  # fmt: skip
    allocation = {
        "ID": "0" * 36, "Name": "vllm-dev.chat[0]", "TaskGroup": "chat", "CreateIndex": 1,
        "ClientStatus": "running", "DesiredStatus": "run", "JobVersion": 1, "NodeName": text, "NodeID": text,
        "JobID": "vllm-dev", "ClientDescription": text, "TaskStates": {}, "DeploymentStatus": None,
        "Namespace": "default", "AllocatedResources": None, "ModifyIndex": 1, "CreateTime": 1,
        "ModifyTime": 1,
    }  # fmt: skip
    record = {"version": 1, "at": "", "by": text, "reason": text, "now": text}
    device = {
        "Type": "gpu", "Vendor": "nvidia", "Name": text, "Attributes": {"driver_version": {"String": text}},
        "Instances": [{"ID": text, "Healthy": False, "HealthDescription": text}],
    }  # fmt: skip
    node = {
        "ID": "0" * 36, "Name": text, "Datacenter": text, "Status": "ready", "SchedulingEligibility": text,
        "NodeResources": {"Devices": [device]}, "Meta": {"vllmjobs_gpu_fenced": text},
    }  # fmt: skip
    frame = json.dumps({"Data": base64.b64encode(f"{text}\n{text}\n".encode()).decode()})
    answers = {
        "/v1/job/vllm-dev": job,
        "/v1/job/vllm-dev/versions": {"Versions": [job]},
        "/v1/job/vllm-dev/deployments": [deployment],
        "/v1/allocations": [allocation],
        "/v1/nodes": [node],
        f"/v1/node/{node['ID']}": node,
        "/v1/var/vllmjobs/releases/vllm-dev": {"Items": {"v1": json.dumps(record)}, "ModifyIndex": 1},
    }

    def answer(path: str) -> str:
        if "/logs/" in path:
            return frame
        return json.dumps(answers.get(path.partition("?")[0], []))

    return answer


@some(0.2)
@given(text=HOSTILE)
def test_what_runs_in_a_cluster_commands_nothing(project: Path, text: str) -> None:
    with answering(200, of_nomad(text), "OK") as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOMAD_ADDR", address)
        patch.setenv("CONSUL_HTTP_ADDR", address)
        run("history", "dev", code=(0,))
        run("status", "dev", code=(0,))
        run("gpus", "--nomad", code=(0,))
        assert "chat 00000000 | " in run("logs", "dev", "--stdout", code=(0,))
        for command in (["history", "dev", "--json"], ["gpus", "--nomad", "--json"]):
            printed = CliRunner().invoke(main, command).stdout
            assert not harm(printed)
            json.loads(printed)


@given(HOSTILE, st.booleans())
def test_a_log_of_a_box_commands_nothing(text: str, is_json: bool) -> None:
    """A line of a server, as the supervisor writes it, as `up` and `logs` print it."""
    written = event("started", "INFO", 0.0, "chat-0", {"message": text, f"k{text}": text}).decode()
    assert not unseen(written.rstrip("\n"))
    line = log_line(written if is_json else text, {"chat-0"})
    assert line is not None
    assert not harm(readable(line))
    assert not is_json or all(one.startswith("chat-0 | ") for one in line.split("\n"))


def test_a_secret_behind_what_is_spelt_out_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    token = f"hf_{'a' * 34}"
    for before in ("\n", "\t", "\x1b"):
        error, record = UserError(f"{before}{token}"), json.dumps({"message": f"{before}{token}"})
        for printed in (columns([[f"{before}{token}", "x"]]), str(error), log_line(record, ())):
            show(f"{printed}\n")
        tell(f"{before}{token}")
    assert token not in "".join(capsys.readouterr())


@given(HOSTILE)
def test_an_error_keeps_its_own_lines_and_no_others(text: str) -> None:
    assert str(UserError(f"first {text}", "second")).count("\n") == 1
    assert not harm(readable(str(UserError(text))))


@some(1)
@given(HOSTILE)
def test_an_event_of_a_release_commands_nothing(text: str) -> None:
    for in_json in (False, True):
        with CliRunner().isolation() as (stdout, *_), Reporter(in_json) as reporter:
            reporter.begin(text, 1)
            reporter.tell(Event("warning", text, text, {"a": text}))
            printed = stdout.getvalue().decode()
        assert not harm(printed)
        assert printed.count("\n") == 1


@given(HOSTILE)
def test_what_a_hub_or_a_store_says_commands_nothing_in_the_log_of_a_task(text: str) -> None:
    assert not unseen(files.visible(text))


def test_our_own_colours_are_kept_and_others_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    show("\x1b[32m+ ours\x1b[0m\n", painted=True)
    show("\x1b[32mtheirs\n")
    tell("a\nb")
    printed = capsys.readouterr()
    assert printed.out == "\x1b[32m+ ours\x1b[0m\n\\x1b[32mtheirs\n"
    assert printed.err == "a\\nb\n"
