"""The file that a balancer in front reads: which engines are ready.

The supervisor knows nothing of the balancer's language: its texts come with the configuration, with
`@SERVERS@` where the lines of the ready engines go, and `@COUNT@` for how many there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class PoolText:
    """The part of the file for one pool: the engines of one model."""

    pool: str
    some: str  # the text while at least one engine of the pool is ready
    none: str  # the text while none is


@dataclass(frozen=True)
class ServerLine:
    """The line of the file for one engine of a pool."""

    pool: str
    text: str


def upstreams_text(pools: Iterable[PoolText], ready: Collection[ServerLine]) -> str:
    """Return the whole file: every pool in order, with the lines of its ready engines."""
    texts = []
    for pool in pools:
        lines = [line.text for line in ready if line.pool == pool.pool]
        text = pool.some.replace("@SERVERS@", "\n".join(lines)) if lines else pool.none
        texts.append(text.replace("@COUNT@", str(len(lines))))
    return "\n".join(texts)
