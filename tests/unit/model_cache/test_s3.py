"""Copies of the model caches in a bucket: signed as AWS shows it, held to the manifest."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest

from vllmjobs.model_cache.files import CacheError, write_manifest
from vllmjobs.model_cache.s3 import PART, Bucket, sign
from vllmjobs_sandbox.fakes.listening import saying
from vllmjobs_sandbox.fakes.odd import ENDLESS, OK, OddAnswer, cut, repeated, whole
from vllmjobs_sandbox.fakes.s3 import S3

KEYS = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # pragma: allowlist secret
HOST = "https://examplebucket.s3.amazonaws.com"
THEN = datetime(2013, 5, 24, tzinfo=UTC)
DATE = "Fri, 24 May 2013 00:00:00 GMT"
COMMIT = "c" * 40
LARGE = PART + 1000


@pytest.fixture
def s3() -> Iterator[S3]:
    with S3().running() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a model that was prefetched, one of whose files is too large for one request."""
    folder = tmp_path / "huggingface/hub/models--acme--tiny"
    snapshot = folder / "snapshots" / COMMIT
    (snapshot / "nested").mkdir(parents=True)
    (snapshot / "nested/a b$+.json").write_text("{}")
    with (snapshot / "model.safetensors").open("wb") as file:
        file.truncate(LARGE)
        file.write(b"first")
    sums = {
        name: hashlib.sha256((snapshot / name).read_bytes()).hexdigest()
        for name in ("nested/a b$+.json", "model.safetensors")
    }
    write_manifest(folder / f"{COMMIT}.sha256", COMMIT, sums)
    return tmp_path


def run(job: str, s3: S3, cache: Path, **env: str) -> tuple[int, str]:
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}  # pragma: allowlist secret
    given = {**os.environ, **keys, "HF_HOME": f"{cache}/huggingface", "AWS_ENDPOINT_URL": s3.address, **env}
    words = [job, "acme/tiny", f"--revision={COMMIT}", f"--cache={cache}", "--store=s3://acme/models"]
    command = [sys.executable, "-m", "vllmjobs.model_cache", *words]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_cache_is_copied_to_a_bucket_and_back_though_the_bucket_is_busy(s3: S3, cache: Path) -> None:
    s3.busy = 2
    code, said = run("cache-backup", s3, cache)
    assert (code, "copying 2 of 2 files" in said, s3.parts) == (0, True, {}), said
    base = f"/acme/models/models--acme--tiny/snapshots/{COMMIT}"
    assert len(s3.objects[f"{base}/model.safetensors"][0]) == LARGE
    assert "copying 0 of 2 files" in run("cache-backup", s3, cache)[1]

    snapshot = cache / "huggingface/hub/models--acme--tiny/snapshots" / COMMIT
    before = {path.name: path.read_bytes() for path in snapshot.rglob("*.*")}
    for path in snapshot.rglob("*.*"):
        path.unlink()
    code, said = run("cache-restore", s3, cache)
    assert (code, {path.name: path.read_bytes() for path in snapshot.rglob("*.*")} == before) == (0, True), (
        said
    )


def test_a_damaged_copy_in_a_bucket_is_refused_by_name(s3: S3, cache: Path) -> None:
    assert run("cache-backup", s3, cache)[0] == 0
    (key,) = (key for key in s3.objects if key.endswith(".json"))
    s3.objects[key] = b"[]", s3.objects[key][1]
    (path,) = cache.rglob("a b*.json")
    path.unlink()
    code, said = run("cache-restore", s3, cache)
    expected = (
        "the backup in s3://acme/models is damaged, and nothing was put in place:\n  nested/a b$+.json is"
    )
    assert (code, expected in said, path.exists()) == (1, True, False), said


def test_what_the_bucket_refuses_is_said(s3: S3, cache: Path) -> None:
    code, said = run("cache-backup", s3, cache, AWS_ACCESS_KEY_ID="")
    assert (code, "needs the secrets AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said) == (1, True), said
    code, said = run("cache-restore", s3, cache, AWS_ACCESS_KEY_ID="other")
    assert (code, "403 Forbidden <Code>InvalidAccessKeyId</Code>" in said) == (1, True), said


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "signature"),
    [
        ("GET", "/test.txt", b"", {"Range": "bytes=0-9"},
         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        ("PUT", "/test%24file.text", b"Welcome to Amazon S3.",
         {"Date": DATE, "x-amz-storage-class": "REDUCED_REDUNDANCY"},
         "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"),
        ("GET", "/?lifecycle=", b"", {},
         "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("GET", "/?max-keys=2&prefix=J", b"", {},
         "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)  # fmt: skip
def test_a_request_is_signed_as_in_the_examples_of_aws(
    method: str, path: str, body: bytes, headers: dict[str, str], signature: str
) -> None:
    """Amazon S3 API Reference, "Signature Calculations for the Authorization Header", its four examples."""
    signed = sign(method, f"{HOST}{path}", body, headers, KEYS, "us-east-1", THEN)
    assert signed["Authorization"].endswith(f"Signature={signature}")


# Answers that are odd, or do not end

ODD: dict[str, tuple[OddAnswer, str]] = {
    "not XML": (whole(b"<a><b>"), "S3 answers without UploadId: <a><b>"),
    "an odd encoding": (whole(b'<?xml version="1.0" encoding="klingon"?><a/>'), "without UploadId"),
    "nothing": (whole(b""), "S3 answers without UploadId"),
    "not HTTP": (cut(b"SSH-2.0\r\n"), "SSH-2.0"),
    "a body that is cut off": (cut(OK + b"Content-Length: 100\r\n\r\n<a>"), "without UploadId"),
    "a refusal of odd bytes": (whole(b"\xff\xfe", b"400 Bad Request"), "400 Bad Request"),
    "drips": (ENDLESS["drips"], "does not end"),
    "a head that drips": (ENDLESS["drips-headers"], "the head of the answer did not come within 1 s"),
    "a flood": (ENDLESS["floods"], "does not end"),
    "a refusal that drips": (repeated(b"HTTP/1.1 400 No\r\n\r\n", b"#", 0.05), "400 No"),
}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Bucket]:
    """Return the bucket at an address, which is asked once, and not for long."""
    monkeypatch.setattr("vllmjobs.model_cache.s3.TRIES", 1)
    monkeypatch.setattr("vllmjobs.model_cache.answers.WAIT_S", 1.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")

    def at(address: str) -> Bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        return Bucket("s3://acme/models")

    return at


@pytest.mark.parametrize("odd", ODD)
def test_a_store_that_answers_oddly_is_told_in_words(
    odd: str, cache: Path, bucket: Callable[[str], Bucket]
) -> None:
    say, said = ODD[odd]
    (large,) = cache.rglob("model.safetensors")
    with saying(say) as address, pytest.raises(CacheError) as error:
        bucket(address).put(large, "large", "0" * 64)
    assert said in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_a_signature_and_the_way_out_is_said(
    status: int, bucket: Callable[[str], Bucket]
) -> None:
    asked = Event()
    with saying(lambda *_: asked.set()) as other:
        moved = whole(b"", f"{status} Moved".encode(), f"Location: {other}/x\r\n".encode())
        with (
            saying(moved) as address,
            pytest.raises(CacheError, match="set region or endpoint of cache_backup"),
        ):
            bucket(address).read("refs/main")
    assert not asked.is_set()


@pytest.mark.parametrize(
    ("say", "said"),
    [
        (ENDLESS["floods"], "does not say how long the file is"),
        (repeated(OK + b"Content-Length: 9999999\r\n\r\n", b"#", 0.05), "less than a MiB came within 1 s"),
        (cut(OK + b"Content-Length: 100\r\n\r\nabc"), "97 bytes of the file are missing"),
    ],
)
def test_a_file_has_a_length_and_each_piece_of_it_an_end(
    say: OddAnswer, said: str, bucket: Callable[[str], Bucket], tmp_path: Path
) -> None:
    with saying(say) as address, pytest.raises(CacheError, match=said):
        bucket(address).get("weights", tmp_path / "weights")


def test_a_short_text_that_is_none_is_called_damaged(bucket: Callable[[str], Bucket]) -> None:
    with saying(whole(b"\xff")) as address, pytest.raises(CacheError, match="refs/main is damaged"):
        bucket(address).read("refs/main")
