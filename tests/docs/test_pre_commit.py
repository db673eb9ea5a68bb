"""The hook that a project's .pre-commit-config.yaml names, installed and run by pre-commit itself."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from vllmjobs.cli import main

ROOT = Path(__file__).parents[2]


def git(*arguments: str | Path) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    """This repository with what its working tree has changed, committed."""
    folder = tmp_path / "vllmjobs"
    git("clone", "--quiet", ROOT, folder)
    git(
        f"--git-dir={folder}/.git",
        f"--work-tree={ROOT}",
        "commit",
        "--quiet",
        "--all",
        "--allow-empty",
        "-mnow",
    )
    return folder


@pytest.fixture
def project(tmp_path: Path, hooks: Path) -> Path:
    folder = tmp_path / "project"
    CliRunner().invoke(main, ["init", str(folder)])
    rev = git("-C", hooks, "rev-parse", "HEAD")
    hook = {"repo": str(hooks), "rev": rev, "hooks": [{"id": "vllmjobs-check"}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [hook]}))
    git("-C", folder, "init", "--quiet")
    git("-C", folder, "add", "--all")
    return folder


def test_the_hook_passes_sound_environments_and_stops_a_broken_one(project: Path, tmp_path: Path) -> None:
    # Compiling what is installed takes longer than all else.
    env = os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "pre-commit"), "PIP_NO_COMPILE": "1"}

    def run() -> subprocess.CompletedProcess[str]:
        command = ["pre-commit", "run", "--all-files"]
        return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)

    sound = run()
    assert sound.returncode == 0, sound.stdout + sound.stderr

    prod = project / "envs/prod.yaml"
    prod.write_text(prod.read_text().replace("replicas: 4", "replicas: four"))
    broken = run()
    assert broken.returncode == 1
    assert "envs/prod.yaml:36:5: models.chat.replicas: must be a whole number (got 'four')" in broken.stdout
