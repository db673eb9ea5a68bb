"""Differences between two trees, value by value."""

import json
from collections.abc import Generator, Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

from vllmjobs.changes import effects
from vllmjobs.changes.hiding import named, shown
from vllmjobs.changes.jobs.canonical import is_nothing
from vllmjobs.changes.jobs.tree import NAMED_BY, Item, Tree, TreePath, less
from vllmjobs.changes.model import Field

# Nomad compares these one by one, in their order; of all others the order means nothing.
_ORDERED = {"template", "artifact", "volume_mount", "identity", "mount", "secret", "port"}


class _Difference(NamedTuple):
    """One place that differs; None stands for a value that is not there."""

    path: TreePath
    before: Item
    after: Item
    preceding: tuple[Item, Item] = (None, None)  # in a list: an option may stand in front of a secret


def fields(before: Tree, after: Tree, of_job: bool = False) -> tuple[Field, ...]:
    """Return every difference between two trees, each with whether Nomad replaces allocations for it."""
    return tuple(_field(difference, of_job) for difference in _differences((), before, after))


def _differences(path: TreePath, before: Item, after: Item) -> Iterator[_Difference]:
    if before == after and repr(before) == repr(after):  # to Python, 1 is true, and [1] is [true]
        return
    if (before is None and is_nothing(path, after)) or (after is None and is_nothing(path, before)):
        return
    if isinstance(before, dict | None) and isinstance(after, dict | None):
        yield from _of_blocks(path, before, after)
    elif isinstance(before, list | None) and isinstance(after, list | None):
        if not before and not after:
            yield _Difference(path, _empty(before), _empty(after))
        yield from _of_lists(path, before or [], after or [])
    else:
        yield _Difference(path, before, after)


def _of_blocks(path: TreePath, before: Tree | None, after: Tree | None) -> Iterator[_Difference]:
    old, new = (_without_label(path, tree or {}) for tree in (before, after))
    if path[-1:] == ("service",):
        old = yield from _renamed(path, old, new)
    inner = [each for word in new | old for each in _differences((*path, word), old.get(word), new.get(word))]
    yield from inner
    if (before is None or after is None) and not inner:  # a block that says nothing, and comes or goes
        yield _Difference(path, _empty(before), _empty(after))
    kept_before, kept_after = [word for word in old if word in new], [word for word in new if word in old]
    if path and path[-1] in _ORDERED and kept_before != kept_after:
        yield _Difference(path, ", ".join(old), ", ".join(new))


def _renamed(path: TreePath, old: Tree, new: Tree) -> Generator[_Difference, None, Tree]:
    """Return the old services, with the only one that goes renamed to the only one that comes.

    Nomad's own diff has it so.
    """
    going, coming = [word for word in old if word not in new], [word for word in new if word not in old]
    if len(going) != 1 or len(coming) != 1:
        return old
    (gone,), (come,) = going, coming
    yield _Difference((*path, come, "name"), gone, come)
    service = old[gone]
    if isinstance(service, dict):
        service = less(service, ("name",))
    return less(old, (gone,)) | {come: service}


def _of_lists(path: TreePath, before: list[Item], after: list[Item]) -> Iterator[_Difference]:
    """Yield items that come, go or change; an item that only moves goes and comes."""
    old, new = ([json.dumps(item, sort_keys=True) for item in items] for items in (before, after))
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        for at in range(max(j - i, m - k)):
            yield _Difference(
                path,
                before[i + at] if i + at < j else None,
                after[k + at] if k + at < m else None,
                (_preceding(before, i + at), _preceding(after, k + at)),
            )


def _preceding(items: list[Item], end: int) -> Item:
    return items[end - 1] if 0 < end <= len(items) else None


def _without_label(path: TreePath, tree: Tree) -> Tree:
    """Return a block's words, less the one that its place already tells."""
    names = NAMED_BY.get(path[-2], ()) if len(path) > 1 else ()
    return {word: value for word, value in tree.items() if not (word in names and value == path[-1])}


def _empty(item: Item) -> str | None:
    return None if item is None else "{}" if isinstance(item, dict) else "[]"


def _field(difference: _Difference, of_job: bool) -> Field:
    path, before, after, preceding = difference
    is_alike = _text(before) == _text(after) and before is not None and after is not None
    write = json.dumps if is_alike else _text  # "1" and 1, which a driver tells apart
    safe = tuple(_safe(path, item, last) for item, last in zip((before, after), preceding, strict=True))
    texts = [
        None if item is None else write(item) if shown == item else _text(shown)
        for item, shown in zip((before, after), safe, strict=True)
    ]
    return Field(
        path=tuple(map(named, path)),
        before=texts[0],
        after=texts[1],
        replaces=effects.replaces(path, of_job, is_whole=before is None or after is None),
        hidden=safe != (before, after),
    )


def _safe(path: TreePath, item: Item, previous: Item = None) -> Item:
    """Return the value, less what may be secret in it; `previous` is the item before it in a list."""
    if isinstance(item, dict):
        return {word: _safe((*path, word), value) for word, value in item.items()}
    if isinstance(item, list):
        return [_safe(path, value, _preceding(item, at)) for at, value in enumerate(item)]
    if item is None:
        return None
    text, is_hidden = shown(path, _text(item), previous if isinstance(previous, str) else None)
    return text if is_hidden else item


def _text(item: Item) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
