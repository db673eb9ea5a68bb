"""`python -m vllm_tables table|read VERSION CACHE`, in the clean environment of scripts/vllm-tables."""

import json
import logging
import os
import sys
from pathlib import Path

from vllm_tables import release, stubs


def main(what: str, version: str, cache: str) -> None:
    """Print the table of a release, or read command lines (JSON lists, one a line) with its own parser."""
    logging.disable(logging.CRITICAL)
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        del os.environ[name]  # some change a default
    stubs.import_vllm(release.fetch(version, Path(cache)), version)
    if what == "table":
        from vllm_tables import dump  # noqa: PLC0415

        print(json.dumps(dump.table(version), separators=(",", ":"), ensure_ascii=False))
        return
    from vllm_tables import real  # noqa: PLC0415

    for line in sys.stdin:
        print(json.dumps(real.read(json.loads(line))), flush=True)


main(*sys.argv[1:])
