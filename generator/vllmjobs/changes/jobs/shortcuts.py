"""A job's tree with what may be written in a shorter way spelt out, so that either way is the same.

It is read as Nomad 1.11 does: `jobspec2/hcl_conversions.go`, `normalizeJob` in jobspec2/parse_job.go, and
`Canonicalize` in api/{services,tasks}.go. Nomad evaluates `variable` and `locals` before it sees a job
(https://developer.hashicorp.com/nomad/docs/job-specification/hcl2); a variable stands for its default here,
since nobody knows what will be given.
"""

import json
import re
from collections.abc import Iterator

from vllmjobs.changes.jobs.jobspec import Jobspec
from vllmjobs.changes.jobs.tree import NAMED_BY, Item, Tree, below, groups, less, put, with_each, without

# `regexp = "…"` of a constraint is its operator and its value; `distinct_property`, the attribute.
_OPERATORS = ("version", "semver", "regexp", "set_contains")
_HANDED_DOWN = ("vault", "secret")  # from a job or a group to its tasks
_USE = re.compile(r"\$\{\s*((?:var|local)\.[\w-]+)\s*\}")
_MENTION = re.compile(r"(?<![\w.-])(?:var|local)\.[\w-]+")
_DEEPEST = 8  # a local may use another


def spelt_out(job: Jobspec) -> Tree:
    """Return a new tree, less the shortcuts of constraints, tasks, counts, and names."""
    tree = _with_constraints(_resolved(job.tree, job.beside))
    name = str(tree.get("name", job.id))
    handed_down = _only(tree, _HANDED_DOWN)
    lone_tasks: dict[str, Tree] = {
        label: {"task": {label: task}} for label, task in below(tree, "task").items()
    }
    spelt = less(tree, ("task", *_HANDED_DOWN))
    if all_groups := lone_tasks | groups(tree):
        spelt["group"] = {
            label: _group(f"{name}-{label}", group, handed_down) for label, group in all_groups.items()
        }
    return spelt


def _group(name: str, group: Tree, handed_down: Tree) -> Tree:
    """Return a group; `name` is the job's and its own, from which services are named."""
    handed_down = {**handed_down, **_only(group, _HANDED_DOWN)}
    spelt = _with_service_names(less(group, _HANDED_DOWN), name)
    scaling = below(group, "scaling")
    if group.get("count") is None and "min" in scaling:
        spelt["count"] = scaling["min"]
    return with_each(
        spelt, "task", lambda label, task: _task(f"{name}-{label}", label, {**handed_down, **task})
    )


def _task(name: str, label: str, task: Tree) -> Tree:
    """Return a task whose services and checks do not say that they are its own."""

    def service(_: str, block: Tree) -> Tree:
        block = without(block, "task", label)
        return with_each(block, "check", lambda _, check: without(check, "task", label))

    if resources := below(task, "resources"):  # Nomad drops `disk`: ephemeral_disk is in its place
        task = {**task, "resources": less(resources, ("disk",))}
    return with_each(_with_service_names(task, name), "service", service)


def _with_service_names(tree: Tree, name: str) -> Tree:
    """Return a tree in which a service without a name goes by those of its job, group and task."""
    if "service" not in tree:
        return dict(tree)
    services: Tree = {
        name if label == "default" else label: service for label, service in below(tree, "service").items()
    }
    return {**tree, "service": services}


def _with_constraints(tree: Tree) -> Tree:
    """Return a tree in which each constraint has an operator, and stands where that puts it."""
    spelt: Tree = {}
    for word, item in tree.items():
        if word == "constraint" and isinstance(item, dict):
            spelt[word] = {}
            for constraint in _constraints(item):
                names = (str(constraint[key]) for key in NAMED_BY["constraint"] if constraint.get(key))
                put(spelt, [word, next(names, "default")], constraint)
        else:
            spelt[word] = _with_constraints(item) if isinstance(item, dict) and word != "config" else item
    return spelt


def _constraints(named: Tree) -> Iterator[Tree]:
    for constraint in named.values():
        if not isinstance(constraint, dict):
            continue
        spelt: Tree = dict(constraint)
        for operator in _OPERATORS:
            if spelt.get(operator):
                spelt |= {"operator": operator, "value": spelt.pop(operator)}
        if (distinct := spelt.pop("distinct_hosts", None)) is not None:
            spelt |= {"operator": "distinct_hosts", "value": distinct}
        if distinct := spelt.pop("distinct_property", None):
            spelt |= {"operator": "distinct_property", "attribute": distinct}
        yield spelt


def _only(tree: Tree, words: tuple[str, ...]) -> Tree:
    return {word: tree[word] for word in words if word in tree}


def _resolved(job: Tree, file: Tree) -> Tree:
    """Return the job's tree with the values of `file`, which holds all that stands beside the job.

    An expression that only Nomad can work out, such as `upper(var.tag)`, stays as it is; then the values of
    what it mentions are put beside the job, so that a change of them is seen.
    """
    known: Tree = {name: value for name, value in _values(file) if value is not None}
    if not known:
        return job
    tree = _substituted(job, known, _DEEPEST)
    assert isinstance(tree, dict)
    for name in sorted(_mentioned(tree, known)):
        put(tree, name.split("."), known[name])
    return tree


def _values(file: Tree) -> Iterator[tuple[str, Item]]:
    for name, variable in below(file, "variable").items():
        if isinstance(variable, dict):
            yield f"var.{name}", variable.get("default")
    for word in file:
        kind = {"variables": "var", "locals": "local"}.get(word.partition("#")[0])
        for name, value in below(file, word).items() if kind else ():
            yield f"{kind}.{name}", value


def _substituted(item: Item, known: Tree, depth: int) -> Item:
    if isinstance(item, dict):
        return {
            str(_substituted(word, known, depth)): _substituted(value, known, depth)
            for word, value in item.items()
        }
    if isinstance(item, list):
        return [_substituted(value, known, depth) for value in item]
    if not isinstance(item, str) or not depth:
        return item
    if (whole := _USE.fullmatch(item)) and whole[1] in known:
        return _substituted(known[whole[1]], known, depth - 1)
    return _USE.sub(lambda match: _text(match, known, depth), item)


def _text(match: re.Match[str], known: Tree, depth: int) -> str:
    value = _substituted(known[match[1]], known, depth - 1) if match[1] in known else None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int, float)) else match[0]


def _mentioned(item: Item, known: Tree) -> set[str]:
    """Return what expressions of the tree use, and what these use in turn."""
    mentioned: set[str] = set()
    new = set(_MENTION.findall(json.dumps(item))) & known.keys()
    while new - mentioned:
        mentioned |= new
        new = set(_MENTION.findall(json.dumps([known[name] for name in mentioned]))) & known.keys()
    return mentioned
