"""The jobs of the model caches, run by Nomad: a model that is downloaded, checked, and mended.

The tests live through the life of one cache.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster.jobs import ENDED
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.fakes.hub import Hub
from vllmjobs_sandbox.fakes.s3 import S3

MODEL = "acme/tiny"
FILES = {
    "config.json": b'{"model_type": "opt"}',
    "nested/tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 300_000,
    "pytorch_model.bin": b"the same weights",
    "original/consolidated.pth": b"and again",
}
WANTED = ["config.json", "model.safetensors", "nested/tokenizer.json"]
DONE = 120.0  # seconds for a job that starts Python and moves two megabytes
KEYS = "nomad/jobs/bucket"


class Caches:
    """A hub, a cache of the node, and the jobs that are dispatched."""

    def __init__(self, sandbox: Sandbox, hub: Hub, folder: Path) -> None:
        self.sandbox = sandbox
        self.hub = hub
        self.cache = folder / "models"
        self.cache.mkdir()
        self.store = folder / "store"
        self.store.mkdir()
        settings = {
            "job": "vllm-cached",
            "models.chat.model": hub.model,
            "models.chat.cache": f"{{bind: {self.cache}}}",
            "models.chat.env.HF_ENDPOINT": hub.address,
            "models.chat.env.HF_HUB_OFFLINE": "'1'",  # the server, once its model is there
            "prefetch.python": sys.executable,
            "prefetch.memory": "256 MiB",
            "cache_backup.store": str(self.store),
            "cache_backup.python": sys.executable,
            "cache_backup.memory": "256 MiB",
        }
        self.options = [f"--set={key}={value}" for key, value in settings.items()]
        self.folder = self.cache / "huggingface/hub" / f"models--{hub.model.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.hub.commit

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.hub.commit}.sha256"

    def run(self, job: str, *options: str) -> tuple[set[str], str]:
        """Dispatch a job: how its allocations ended, and what they said."""
        name = f"vllm-cached-{job}"
        hcl = self.sandbox.render("dev", *self.options, *options, "--job", job)
        # What fails is not tried again 15 s later.
        self.sandbox.run(re.sub(r"(?<=attempts = )2", "0", hcl))
        done = self.sandbox.nomad_cli("job", "dispatch", "-detach", name)
        assert done.returncode == 0, done.stderr
        child = next(line.split()[-1] for line in done.stdout.splitlines() if "Dispatched Job ID" in line)

        def ended() -> list[dict[str, str]] | None:
            found = self.sandbox.nomad.job.get_allocations(child)
            expected = 1 if job == "cache-backup" else len(self.sandbox.nodes)
            all_ended = all(one["ClientStatus"] in ENDED for one in found)
            return found if len(found) == expected and all_ended else None

        found = wait_until(ended, DONE, f"{child} ended", evidence=lambda: self.sandbox.evidence(child))
        logs = [self.sandbox.folder.glob(f"*/alloc/{one['ID']}/alloc/logs/{job}.std*.0") for one in found]
        said = "".join(log.read_text() for of_one in logs for log in of_one)
        return {one["ClientStatus"] for one in found}, said

    def names(self) -> list[str]:
        """The files of the snapshot."""
        return sorted(
            str(path.relative_to(self.snapshot)) for path in self.snapshot.rglob("*.*") if path.is_file()
        )


@pytest.fixture(scope="module")
def caches(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caches]:
    with Hub(MODEL, sandbox.hf_token, dict(FILES)).running() as hub:
        yield Caches(sandbox, hub, tmp_path_factory.mktemp("caches"))
    sandbox.purge(*(job["ID"] for job in sandbox.nomad.jobs.get_jobs(prefix="vllm-cached")))


@pytest.fixture
def filled(caches: Caches) -> Caches:
    """The caches, with the model in them."""
    if caches.names() != WANTED:
        assert caches.run("prefetch")[0] == {"complete"}
    return caches


def test_a_prefetch_downloads_what_a_server_reads_and_mends_what_is_damaged(caches: Caches) -> None:
    ended, said = caches.run("prefetch")
    assert (ended, caches.names()) == ({"complete"}, WANTED), said
    assert sorted(caches.hub.downloads) == WANTED  # once, though both nodes have this folder
    assert judged_by_sha256sum(caches.manifest) == dict.fromkeys(WANTED, "OK")
    assert found_offline(caches) == str(caches.snapshot)

    weights, before = caches.snapshot / "model.safetensors", caches.manifest.read_text()
    with weights.open("r+b") as file:  # as large as before
        file.write(b"damage")
    (caches.snapshot / "config.json").unlink()
    caches.hub.downloads.clear()
    ended, said = caches.run("prefetch")
    assert ended == {"complete"}, said
    assert "model.safetensors is damaged" in said
    assert weights.read_bytes() == FILES["model.safetensors"]
    assert caches.hub.downloads == ["model.safetensors"]  # the other's blob was there, and was right
    assert (caches.names(), caches.manifest.read_text()) == (WANTED, before)


def test_a_backup_is_restored_to_nodes_that_have_lost_their_cache(filled: Caches) -> None:
    ended, said = filled.run("cache-backup")
    assert ended == {"complete"}, said
    copied = filled.store / filled.folder.name / filled.manifest.name
    assert judged_by_sha256sum(copied) == dict.fromkeys(WANTED, "OK")

    shutil.rmtree(filled.cache / "huggingface")
    filled.hub.downloads.clear()
    ended, said = filled.run("cache-restore")
    assert (ended, filled.hub.downloads) == ({"complete"}, []), said
    assert judged_by_sha256sum(filled.manifest) == dict.fromkeys(WANTED, "OK")
    assert found_offline(filled) == str(filled.snapshot)


@pytest.fixture
def bucket(sandbox: Sandbox) -> Iterator[S3]:
    """A server of buckets, and its keys where the jobs look for them."""
    keys = {"id": "id", "key": "key"}
    sandbox.nomad.variable.create_variable(KEYS, {"Path": KEYS, "Items": keys})
    with S3().running() as running:
        yield running
    sandbox.nomad.variable.delete_variable(KEYS)


def test_a_bucket_gives_back_what_is_whole_and_puts_nothing_damaged_in_place(
    filled: Caches, bucket: S3
) -> None:
    settings = {
        "store": "s3://acme/models",
        "endpoint": bucket.address,
        "secrets": f"{{AWS_ACCESS_KEY_ID: {KEYS}#id, AWS_SECRET_ACCESS_KEY: {KEYS}#key}}",
    }
    to_bucket = [f"--set=cache_backup.{key}={value}" for key, value in settings.items()]
    ended, said = filled.run("cache-backup", *to_bucket)
    assert ended == {"complete"}, said

    shutil.rmtree(filled.cache / "huggingface")
    ended, said = filled.run("cache-restore", *to_bucket)
    assert ended == {"complete"}, said
    assert judged_by_sha256sum(filled.manifest) == dict.fromkeys(WANTED, "OK")

    (weights,) = [name for name in bucket.objects if name.endswith("/model.safetensors")]
    content, digest = bucket.objects[weights]
    bucket.objects[weights] = b"damage" + content[6:], digest
    shutil.rmtree(filled.cache / "huggingface")
    ended, said = filled.run("cache-restore", *to_bucket)
    assert ended == {"failed"}, said
    assert (
        "the backup in s3://acme/models is damaged, and nothing was put in place:\n  model.safetensors"
        in said
    )
    assert filled.names() == []


def judged_by_sha256sum(manifest: Path) -> dict[str, str]:
    """What coreutils say of each file."""
    done = subprocess.run(
        ["sha256sum", "--check", manifest.name],
        cwd=manifest.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    pairs = (line.rsplit(": ", 1) for line in done.stdout.splitlines())
    return {name.split("/", 2)[2]: verdict for name, verdict in pairs}


def found_offline(caches: Caches) -> str:
    """What a server that is offline finds, as vLLM asks for it."""
    program = (
        "import huggingface_hub as h, sys; print(h.snapshot_download(sys.argv[1], local_files_only=True))"
    )
    env = {**os.environ, "HF_HOME": f"{caches.cache}/huggingface"}
    command = [sys.executable, "-c", program, caches.hub.model]
    done = subprocess.run(command, env=env, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
