"""Two jobs compared: what differs, and what Nomad will do."""

from collections.abc import Iterator
from itertools import chain

from msgspec.structs import replace

from vllmjobs.changes import effects
from vllmjobs.changes.differences import fields
from vllmjobs.changes.jobs.canonical import canonicalize
from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.tree import Item, Tree, below, groups, number, without_groups
from vllmjobs.changes.model import Field, GroupAction, GroupChange, JobChange


def compare(
    name: str, before: Jobspec | None, after: Jobspec | None, as_one: bool = False
) -> list[JobChange]:
    """Return what differs in a job, and what Nomad does when the newer one is run.

    `name` is the job's name for `render --job`; None stands for no job. Under another id, namespace or region
    it is another job: then one has gone and one is new, unless they are to be compared `as_one`.
    """
    sides = [(job, canonicalize(job), job is after) for job in (before, after) if job]
    if len(sides) == 2:
        (was, old, _), (now, new, _) = sides
        if as_one or _identity(was, old) == _identity(now, new):
            return [_changed(name, was, now, old, new)]
    return [_whole(name, *side) for side in sides]


def _identity(job: Jobspec, tree: Tree) -> tuple[Item, ...]:
    return job.id, tree["namespace"], tree["region"]


def _whole(name: str, job: Jobspec, tree: Tree, is_new: bool) -> JobChange:
    where = "" if tree["namespace"] == "default" else f"-namespace {tree['namespace']} "
    note = f"nothing renders {job.id} any more, but it keeps running; stop it: nomad job stop {where}{job.id}"
    return JobChange(
        job=name,
        id=job.id,
        namespace=str(tree["namespace"]),
        region=str(tree["region"]),
        action="new" if is_new else "gone",
        groups=tuple(
            _group(label, None if is_new else group, group if is_new else None, tree, tree, ())
            for label, group in groups(tree).items()
        ),
        notes=() if is_new else (note,),
    )


def _changed(name: str, before: Jobspec, after: Jobspec, old: Tree, new: Tree) -> JobChange:
    """Return a job that both sides have; `old` and `new` are its canonical trees."""
    was: Tree = {"id": before.id, **without_groups(old)}
    own = fields(was, {"id": after.id, **without_groups(new)}, of_job=True)
    relocating = effects.relocating_words(old, new)
    own = tuple(replace(field, replaces=True) if field.path[0] in relocating else field for field in own)
    old_groups, new_groups = groups(old), groups(new)
    changes = tuple(
        _group(label, old_groups.get(label), new_groups.get(label), old, new, own)
        for label in new_groups | old_groups
    )
    return JobChange(
        job=name,
        id=after.id,
        namespace=str(new["namespace"]),
        region=str(new["region"]),
        action="changed" if own or any(group.actions or group.fields for group in changes) else "none",
        fields=own,
        groups=changes,
        notes=tuple(_notes(own, changes)),
    )


def _group(
    name: str, before: Tree | None, after: Tree | None, old: Tree, new: Tree, own: tuple[Field, ...]
) -> GroupChange:
    """Return what becomes of a group; `own` is what differs in its job as a whole, from `old` to `new`."""
    count_before = number(before["count"]) if before is not None else None
    count_after = number(after["count"]) if after is not None else None
    differing: tuple[Field, ...] = ()
    if before is None or after is None:
        actions: tuple[GroupAction, ...] = ("new",) if before is None else ("gone",)
    else:
        differing = fields(before, after)
        if _metas(old, before) == _metas(new, after):
            differing, own = _less_meta(differing), _less_meta(own)
        actions = effects.actions(count_before, count_after, differing, own)
        differing = effects.without_blame(differing, actions)
    return GroupChange(
        name=name,
        actions=actions,
        count_before=count_before,
        count_after=count_after,
        gpus_before=effects.gpus(before),
        gpus_after=effects.gpus(after),
        canaries=effects.canaries(new["type"], after or {}, actions),
        fields=differing,
    )


def _metas(job: Tree, group: Tree) -> dict[str, Tree]:
    """Return the meta that each task sees, by its name: the job's under the group's under its own."""
    handed_down = {**below(job, "meta"), **below(group, "meta")}
    return {name: {**handed_down, **below(task, "meta")} for name, task in below(group, "task").items()}


def _less_meta(differing: tuple[Field, ...]) -> tuple[Field, ...]:
    """Return the fields; those of meta replace nothing, since no task sees a change (`CombinedTaskMeta`)."""
    return tuple(
        replace(field, replaces=field.replaces and "meta" not in (field.path[0], *field.path[2:3]))
        for field in differing
    )


def _notes(own: tuple[Field, ...], groups: tuple[GroupChange, ...]) -> Iterator[str]:
    if types := [field for field in own if field.path == ("type",)]:
        yield f"Nomad cannot turn a {types[0].before} job into a {types[0].after} job: give it another name"
    placements = {
        field.path[-1] if len(field.path) == 1 else field.path[0]
        for field in chain(own, *(group.fields for group in groups))
        if effects.is_placement(field.path) and not field.replaces
    }
    if placements:
        words = " and ".join(sorted(placements))
        yield (
            f"{words} may exclude nodes on which instances run, and Nomad then replaces those "
            "instances; vllmjobs plan shows which"
        )
