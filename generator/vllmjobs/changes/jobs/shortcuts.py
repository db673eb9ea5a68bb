"""A job's tree with what may be written in a shorter way spelt out, so that either way is the same.

As Nomad 1.11 reads it: `jobspec2/hcl_conversions.go`, `normalizeJob` in jobspec2/parse_job.go, and
`Canonicalize` in api/{services,tasks}.go.
"""

from collections.abc import Iterator

from vllmjobs.changes.effects import below
from vllmjobs.changes.jobs.definitions import resolved
from vllmjobs.changes.jobs.jobspec import NAMED_BY, Item, Jobspec, Tree, put

# `regexp = "…"` of a constraint is its operator and its value; `distinct_property`, the attribute.
_OPERATORS = ("version", "semver", "regexp", "set_contains")


def spelt_out(job: Jobspec) -> Tree:
    """The tree, less the shortcuts of constraints, tasks, counts, and names; the given one stays as it is."""
    tree = _with_constraints(resolved(job.tree, job.beside))
    groups: dict[str, Tree] = {name: {"task": {name: task}} for name, task in below(tree, "task").items()}
    groups |= {name: group for name, group in below(tree, "group").items() if isinstance(group, dict)}
    name = str(tree.get("name", job.id))
    handed_down: Tree = {word: tree[word] for word in ("vault", "secret") if word in tree}
    spelt: Tree = {word: value for word, value in tree.items() if word not in ("task", *handed_down)}
    if groups:
        spelt["group"] = {
            group: _group(f"{name}-{group}", said, handed_down) for group, said in groups.items()
        }
    return spelt


def _group(name: str, group: Tree, handed_down: Tree) -> Tree:
    handed_down = {**handed_down, **{word: group[word] for word in ("vault", "secret") if word in group}}
    spelt: Tree = {word: value for word, value in group.items() if word not in ("vault", "secret")}
    scaling = below(group, "scaling")
    if group.get("count") is None and "min" in scaling:
        spelt["count"] = scaling["min"]
    _name_services(spelt, name)
    if "task" in group:
        spelt["task"] = {
            task: _task(f"{name}-{task}", task, {**handed_down, **said}) if isinstance(said, dict) else said
            for task, said in below(group, "task").items()
        }
    return spelt


def _task(name: str, label: str, task: Tree) -> Tree:
    _name_services(task, name)
    below(task, "resources").pop("disk", None)  # Nomad drops it: ephemeral_disk is in its place
    for service in below(task, "service").values():
        for said in (service, *below(service, "check").values()):
            if isinstance(said, dict) and said.get("task") == label:
                del said["task"]
    return task


def _name_services(tree: Tree, name: str) -> None:
    """A service without a name goes by those of its job, group and task."""
    if "service" in tree:
        tree["service"] = {
            name if word == "default" else word: service for word, service in below(tree, "service").items()
        }


def _with_constraints(tree: Tree) -> Tree:
    """A copy in which each constraint has an operator, and stands where that puts it."""
    copy: Tree = {}
    for word, item in tree.items():
        if word == "constraint" and isinstance(item, dict):
            copy[word] = {}
            for said in _constraints(item):
                key = next((str(said[key]) for key in NAMED_BY["constraint"] if said.get(key)), "default")
                put(copy, [word, key], said)
        else:
            copy[word] = _with_constraints(item) if isinstance(item, dict) and word != "config" else item
    return copy


def _constraints(named: Tree) -> Iterator[Tree]:
    for said in named.values():
        if not isinstance(said, dict):
            continue
        spelt: dict[str, Item] = dict(said)
        for operator in _OPERATORS:
            if spelt.get(operator):
                spelt |= {"operator": operator, "value": spelt.pop(operator)}
        if (distinct := spelt.pop("distinct_hosts", None)) is not None:
            spelt |= {"operator": "distinct_hosts", "value": distinct}
        if distinct := spelt.pop("distinct_property", None):
            spelt |= {"operator": "distinct_property", "attribute": distinct}
        yield spelt
