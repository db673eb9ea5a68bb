"""The stores that copies of the caches are kept in: a folder, or a bucket."""

import shutil
from contextlib import suppress
from pathlib import Path

from vllmjobs.model_cache.files import CacheError, beside, sha256, write
from vllmjobs.model_cache.s3 import Bucket


class Folder:
    """A store in a folder of this node, or one that is mounted there."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise CacheError(f"{root} is no folder of this node; make it, or mount it")
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def has(self, name: str, digest: str, size: int) -> bool:
        """Read the file to tell whether it has this content: a disk may have damaged it since."""
        path = self.root / name
        return path.is_file() and path.stat().st_size == size and sha256(path) == digest

    def put(self, source: Path, name: str, digest: str) -> None:
        """Copy a file beside the older one, read it again, and put it in place."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = beside(path)
        try:
            shutil.copyfile(source, new)
            if sha256(new) != digest:
                raise CacheError(f"{path} differs from what was copied there; check that disk")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def get(self, name: str, to: Path) -> None:
        """Copy a file from there, if it is there; the caller checks it."""
        with suppress(FileNotFoundError):
            shutil.copyfile(self.root / name, to)

    def read(self, name: str) -> str | None:
        """Return a short text; None where there is none."""
        with suppress(FileNotFoundError):
            return (self.root / name).read_text(encoding="utf-8")
        return None

    def write(self, name: str, text: str) -> None:
        """Write a short text; a reader gets the old text or the new."""
        write(self.root / name, text)


Store = Bucket | Folder  # a place for files, each by its name; its text is for people


def store(address: str) -> Store:
    """Return the store of an address: `s3://…`, or a folder's path."""
    return Bucket(address) if address.startswith("s3://") else Folder(Path(address))
