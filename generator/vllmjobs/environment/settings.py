"""`--set models.chat.replicas=3`: one value laid over an environment."""

import re

from vllmjobs.environment.problems import Mark, Problem
from vllmjobs.environment.tree import MAX_DEPTH, UNREADABLE, Map, Node, Scalar, Seq, parse


def parse_setting(text: str) -> tuple[Node | None, list[Problem]]:
    """Read `key.key=value` as a tree with that one value; the value is YAML (`3`, `true`, `[a, b]`).

    A dot inside a key is written `\\.`. The tree's marks name the option itself.
    """
    name, equals, value = text.partition("=")
    # Without the value, which may be a secret; without `=`, all of it may be one.
    mark = Mark(f"--set {name}" if equals and not UNREADABLE.search(name) else "--set")
    keys = [key.replace("\\.", ".") for key in re.split(r"(?<!\\)\.", name)]
    if not equals or not all(keys) or len(keys) > MAX_DEPTH or UNREADABLE.search(name):
        return None, [Problem(mark, (), "must be KEY=VALUE, such as models.chat.replicas=3")]
    if keys[0] == "extends":
        return None, [Problem(mark, (), "must stand in the file; --set lays one value over what was read")]
    node, problems = parse(value, mark.source)
    node = _remarked(node, mark) if node else Scalar(mark, None)
    for key in reversed(keys):
        node = Map(mark, {key: node}, {key: mark})
    return node, [Problem(mark, (), problem.message) for problem in problems]


def _remarked(node: Node, mark: Mark) -> Node:
    """Return the same values, all with `mark` as their place."""
    if isinstance(node, Map):
        entries = {key: _remarked(value, mark) for key, value in node.entries.items()}
        return Map(mark, entries, dict.fromkeys(entries, mark))
    if isinstance(node, Scalar):
        return Scalar(mark, node.value)
    return Seq(mark, [_remarked(item, mark) for item in node.items])
