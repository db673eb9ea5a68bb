"""scripts/generate: what it makes is up to date, and a release of vLLM is added by its table alone."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllmjobs.vllm.releases import NEWEST

ROOT = Path(__file__).parents[2]
TABLES = Path("generator/vllmjobs/vllm/arguments/tables")
# Where a release is named for what it was, whichever is the newest one: where the source of a fact was read,
# what a past change did, examples that pin a release, and the list of all tables.
DATED = re.compile(
    r"as of 0|vLLM has 321 flags|→ vllm/vllm-openai|^docs/rules/VJ|^docs/memory\.md|^CHANGELOG|^tests/|"
    r"^scripts/tools\.d/|tables of vLLM 0"
)


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "generation", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}/generator:{root}/scripts"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git knows or would take."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_what_is_made_is_up_to_date() -> None:
    done = generate(ROOT, "--check")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0), "run scripts/generate"


def test_a_release_of_vllm_is_added_by_its_table_and_one_command(checkout: Path) -> None:
    major, minor, _ = NEWEST.split(".")
    newer = f"{major}.{int(minor) + 1}.0"
    table = json.loads(gzip.decompress((checkout / TABLES / f"{NEWEST}.json.gz").read_bytes()))
    added = checkout / TABLES / f"{newer}.json.gz"
    added.write_bytes(gzip.compress(json.dumps(table | {"version": newer}).encode()))

    done = generate(checkout)
    assert done.returncode == 0, done.stderr
    assert "images/vllm/Dockerfile: written" in done.stdout.splitlines()
    assert f"ARG TAG=v{newer}" in (checkout / "images/vllm/Dockerfile").read_text()
    assert f"standard: vllm/vllm-openai:v{newer}" in (checkout / "envs/base.yaml").read_text()
    assert f"is no option of vLLM {newer}" in (checkout / "README.md").read_text()
    assert f"and {newer}, made from vLLM's own parser" in (checkout / "docs/check.md").read_text()
    assert old_names(checkout) == []


def old_names(checkout: Path) -> list[str]:
    """Return the lines that still name the release that was the newest."""
    lines = []
    for path in sorted(checkout.rglob("*")):
        if path.is_file() and path.suffix not in (".gz", ".pyc"):
            name = str(path.relative_to(checkout))
            text = path.read_text(errors="replace")
            lines += [f"{name}: {line}" for line in text.splitlines() if NEWEST in line]
    return [line for line in lines if not DATED.search(line)]


def test_after_that_only_what_was_changed_by_hand_is_stale(checkout: Path) -> None:
    page = checkout / "docs/rules/README.md"
    page.write_text(page.read_text().replace("| error | One argument in two spellings. |", "| error | |"))
    done = generate(checkout, "--check")
    assert (done.stdout, done.returncode) == ("docs/rules/README.md: stale; scripts/generate writes it\n", 1)
