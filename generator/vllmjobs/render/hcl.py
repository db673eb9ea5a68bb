"""HCL for Nomad: values quoted so that its parser gives them back, and the layout of `nomad fmt`."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

# HCL's native syntax, "Template Expressions": a quoted string ends at `"`, escapes with `\`, and starts
# an interpolation at `${` or a directive at `%{`, which are doubled to be literal.
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPECIAL = r'["\\\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]|[$%](?=\{)'
# Nomad's own references are kept by its HCL parser as they are, and filled in on the client; but not after
# another `$`, which would make them escaped, not before another `}`, and not in the label of a block.
_REFERENCE = r"(?<!\$)\$\{(?:NOMAD_\w+|(?:attr|device|meta|node)(?:\.[A-Za-z_]\w*)+)\}(?!\})"
_SPECIAL_IN_LABEL = re.compile(_SPECIAL)
_SPECIAL_IN_VALUE = re.compile(rf"(?!{_REFERENCE})(?:{_SPECIAL})", re.ASCII)
_ASSIGNMENT = re.compile(r'([\w.-]+|"[^"]*") = (.+)')
_HEREDOC = re.compile(r"<<-?(\w+)$")
_BRACKET = re.compile(r"[][(){}]")
_COMMENT = re.compile(r"#|//")
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|(?:#|//).*')


def quote(value: object, *, label: bool = False) -> str:
    r"""Return a value as an HCL literal: strings are quoted so that a parser gives them back as they were.

    `quote('say "${hi}"')` is `"say \"$${hi}\""`; `${NOMAD_PORT_http}` stays readable, but not in the
    `label` of a block, which has no references. Booleans, numbers and lists work too.
    HCL itself normalizes strings to NFC; the environment's loader refuses any that would change.
    """
    if isinstance(value, str):
        return _quoted(value, label)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(quote, value))}]"
    raise TypeError(f"a value of the type {type(value).__name__} cannot be written in HCL")


@lru_cache(maxsize=4096)  # most strings of one group stand in the others, too
def _quoted(value: str, label: bool) -> str:
    special = _SPECIAL_IN_LABEL if label else _SPECIAL_IN_VALUE
    return f'"{special.sub(_escaped, value)}"'


def quote_lines(values: Iterable[object], _indent: int = 0) -> str:
    """Return a list with one value a line. The number is of older templates: `align` indents."""
    lines = [f"{quote(value)},\n" for value in values]
    return f"[\n{''.join(lines)}]" if lines else "[]"


def align(text: str) -> str:
    """Lay out rendered HCL as `nomad fmt` would: by depth, the `=` of neighbouring lines in one column.

    Like hclwrite's `formatCells`: a line that opens a list over several lines takes no part. The lines
    of a heredoc are left alone; runs of empty lines, and those inside brackets, are taken out.
    """
    lines: list[str] = []
    chain: list[tuple[str, str, str]] = []
    opened: list[int] = []
    depth, heredoc_end = "", ""

    def close_chain() -> None:
        width = max([len(key) for _, key, _ in chain])
        lines.extend([f"{indent}{key:<{width}} = {value}" for indent, key, value in chain])
        chain.clear()

    for line in text.splitlines():
        if heredoc_end:
            lines.append(line)
            heredoc_end = "" if line.strip() == heredoc_end else heredoc_end
            continue
        code = line.strip()
        net, key, value, heredoc_end = _read(code)
        indent = depth
        if net:
            indent = _indentation(net, opened)
            depth = "  " * len(opened)
        if key:
            chain.append((indent, key, value))
            if heredoc_end:
                close_chain()
            continue
        if chain:
            close_chain()
        if code in ("}", "]") and lines and not lines[-1]:
            lines.pop()
        if code:
            lines.append(indent + code)
        elif lines and lines[-1] and not lines[-1].endswith("{"):
            lines.append("")
    if chain:
        close_chain()
    return "\n".join(lines).rstrip() + "\n"


class _Line(NamedTuple):
    """One line of HCL: the brackets that it opens less those it closes, and what it assigns, if anything."""

    net: int
    key: str = ""
    value: str = ""
    heredoc: str = ""  # the word that ends the text that begins here


@lru_cache(maxsize=4096)  # most lines of one group stand in the others, too
def _read(code: str) -> _Line:
    net = _net_brackets(code) if _BRACKET.search(code) else 0
    if not code or code[-1] in "[{" or not (match := _ASSIGNMENT.fullmatch(code)):
        return _Line(net)
    opening = _HEREDOC.search(code)
    return _Line(net, match[1], match[2], opening[1] if opening else "")


def _indentation(net: int, opened: list[int]) -> str:
    """Return the indentation of a line that opens or closes brackets, as hclwrite's `formatIndent` does.

    `opened` are the brackets that are open before the line, a number for each line that opened some; it is
    changed to those after the line.
    """
    closed = -net
    while closed > 0 and opened:
        closed, opened[-1] = closed - opened[-1], opened[-1] - closed
        if opened[-1] <= 0:
            opened.pop()
    indent = "  " * len(opened)
    if net > 0:
        opened.append(net)
    return indent


def _net_brackets(code: str) -> int:
    """Return how many more brackets a line opens than it closes, outside of strings and comments."""
    if code in ("}", "]"):
        return -1
    if not _BRACKET.search(code, 0, len(code) - 1) and code[-1] in "{[" and not _COMMENT.search(code):
        return 1  # most lines that open a block: no string holds a bracket
    brackets = _BRACKET.findall(_STRING_OR_COMMENT.sub("", code))
    return sum(1 if bracket in "([{" else -1 for bracket in brackets)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in "$%":
        return character * 2
    return _ESCAPES.get(character) or f"\\u{ord(character):04x}"
