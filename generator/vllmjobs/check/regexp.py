"""Regular expressions as Nomad reads them: RE2's, by Go's regexp/syntax/parse.go, which differ from Python's.

A repetition of repetitions that multiply above 1,000 is left to Nomad.
"""

import re

MOST_REPEATS = 1000
_NAMES = "alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit"
_ESCAPED = (
    r"\\(?:(?P<octal>0[0-7]{0,2}|[1-7][0-7]{1,2})|x(?P<two>[0-9A-Fa-f]{2})|x\{(?P<hex>[0-9A-Fa-f]+)\}"
    r"|(?P<letter>[afnrtv])|(?P<itself>[^A-Za-z0-9\x80-\U0010ffff]))"
)
_MANY = r"\\(?:[dDsSwW]|[pP](?:\{\^?[\w -]+\}|[CLMNPSZ]))"  # a class of characters
_NAMED = rf"\[:\^?(?:{_NAMES}):\]"
_EDGE = r"\\[AbBz]"
_QUOTED = r"\\Q(.*?)(?:\\E|\Z)"
_REPEAT = r"[*+?]\??|\{(0|[1-9][0-9]*)(,(0|[1-9][0-9]*)?)?\}\??"
_GROUP = r"\((?:\?P?<[A-Za-z0-9_]+>|\?[imsU]*(?:-[imsU]+)?:)?(?!\?)"
_FLAGS = r"\(\?[imsU]*(?:-[imsU]+)?\)"
_LETTERS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class _UnreadableError(Exception):
    """An expression that RE2 does not read; the message is the end of a sentence."""


def unreadable(expression: str) -> str:
    """Return why RE2 does not read an expression, as the end of a sentence; empty where it does."""
    try:
        _read(expression)
    except _UnreadableError as error:
        return str(error)
    return ""


def _read(expression: str) -> None:
    at, depth = 0, 0
    has_operand = False  # something stands before, which a * may repeat
    repeated = 0  # the end of the last repetition, which no other may follow
    while at < len(expression):
        character = expression[at]
        if repeat := _match(_REPEAT, expression, at):
            if not has_operand or (at and at == repeated):
                raise _UnreadableError(f"{repeat[0]!r} repeats nothing, or a repetition")
            _bounded(repeat)
            at = repeated = repeat.end()
        elif flags := _match(_FLAGS, expression, at):
            at = flags.end()
        elif character == "(":
            opened = _match(_GROUP, expression, at)
            if not opened:
                raise _UnreadableError(
                    f"{expression[at : at + 4]!r} is not in RE2, which has no lookarounds; write it without"
                )
            at, depth, has_operand = opened.end(), depth + 1, False
        elif character == ")":
            at, depth, has_operand = at + 1, depth - 1, True
            if depth < 0:
                break
        elif character == "|":
            at, has_operand = at + 1, False
        elif quoted := _match(_QUOTED, expression, at):
            at, has_operand = quoted.end(), has_operand or bool(quoted[1])
        else:
            at, has_operand = _atom(expression, at), True
    if depth:
        raise _UnreadableError("its parentheses do not match")


def _match(pattern: str, expression: str, at: int) -> re.Match[str] | None:
    """Match at a place; `re` compiles and keeps a pattern when it is first needed, which is seldom."""
    return re.compile(pattern, re.DOTALL).match(expression, at)


def _bounded(repeat: re.Match[str]) -> None:
    """Raise for a number of repetitions that is too large, or for less than least."""
    least, most = int(repeat[1] or 0), int(repeat[3] or repeat[1] or 0)
    if max(least, most) > MOST_REPEATS or most < least:
        raise _UnreadableError(f"{repeat[0]} repeats more than {MOST_REPEATS:,} times, or counts downwards")


def _atom(expression: str, at: int) -> int:
    """Return the end of the character, or the class of characters, at `at`."""
    if expression[at] == "[":
        return _class(expression, at)
    found = _match(_EDGE, expression, at) or _match(_MANY, expression, at)
    return found.end() if found else _character(expression, at)[1]


def _character(expression: str, at: int) -> tuple[str, int]:
    """Return the character at `at`, which may be escaped, and where it ends."""
    if expression[at] != "\\":
        return expression[at], at + 1
    found = _match(_ESCAPED, expression, at)
    if not found:
        written = expression[at : at + 2]
        what = f"{written!r} is no escape of RE2" if written != "\\" else "a single \\ stands at its end"
        raise _UnreadableError(f"{what}; write \\\\ for the character itself")
    code = int(found["octal"] or "0", 8) or int(found["two"] or found["hex"] or "0", 16)
    if code > 0x10FFFF:
        raise _UnreadableError(f"{found[0]} is no character")
    return _LETTERS.get(found["letter"] or "") or found["itself"] or chr(code), found.end()


def _class(expression: str, start: int) -> int:
    """Return the end of the brackets at `start`."""
    at = first = start + (2 if expression.startswith("[^", start) else 1)
    while at == first or not expression.startswith("]", at):
        if at >= len(expression):
            raise _UnreadableError("a [ is not closed")
        if many := _match(_NAMED, expression, at) or _match(_MANY, expression, at):
            at = many.end()
            continue
        if expression.startswith("[:", at) and ":]" in expression[at + 2 :]:
            raise _UnreadableError(
                f"{expression[at : expression.index(':]', at + 2) + 2]} is no class of RE2"
            )
        low, at = _character(expression, at)
        if expression.startswith("-", at) and expression[at + 1 : at + 2] not in ("", "]"):
            high, at = _character(expression, at + 1)
            if high < low:
                raise _UnreadableError(f"{low}-{high} counts downwards")
    return at + 1
