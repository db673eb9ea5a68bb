"""What a balancer in front reads: a file that follows which engines are ready.

The supervisor knows nothing of the balancer's language: its texts come with the configuration, with
`@SERVERS@` where the lines of the ready engines go, and `@COUNT@` for how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """The part of the file for one model."""

    pool: str
    some: str
    """What is written while at least one engine of the pool is ready."""
    none: str
    """What is written while none is."""


@dataclass(frozen=True)
class Line:
    """What says in the file that an engine is there."""

    pool: str
    text: str


def written(blocks: Iterable[Block], ready: Collection[Line]) -> str:
    """The file, of which every block is there, in their order."""
    texts = []
    for block in blocks:
        lines = [line.text for line in ready if line.pool == block.pool]
        text = block.some.replace("@SERVERS@", "\n".join(lines)) if lines else block.none
        texts.append(text.replace("@COUNT@", str(len(lines))))
    return "\n".join(texts)


class Upstreams:
    """The file, which is replaced as a whole; without a path there is none."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._written: str | None = None

    def write(self, blocks: Iterable[Block], ready: Collection[Line]) -> bool:
        """Write who is ready; return whether that is new. Raises `OSError`; then it may be tried again."""
        text = written(blocks, ready)
        if self._path is None or text == self._written:
            return False
        with open(f"{self._path}.new", "w") as file:  # noqa: PTH123 (pathlib takes 0.7 MB)
            file.write(text)
        os.replace(f"{self._path}.new", self._path)  # noqa: PTH105
        self._written = text
        return True
