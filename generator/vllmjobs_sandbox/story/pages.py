"""Pages whose ```console blocks are run: commands after `$ `, each with the output that the page shows.

`...` stands for anything; stderr is part of the output.
"""

from __future__ import annotations

import doctest
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with the output that is shown."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def run(command: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run a command as a shell does, and type a word where it asks for one; return what it printed."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        input="typed\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def is_shown(shown: str, printed: str) -> bool:
    """Tell whether a page shows what was printed."""
    # doctest takes an ellipsis at the start of a line for a continuation only in its own parser.
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)
