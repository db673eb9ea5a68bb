"""Names and values of others, as a report quotes them: visible, and of a long value the difference."""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from vllmjobs.text.visible import visible

VALUE = 120  # characters of a value that are shown
NAME = 80
PROSE = 600  # characters of a sentence that somebody else wrote
BESIDE = 20  # characters that are kept on each side of a difference


def name(text: str) -> str:
    """Return a name, visible; both ends of a name that is longer than any of Nomad's."""
    shown = visible(text)
    return shown if len(shown) <= NAME else f"{shown[: NAME // 2]}…{shown[-NAME // 2 :]}"


def prose(text: str) -> str:
    """Return somebody else's sentence on one line; of an essay, the beginning."""
    shown = visible(" ".join(text.split()))
    return shown if len(shown) <= PROSE else f"{shown[:PROSE]}…"


class Escaping(NamedTuple):
    """The way in which a medium writes what others wrote: names, and sentences."""

    name: Callable[[str], str]
    prose: Callable[[str], str]


FOR_TERMINALS = Escaping(name, prose)


def value(text: str) -> str:
    """Return a value that has nothing to differ from; the beginning of a long one."""
    return _quoted(_cut(text, 0, len(text)))


def values(before: str, after: str) -> tuple[str, str]:
    """Return two values that differ, cut where they are equal, or once it is seen that they differ."""
    start = _equal(before, after)
    most = min(len(before), len(after)) - start
    end = _equal(before[::-1][:most], after[::-1][:most])
    cut = [_cut(text, start, len(text) - end) for text in (before, after)]
    shown = _quoted(cut[0]), _quoted(cut[1])
    return (ascii(cut[0]), ascii(cut[1])) if look_alike(*shown) else shown


def look_alike(one: str, other: str) -> bool:
    """Tell whether nobody sees a difference, such as between an escape and the same spelt out."""
    return unicodedata.normalize("NFC", visible(one)) == unicodedata.normalize("NFC", visible(other))


def _equal(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing slices is quicker than comparing characters, for values of 100 KB
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _cut(text: str, start: int, end: int) -> str:
    """Return the part that differs, from `start` to `end`, with a little beside it."""
    if len(text) <= VALUE:
        return text
    left, right = max(0, start - BESIDE), min(len(text), end + BESIDE)
    part = text[left:right]
    if len(part) > VALUE:
        part = f"{part[:VALUE]}… ({right - left - VALUE:,} characters more)"
    elif right < len(text):
        part += "…"
    return ("…" if left else "") + part


def _quoted(text: str) -> str:
    """Return a text, visible, and in quotes where its ends would not be seen."""
    shown = visible(text)
    return f'"{shown}"' if not shown or shown != shown.strip() else shown
