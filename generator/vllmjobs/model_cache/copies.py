"""Copies of a cached model, to a store and back; the manifest is checked on both ways."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from vllmjobs.model_cache.files import (
    COMMIT,
    CacheError,
    Repository,
    Sums,
    amount,
    listed,
    problems,
    read_manifest,
    remove,
)
from vllmjobs.model_cache.stores import Store


def backup(repository: Repository, store: Store) -> None:
    """Copy what the store does not have yet; nothing where the cache is damaged."""
    with repository.locked():
        commit = _commit(repository, _text(repository.ref))
        text = _text(repository.manifest(commit)) if commit else None
        if not commit or text is None:
            raise CacheError(
                f"{repository.folder} has no manifest of {repository.revision}; prefetch it first"
            )
        sums = read_manifest(text, commit, repository.manifest(commit))
        snapshot = repository.snapshot(commit)
        if damaged := problems(snapshot, sums):
            raise CacheError(
                f"the cache is damaged, and nothing was copied; prefetch mends it:{listed(damaged)}"
            )
        sizes = {name: (snapshot / name).stat().st_size for name in sums}
        place = _Place(repository, commit)
        new = [name for name in sums if not store.has(place.file(name), sums[name], sizes[name])]
        print(f"copying {len(new)} of {len(sums)} files, {amount(sizes[name] for name in new)}, to {store}")
        for name in new:
            store.put(snapshot / name, place.file(name), sums[name])
        store.write(place.manifest, text)
        if repository.revision != commit:
            store.write(place.ref, commit)
        print(f"all {len(sums)} files are there: {store}/{place.manifest}")


def restore(repository: Repository, store: Store) -> None:
    """Fetch what is missing or damaged, and put it in place once all of it is whole."""
    commit = _commit(repository, store.read(_Place(repository, "").ref))
    place = _Place(repository, commit or "")
    text = store.read(place.manifest) if commit else None
    if not commit or text is None:
        raise CacheError(f"{store} has no backup of {repository.revision}; dispatch cache-backup first")
    sums = read_manifest(text, commit, f"{store}/{place.manifest}")
    with repository.locked():
        snapshot = repository.snapshot(commit)
        wanted = {name: sums[name] for name in problems(snapshot, sums)}
        print(f"fetching {len(wanted)} of {len(sums)} files from {store}")
        fetched = repository.folder / f".restore-{commit}"
        try:
            _fetch(store, place, wanted, fetched)
            for name, digest in wanted.items():
                _put_in_place(fetched / name, repository.folder / "blobs" / digest, snapshot / name)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        repository.finish(commit, sums)
        print(f"all {len(sums)} files are right: {repository.manifest(commit)}")


class _Place:
    """The names that a snapshot has in a store: those of the cache, without the links."""

    def __init__(self, repository: Repository, commit: str) -> None:
        self._folder = repository.folder.name
        self._commit = commit
        self.ref = f"{self._folder}/refs/{repository.revision}"
        self.manifest = f"{self._folder}/{commit}.sha256"

    def file(self, name: str) -> str:
        return f"{self._folder}/snapshots/{self._commit}/{name}"


def _fetch(store: Store, place: _Place, wanted: Sums, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)  # of a restore that was killed
    for name in wanted:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        store.get(place.file(name), to / name)
    if damaged := problems(to, wanted):
        raise CacheError(f"the backup in {store} is damaged, and nothing was put in place:{listed(damaged)}")


def _put_in_place(fetched: Path, blob: Path, link: Path) -> None:
    remove(link)
    blob.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))


def _commit(repository: Repository, ref: str | None) -> str | None:
    revision = repository.revision
    commit = revision if COMMIT.fullmatch(revision) else (ref or "").strip()
    return commit if COMMIT.fullmatch(commit) else None


def _text(path: Path) -> str | None:
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return None
