"""`vllmjobs diff` in repositories as they are: links, renamed files, other line ends."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vllmjobs.cli import main

PROD = """
defaults: {image: example.com/vllm:1, vllm: 0.33.0, max_model_len: 2048, gpus: {memory: 70 GiB}}
models:
  chat: {model: meta-llama/Llama-3.1-8B-Instruct, replicas: 2}
"""
DEV = PROD.replace("replicas: 2", "replicas: 1")


@pytest.fixture
def envs(tmp_path: Path) -> Path:
    folder = tmp_path / "envs"
    folder.mkdir()
    (folder / "prod.yaml").write_text(PROD)
    (folder / "dev.yaml").write_text(DEV)
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path)
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "core.autocrlf=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")


def diff(envs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["diff", "--project", str(envs.parent), *arguments])


def test_a_link_leads_where_the_commit_has_it_lead(envs: Path) -> None:
    link = envs / "live.yaml"
    link.symlink_to("prod.yaml")
    commit(envs)
    assert "vllm-live: no changes" in diff(envs, "live").stdout
    link.unlink()
    link.symlink_to("dev.yaml")
    assert "count: 2 → 1" in diff(envs, "live").stdout
    link.unlink()
    link.write_text(DEV)
    assert "count: 2 → 1" in diff(envs, "live").stdout


def test_envs_itself_may_be_a_link(envs: Path) -> None:
    envs.rename(envs.parent / "common")
    envs.symlink_to("common")
    commit(envs.parent)
    (envs / "prod.yaml").write_text(DEV)
    assert "count: 2 → 1" in diff(envs).stdout


def test_a_link_that_leads_out_of_the_commit_is_not_in_it(envs: Path) -> None:
    (envs / "live.yaml").symlink_to("/etc/hostname")
    commit(envs)
    (envs / "live.yaml").unlink()
    (envs / "live.yaml").write_text(PROD)
    done = diff(envs, "live", "prod")
    assert "vllm-live is new" in done.stdout
    assert "vllm-prod: no changes" in done.stdout


def test_an_environment_under_another_name_is_the_same_job(envs: Path) -> None:
    """Or a person is told to stop it."""
    prod = envs / "prod.yaml"
    prod.write_text(f"job: shop\n{PROD}")
    commit(envs)
    prod.rename(envs / "production.yaml")
    for named in ([], ["prod"], ["production"]):
        done = diff(envs, *named)
        assert (done.exit_code, done.stderr) == (0, "")
        assert "production: shop: no changes" in done.stdout


def test_other_line_ends_than_in_the_commit_are_no_change(envs: Path) -> None:
    (envs / "prod.yaml").write_bytes(PROD.replace("\n", "\r\n").encode())
    commit(envs)
    (envs / "prod.yaml").write_text(PROD)
    done = diff(envs, "prod")
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (b"[[ nope ]]", "HEAD:{}: 'nope' is undefined"),
        (b"\xff", "HEAD:{}: byte 0 is not valid UTF-8"),
        (b'job "x" {', "HEAD:job vllm, rendered:2:1: is not HCL from here on"),
    ],
)
def test_a_template_that_was_broken_is_said_to_be_of_the_commit(
    envs: Path, template: bytes, said: str
) -> None:
    broken = envs.parent / "jobs" / "vllm.nomad.hcl.j2"
    broken.parent.mkdir()
    broken.write_bytes(template)
    commit(envs)
    broken.unlink()
    done = diff(envs, "prod")
    assert done.exit_code == 1
    assert said.partition("{}")[0] in done.stderr
    assert said.partition("{}")[2].partition(": ")[2] in done.stderr
