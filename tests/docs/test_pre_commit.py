"""The hook that a project's .pre-commit-config.yaml names, installed and run by pre-commit itself."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllmjobs.cli import main

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    CliRunner().invoke(main, ["init", str(tmp_path)])
    git(tmp_path, "init")
    git(tmp_path, "add", "-A")
    return tmp_path


def test_the_hook_passes_sound_environments_and_stops_a_broken_one(project: Path) -> None:
    hook = ["pre-commit", "try-repo", str(ROOT), "vllmjobs-check", "--all-files"]
    sound = subprocess.run(hook, cwd=project, capture_output=True, text=True, check=False)
    assert sound.returncode == 0, sound.stdout + sound.stderr

    prod = project / "envs/prod.yaml"
    prod.write_text(prod.read_text().replace("replicas: 4", "replicas: four"))
    broken = subprocess.run(hook, cwd=project, capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "envs/prod.yaml:36:5: models.chat.replicas: must be a whole number (got 'four')" in broken.stdout
