"""A model in the cache of Hugging Face, and the checksums of its files.

models--facebook--opt-125m/
  refs/main                 the commit that a branch or tag stands for
  snapshots/COMMIT/…        its files, each a link into blobs/
  blobs/…
  COMMIT.sha256             ours: `sha256sum --check COMMIT.sha256` of this folder reads it
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

CHUNK = 1 << 20
AT_ONCE = 4  # files that are read side by side; one thread hashes about 1.5 GB/s
SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")

Sums = dict[str, str]
"""The SHA-256 of each file, by its name in the snapshot."""


def visible(text: str) -> str:
    r"""Return a text of a hub or a store on one line, with `\x1b` for what a terminal would obey."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class CacheError(Exception):
    """A fault of the cache or the store, in words for the person who can mend it."""


@dataclass(frozen=True)
class Repository:
    """A model at a revision, and its folder in the cache."""

    model: str
    revision: str
    folder: Path

    @classmethod
    def of(cls, model: str, revision: str) -> "Repository":
        """Return the model in the cache that HF_HUB_CACHE or HF_HOME name, as for the server."""
        hub = os.environ.get("HF_HUB_CACHE") or f"{os.environ['HF_HOME']}/hub"
        return cls(model, revision, Path(hub, f"models--{model.replace('/', '--')}"))

    @property
    def ref(self) -> Path:
        """Return the file that names the commit of a branch or tag."""
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        """Return the folder with the files of a commit."""
        return self.folder / "snapshots" / commit

    def manifest(self, commit: str) -> Path:
        """Return the file with the checksums of a commit's files."""
        return self.folder / f"{commit}.sha256"

    def finish(self, commit: str, sums: "Sums") -> None:
        """Declare a snapshot whole, as the last step: write its manifest, then its branch or tag."""
        write_manifest(self.manifest(commit), commit, sums)
        if self.revision != commit:
            write(self.ref, commit)
        # The hub's list of all files: an offline server would miss those which are left out on purpose.
        (self.folder / "trees" / f"{commit}.json").unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until nobody else on this node writes to it: two models of one environment may be the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".vllmjobs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return _digest(path, hashlib.sha256())


def git_sha1(path: Path) -> str:
    """Return git's ID of a file's content, which is the hub's checksum of a file that is not in LFS."""
    return _digest(path, hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False))


def problems(folder: Path, sums: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with the files of a folder, by name; the sums are SHA-256 or git's."""

    def check(name: str) -> str | None:
        path, wanted = folder / name, sums[name]
        if not path.is_file():
            return "is missing"
        found = sha256(path) if SHA256.fullmatch(wanted) else git_sha1(path)
        return None if found == wanted else f"is damaged: its checksum is {found}, not {wanted}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = zip(sums, pool.map(check, sums), strict=True)
        return {name: problem for name, problem in found if problem}


def write_manifest(path: Path, commit: str, sums: Sums) -> None:
    """Write checksums so that another sees all of them or none."""
    lines = (f"{sums[name]}  snapshots/{commit}/{name}\n" for name in sorted(sums))
    write(path, "".join(lines))


def read_manifest(text: str, commit: str, source: object) -> Sums:
    """Return the checksums of a manifest, whose names must stay inside the snapshot."""
    sums: Sums = {}
    for line in text.splitlines():
        digest, _, name = line.partition(f"  snapshots/{commit}/")
        if not SHA256.fullmatch(digest) or not is_plain(name):
            raise CacheError(f"{source} is damaged: {line!r} is no checksum of a file of this snapshot")
        sums[name] = digest
    if not sums:
        raise CacheError(f"{source} is damaged: it is empty")
    return sums


def is_plain(name: str) -> bool:
    """Tell whether a name is one of a file inside a folder, and can stand in a line of a manifest."""
    return bool(re.fullmatch(r"[^\x00-\x1f\\]+", name)) and not {"", ".", ".."} & set(name.split("/"))


def remove(path: Path) -> None:
    """Remove a file and the blob that it is a link to; who has it open keeps it."""
    if path.is_symlink():
        path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Return a name for what will replace a file; no other node or process has it."""
    return path.with_name(f".{path.name}.{uuid4().hex}.new")


def write(path: Path, text: str) -> None:
    """Write a file so that another sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def listed(found: Mapping[str, str]) -> str:
    """Return problems as lines, for the end of a sentence."""
    return "".join(f"\n  {name} {problem}" for name, problem in found.items())


def amount(sizes: Iterable[int]) -> str:
    """Return a number of bytes, as a person reads it."""
    return f"{sum(sizes) / (1 << 30):.2f} GiB"


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
