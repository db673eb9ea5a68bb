"""A command line, read as `vllm serve` reads it, without vLLM."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from vllmjobs.text.english import did_you_mean
from vllmjobs.vllm.arguments.conflicts import conflicts
from vllmjobs.vllm.arguments.parser import Mistake, Option, expanded_sizes, size, split
from vllmjobs.vllm.arguments.tables import Flag, Table, history
from vllmjobs.vllm.arguments.values import InvalidValueError, check, folded, not_among, shown
from vllmjobs.vllm.releases import VERSIONS

# Where there is a plugin, it can bring a name of its own.
PLUGINS = {"tool_call_parser": "tool_parser_plugin", "reasoning_parser": "reasoning_parser_plugin"}


class Reading(NamedTuple):
    """A command line as vLLM reads it."""

    values: dict[str, Any]  # by vLLM's own names (`max_num_seqs`); JSON options as objects
    mistakes: list[Mistake]


def read(table: Table, words: Sequence[str]) -> Reading:
    """Read what follows `vllm serve`: the model's name, then options.

    What this accepts, vLLM's own parser accepts, with the same values. Beyond it, this refuses what
    works today and may not tomorrow (abbreviations), what vLLM takes otherwise than it was meant (an
    option given twice, a key that it ignores), and what its configuration classes refuse later.
    """
    taken = split(table, words)
    mistakes = [_explained(table, mistake) for mistake in taken.mistakes]
    values: dict[str, Any] = {} if taken.model is None else {"model_tag": taken.model}
    given: dict[str, Option] = {}
    plugins = {option.flag.dest for option in taken.options if option.words not in ([], [""])}
    for option in taken.options:
        flag = option.flag
        if flag.dest == "model":
            if taken.model is not None:
                mistakes.append(Mistake("model", "repeated", "is given by itself and by --model; keep one"))
            values["model_tag"] = option.words[0]
            continue
        if flag.dest in given and not flag.appended:
            mistakes.append(_repeated(flag, given[flag.dest], option))
        given[flag.dest] = option
        value, wrong = _value(table, option, checked=PLUGINS.get(flag.dest) not in plugins)
        mistakes += wrong
        # A word that a plugin may know is worth knowing for what else depends on it.
        if all(mistake.kind == "choice" for mistake in wrong) and (value is not None or not wrong):
            values[flag.dest] = [*values.get(flag.dest, []), value] if flag.appended else value
    mistakes += _misplaced(words, values)
    if not mistakes:
        mistakes += conflicts(table, values)
    return Reading(values, mistakes)


def _value(table: Table, option: Option, *, checked: bool) -> tuple[Any, list[Mistake]]:
    flag = option.flag
    try:
        value = _converted(table, option)
    except InvalidValueError as refused:
        return None, [Mistake(flag.name, refused.kind, refused.message)]
    if flag.value is None or value is None or value == flag.default or not checked:
        return value, []
    taken, mistakes = check(table, flag.value, value, flag.name)
    # Only an object is made what it is by the parser; all else stays as read until the engine is made.
    return (taken if flag.read == "object" else value), mistakes


def _converted(table: Table, option: Option) -> Any:
    flag, words = option.flag, option.words
    if option.merged is not None:
        return option.merged
    if flag.read == "switch":
        return option.spelling not in flag.off
    if flag.read == "lora":
        return [_lora(word) for word in words if word not in ("", "None")]
    if not words:
        return flag.const
    values = [_word(table, flag, word) for word in words]
    return values if flag.nargs not in ("", "?") else values[0]


def _word(table: Table, flag: Flag, word: str) -> Any:
    """Return one word as the option's own converter reads it."""
    if flag.optional and word in ("", "None"):
        return None
    value = _read(table, flag, word)
    if flag.choices and value not in flag.choices:
        raise InvalidValueError("choice", not_among(value, [str(choice) for choice in flag.choices]))
    return value


def _read(table: Table, flag: Flag, word: str) -> Any:
    match flag.read:
        case "str":
            return word
        case "bool":
            return bool(word)
        case "none-or-str":
            return "" if word.lower() == "none" else word
        case "folded":
            return folded(word, "snake")
        case "comma-list":
            return [int(item) if item.strip().isdecimal() else item.strip() for item in word.split(",")]
        case "json" | "object":
            return _json(word, sizes=flag.read == "object" and table.json_suffixes)
        case "json-or-str":
            return _json(word) if re.match(r"(?s)^\s*{.*}\s*$", word) else word
        case "size-or-auto":
            return -1 if word.strip().lower() in ("-1", "auto") else _number(flag, word)
        case _:
            return _number(flag, word)


def _number(flag: Flag, word: str) -> int | float:
    try:
        if flag.read == "float":
            return float(word)
        return int(word) if flag.read == "int" else size(word)
    except (ValueError, OverflowError):
        wanted = "a number" if flag.read == "float" else "a whole number"
        if flag.read.startswith("size"):
            wanted += ", such as 8192, 8k (8000) or 8K (8192)"
        raise InvalidValueError("type", f"must be {wanted}, not {shown(word)}") from None


def _json(word: str, *, sizes: bool = False) -> Any:
    try:
        return json.loads(expanded_sizes(word) if sizes else word)
    except (ValueError, OverflowError, RecursionError) as error:
        message = f"is not valid JSON: {error} (got {shown(word)})"
        raise InvalidValueError("json", message) from None


def _lora(word: str) -> dict[str, Any]:
    """Return `name=path`, or JSON: LoRAParserAction in vllm/entrypoints/openai/cli_args.py."""
    if "=" in word and "," not in word:
        name, _, path = word.partition("=")
        return {"name": name, "path": path}
    value = _json(word)
    keys = {"name", "path", "base_model_name"}
    if not isinstance(value, dict) or not {"name", "path"} <= set(value) <= keys:
        message = f"must be name=path, or an object with name, path and base_model_name, not {shown(word)}"
        raise InvalidValueError("type", message)
    return value


def _repeated(flag: Flag, first: Option, second: Option) -> Mistake:
    spellings = " and ".join(dict.fromkeys([first.spelling, second.spelling]))
    message = f"is given twice ({spellings}); vLLM keeps the last one: write it once"
    return Mistake(flag.name, "repeated", message)


def _misplaced(words: Sequence[str], values: dict[str, Any]) -> list[Mistake]:
    """Return the mistakes of misplaced words (FlexibleArgumentParser, vllm/utils/argparse_utils.py)."""
    mistakes = []
    if any(word.startswith("--config=") for word in words):
        message = "is ignored when joined by =; write `--config FILE`, in two words"
        mistakes.append(Mistake("config", "conflict", message))
    if words and words[0].startswith("-") and "served_model_name" in values and "config" not in values:
        mistakes.append(Mistake("served-model-name", "conflict", "needs the model's name as the first word"))
    return mistakes


def _explained(table: Table, mistake: Mistake) -> Mistake:
    """Return an unknown flag, with where it went and what was probably meant."""
    if mistake.kind != "unknown" or mistake.message:
        return mistake
    meant = did_you_mean(mistake.flag, [name.lstrip("-") for name in table.by_name])
    past = _past(mistake.flag, table.version)
    return mistake._replace(message=f"is no option of vLLM {table.version}{past or meant}")


def _past(flag: str, version: str) -> str:
    """Return the releases that know an unknown flag, as the end of a sentence; empty where none does."""
    known = history(flag)
    place = VERSIONS.index(version)
    before = [one for one in known if VERSIONS.index(one) < place]
    after = [one for one in known if VERSIONS.index(one) > place]
    removed = f"; removed after {before[-1]}" if before else ""
    if not after:
        return removed
    # Between two tables that are further apart, it may have come with any release.
    last_without = VERSIONS[VERSIONS.index(after[0]) - 1]
    how = "in" if _minor(after[0]) - _minor(last_without) == 1 else "by"
    return f"{removed}{' and' if before else ';'} added {'again ' if before else ''}{how} {after[0]}"


def _minor(version: str) -> int:
    return int(version.split(".")[1])
