"""The program that the jobs of the model caches run, as a process, and how it gets into them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vllmjobs
from vllmjobs_sandbox.fakes.hub import Hub

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
    assert "prefetch: acme/tiny: files still differ from the hub's after 2 downloads:" in said
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
    assert (code, "prefetch: acme/tiny: the hub does not list the model's files: " in said) == (1, True), said
    assert "401" in said
    code, said = cache_program(hub, tmp_path / "nowhere", "prefetch", "acme/tiny")
    assert (code, said) == (
        1,
        f"prefetch: acme/tiny: {tmp_path}/nowhere is no folder of this node; make it, or mount it\n",
    )


@dataclass
class Copied:
    """A model that was prefetched and copied to a store."""

    hub: Hub
    cache: Path
    store: Path

    def run(self, job: str) -> tuple[int, str]:
        return cache_program(self.hub, self.cache, job, "acme/tiny", f"--store={self.store}")

    def state(self) -> dict[str, bytes]:
        """Every file of the cache that a server reads, by its name."""
        found = (path for path in self.cache.rglob("*") if path.is_file() and path.name[0] != ".")
        return {str(path.relative_to(self.cache)): path.read_bytes() for path in found}

    def damage(self, folder: Path, name: str) -> None:
        """Change one byte of a file."""
        (path,) = folder.rglob(f"snapshots/*/{name}")
        path.write_bytes(b"X" + path.read_bytes()[1:])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `cache` and `store` after the two jobs, of which each test takes a copy."""
    folder = tmp_path_factory.mktemp("first")
    with Hub("acme/tiny", "secret", dict(FILES)).running() as hub:
        made = Copied(hub, folder / "cache", folder / "store")
        made.cache.mkdir()
        made.store.mkdir()
        assert cache_program(hub, made.cache, "prefetch", "acme/tiny")[0] == 0
        code, said = made.run("cache-backup")
    assert (code, "copying 2 of 2 files" in said) == (0, True), said
    return folder


@pytest.fixture
def copied(hub: Hub, first: Path, tmp_path: Path) -> Copied:
    shutil.copytree(first, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Copied(hub, tmp_path / "cache", tmp_path / "store")


def test_a_second_backup_copies_only_what_the_store_does_not_have_whole(copied: Copied) -> None:
    assert "copying 0 of 2 files" in copied.run("cache-backup")[1]
    copied.damage(copied.store, "config.json")
    assert "copying 1 of 2 files" in copied.run("cache-backup")[1]
    assert "copying 0 of 2 files" in copied.run("cache-backup")[1]


def test_a_damaged_cache_is_not_copied_over_a_good_backup(copied: Copied) -> None:
    copied.damage(copied.cache, "config.json")
    copied.damage(copied.store, "config.json")  # which a copy would replace
    before = {path: path.read_bytes() for path in copied.store.rglob("*") if path.is_file()}
    code, said = copied.run("cache-backup")
    assert (
        code,
        "the cache is damaged, and nothing was copied; prefetch mends it:\n  config.json" in said,
    ) == (
        1,
        True,
    ), said
    assert {path: path.read_bytes() for path in copied.store.rglob("*") if path.is_file()} == before


def test_a_restore_mends_what_is_damaged_and_fetches_nothing_else(copied: Copied) -> None:
    before = copied.state()
    copied.damage(copied.cache, "model.safetensors")
    code, said = copied.run("cache-restore")
    assert (code, "fetching 1 of 2 files" in said) == (0, True), said
    assert copied.state() == before


@pytest.mark.parametrize("lost", [False, True], ids=["damaged", "lost"])
def test_a_damaged_backup_is_refused_by_name_and_replaces_nothing(copied: Copied, lost: bool) -> None:
    """Though only one of its files is damaged, and another would mend the cache."""
    copied.damage(copied.store, "model.safetensors")
    if lost:
        (path,) = copied.store.rglob("model.safetensors")
        path.unlink()
    copied.damage(copied.cache, "config.json")
    copied.damage(copied.cache, "model.safetensors")
    before = copied.state()
    code, said = copied.run("cache-restore")
    assert code == 1
    assert (
        f"the backup in {copied.store} is damaged, and nothing was put in place:\n  model.safetensors is "
        in said
    )
    assert "config.json is" not in said
    assert copied.state() == before
    assert not list(copied.cache.rglob(".restore-*"))


def test_a_manifest_that_leads_out_of_the_cache_is_refused(copied: Copied) -> None:
    (manifest,) = copied.store.rglob("*.sha256")
    manifest.write_text(manifest.read_text().replace("config.json", "../../../../../config.json"))
    code, said = copied.run("cache-restore")
    assert (code, f"{manifest} is damaged: " in said) == (1, True), said


def test_without_a_backup_or_a_prefetch_the_way_out_is_named(hub: Hub, tmp_path: Path) -> None:
    made = Copied(hub, tmp_path, tmp_path / "store")
    assert made.run("cache-backup")[1].endswith("store is no folder of this node; make it, or mount it\n")
    made.store.mkdir()
    assert made.run("cache-backup")[1].endswith("has no manifest of main; prefetch it first\n")
    assert made.run("cache-restore")[1].endswith("has no backup of main; dispatch cache-backup first\n")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_stands_in_a_job_as_it_is(path: Path) -> None:
    """HCL fills in its own braces in what a template holds, and ends it at its mark."""
    assert not re.search(r"[$%]\{|<<<|^EOF$", path.read_text(), re.MULTILINE)
