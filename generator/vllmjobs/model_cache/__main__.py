"""`python -m vllmjobs.model_cache JOB MODEL`: exit code 0, or 1 with the reason on stderr."""

import argparse
import sys
from pathlib import Path

from vllmjobs.model_cache.files import CacheError, Repository, visible

JOBS = ("prefetch", "cache-backup", "cache-restore")


def main() -> int:
    """Do one thing with one model in the cache that HF_HOME names."""
    parser = argparse.ArgumentParser(prog="model_cache", description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("model", help="name of the model on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache, which must be there")
    parser.add_argument("--store", help="where copies are kept")
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # to be seen while it goes on
    try:
        if not given.cache.is_dir():
            raise CacheError(f"{given.cache} is no folder of this node; make it, or mount it")
        _run(given.job, Repository.of(given.model, given.revision), given.store)
    except (CacheError, OSError) as error:  # a full disk, a folder of somebody else's
        lines = f"{given.job}: {given.model}: {error}".split("\n")
        print(*map(visible, lines), sep="\n", file=sys.stderr)
        return 1
    return 0


def _run(job: str, repository: Repository, address: str) -> None:
    """Run one job; the image has only the modules that this job needs."""
    if job == "prefetch":
        from vllmjobs.model_cache.prefetch import prefetch  # noqa: PLC0415

        prefetch(repository)
        return
    from vllmjobs.model_cache.copies import backup, restore  # noqa: PLC0415
    from vllmjobs.model_cache.stores import store  # noqa: PLC0415

    (backup if job == "cache-backup" else restore)(repository, store(address))


if __name__ == "__main__":
    sys.exit(main())
