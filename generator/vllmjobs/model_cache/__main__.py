"""`python -m vllmjobs.model_cache prefetch MODEL`: exit code 0, or 1 with a line on stderr that says why."""

import argparse
import sys
from pathlib import Path

from vllmjobs.model_cache.files import CacheError, Repository


def main() -> int:
    """Do one thing with one model in the cache that HF_HOME names."""
    parser = argparse.ArgumentParser(prog="model_cache", description=__doc__)
    parser.add_argument("do", choices=["prefetch"])
    parser.add_argument("model", help="name of the model on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache, which must be there")
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # to be seen while it goes on
    try:
        if not given.cache.is_dir():
            raise CacheError(f"{given.cache} is no folder of this node; make it, or mount it")
        repository = Repository.of(given.model, given.revision)
        from vllmjobs.model_cache.prefetch import prefetch  # noqa: PLC0415 (it needs huggingface_hub)

        prefetch(repository)
    except (CacheError, OSError) as error:  # a full disk, a folder of somebody else's
        print(f"{given.do}: {given.model}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
