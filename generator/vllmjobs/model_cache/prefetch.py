"""The download of a model from the hub into the cache that its servers read, and its check."""

import glob
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from vllmjobs.model_cache.files import (
    SHA256,
    CacheError,
    Repository,
    amount,
    is_plain,
    listed,
    problems,
    remove,
    sha256,
    visible,
)

LONGEST = 300  # characters of what the hub says
TRIES = 2  # what was left of an earlier download may be damaged, too
SAFE = ".safetensors"
# The same weights again, which vLLM does not read where there are safetensors.
OTHER_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".ot", ".onnx", ".onnx_data", ".gguf", ".tflite",
)  # fmt: skip
ORIGINAL = "original/"  # of Meta's own code; vLLM passes it over


def prefetch(repository: Repository) -> None:
    """Download what is missing or damaged, then write the manifest; raises `CacheError` where it cannot."""
    with repository.locked():
        info = _model_info(repository)
        commit, files = info.sha, _wanted(info)
        # The hub's own: SHA-256 of what is in LFS, git's of the others.
        sums = {name: file.lfs.sha256 if file.lfs else file.blob_id for name, file in files.items()}
        sizes = {name: file.size or 0 for name, file in files.items()}
        print(f"{repository.model} at {commit}: {len(files)} files, {amount(sizes.values())}")
        snapshot = repository.snapshot(commit)
        found = problems(snapshot, sums)
        for _ in range(TRIES):
            if not found:
                break
            for name, problem in found.items():
                print(f"  {visible(name)} {problem}")
                remove(snapshot / name)
            print(f"downloading {len(found)} files, {amount(sizes[name] for name in found)}")
            _download(repository, commit, list(found))
            found = problems(snapshot, {name: sums[name] for name in found})
        if found:
            raise CacheError(f"files still differ from the hub's after {TRIES} downloads:{listed(found)}")
        digests = {
            name: known if SHA256.fullmatch(known) else sha256(snapshot / name)
            for name, known in sums.items()
        }
        repository.finish(commit, digests)
        print(f"all {len(files)} files are right: {repository.manifest(commit)}")


def _model_info(repository: Repository) -> Any:
    try:
        return HfApi().model_info(repository.model, revision=repository.revision, files_metadata=True)
    except Exception as error:  # of requests or httpx, as huggingface_hub's version has it
        raise CacheError(f"the hub does not list the model's files: {_text(error)}") from error


def _wanted(info: Any) -> dict[str, Any]:
    """Return what a server reads: every file, without the same weights in other formats."""
    files = {file.rfilename: file for file in info.siblings}
    if strange := [name for name in files if not is_plain(name)]:
        raise CacheError(f"the name of a file cannot stand in a manifest: {strange[0]!r}")
    safe = any(name.endswith(SAFE) and "/" not in name for name in files)
    return {
        name: file
        for name, file in files.items()
        if not name.startswith(ORIGINAL) and not (safe and name.endswith(OTHER_WEIGHTS))
    }


def _download(repository: Repository, commit: str, names: list[str]) -> None:
    try:
        snapshot_download(
            repository.model,
            revision=commit,
            cache_dir=repository.folder.parent,
            allow_patterns=[glob.escape(name) for name in names],
        )
    except Exception as error:  # the same; or a full disk
        raise CacheError(f"the download failed: {_text(error)}; the next one goes on from there") from error


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"
