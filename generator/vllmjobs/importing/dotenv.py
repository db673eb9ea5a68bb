"""The text of an `.env` file, to its variables, as Docker Compose reads it.

https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/#env-file-syntax.
python-dotenv agrees (the tests compare), but for `$`: its parser does not say which values were in single
quotes, where `$` is itself. What is not in the file is not set: the process's own variables are not read.
"""

import re
from typing import NamedTuple

from vllmjobs.environment.problems import Mark, Problem
from vllmjobs.environment.secret_names import is_secret_name
from vllmjobs.environment.secrets import looks_secret

MAX_SHOWN_NAME = 40
MAX_VALUE = 32_768  # characters: variables that refer to each other twice double with every line


class Note(NamedTuple):
    """A note on what was not carried over, or not as it stood: the place, and a sentence without secrets."""

    mark: Mark
    message: str
    is_of_a_fleet: bool = False  # one box does as the file says, and only a fleet does not

    def __str__(self) -> str:
        return f"{self.mark}: {self.message}"


class Variable(NamedTuple):
    """A value as a program would get it, and where its assignment stands."""

    value: str
    mark: Mark
    secret: bool  # by its name or the form of its value, or where it refers to a secret


class DotEnv(NamedTuple):
    """The variables of a file by name, in reading order, and what is to be said about it."""

    variables: dict[str, Variable]
    notes: list[Note]
    problems: list[Problem]


_BLANK = re.compile(r"(?:\s+|#[^\n]*)*+")
_NAME = re.compile(r"(?:export[^\S\n]+)?([A-Za-z_]\w*)[^\S\n]*(?:(=)([^\S\n]*)|(?=#|\n|\Z))", re.ASCII)
_QUOTED = re.compile(r"(['\"])((?:\\.|(?!\1)[^\\])*+)\1(?P<rest>[^\n]*)", re.DOTALL)
_COMMENT = re.compile(r"\s+#.*")
_REFERENCE = (
    r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)"
    r"|\{(?P<braced>[A-Za-z_]\w*)(?:(?P<or_empty>:)?-(?P<default>[^{}$]*))?\}|(?P<odd>\{))"
)
_IN_BARE = re.compile(_REFERENCE, re.ASCII)
_IN_DOUBLE = re.compile(rf"\\(?P<escaped>[\\'\"$abfnrtv])|{_REFERENCE}", re.ASCII)
_IN_SINGLE = re.compile(r"\\(?P<escaped>[\\'])")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def read(text: str, source: str) -> DotEnv:
    """Read a file; `text` has line feeds only. A fault inside quotes ends the reading."""
    result = DotEnv({}, [], [])
    at = counted = 0
    line = 1  # counted from where the last one was: from the start each time, a long file takes minutes
    while (at := _BLANK.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # matches nothing too
        line, counted = line + text.count("\n", counted, at), at
        mark = Mark(source, line, at - text.rfind("\n", 0, at))
        end = len(text) if (line_feed := text.find("\n", at)) < 0 else line_feed
        name = _NAME.match(text, at)
        if not name:
            result.notes.append(Note(mark, "is not of the form NAME=VALUE, and is left out"))
        elif not name[2]:
            message = f"{shown(name[1])} has no value, so Compose takes it from the shell; it is left out"
            result.notes.append(Note(mark, message))
        elif text.startswith(("'", '"'), name.end()):
            quoted = _QUOTED.match(text, name.end())
            rest = quoted["rest"].strip() if quoted else ""
            if not quoted or (rest and not rest.startswith("#")):
                wrong = "more text after its closing quote" if quoted else "a quote that is not closed"
                result.problems.append(Problem(mark, (), f"{shown(name[1])} has {wrong}"))
                break  # what follows may be the inside of a value, and of a secret
            end = quoted.end()
            _set(result, name[1], quoted[2], mark, _IN_SINGLE if quoted[1] == "'" else _IN_DOUBLE)
        else:
            bare = text[name.end() : end]
            is_comment = name[3] and bare.startswith("#")
            _set(result, name[1], "" if is_comment else _COMMENT.sub("", bare).rstrip(), mark, _IN_BARE)
        at = end
    return result


def shown(name: str) -> str:
    """Return a variable's name, unless it may be a piece of a secret that was broken into lines."""
    plain = name in (name.upper(), name.lower()) and len(name) <= MAX_SHOWN_NAME and not looks_secret(name)
    return name if plain else "a variable (name not shown)"


def _set(result: DotEnv, name: str, raw: str, mark: Mark, pattern: re.Pattern[str]) -> None:
    """Add a variable; in its value, escapes and references to what stands above it are filled in."""
    referred: list[Variable] = []

    def fill(match: re.Match[str]) -> str:
        groups = match.groupdict()
        if escaped := groups.get("escaped"):
            return _ESCAPES.get(str(escaped), str(escaped))
        if groups["dollar"]:
            return "$"
        if groups["odd"]:
            message = f"{shown(name)}: write ${{NAME}}, ${{NAME:-default}} or ${{NAME-default}}"
            result.problems.append(Problem(mark, (), f"{message}; no other reference is understood"))
            return ""
        other = groups["name"] or groups["braced"]
        known = result.variables.get(other)
        if known and (known.value or not groups["or_empty"]):
            referred.append(known)
            return known.value
        if groups["default"] is None and not known:
            message = f"{shown(name)} refers to {shown(other)}, which is not set above it; taken as empty"
            result.notes.append(Note(mark, message))
        return groups["default"] or ""

    value = pattern.sub(fill, raw)
    if len(value) > MAX_VALUE:
        result.problems.append(Problem(mark, (), f"{shown(name)} is longer than {MAX_VALUE:,} characters"))
        value = ""
    if first := result.variables.pop(name, None):
        message = f"{shown(name)} is set again (first on line {first.mark.line}); this one counts"
        result.notes.append(Note(mark, message))
    named_so = is_secret_name(name) or looks_secret(value)  # a placeholder's place is a secret's, too
    result.variables[name] = Variable(value, mark, named_so or any(other.secret for other in referred))
