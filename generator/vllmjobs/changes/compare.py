"""`compare`: two jobs, to what differs and what Nomad will do."""

import json
from collections.abc import Generator, Iterator
from difflib import SequenceMatcher
from itertools import chain

from msgspec.structs import replace

from vllmjobs.changes import effects
from vllmjobs.changes.hiding import named, shown
from vllmjobs.changes.jobs.canonical import canonicalize, is_nothing
from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.tree import NAMED_BY, Item, Path, Tree, below, groups, number, without_groups
from vllmjobs.changes.model import Field, GroupAction, GroupChange, JobChange

# Nomad compares these one by one, in their order; of all others the order means nothing.
_ORDERED = {"template", "artifact", "volume_mount", "identity", "mount", "secret", "port"}


def compare(
    name: str, before: Jobspec | None, after: Jobspec | None, as_one: bool = False
) -> list[JobChange]:
    """What is different in a job, and what Nomad does when the newer one is run.

    `name` is the job's name for `render --job`; None stands for no job. Under another id, namespace or region
    it is another job: then one has gone and one is new, unless they are to be compared `as_one`.
    """
    old, new = (canonicalize(job) if job else None for job in (before, after))
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


def _whole(name: str, job: Jobspec, tree: Tree, action: str) -> JobChange:
    """A job that only one side has."""
    is_new = action == "new"
    found = tuple(
        _group(group, None if is_new else spec, spec if is_new else None, tree, tree, ())
        for group, spec in groups(tree).items()
    )
    where = "" if tree["namespace"] == "default" else f"-namespace {tree['namespace']} "
    note = f"nothing renders {job.id} any more, and it runs on: nomad job stop {where}{job.id}"
    return JobChange(
        job=name,
        id=job.id,
        namespace=str(tree["namespace"]),
        region=str(tree["region"]),
        action="new" if is_new else "gone",
        groups=found,
        notes=() if is_new else (note,),
    )


def _changed(name: str, before: Jobspec, after: Jobspec, old: Tree, new: Tree) -> JobChange:
    identity: Tree = {"id": before.id} if before.id != after.id else {}
    renamed: Tree = {"id": after.id} if identity else {}
    own = fields({**identity, **without_groups(old)}, {**renamed, **without_groups(new)}, of_job=True)
    left = effects.leaves(old, new)
    own = tuple(replace(field, replaces=True) if field.path[0] in left else field for field in own)
    was, now = groups(old), groups(new)
    found = tuple(
        _group(group, was.get(group), now.get(group), old, new, own)
        for group in (*now, *(group for group in was if group not in now))
    )
    return JobChange(
        job=name,
        id=after.id,
        namespace=str(new["namespace"]),
        region=str(new["region"]),
        action="changed" if own or any(group.actions or group.fields for group in found) else "none",
        fields=own,
        groups=found,
        notes=tuple(_notes(own, found)),
    )


def _group(
    name: str, before: Tree | None, after: Tree | None, old: Tree, new: Tree, own: tuple[Field, ...]
) -> GroupChange:
    """What becomes of a group; `old` and `new` are the jobs, and `own` what differs in them as a whole."""
    was = number(before["count"]) if before is not None else None
    now = number(after["count"]) if after is not None else None
    differing: tuple[Field, ...] = ()
    if before is None or after is None:
        done: tuple[GroupAction, ...] = ("new",) if before is None else ("gone",)
    else:
        differing = fields(before, after)
        if _metas(old, before) == _metas(new, after):
            differing, own = _less_meta(differing), _less_meta(own)
        done = effects.actions(was, now, differing, own)
        differing = effects.blamed(differing, done)
    return GroupChange(
        name=name,
        actions=done,
        count_before=was,
        count_after=now,
        gpus_before=None if before is None else effects.gpus(before),
        gpus_after=None if after is None else effects.gpus(after),
        canaries=effects.canaries(new["type"], after or {}, done),
        fields=differing,
    )


def _metas(job: Tree, group: Tree) -> dict[str, Tree]:
    """What each task gets to see, by its name: the job's meta under the group's under its own."""
    handed_down = {**below(job, "meta"), **below(group, "meta")}
    return {name: {**handed_down, **below(task, "meta")} for name, task in below(group, "task").items()}


def _less_meta(differing: tuple[Field, ...]) -> tuple[Field, ...]:
    """The fields, of which those of meta change nothing for any task (`CombinedTaskMeta`)."""
    return tuple(
        replace(field, replaces=field.replaces and "meta" not in (field.path[0], *field.path[2:3]))
        for field in differing
    )


def _notes(own: tuple[Field, ...], groups: tuple[GroupChange, ...]) -> Iterator[str]:
    if types := [field for field in own if field.path == ("type",)]:
        yield f"Nomad refuses to make a {types[0].before} job a {types[0].after} one: give it another name"
    moved = {
        field.path[-1] if len(field.path) == 1 else field.path[0]
        for field in chain(own, *(group.fields for group in groups))
        if effects.moves(field.path) and not field.replaces
    }
    if moved:
        words = " and ".join(sorted(moved))
        yield (
            f"{words} may leave out nodes on which instances run: Nomad replaces those; vllmjobs plan asks "
            "the cluster which"
        )


Difference = tuple[Path, Item, Item, tuple[Item, Item]]
ALONE = (None, None)


def _differences(path: Path, before: Item, after: Item) -> Iterator[Difference]:
    """Each place, its two values, and in lists the items before them. None is what is not there."""
    if before == after and repr(before) == repr(after):  # to Python, 1 is true, and [1] is [true]
        return
    if (before is None and is_nothing(path, after)) or (after is None and is_nothing(path, before)):
        return
    if isinstance(before, dict | None) and isinstance(after, dict | None):
        old, new = (_told(path, tree or {}) for tree in (before, after))
        if path[-1:] == ("service",):
            old = yield from _renamed(path, old, new)
        words = (*new, *(word for word in old if word not in new))
        found = [each for word in words for each in _differences((*path, word), old.get(word), new.get(word))]
        yield from found
        if (before is None or after is None) and not found:  # a block that says nothing, and comes or goes
            yield path, _empty(before), _empty(after), ALONE
        if _is_reordered(path, before, after):
            yield path, ", ".join(old), ", ".join(new), ALONE
    elif isinstance(before, list | None) and isinstance(after, list | None):
        if not before and not after:
            yield path, _empty(before), _empty(after), ALONE
        yield from _items(path, before or [], after or [])
    else:
        yield path, before, after, ALONE


def _renamed(path: Path, old: Tree, new: Tree) -> Generator[Difference, None, Tree]:
    """The only service that goes is the only one that comes, under another name: Nomad's diff has it so."""
    gone, come = [word for word in old if word not in new], [word for word in new if word not in old]
    if len(gone) != 1 or len(come) != 1:
        return old
    yield (*path, come[0], "name"), gone[0], come[0], ALONE
    service = old[gone[0]]
    if isinstance(service, dict):
        service = {word: value for word, value in service.items() if word != "name"}
    return {word: value for word, value in old.items() if word != gone[0]} | {come[0]: service}


def _items(path: Path, before: list[Item], after: list[Item]) -> Iterator[Difference]:
    """Items that come, go or change; what only moves, goes and comes."""
    old, new = ([json.dumps(item, sort_keys=True) for item in items] for items in (before, after))
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        for at in range(max(j - i, m - k)):
            was = before[i + at] if i + at < j else None
            now = after[k + at] if k + at < m else None
            yield path, was, now, (_last(before, i + at), _last(after, k + at))


def _last(items: list[Item], end: int) -> Item:
    return items[end - 1] if 0 < end <= len(items) else None


def _is_reordered(path: Path, before: Item, after: Item) -> bool:
    if not path or path[-1] not in _ORDERED or not isinstance(before, dict) or not isinstance(after, dict):
        return False
    return [word for word in before if word in after] != [word for word in after if word in before]


def _told(path: Path, tree: Tree) -> Tree:
    """A block's words, less the one that its place already tells."""
    names = NAMED_BY.get(path[-2], ()) if len(path) > 1 else ()
    return {word: value for word, value in tree.items() if not (word in names and value == path[-1])}


def _empty(item: Item) -> str | None:
    return None if item is None else "{}" if isinstance(item, dict) else "[]"


def _field(path: Path, before: Item, after: Item, last: tuple[Item, Item], of_job: bool) -> Field:
    texts: list[str | None] = [None, None]
    is_hidden = False
    # "1" and 1, which a driver tells apart
    tell = json.dumps if _text(before) == _text(after) and before is not None and after is not None else _text
    for side, (item, previous) in enumerate(zip((before, after), last, strict=True)):
        safe = _safe(path, item, previous)
        hidden = safe != item
        is_hidden |= hidden
        texts[side] = None if item is None else _text(safe) if hidden else tell(item)
    return Field(
        path=tuple(map(named, path)),
        before=texts[0],
        after=texts[1],
        replaces=effects.replaces(path, of_job, is_whole=before is None or after is None),
        hidden=is_hidden,
    )


def _safe(path: Path, item: Item, previous: Item = None) -> Item:
    """The value, less what may be secret in it; `previous` is the item before it in a list."""
    if isinstance(item, dict):
        return {word: _safe((*path, word), value) for word, value in item.items()}
    if isinstance(item, list):
        return [_safe(path, value, _last(item, at)) for at, value in enumerate(item)]
    if item is None:
        return None
    text, is_hidden = shown(path, _text(item), previous if isinstance(previous, str) else None)
    return text if is_hidden else item


def _text(item: Item) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
