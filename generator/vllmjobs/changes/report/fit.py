"""Cutting a report to so many bytes of UTF-8: the longest is cut first, the worst is kept longest."""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

_MORE = 64  # bytes for saying how much is left out
_LEAST = 400  # bytes; a detail that is cut below them tells nothing
_LEAST_PART = 120


class Piece(NamedTuple):
    """A list or table: entries, each with its newline, that can be left out one by one."""

    entries: list[str]
    wrap: Callable[[list[str]], str]
    noun: str  # the noun for entries, in the plural
    ranks: list[int] | None = None  # of the entries, the lowest for the worst; without, the first are kept


class PathLines(NamedTuple):
    """Lines about one path, and how many values they are about."""

    lines: list[str]
    values: int


class Detail(NamedTuple):
    """The values of a group; `wrap` puts lines into a fence."""

    rank: int
    parts: list[PathLines]
    wrap: Callable[[list[str]], str]


class Cut(NamedTuple):
    """Details as they fit, and how many values are not there, or not whole."""

    texts: list[str]
    left_out: int
    shortened: int


def size(text: str) -> int:
    """Return how many bytes a text has in UTF-8."""
    return len(text.encode())


def fit(piece: Piece, room: int) -> str:
    """Write as many entries as fit, the worst chosen first and the order kept, and how many do not fit."""
    if not piece.entries:
        return ""
    sizes = list(map(size, piece.entries))
    room -= size(piece.wrap(piece.entries)) - sum(sizes)
    if sum(sizes) <= room:
        return piece.wrap(piece.entries)
    ranks, kept = piece.ranks or [0] * len(sizes), set()
    room -= _MORE
    for position in sorted(range(len(sizes)), key=lambda position: ranks[position]):
        if sizes[position] > room:
            break
        room -= sizes[position]
        kept.add(position)
    text = piece.wrap([piece.entries[position] for position in sorted(kept)]) if kept else ""
    more = "more " if kept else ""
    return f"{text}… and {len(sizes) - len(kept):,} {more}{piece.noun}\n\n"


def cut(details: list[Detail], room: int) -> Cut:
    """Cut details so that they fit together: the longest are shortened, then the least bad are left out."""
    sizes = [size(detail.wrap(_lines(detail))) for detail in details]
    kept = sorted(range(len(details)), key=lambda position: (details[position].rank, sizes[position]))
    while (level := _level([sizes[position] for position in kept], room)) < _LEAST:
        if sum(sizes[position] for position in kept) <= room:
            break
        kept.pop()
    texts: list[str] = []
    left_out = shorter = 0
    for position, detail in enumerate(details):
        if position not in kept:
            left_out += sum(part.values for part in detail.parts)
        elif sizes[position] <= level:
            texts.append(detail.wrap(_lines(detail)))
        else:
            shortened = _shortened(detail, level - sizes[position] + _sum(_lines(detail)))
            texts += shortened.texts
            left_out, shorter = left_out + shortened.left_out, shorter + shortened.shortened
    return Cut(texts, left_out, shorter)


def _shortened(detail: Detail, room: int) -> Cut:
    level = max(_LEAST_PART, _level([_sum(part.lines) for part in detail.parts], room))
    lines: list[str] = []
    left_out = shorter = 0
    for part in detail.parts:
        space = min(level, room)
        fitting = part.lines if _sum(part.lines) <= space else _first(part.lines, space - _MORE)
        if not fitting:
            left_out += part.values
            continue
        if len(fitting) < len(part.lines):
            fitting = [*fitting, f"    … {len(part.lines) - len(fitting):,} lines more"]
            shorter += part.values
        lines += fitting
        room -= _sum(fitting)
    return Cut([detail.wrap(lines)] if lines else [], left_out, shorter)


def _first(lines: list[str], room: int) -> list[str]:
    ends = accumulate(size(line) + 1 for line in lines)
    return [line for line, end in zip(lines, ends, strict=True) if end <= room]


def _lines(detail: Detail) -> list[str]:
    return [line for part in detail.parts for line in part.lines]


def _sum(lines: list[str]) -> int:
    return sum(size(line) + 1 for line in lines)


def _level(sizes: list[int], room: int) -> int:
    """Return the size to which the longest are cut so that all fit."""
    for position, smallest in enumerate(sorted(sizes)):
        share = room // (len(sizes) - position)
        if smallest > share:
            return share
        room -= smallest
    return max(sizes, default=0)
