"""`python -m generation [--check]`, of scripts/generate: write or check what is made from the code."""

import sys
from pathlib import Path

from generation import commands, every_key, imports, newest, rules, schemas

ROOT = Path()
MAKERS = (newest, schemas, every_key, rules, commands, imports)


def main(*arguments: str) -> int:
    """Write each file that is stale and return 0; with --check, name them and return 1 if there are any."""
    only_check = "--check" in arguments
    stale = 0
    for maker in MAKERS:
        for name, text in maker.files(ROOT).items():
            path = ROOT / name
            if path.is_file() and path.read_text() == text:
                continue
            stale += 1
            if not only_check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            print(f"{name}: {'stale; scripts/generate writes it' if only_check else 'written'}")
    return 1 if only_check and stale else 0


sys.exit(main(*sys.argv[1:]))
