"""Counts, lists and columns for people, and the name that was probably meant."""

from collections.abc import Iterable, Sequence

from vllmjobs.text.visible import one_line, visible

_LISTED = 12
_CUTOFF = 0.65  # of difflib: how much two names have to be alike


def counted(count: int, noun: str) -> str:
    """Return `1 group`, `2 groups`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Iterable[str], most: int = _LISTED) -> str:
    """Return `a, b and 3 more`."""
    names = list(names)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def joined(words: Sequence[str], conjunction: str = "and") -> str:
    """Return `a, b and c`; nothing for no words."""
    *first, last = words or [""]
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return a table, a line for each row, in which the cells of a column stand below each other."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(visible(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return "".join(f"{'  '.join(map(_padded, row, widths)).rstrip()}\n" for row in rows)


def _padded(cell: str, width: int) -> str:
    """Return a cell that is as wide as the column, once it is made visible where it is printed."""
    return cell + " " * (width - len(visible(cell)))


def near(name: str, known: Iterable[str], most: int, cutoff: float = _CUTOFF) -> list[str]:
    """Return the known names that are spelt much like this one, the nearest first."""
    import difflib  # noqa: PLC0415 (only a mistake is worth its 2 ms)

    return difflib.get_close_matches(name, list(known), most, cutoff)


def nearest(name: str, known: Iterable[str], cutoff: float = _CUTOFF) -> str:
    """Return the known name that was probably meant; empty without one."""
    return next(iter(near(name, known, 1, cutoff)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean NAME?`, for the end of a message; empty where no known name is near."""
    meant = nearest(name, known)
    return f"; did you mean {meant}?" if meant else ""
