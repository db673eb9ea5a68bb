"""What `vllmjobs check --format sarif` prints, judged by Microsoft's own validator of SARIF."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllmjobs.cli import main

VALIDATOR = "@microsoft/sarif-multitool@5.7.0"


@pytest.fixture(scope="session")
def validator() -> Path:
    """The validator, installed once per machine."""
    npm = shutil.which("npm")
    assert npm, "npm is not on PATH; it installs the validator of SARIF"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "vllmjobs" / VALIDATOR.rpartition("@")[2] / "sarif"
    program = folder / "node_modules/.bin/sarif-multitool"
    if not program.exists():
        subprocess.run([npm, "install", "--silent", "--prefix", str(folder), VALIDATOR], check=True)
    return program


def test_findings_of_every_kind_are_valid_sarif(validator: Path, tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/a b.yaml").write_text(
        "models: {chat: {model: facebook/opt-125m, image: 'vllm/vllm-openai:latest', user: root}}"
    )
    (tmp_path / ".env").touch(mode=0o644)
    options = ["--project", str(tmp_path), "--set", "models.chat.args.x=1", "--format", "sarif"]
    done = CliRunner().invoke(main, ["check", *options])
    assert {result["level"] for result in json.loads(done.stdout)["runs"][0]["results"]} == {
        "error", "warning", "note",
    }  # fmt: skip
    (tmp_path / "out.sarif").write_text(done.stdout)

    judged = subprocess.run(
        [validator, "validate", str(tmp_path / "out.sarif"), "--output", str(tmp_path / "judged.sarif")],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads((tmp_path / "judged.sarif").read_text())["runs"][0]["results"]
    # SARIF2005 wants a page on the web, which an offline tool has no need to name.
    assert [result["ruleId"] for result in found if result["ruleId"] != "SARIF2005"] == [], judged.stdout
