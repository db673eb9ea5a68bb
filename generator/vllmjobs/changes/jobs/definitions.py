"""The variables and locals of a jobspec, put where its job uses them.

Nomad evaluates `variable` and `locals` before it sees a job (https://developer.hashicorp.com/nomad/docs/job-specification/hcl2).
A variable stands for its default here, since nobody knows what will be given.
"""

import json
import re
from collections.abc import Iterator

from vllmjobs.changes.jobs.tree import Item, Tree, below, put

_USE = re.compile(r"\$\{\s*((?:var|local)\.[\w-]+)\s*\}")
_MENTION = re.compile(r"(?<![\w.-])(?:var|local)\.[\w-]+")
_DEEPEST = 8  # a local may use another


def resolved(job: Tree, file: Tree) -> Tree:
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
