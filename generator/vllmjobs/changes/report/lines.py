"""Fields that differ, as lines with a sign: what both the text and the markdown show of them."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal, NamedTuple

from vllmjobs.changes.hiding import HIDDEN
from vllmjobs.changes.model import Field
from vllmjobs.changes.report import quoting
from vllmjobs.text.visible import visible

Sign = Literal["+", "-", "~", " "]

LINES = 60  # of one field, a template's mostly
CONTEXT = 2  # equal lines around a difference
COMPARED = 2_000  # lines; looking for what moved in more takes seconds
REPLACES = "  # forces replacement"
UNSHOWN = "not shown: it may be a secret"

_Step = tuple[str, int, int, int, int]  # as difflib's opcodes: kind, lines from and to before, and after
_Line = tuple[Sign, str, str | None]  # its sign, the line, and the one in whose place it stands


class DiffLine(NamedTuple):
    """One line of a diff, visible, without a newline."""

    sign: Sign
    text: str


class PathDiff(NamedTuple):
    """The lines about one path, and the number of fields in them."""

    lines: tuple[DiffLine, ...]
    fields: int


def path_diffs(fields: Sequence[Field]) -> list[PathDiff]:
    """Return the lines of what differs, path by path; items of a list stand beneath their path."""
    paths: dict[tuple[str, ...], list[Field]] = {}
    for field in fields:
        paths.setdefault(field.path, []).append(field)
    return [PathDiff(tuple(_of_path(path, differing)), len(differing)) for path, differing in paths.items()]


def dotted(path: tuple[str, ...]) -> str:
    """Write a path of a jobspec: `task.vllm.env.HF_HOME`, with quotes around a label that has a dot."""
    parts = map(quoting.name, path)
    return ".".join(part if part and not set(part) & set(' ."') else f'"{part}"' for part in parts)


def _of_path(path: tuple[str, ...], fields: list[Field]) -> Iterator[DiffLine]:
    where = dotted(path)
    mark = REPLACES if any(field.replaces for field in fields) else ""
    if len(fields) == 1:
        yield from _of_field(where, mark, fields[0])
        return
    yield DiffLine("~", f"{where}:{mark}")
    for field in fields:
        for line in _of_field("", "", field):
            yield DiffLine(line.sign, f"  {line.text}")


def _of_field(where: str, mark: str, field: Field) -> Iterator[DiffLine]:
    """Yield one field on a line; or below its path, if it has several lines itself."""
    before, after = field.before, field.after
    sign: Sign = "+" if before is None else "-" if after is None else "~"
    colon = f"{where}: " if where else ""
    if field.hidden and _tells_nothing(before, after):
        change = {"+": "set", "-": "removed"}.get(sign, "changed")
        yield DiffLine(sign, f"{colon}{change}, {UNSHOWN}{mark}")
    elif "\n" in (before or "") or "\n" in (after or ""):
        if where:
            yield DiffLine(sign, f"{where}:{mark}")
        yield from _lines(*([] if text is None else text.split("\n") for text in (before, after)))
    elif before is not None and after is not None:
        yield DiffLine(sign, f"{colon}{' → '.join(quoting.values(before, after))}{mark}")
    else:
        yield DiffLine(sign, f"{colon}{quoting.value(before or after or '')}{mark}")


def _tells_nothing(before: str | None, after: str | None) -> bool:
    """Tell whether all that differs is hidden; in a template, a hidden line may be one of many."""
    return before == after or HIDDEN not in f"{before}{after}" or {before, after} <= {None, "", HIDDEN}


def _lines(before: list[str], after: list[str]) -> Iterator[DiffLine]:
    """Yield the first `LINES` of a unified diff; a hunk is headed by the line where it begins afterwards."""
    skipped = max(0, _equal(before, after) - CONTEXT)
    before, after = before[skipped:], after[skipped:]
    if ending := max(0, _equal(before[::-1], after[::-1]) - CONTEXT):
        before, after = before[:-ending], after[:-ending]
    hunks: list[list[_Step]] = [[("replace", 0, len(before), 0, len(after))]]
    if max(len(before), len(after)) <= COMPARED:
        hunks = list(SequenceMatcher(None, before, after).get_grouped_opcodes(CONTEXT))
    lines = [line for hunk in hunks for line in _of_hunk(hunk, skipped, before, after)]
    for sign, text, counterpart in lines[:LINES]:
        yield DiffLine(sign, f"  {_shown(text, counterpart)}")
    if len(lines) > LINES:
        yield DiffLine(" ", f"  … {len(lines) - LINES:,} lines more")


def _of_hunk(hunk: list[_Step], skipped: int, before: list[str], after: list[str]) -> Iterator[_Line]:
    if first := skipped + hunk[0][3]:
        yield " ", f"… from line {first + 1}", None
    for kind, low, high, start, end in hunk:
        if kind == "equal":
            yield from ((" ", line, None) for line in before[low:high])
        else:
            pairs = list(zip_longest(before[low:high], after[start:end]))
            yield from (("-", old, new) for old, new in pairs if old is not None)
            yield from (("+", new, old) for old, new in pairs if new is not None)


def _shown(line: str, counterpart: str | None) -> str:
    """Return a line, cut where it equals the one in its place; quoted where these end in other blanks."""
    if counterpart is None:
        return quoting.value(line) if len(line) > quoting.VALUE else visible(line)
    is_short = max(len(line), len(counterpart)) <= quoting.VALUE
    if is_short and not quoting.look_alike(line.rstrip(), counterpart.rstrip()):
        return visible(line)
    return quoting.values(line, counterpart)[0]


def _equal(before: list[str], after: list[str]) -> int:
    pairs = enumerate(zip(before, after, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(before), len(after)))
