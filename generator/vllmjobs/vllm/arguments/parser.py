"""The words of a command line, taken apart as vLLM's parser does: vllm/utils/argparse_utils.py."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from vllmjobs.vllm.arguments.tables import Flag, Table

MistakeKind = Literal[
    "unknown", "abbreviation", "type", "choice", "range", "json", "key", "conflict", "repeated",
    "missing-value",
]  # fmt: skip


class Mistake(NamedTuple):
    """A mistake in a command line: vLLM refuses it, or takes it otherwise than it was meant."""

    flag: str  # the long name without dashes; inside a JSON option with the key: `speculative-config.method`
    kind: MistakeKind
    message: str  # a part of a sentence that follows `models.chat.args.FLAG: `


ConflictRule = Callable[["Arguments"], Iterator[Mistake]]


class Arguments:
    """The arguments of a command line as the rules about them see it: those given, over vLLM's defaults."""

    def __init__(self, table: Table, values: dict[str, Any]) -> None:
        self.table = table
        self.values = values

    def __getitem__(self, dest: str) -> Any:
        flag = self.table.by_dest.get(dest)
        return self.values.get(dest, flag.default if flag else None)

    def key(self, dest: str, key: str) -> Any:
        """Return a key of a JSON option; None where it was not given."""
        return (self.values.get(dest) or {}).get(key)


def conflict(flag: str, message: str) -> Mistake:
    """Return arguments that are each right, and wrong together."""
    return Mistake(flag, "conflict", message)


class Option(NamedTuple):
    """One use of a flag."""

    flag: Flag
    spelling: str
    words: list[str]  # the values of the option, not yet read
    merged: Any = None  # the object that dotted keys (`--x.y=1`) make; None for an option written whole


class Split(NamedTuple):
    """A command line, taken apart."""

    model: str | None
    options: list[Option]
    mistakes: list[Mistake]


SUFFIXES = {letter: 10 ** (3 * power) for power, letter in enumerate("kmgt", 1)} | {
    letter: 2 ** (10 * power) for power, letter in enumerate("KMGT", 1)
}
_SIZE = r"(\d+(?:\.\d+)?)([kKmMgGtT])"
_BARE_SIZE = r'("(?:[^"\\]|\\.)*")|\b(\d+(?:\.\d+)?[kKmMgGtT])\b'
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # argparse takes these for values


def size(text: str) -> int:
    """Return a whole number, `1k` as 1000, `1K` as 1024, `1.5k` as 1500, or raise ValueError."""
    match = re.fullmatch(_SIZE, text.strip())
    if not match:
        return int(text)
    number, suffix = match.groups()
    return int(float(number) * SUFFIXES[suffix]) if suffix.islower() else int(number) * SUFFIXES[suffix]


def expanded_sizes(text: str) -> str:
    """Return JSON in which `1k` stood for 1000 outside of texts (vllm/engine/arg_utils.py)."""
    return re.sub(_BARE_SIZE, lambda match: match[1] or str(size(match[2])), text)


def split(table: Table, words: Sequence[str]) -> Split:
    """Take apart what follows `vllm serve`: the model's name, then options."""
    mistakes: list[Mistake] = []
    plain, merged = _take_dotted(table, [*_normalized(table, words)], mistakes)
    model, options = _take_options(table, plain, mistakes)
    for spelling, value in merged.items():
        flag = table.by_name.get(spelling)
        if flag is None:
            mistakes.append(Mistake(spelling.lstrip("-"), "unknown", ""))
        elif any(option.flag is flag for option in options):
            # The dotted keys follow as a second option of that name, and argparse keeps the last.
            message = "is given whole and by dotted keys; vLLM keeps the dotted keys only: write one form"
            mistakes.append(Mistake(flag.name, "repeated", message))
        elif flag.read in ("object", "json", "json-or-str"):
            options.append(Option(flag, spelling, [], value))
        else:
            mistakes.append(Mistake(flag.name, "key", "takes no keys, as it is no JSON option"))
    return Split(model, options, mistakes)


def _normalized(table: Table, words: Sequence[str]) -> Iterator[str]:
    """Spell names with `-` for `_`, up to the first dot; spell `-O3` as the option that it stands for."""
    level = "-O.mode" if table.level_flag == "compilation_config" else "--optimization-level"
    for position, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            head, dot, keys = name.partition(".")
            yield f"{head.replace('_', '-')}{dot}{keys}{equals}{value}"
        elif word == "-O" and position + 1 < len(words) and words[position + 1] in {"0", "1", "2", "3"}:
            yield level
        elif word.startswith("-O") and word != "-O" and not (word[2] == "." and "-O" in table.by_name):
            yield f"{level}={word[2:].removeprefix('=')}"
        else:
            yield word


def _take_dotted(
    table: Table, words: list[str], mistakes: list[Mistake]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--x.y=1`, `--x.y 1` and `--x.y+ a,b` out of the words, as one object for each option."""
    rest: list[str] = []
    merged: dict[str, dict[str, Any]] = {}
    waiting = iter(words)
    for word in waiting:
        name, equals, text = word.partition("=")
        if not name.startswith("-") or "." not in name:
            rest.append(word)
            continue
        if _NEGATIVE.fullmatch(name):
            message = f"vLLM takes the word {word} for a dotted option; write --name={word}"
            mistakes.append(Mistake(word, "unknown", message))
            continue
        spelling, *keys = name.removesuffix("+").split(".")
        flag = table.by_name.get(spelling)
        path = ".".join([flag.name if flag else spelling.lstrip("-"), *keys])
        if not equals:
            text = next(waiting, "-")
            if text.startswith("-") and not _NEGATIVE.fullmatch(text):  # vLLM would swallow the next option
                mistakes.append(Mistake(path, "missing-value", "needs a value"))
                continue
        value = text.split(",") if name.endswith("+") else _dotted_value(table, text)
        if not all(keys):
            mistakes.append(Mistake(path, "key", "has an empty key between two dots"))
        elif not _merge(merged.setdefault(spelling, {}), keys, value):
            mistakes.append(Mistake(path, "repeated", "is given twice; vLLM keeps the last: write it once"))
    return rest, merged


def _dotted_value(table: Table, text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, OverflowError):
        return size(text) if table.dotted_suffixes else text
    return text


def _merge(into: dict[str, Any], keys: list[str], value: Any) -> bool:
    """Lay a value into nested objects; False where it would replace another one."""
    for key in keys[:-1]:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            return False
    last = keys[-1]
    if last not in into:
        into[last] = value
        return True
    if isinstance(into[last], list) and isinstance(value, list):
        into[last] += value
        return True
    if isinstance(into[last], dict) and isinstance(value, dict):
        return all(_merge(into[last], [key], item) for key, item in value.items())
    return False


def _take_options(table: Table, words: list[str], mistakes: list[Mistake]) -> tuple[str | None, list[Option]]:
    """Give each option the words that it can take as values, as argparse does."""
    model: str | None = None
    options: list[Option] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if _is_value(table, word):
            if model is None:
                model = word
            else:
                message = f"the word {word!r} belongs to no option; only the model's name stands by itself"
                mistakes.append(Mistake(word, "unknown", message))
            continue
        name, equals, text = word.partition("=")
        flag = table.by_name.get(word) or table.by_name.get(name)
        explicit = [text] if equals and word not in table.by_name else None
        end = position
        while explicit is None and end < len(words) and _is_value(table, words[end]):
            end += 1
        if flag is None:
            # Its value goes with it: a second mistake about that word would say nothing more.
            mistakes.append(_unknown(table, name))
            position = min(end, position + 1)
            continue
        taken = _taken(flag, explicit or words[position:end])
        message = _miscounted(flag, name, taken, joined=explicit is not None)
        if message:
            mistakes.append(Mistake(flag.name, "type" if flag.read == "switch" else "missing-value", message))
        else:
            options.append(Option(flag, name, taken))
        position += 0 if explicit is not None else len(taken)
    return model, options


def _is_value(table: Table, word: str) -> bool:
    """Tell as argparse's `_parse_optional` does: what does not look like an option is a value."""
    if not word.startswith("-") or word == "-":
        return True
    if word in table.by_name or word.partition("=")[0] in table.by_name:
        return False
    is_text = " " in word and not _abbreviated(table, word.partition("=")[0])
    return is_text or bool(_NEGATIVE.fullmatch(word))


def _abbreviated(table: Table, name: str) -> list[str]:
    if not name.startswith("--"):
        return [known for known in table.by_name if known == name[:2] or known.startswith(name)]
    return [known for known in table.by_name if known.startswith(name)] if len(name) > 2 else []


def _unknown(table: Table, name: str) -> Mistake:
    options = sorted({table.by_name[known].name for known in _abbreviated(table, name)})
    if not options:
        return Mistake(name.lstrip("-"), "unknown", "")
    if len(options) > 1:
        message = f"abbreviates {len(options)} options of vLLM; write one out: {', '.join(options[:6])}"
    else:
        message = f"abbreviates {options[0]}, which may change with a new option; write {options[0]}"
    return Mistake(name.lstrip("-"), "abbreviation", message)


def _taken(flag: Flag, words: list[str]) -> list[str]:
    """Return the words that a flag takes of those that follow it."""
    if flag.read == "switch":
        return []
    if flag.nargs in ("", "?"):
        return words[:1]
    return words[: int(flag.nargs)] if flag.nargs.isdigit() else words


def _miscounted(flag: Flag, spelling: str, taken: list[str], *, joined: bool) -> str:
    if flag.read == "switch":
        return f"is a switch and takes no value: write {spelling} alone" if joined else ""
    if flag.nargs.isdigit() and len(taken) != int(flag.nargs):
        return f"needs {flag.nargs} values, not {len(taken)}"
    return "needs a value" if not taken and flag.nargs in ("", "+") else ""
