"""What a jobspec defines outside of its job, `variable` and `locals`, put where the job uses it.

Nomad evaluates them before it sees a job (https://developer.hashicorp.com/nomad/docs/job-specification/hcl2).
A variable stands for its default here, since nobody knows what will be given.
"""

import json
import re
from collections.abc import Iterator

from vllmjobs.changes.effects import below
from vllmjobs.changes.jobs.jobspec import Item, Tree, put

_USE = re.compile(r"\$\{\s*((?:var|local)\.[\w-]+)\s*\}")
_MENTION = re.compile(r"(?<![\w.-])(?:var|local)\.[\w-]+")
_DEEPEST = 8  # a local may use another


def resolved(job: Tree, file: Tree) -> Tree:
    """The job's tree with the values of `file`, which holds all that stands beside the job.

    What only Nomad can work out, such as `upper(var.tag)`, stays as it is; then the values of what it
    mentions are put beside the job, so that a change of them is seen.
    """
    known: Tree = {name: value for name, value in _values(file) if value is not None}
    if not known:
        return job
    tree = _put_in(job, known, _DEEPEST)
    assert isinstance(tree, dict)
    left = _mentioned(tree, known)
    for name in sorted(left):
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


def _put_in(item: Item, known: Tree, depth: int) -> Item:
    if isinstance(item, dict):
        return {
            str(_put_in(word, known, depth)): _put_in(value, known, depth) for word, value in item.items()
        }
    if isinstance(item, list):
        return [_put_in(value, known, depth) for value in item]
    if not isinstance(item, str) or not depth:
        return item
    if (whole := _USE.fullmatch(item)) and whole[1] in known:
        return _put_in(known[whole[1]], known, depth - 1)
    return _USE.sub(lambda found: _text(found, known, depth), item)


def _text(found: re.Match[str], known: Tree, depth: int) -> str:
    value = _put_in(known[found[1]], known, depth - 1) if found[1] in known else None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int, float)) else found[0]


def _mentioned(item: Item, known: Tree) -> set[str]:
    """What expressions of the tree use, and what these use in turn."""
    found: set[str] = set()
    new = set(_MENTION.findall(json.dumps(item))) & known.keys()
    while new - found:
        found |= new
        new = set(_MENTION.findall(json.dumps([known[name] for name in found]))) & known.keys()
    return found
