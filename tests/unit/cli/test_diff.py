"""`vllmjobs diff`: what a change does to the running jobs, from files and commits alone."""

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vllmjobs.changes.jobs import jobspec
from vllmjobs.cli import main
from vllmjobs.project.shipped import shipped

BASE = """
defaults:
  supervised: false
  image: example.com/vllm:1
  vllm: 0.33.0
  max_model_len: 2048
  gpus: {memory: 70 GiB}
"""
PROD = """
extends: base.yaml
models:
  chat:
    model: meta-llama/Llama-3.1-8B-Instruct
    replicas: 2
    rollout: {strategy: canary, canaries: 1}
  code:
    model: Qwen/Qwen2.5-Coder-7B-Instruct
    route: {path: /code/v1/, strip: /code}
"""
DEV = PROD.replace("replicas: 2", "replicas: 1")


class Project:
    """A repository with two environments, and all that a person does to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("base", BASE), ("prod", PROD), ("dev", DEV)):
            self.write(f"envs/{name}.yaml", text)
        self.git("init", "-q", "-b", "main")
        self.commit()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "one")

    def diff(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["diff", "--project", str(self.folder), *arguments])

    def jobs(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """What `--format json` says of each job, by environment and job."""
        done = self.diff("--format", "json", *arguments)
        assert done.exit_code in (0, 2), done.output
        return {
            f"{environment['name']}/{job['id']}": job
            for environment in json.loads(done.stdout)["environments"]
            for job in environment["jobs"]
        }

    def actions(self, *arguments: str) -> dict[str, list[str]]:
        """What becomes of each group that does not stay as it is: environment/group to actions."""
        return {
            f"{name.partition('/')[0]}/{group['name']}": group["actions"]
            for name, job in self.jobs(*arguments).items()
            for group in job["groups"]
            if group["actions"]
        }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# What is a change


@pytest.mark.parametrize(
    "fault",
    [
        "{driver: raw_exec, entrypoint: [], image: null, user: vllm}",
        "{driver: raw_exec, entrypoint: [/v, serve], image: null, user: vllm, cache: {volume: v}}",
        "{logs: {driver: fluentd}}",
        "{replicas: 50000, health: {interval: 0s}}",
    ],
)
def test_another_side_that_check_refuses_is_compared_or_said_to_be_at_fault(
    project: Project, fault: str
) -> None:
    project.write("envs/old.yaml", "extends: prod.yaml\njob: vllm-prod\nmodels: {chat: " + fault + "}\n")
    done = project.diff("prod", "--against", "envs/old.yaml")
    assert done.exit_code in (1, 2), done.exception
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.output


def test_nothing_changed_since_the_last_commit(project: Project) -> None:
    done = project.diff()
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count("no changes (against HEAD)") == 4


@pytest.mark.parametrize(
    "reword",
    [
        lambda text: f"# why\n{text}",
        lambda text: text.replace("replicas: 2", "replicas:    2   # two"),
        lambda text: text.replace("strategy: canary, canaries: 1", "canaries: 1, strategy: canary"),
        lambda text: text.replace("    replicas: 2\n", "").replace("  chat:\n", "  chat:\n    replicas: 2\n"),
        lambda text: text.replace("extends: base.yaml\n", "") + BASE.lstrip(),
    ],
    ids=["a comment", "layout", "order in a line", "order of lines", "where it is said"],
)
def test_what_renders_the_same_is_no_change(project: Project, reword: Callable[[str], str]) -> None:
    project.write("envs/prod.yaml", reword(PROD))
    assert project.git("status", "--porcelain")
    assert project.diff("prod").exit_code == 0


def test_order_layout_and_comments_of_a_template_are_no_change(project: Project) -> None:
    text = (shipped("jobs") / "vllm.nomad.hcl.j2").read_text()
    one, other = "      canary = [[ group.canaries ]]", "      max_parallel = [[ rollout.max_parallel ]]"
    assert f"{one}\n{other}\n" in text
    swapped = text.replace(f"{one}\n{other}\n", f"{other} # at once\n\n\n{one}\n")
    project.write("jobs/vllm.nomad.hcl.j2", f"# ours\n{swapped}")
    assert project.diff().exit_code == 0


def test_a_change_of_what_others_extend_reaches_each_of_them(project: Project) -> None:
    project.replace("envs/base.yaml", "max_model_len: 2048", "max_model_len: 1024")
    everywhere = {f"{env}/{model}" for env in ("dev", "prod") for model in ("chat", "code")}
    assert set(project.actions()) == everywhere
    assert set(project.actions("prod")) == {"prod/chat", "prod/code"}


def test_the_other_side_has_its_own_templates_and_what_they_include(project: Project) -> None:
    shipped_text = (shipped("jobs") / "vllm.nomad.hcl.j2").read_text()
    including = shipped_text.replace("    network {", '[% include "meta.j2" %]\n    network {', 1)
    project.write("jobs/vllm.nomad.hcl.j2", including)
    project.write("jobs/meta.j2", '    meta {\n      team = "one"\n    }\n')
    assert project.actions("prod") == {"prod/chat": ["destructive"], "prod/code": ["destructive"]}
    project.commit()
    assert project.actions("prod") == {}
    project.replace("jobs/meta.j2", "one", "two")
    (field,) = project.jobs("prod")["prod/vllm-prod"]["groups"][0]["fields"]
    assert (field["path"], field["before"], field["after"], field["replaces"]) == (
        ["meta", "team"], "one", "two", True,
    )  # fmt: skip
    (project.folder / "jobs/vllm.nomad.hcl.j2").unlink()  # back to the shipped one
    assert project.actions("prod") == {"prod/chat": ["destructive"], "prod/code": ["destructive"]}


def test_a_change_says_what_nomad_does_with_each_group(project: Project) -> None:
    project.replace("envs/prod.yaml", "replicas: 2", "replicas: 3")
    project.replace("envs/prod.yaml", "    route:", "    max_model_len: 1024\n    route:")
    assert project.actions("prod") == {"prod/chat": ["scale-up"], "prod/code": ["destructive"]}
    assert project.diff("prod").stdout.splitlines()[0] == (
        "prod: vllm-prod changes: 1 group replaced (canaries first), 1 scaled up (against HEAD)"
    )


# Jobs and groups that come and go


def test_a_model_comes_and_another_goes(project: Project) -> None:
    project.replace("envs/prod.yaml", "  code:", "  coder:")
    assert project.actions("prod") == {"prod/coder": ["new"], "prod/code": ["gone"]}


def test_environments_that_come_and_go_are_named_though_nobody_names_them(project: Project) -> None:
    (project.folder / "envs/dev.yaml").unlink()
    project.write("envs/next.yaml", PROD.replace("extends", "job: vllm-next\nextends"))
    found = {name: job["action"] for name, job in project.jobs().items()}
    assert found == {
        "dev/vllm-dev": "gone", "dev/vllm-dev-fabio": "gone",
        "next/vllm-next": "new", "next/vllm-next-fabio": "new",
        "prod/vllm-prod": "none", "prod/vllm-prod-fabio": "none",
    }  # fmt: skip
    assert "nomad job stop vllm-dev" in project.diff().stdout


@pytest.mark.parametrize(
    "said", ["job: vllm-other", "nomad: {namespace: llm}", "nomad: {region: eu}"], ids=str
)
def test_under_another_name_namespace_or_region_it_is_another_job(project: Project, said: str) -> None:
    project.write("envs/prod.yaml", f"{said}\n{PROD}")
    found = [job["action"] for job in json.loads(project.diff("prod", "--format", "json").stdout)
             ["environments"][0]["jobs"] if job["job"] == "vllm"]  # fmt: skip
    assert found == ["gone", "new"]


# The other side


def test_a_branch_is_the_other_side_and_the_work_tree_is_not_touched(project: Project) -> None:
    project.git("checkout", "-qb", "more")
    project.replace("envs/prod.yaml", "replicas: 2", "replicas: 4")
    project.commit()
    project.write("envs/dev.yaml", "not: yet: yaml")
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*") if ".git" not in path.parts}
    assert project.actions("prod", "--against", "main") == {"prod/chat": ["scale-up"]}
    assert project.actions("prod", "--against", "HEAD") == {}
    after = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*") if ".git" not in path.parts}
    assert after == before
    assert project.git("status", "--porcelain") == " M envs/dev.yaml\n"
    assert project.git("branch", "--show-current") == "more\n"


def test_a_hook_of_gits_is_no_obstacle(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere"))
    assert project.diff("prod").exit_code == 0


def test_a_project_below_the_top_of_its_repository(tmp_path: Path) -> None:
    project = Project(tmp_path)
    below = tmp_path / "llms"
    below.mkdir()
    (tmp_path / "envs").rename(below / "envs")
    project.commit()
    (below / "envs/prod.yaml").write_text(PROD.replace("replicas: 2", "replicas: 3"))
    done = CliRunner().invoke(main, ["diff", "--project", str(below), "--no-color"])
    assert done.exit_code == 2
    assert "scale up 2 → 3" in done.stdout


def test_another_environment_is_compared_as_if_it_were_the_same_job(project: Project) -> None:
    found = project.jobs("prod", "--against", "dev")["prod/vllm-prod"]
    assert [(field["before"], field["after"]) for field in found["fields"] if field["path"] == ["id"]] == [
        ("vllm-dev", "vllm-prod")
    ]
    chat = found["groups"][0]
    assert (chat["name"], chat["count_before"], chat["count_after"]) == ("chat", 1, 2)


def test_another_file_is_the_other_side(project: Project, tmp_path: Path) -> None:
    project.write("envs/other.yaml", PROD.replace("replicas: 2", "replicas: 1"))
    other = tmp_path / "envs/other.yaml"
    done = project.diff("prod", "--against", str(other), "--format", "json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["environments"][0]["jobs"][0]["groups"][0]["actions"] == [
        "in-place", "scale-up",
    ]  # fmt: skip


def test_what_was_rendered_once_is_the_other_side(project: Project, tmp_path: Path) -> None:
    for job in ("vllm", "fabio"):
        file = tmp_path / f"{job}.hcl"
        rendered = CliRunner().invoke(
            main, ["render", "--project", str(project.folder), "prod", "--job", job]
        )
        file.write_text(rendered.stdout)
        assert list(project.jobs("prod", "--against", str(file))) == [
            f"prod/{jobspec.read(rendered.stdout, job).id}"
        ]
        assert project.diff("prod", "--against", str(file)).exit_code == 0
    file = tmp_path / "vllm.hcl"
    file.write_text(file.read_text().replace('vllm:1"', 'vllm:0"'))
    assert project.actions("prod", "--against", str(file)) == {
        "prod/chat": ["destructive"], "prod/code": ["destructive"],
    }  # fmt: skip


def test_what_is_set_is_set_on_this_side_only(project: Project) -> None:
    assert project.actions("prod", "--set", "models.chat.replicas=5") == {"prod/chat": ["scale-up"]}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("nowhere", "--against nowhere: nowhere is no commit; it must be a commit that this clone has"),
        ("", "--against : "),
        ("--help", "--against --help: --help is no commit"),
        ("nowhere.yaml", "nowhere.yaml: does not exist"),
        ("nowhere.hcl", "nowhere.hcl: No such file or directory"),
    ],
)
def test_another_side_that_is_not_there(project: Project, other: str, said: str) -> None:
    done = project.diff("prod", f"--against={other}")
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr


def test_another_side_that_is_no_environment_is_not_read(project: Project, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("very-secret")
    done = project.diff("prod", "--against", str(tmp_path / "token"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "very-secret" not in done.stderr


def test_a_pool_that_shares_no_node_with_the_old_one_replaces_all(project: Project) -> None:
    change = ("prod", "--set", "nomad.node_pool=other")
    assert project.actions(*change) == {"prod/chat": ["destructive"], "prod/code": ["destructive"]}
    assert project.actions("prod", "--set", "nomad.node_pool=all") == {
        "prod/chat": ["in-place"], "prod/code": ["in-place"],
    }  # fmt: skip


def test_what_goes_before_a_canary_is_tried_is_said(project: Project) -> None:
    done = project.diff("prod", "--set", "models.chat.replicas=1", "--set", "models.chat.max_model_len=99")
    assert "scale down 2 → 1 at once, before any canary is tried" in done.stdout


def test_a_name_that_is_a_branch_and_an_environment_is_not_guessed(project: Project) -> None:
    project.git("branch", "dev")
    done = project.diff("prod", "--against", "dev")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        f"--against dev names a commit and an environment; "
        f"write heads/dev or {project.folder}/envs/dev.yaml\n"
    )
    assert project.actions("prod", "--against", "heads/dev") == {}
    assert "prod/chat" in project.actions("prod", "--against", str(project.folder / "envs/dev.yaml"))


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/prod.yaml").write_text(PROD)
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = CliRunner().invoke(main, ["diff", "--project", str(tmp_path), "prod"], env=env)
    assert done.exit_code == 1
    assert "--against HEAD: not a git repository" in done.stderr


# What cannot be rendered


def test_errors_of_this_side_are_all_said_and_nothing_is_compared(project: Project) -> None:
    project.replace("envs/dev.yaml", "replicas: 1", "replica: 1")
    project.replace("envs/prod.yaml", "model: meta-llama", "modle: meta-llama")
    done = project.diff()
    assert (done.exit_code, done.stdout) == (1, "")
    assert "dev.yaml:6:5: models.chat.replica: " in done.stderr
    assert "prod.yaml:5:5: models.chat.modle: " in done.stderr


def test_errors_of_the_other_side_are_said_with_its_name(project: Project) -> None:
    project.replace("envs/prod.yaml", "replicas", "replica")
    project.commit()
    project.replace("envs/prod.yaml", "replica", "replicas")
    done = project.diff("prod")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"HEAD:{project.folder}/envs/prod.yaml:6:5: models.chat.replica: ")
    assert done.stderr.endswith("this leaves nothing to compare with; name another side with --against\n")


def test_what_only_a_rule_of_check_has_against_the_other_side_is_no_obstacle(project: Project) -> None:
    project.replace("envs/prod.yaml", "    replicas: 2", "    replicas: 2\n    drain: {longest_stream: 20h}")
    project.commit()
    project.replace("envs/prod.yaml", "    drain: {longest_stream: 20h}\n", "")
    assert "destructive" in project.actions("prod")["prod/chat"]


def test_a_template_that_renders_no_job_is_named(project: Project) -> None:
    project.write("jobs/vllm.nomad.hcl.j2", 'job "[[ environment.job ]]" {\n  group {{\n}\n')
    done = project.diff("prod")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "job vllm, rendered:2:9: is not HCL from here on\n"


# For those who read it


def test_the_exit_code_is_2_for_changes_or_0_for_those_who_want_that(project: Project) -> None:
    project.replace("envs/prod.yaml", "replicas: 2", "replicas: 3")
    assert project.diff().exit_code == 2
    assert project.diff("--no-detailed").exit_code == 0
    assert project.diff("--no-detailed").stdout == project.diff().stdout
    assert project.diff("--nonsense").exit_code == 1


def test_findings_of_check_stand_beside_the_changes(project: Project) -> None:
    project.replace("envs/prod.yaml", ", strip: /code", "")
    findings = json.loads(project.diff("prod", "--format", "json").stdout)["environments"][0]["findings"]
    checked = CliRunner().invoke(
        main, ["check", "--project", str(project.folder), "prod", "--format", "json"]
    )
    assert [finding["rule"] for finding in findings] == [
        finding["rule"] for finding in json.loads(checked.stdout)["findings"]
    ]
    assert [finding["rule"] for finding in findings] == ["VJ406"]


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_a_secret_is_shown_by_neither_side_in_no_format(project: Project, form: str) -> None:
    text = (shipped("jobs") / "vllm.nomad.hcl.j2").read_text()
    mark = "      env {\n"
    assert mark in text
    for value in ("old", "new"):
        hidden = (
            f'{mark}        HF_TOKEN = "{value}-very-secret"\n        URL = "http://me:{value}-pw@host/"\n'
        )
        project.write("jobs/vllm.nomad.hcl.j2", text.replace(mark, hidden))
        if value == "old":
            project.commit()
    done = project.diff("prod", "--format", form)
    assert done.exit_code == 2
    assert "HF_TOKEN" in done.stdout
    assert "URL" in done.stdout
    assert "very-secret" not in done.output
    assert "-pw" not in done.output


def test_colours_are_for_a_terminal_unless_asked_for(project: Project) -> None:
    project.replace("envs/prod.yaml", "replicas: 2", "replicas: 3")
    assert "\x1b[" not in project.diff().stdout
    assert "\x1b[" in project.diff("--color").stdout
    assert "\x1b[" not in project.diff("--no-color").stdout


def on_a_terminal(project: Project, *arguments: str, **env: str) -> str:
    """What `diff` writes where its stdout is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vllmjobs", "diff", "--project", str(project.folder), *arguments]
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | env
    with os.fdopen(ours, "rb") as reader:
        subprocess.run(command, stdout=theirs, env=environ, check=False)
        os.set_blocking(ours, False)
        os.close(theirs)
        return reader.read1(65536).decode()


def test_on_a_terminal_there_are_colours_unless_no_color_is_set(project: Project) -> None:
    project.replace("envs/prod.yaml", "replicas: 2", "replicas: 3")
    assert "\x1b[" in on_a_terminal(project)
    assert "\x1b[" in on_a_terminal(project, NO_COLOR="")  # https://no-color.org: when it is not empty
    assert "\x1b[" not in on_a_terminal(project, NO_COLOR="1")
    assert "\x1b[" in on_a_terminal(project, "--color", NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal(project, "--no-color")


def test_a_comment_that_is_too_small_names_the_command_that_prints_all_of_it(project: Project) -> None:
    """It is the one that was typed: with its --set, its --against and its --project."""
    long = "".join(f"\n      A{number}: {'x' * 100}" for number in range(1000))
    project.replace("envs/prod.yaml", "    replicas: 2\n", f"    replicas: 2\n    env:{long}\n")
    typed = ["prod", "--against", "HEAD", "--set", "models.code.replicas=3"]
    comment = project.diff("--format", "markdown", *typed).stdout
    _, _, command = comment.partition("To print all of it:\n\n```sh\n")
    command, _, _ = command.partition("\n```")
    assert " --set models.code.replicas=3" in command
    again = CliRunner().invoke(main, shlex.split(command)[1:])
    assert again.stdout == project.diff(*typed).stdout
