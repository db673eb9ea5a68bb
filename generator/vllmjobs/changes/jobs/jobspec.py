"""A job's HCL, as a tree of its words.

An attribute holds what the HCL says, not evaluated: `${attr.kernel.name}` stays as it is, and so does any
call of a function. A map that is written as a block is the same as one with `=`; order, layout and comments
make no difference.
"""

import re
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import tree_sitter_hcl
from tree_sitter import Language, Node, Parser

from vllmjobs.changes.jobs.tree import NAMED_BY, Item, Tree, put
from vllmjobs.environment.problems import UserError

_ESCAPE = re.compile(r'\\(["\\nrt]|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|([$%])\2(?=\{)')
# Of `$$${`, the first `$` stands for itself, and `$${` is an escape. `scan` in src/scanner.c of
# tree-sitter-grammars/tree-sitter-hcl (1.2.0) takes the first two `$` as one literal and then sees `${`; no
# issue tells of it. So the first gets a stand-in that no HCL holds: U+FDD0 and U+FDD1 are noncharacters.
_MISREAD = re.compile(r"([$%])(?=\1\1\{)")
_STAND_INS = {"$": "\ufdd0", "%": "\ufdd1"}
_DOUBLED = re.compile(r"([$%])\1(?=\{)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


class Jobspec(NamedTuple):
    """One job as it is written."""

    id: str
    tree: Tree
    beside: Tree = {}  # the blocks `variable`, `variables` and `locals` of its file


def read(hcl: str, source: str) -> Jobspec:
    """Return the one job of a jobspec; `source` names it in errors. Raises `UserError`."""
    try:
        return _read(hcl, source)
    except RecursionError as error:
        raise UserError(f"{source}: is nested too deeply") from error


def _read(hcl: str, source: str) -> Jobspec:
    root = _parser().parse(_MISREAD.sub(lambda match: _STAND_INS[match[1]], hcl).encode()).root_node
    if root.has_error:
        row, column = _first_error(root)
        raise UserError(f"{source}:{row + 1}:{column + 1}: is not HCL from here on")
    blocks = [node for node in _body(root) if node.type == "block" and _kind(node) == "job"]
    if len(blocks) != 1:
        raise UserError(f"{source}: must hold one job, but holds {len(blocks)}")
    (job,) = blocks
    labels = _labels(job)
    if len(labels) != 1:
        raise UserError(f"{source}:{job.start_point[0] + 1}:1: job must have one name")
    beside: Tree = {}
    for node in _body(root):
        if node.type == "block" and _kind(node) in ("variable", "variables", "locals"):
            put(beside, [_kind(node), *_labels(node)], _tree(node))
    tree = _tree(job)
    return Jobspec(str(tree.pop("id", labels[0])), tree, beside)


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_hcl.language()))


def _first_error(node: Node) -> tuple[int, int]:
    """Return row and column, from 0, of the innermost first node that holds an error."""
    for child in node.children:
        if child.is_error or child.is_missing:
            return child.start_point[0], child.start_point[1]
        if child.has_error:
            return _first_error(child)
    if node.parent is None and node.children:  # all is one error: of a quote or brace that nothing closes
        node = node.children[-1]
    return node.start_point[0], node.start_point[1]


def _body(node: Node) -> list[Node]:
    bodies = [child for child in node.named_children if child.type == "body"]
    return [child for body in bodies for child in body.named_children if child.type != "comment"]


def _kind(node: Node) -> str:
    return _text(node.named_children[0])


def _labels(block: Node) -> list[str]:
    labels = [node for node in block.named_children[1:] if node.type in ("string_lit", "identifier")]
    return [str(_quoted(label)) if label.type == "string_lit" else _text(label) for label in labels]


def _tree(block: Node) -> Tree:
    tree: Tree = {}
    for node in _body(block):
        kind = _kind(node)
        if node.type == "attribute":
            tree[kind] = _value(node.named_children[-1])
            continue
        inner = _tree(node)
        words = [kind, *_labels(node)]
        if kind in NAMED_BY and len(words) == 1:
            words.append(str(next((inner[key] for key in NAMED_BY[kind] if key in inner), "default")))
        put(tree, words, inner)
    return tree


def _value(expression: Node) -> Item:
    """Return the value of an expression that is only a value; otherwise the expression's own words."""
    node = expression
    while node.type in ("expression", "literal_value", "template_expr", "collection_value"):
        node = node.named_children[0]
    match node.type:
        case "string_lit" | "quoted_template":
            return _quoted(node)
        case "heredoc_template":
            return _heredoc(_text(node))
        case "bool_lit":
            return _text(node) == "true"
        case "null_lit":
            return None
        case "tuple":
            return [_value(item) for item in node.named_children if item.type == "expression"]
        case "object":
            return dict(_element(item) for item in node.named_children if item.type == "object_elem")
    text = _text(expression)
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        number = float(text)
        return int(number) if number.is_integer() else number
    return "${" + " ".join(text.split()) + "}"


def _element(node: Node) -> tuple[str, Item]:
    key, value = (child for child in node.named_children if child.type == "expression")
    name = _value(key)
    bare = isinstance(name, str) and key.text is not None and not key.text.startswith(b'"')
    return (_text(key) if bare else str(name)), _value(value)


def _quoted(node: Node) -> str:
    return _ESCAPE.sub(_unescaped, _text(node)[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code is None:  # `$${` is `${`, and no reference
        return match[2]
    return _ESCAPED.get(code) or chr(int(code[1:], 16))


# Go's unicode.IsSpace, without the line feed: Python's has \x1c to \x1f as well.
_SPACES = "\t\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _heredoc(text: str) -> str:
    """Return the text of a heredoc.

    `<<-` cuts the indentation that all lines share, and leaves empty ones alone:
    https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md#template-expressions.
    """
    opening, *lines, _ = text.split("\n")
    if opening.startswith("<<-"):
        indents = (len(line) - len(line.lstrip(_SPACES)) for line in lines if line.strip(_SPACES))
        shared = min(indents, default=0)
        lines = [line[shared:] if line.strip(_SPACES) else line for line in lines]
    return _DOUBLED.sub(r"\1", "".join(f"{line}\n" for line in lines))


def _text(node: Node) -> str:
    text = (node.text or b"").decode()
    for sign, stand_in in _STAND_INS.items():
        text = text.replace(f"{stand_in}{sign}{sign}{{", f"{sign}{sign}{sign}{{")
    return text
