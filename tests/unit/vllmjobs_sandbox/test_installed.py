"""The sandbox as it is installed from a wheel, where there is no checkout around it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vllmjobs.cli.common import Selection
from vllmjobs_sandbox.cluster import programs
from vllmjobs_sandbox.cluster.errors import SandboxError


def test_its_environment_extends_the_one_that_is_shipped_wherever_it_stands(tmp_path: Path) -> None:
    own = tmp_path / "dev.yaml"
    own.write_text(programs.settings())
    assert Path(yaml.safe_load(own.read_text())["extends"]).is_absolute()
    assert Selection(str(own)).environment.models


def test_what_is_not_on_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "consul").write_text("#!/bin/sh\n")
    (tmp_path / "consul").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "CHECKOUT", tmp_path)
    with pytest.raises(SandboxError, match="not on PATH: nomad, fabio; install it"):
        programs.programs()


def test_without_its_extra_it_says_what_to_install() -> None:
    without = "import sys; sys.modules['httpx'] = None; from vllmjobs_sandbox.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "httpx is not installed; run: pip install 'vllmjobs[sandbox]'" in done.stderr
