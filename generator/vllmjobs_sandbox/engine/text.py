"""Tokens and answers: a token is a word, and an answer depends on its prompt alone.

So a test can count tokens with `str.split`, and two engines given the same prompt agree, whichever
version they are: what tells versions apart is `system_fingerprint` (see `protocol`).
"""

import zlib

WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll")

BLOCK = 16  # tokens per KV-cache block, vLLM's default: prefixes are shared in whole blocks


def token(seed: int, position: int) -> str:
    """Return the answer's token at this position, with the space that parts it from the one before."""
    word = WORDS[zlib.crc32(b"%d" % position, seed) % len(WORDS)]
    return f" {word}" if position else word


def tokens(seed: int, start: int, count: int) -> str:
    """Return `count` tokens from this position on, as text."""
    return "".join(token(seed, position) for position in range(start, start + count))


def seed(prompt: list[str], index: int) -> int:
    """Return the seed of the answer to this prompt; `index` parts the n choices of one request."""
    return zlib.crc32(" ".join(prompt).encode(), index)


class PrefixCache:
    """The prompts so far, which later ones may share a beginning with, for `vllm:prefix_cache_hits_total`."""

    def __init__(self, blocks: int) -> None:
        self._room = blocks
        self._seen: set[int] = set()

    def hits(self, prompt: list[str]) -> int:
        """Remember the prompt; return how many of its first tokens were in the cache already."""
        found, chain, hitting = 0, 0, True
        if len(self._seen) > self._room:
            self._seen.clear()
        for end in range(BLOCK, len(prompt) + 1, BLOCK):
            chain = hash((chain, *prompt[end - BLOCK : end]))
            hitting = hitting and chain in self._seen
            found += BLOCK * hitting
            self._seen.add(chain)
        return found
