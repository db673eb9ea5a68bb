"""The program that the jobs of the model caches run, as a process, and how it gets into them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllmjobs
from sandbox.hub import Hub

MODULES = sorted((Path(vllmjobs.__file__).parent / "model_cache").glob("*.py"))
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub("acme/tiny", "secret", dict(FILES)).running() as running:
        yield running


def cache_program(hub: Hub, cache: Path, *words: str, token: str = "secret") -> tuple[int, str]:
    """Its exit code, and what it said."""
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": f"{cache}/huggingface", "HF_TOKEN": token}
    command = [sys.executable, "-m", "vllmjobs.model_cache", *words, f"--cache={cache}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_download_that_is_not_what_the_hub_says_fails_by_name(hub: Hub, tmp_path: Path) -> None:
    hub.sends["model.safetensors"] = b"wrights" * 1000
    code, said = cache_program(hub, tmp_path, "prefetch", "acme/tiny")
    assert code == 1
    assert "prefetch: acme/tiny: downloaded 2 times, and still not what the hub says:" in said
    assert "\n  model.safetensors is damaged: its checksum is " in said
    assert not list(tmp_path.rglob("*.sha256"))
    assert not list(tmp_path.rglob("refs/*"))  # a server that is offline goes on with the commit before


def test_a_new_commit_is_downloaded_beside_the_old_one(hub: Hub, tmp_path: Path) -> None:
    assert cache_program(hub, tmp_path, "prefetch", "acme/tiny")[0] == 0
    before = hub.commit
    hub.files["config.json"] = b'{"model_type": "opt"}'
    assert cache_program(hub, tmp_path, "prefetch", "acme/tiny")[0] == 0
    assert {path.stem for path in tmp_path.rglob("*.sha256")} == {before, hub.commit}
    assert [path.read_text() for path in tmp_path.rglob("refs/main")] == [hub.commit]
    assert hub.downloads.count("model.safetensors") == 1


def test_what_cannot_be_had_is_named(hub: Hub, tmp_path: Path) -> None:
    code, said = cache_program(hub, tmp_path, "prefetch", "acme/tiny", token="wrong")
    assert (code, "prefetch: acme/tiny: the hub does not tell its files: " in said) == (1, True), said
    assert "401" in said
    code, said = cache_program(hub, tmp_path / "nowhere", "prefetch", "acme/tiny")
    assert (code, said) == (
        1,
        f"prefetch: acme/tiny: {tmp_path}/nowhere is no folder of this node; make it, or mount it\n",
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_stands_in_a_job_as_it_is(path: Path) -> None:
    """HCL fills in its own braces in what a template holds, and ends it at its mark."""
    assert not re.search(r"[$%]\{|<<<|^EOF$", path.read_text(), re.MULTILINE)
