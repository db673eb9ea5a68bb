"""`compare`: two jobs, to what differs and what Nomad will do."""

import json
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import chain

from vllmjobs.changes import effects
from vllmjobs.changes.effects import below, number
from vllmjobs.changes.filled import filled
from vllmjobs.changes.hiding import shown
from vllmjobs.changes.jobspec import NAMED_BY, Item, Jobspec, Tree
from vllmjobs.changes.model import Action, Field, Group, Job

Path = tuple[str, ...]
# Nomad compares these one by one, in their order; of all others the order means nothing.
_ORDERED = {"template", "artifact", "volume_mount", "identity", "mount"}


def compare(name: str, before: Jobspec | None, after: Jobspec | None, as_one: bool = False) -> list[Job]:
    """What is different in a job, and what Nomad does when the newer one is run.

    `name` is the job's name for `render --job`; None stands for no job. Under another id, namespace or region
    it is another job: then one has gone and one is new, unless they are to be compared `as_one`.
    """
    old, new = (filled(job) if job else None for job in (before, after))
    if before and after and old is not None and new is not None:
        is_same = _identity(before, old) == _identity(after, new)
        if is_same or as_one:
            return [_changed(name, before, after, old, new)]
    return [
        _whole(name, job, tree, action)
        for job, tree, action in ((before, old, "gone"), (after, new, "new"))
        if job and tree is not None
    ]


def fields(before: Tree, after: Tree, of_job: bool = False) -> tuple[Field, ...]:
    """Every difference between two trees, each with whether Nomad replaces allocations for it."""
    return tuple(
        _field(path, was, now, previous, of_job)
        for path, was, now, previous in _differences((), before, after)
    )


def _identity(job: Jobspec, tree: Tree) -> tuple[Item, ...]:
    return job.id, tree["namespace"], tree["region"]


def _whole(name: str, job: Jobspec, tree: Tree, action: str) -> Job:
    """A job that only one side has."""
    is_new = action == "new"
    groups = tuple(
        _group(group, None if is_new else spec, spec if is_new else None, tree, ())
        for group, spec in _groups(tree).items()
    )
    note = f"nothing renders {job.id} any more, and it runs on: nomad job stop {job.id}"
    return Job(
        job=name,
        id=job.id,
        namespace=str(tree["namespace"]),
        region=str(tree["region"]),
        action="new" if is_new else "gone",
        groups=groups,
        notes=() if is_new else (note,),
    )


def _changed(name: str, before: Jobspec, after: Jobspec, old: Tree, new: Tree) -> Job:
    identity: Tree = {"id": before.id} if before.id != after.id else {}
    renamed: Tree = {"id": after.id} if identity else {}
    own = fields({**identity, **_without_groups(old)}, {**renamed, **_without_groups(new)}, of_job=True)
    was, now = _groups(old), _groups(new)
    groups = tuple(
        _group(group, was.get(group), now.get(group), new, own)
        for group in (*now, *(group for group in was if group not in now))
    )
    return Job(
        job=name,
        id=after.id,
        namespace=str(new["namespace"]),
        region=str(new["region"]),
        action="changed" if own or any(group.actions or group.fields for group in groups) else "none",
        fields=own,
        groups=groups,
        notes=tuple(_notes(own, groups)),
    )


def _group(name: str, before: Tree | None, after: Tree | None, job: Tree, own: tuple[Field, ...]) -> Group:
    was = number(before["count"]) if before is not None else None
    now = number(after["count"]) if after is not None else None
    differing: tuple[Field, ...] = ()
    if before is None or after is None:
        done: tuple[Action, ...] = ("new",) if before is None else ("gone",)
    else:
        differing = fields(before, after)
        done = effects.actions(was, now, differing, own)
    return Group(
        name=name,
        actions=done,
        count_before=was,
        count_after=now,
        gpus_before=None if before is None else effects.gpus(before),
        gpus_after=None if after is None else effects.gpus(after),
        canaries=effects.canaries(job["type"], after or {}, done),
        fields=differing,
    )


def _notes(own: tuple[Field, ...], groups: tuple[Group, ...]) -> Iterator[str]:
    if types := [field for field in own if field.path == ("type",)]:
        yield f"Nomad refuses to make a {types[0].before} job a {types[0].after} one: give it another name"
    moved = {
        field.path[-1] if len(field.path) == 1 else field.path[0]
        for field in chain(own, *(group.fields for group in groups))
        if effects.moves(field.path)
    }
    if moved:
        words = " and ".join(sorted(moved))
        yield (
            f"{words} may leave out nodes on which instances run: Nomad replaces those; vllmjobs plan asks "
            "the cluster which"
        )


def _groups(tree: Tree) -> dict[str, Tree]:
    return {name: group for name, group in below(tree, "group").items() if isinstance(group, dict)}


def _without_groups(tree: Tree) -> Tree:
    return {word: value for word, value in tree.items() if word != "group"}


Difference = tuple[Path, Item, Item, str | None]


def _differences(path: Path, before: Item, after: Item) -> Iterator[Difference]:
    """Each place, its two values, and in a list the item before it. None is what is not there."""
    if before == after and type(before) is type(after) and not _is_reordered(path, before, after):
        return
    if isinstance(before, dict | None) and isinstance(after, dict | None):
        old, new = (_told(path, tree or {}) for tree in (before, after))
        if not old and not new:
            yield path, _empty(before), _empty(after), None
        for word in (*new, *(word for word in old if word not in new)):
            yield from _differences((*path, word), old.get(word), new.get(word))
        if _is_reordered(path, before, after):
            yield path, ", ".join(old), ", ".join(new), None
    elif isinstance(before, list | None) and isinstance(after, list | None):
        if not before and not after:
            yield path, _empty(before), _empty(after), None
        yield from _items(path, before or [], after or [])
    else:
        yield path, before, after, None


def _items(path: Path, before: list[Item], after: list[Item]) -> Iterator[Difference]:
    """Items that come, go or change; what only moves, goes and comes."""
    old, new = ([_text(item) for item in items] for items in (before, after))
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        for at in range(max(j - i, m - k)):
            was = before[i + at] if i + at < j else None
            now = after[k + at] if k + at < m else None
            previous = old[i + at - 1] if was is not None and i + at else new[k + at - 1] if k + at else None
            yield path, was, now, previous


def _is_reordered(path: Path, before: Item, after: Item) -> bool:
    if not path or path[-1] not in _ORDERED or not isinstance(before, dict) or not isinstance(after, dict):
        return False
    return [word for word in before if word in after] != [word for word in after if word in before]


def _told(path: Path, tree: Tree) -> Tree:
    """A block's words, less the one that its place already tells."""
    names = NAMED_BY.get(path[-2], ()) if len(path) > 1 else ()
    return {word: value for word, value in tree.items() if not (word in names and value == path[-1])} or tree


def _empty(item: Item) -> str | None:
    return None if item is None else "{}" if isinstance(item, dict) else "[]"


def _field(path: Path, before: Item, after: Item, previous: str | None, of_job: bool) -> Field:
    was, now = _text(before), _text(after)
    if was == now and before is not None and after is not None:  # "1" and 1, which a driver tells apart
        was, now = json.dumps(before), json.dumps(after)
    old = (None, False) if before is None else shown(path, was, previous)
    new = (None, False) if after is None else shown(path, now, previous)
    return Field(
        path=path,
        before=old[0],
        after=new[0],
        replaces=effects.replaces(path, of_job),
        hidden=old[1] or new[1],
    )


def _text(item: Item) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
