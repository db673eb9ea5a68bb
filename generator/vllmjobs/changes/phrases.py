"""Counts and lists in English."""

from collections.abc import Iterable, Sequence

_LISTED = 12


def counted(count: int, noun: str) -> str:
    """Write `1 group`, `2 groups`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Iterable[str], most: int = _LISTED) -> str:
    """Write `a, b and 3 more`."""
    names = list(names)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def joined(words: Sequence[str], conjunction: str = "and") -> str:
    """Write `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last
