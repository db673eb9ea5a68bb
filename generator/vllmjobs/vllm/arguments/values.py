"""Values, checked as pydantic checks them for vLLM's configuration classes."""

import json
from typing import Any

from vllmjobs.text.english import did_you_mean
from vllmjobs.vllm.arguments.parser import Mistake, MistakeKind
from vllmjobs.vllm.arguments.tables import Object, Table, Type

TRUE = {"1", "on", "t", "true", "y", "yes"}
FALSE = {"0", "off", "f", "false", "n", "no"}
NAMES = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "a string",
    "list": "a list", "tuple": "a list", "map": "an object", "object": "an object", "null": "null",
    "opaque": "left out",
}  # fmt: skip
# A key of this ending names where a name that vLLM does not know comes from.
BROUGHT_ALONG = ("_module_path", "_plugin")
NUMBERS = ("int", "float")
LARGEST = 2**63  # as a float that stands for a whole number
LONG = 12  # as many choices are written out; of more, the nearest


class InvalidValueError(Exception):
    """A value that cannot be read, or that a type does not take."""

    def __init__(self, kind: MistakeKind, message: str, path: tuple[str, ...] = ()) -> None:
        self.kind: MistakeKind = kind
        self.message = message
        self.path = path


def check(table: Table, kind: Type, value: Any, flag: str) -> tuple[Any, list[Mistake]]:
    """Return a value as vLLM takes it into a type, and what is wrong with it, by its path below `flag`."""
    mistakes: list[Mistake] = []
    return _Check(table, flag, mistakes).take(kind, value, ()), mistakes


def shown(value: Any) -> str:
    """Return a value as a person wrote it, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f'"{text}"' if isinstance(value, str) else text


def not_among(value: Any, choices: list[str], compared: str = "") -> str:
    """Say that a value is none of the choices: all of them, or the nearest of many."""
    meant = did_you_mean(compared or str(value), choices)
    if len(choices) <= LONG:
        return f"must be one of {', '.join(choices)}, not {shown(value)}{meant}"
    known = f"the {len(choices)} values that vLLM knows"
    return f"{shown(value)} is none of {known}{meant or ', such as ' + choices[0]}"


def folded(text: str, fold: str) -> str:
    """Return a text as vLLM compares it."""
    if fold == "upper":
        return text.upper()
    if fold == "lower":
        return text.lower()
    return text.lower().replace("-", "_") if fold == "snake" else text


class _Check:
    """The check of one flag's value, which collects its mistakes."""

    def __init__(self, table: Table, flag: str, mistakes: list[Mistake]) -> None:
        self.table = table
        self.flag = flag
        self.mistakes = mistakes

    def take(self, kind: Type, value: Any, path: tuple[str, ...]) -> Any:
        """Return the value as pydantic makes it; note a mistake, and leave the value as it is."""
        try:
            return self._taken(kind, value, path)
        except InvalidValueError as refused:
            self._note((*path, *refused.path), refused.kind, refused.message)
            return value

    def _taken(self, kind: Type, value: Any, path: tuple[str, ...]) -> Any:
        if kind.kind == "any" or (value is None and kind.null):
            return value
        if kind.kind == "union":
            return self._union(kind, value)
        if kind.kind == "choice":
            return _choice(kind, value)
        if kind.kind in ("list", "tuple"):
            if not isinstance(value, list | tuple):
                raise _wrong(kind, value)
            _in_length(kind, value)
            if kind.kind == "tuple" and len(value) != len(kind.of):
                raise InvalidValueError("type", f"must have {len(kind.of)} items, not {len(value)}")
            of = kind.of if kind.kind == "tuple" else kind.of[:1] * len(value)
            return [
                self.take(item_kind, item, (*path, str(number)))
                for number, (item_kind, item) in enumerate(zip(of, value, strict=True))
            ]
        if kind.kind == "map":
            if not isinstance(value, dict):
                raise _wrong(kind, value)
            _in_length(kind, value)
            if kind.keys and (unknown := [key for key in value if key not in kind.keys]):
                raise InvalidValueError("key", not_among(unknown[0], list(kind.keys)), (unknown[0],))
            return {key: self.take(kind.of[0], item, (*path, key)) for key, item in value.items()}
        if kind.kind == "object":
            return self._object(kind, value, path)
        return _scalar(kind, value)

    def _object(self, kind: Type, value: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(kind, value)
        known: Object = self.table.objects[kind.object]
        taken = {}
        for key, item in value.items():
            if any(value.get(key + end) for end in BROUGHT_ALONG):
                taken[key] = item
            elif key in known.keys:
                taken[key] = self.take(known.keys[key], item, (*path, key))
            else:
                self._note((*path, key), "key", self._unknown(kind.object, known, key))
        for key, key_kind in known.keys.items():
            if key_kind.required and key not in value:
                self._note((*path, key), "missing-value", "is needed, and missing")
        return taken

    def _note(self, path: tuple[str, ...], kind: MistakeKind, message: str) -> None:
        self.mistakes.append(Mistake(".".join([self.flag, *path]), kind, message))

    def _unknown(self, name: str, known: Object, key: str) -> str:
        ignored = "" if known.closed else ", and vLLM ignores it silently"
        meant = did_you_mean(key.replace("-", "_"), known.keys)
        return f"is no key of {name} in vLLM {self.table.version}{ignored}{meant}"

    def _union(self, kind: Type, value: Any) -> Any:
        for of in kind.of:
            inner = _Check(self.table, "", [])
            taken = inner.take(of, value, ())
            if not inner.mistakes:
                return taken
        wanted = " or ".join(dict.fromkeys(NAMES.get(of.kind, "one of its names") for of in kind.of))
        raise InvalidValueError("type", f"must be {wanted}, not {shown(value)}")


def _wrong(kind: Type, value: Any) -> InvalidValueError:
    return InvalidValueError("type", f"must be {NAMES[kind.kind]}, not {shown(value)}")


def _choice(kind: Type, value: Any) -> Any:
    taken = folded(value, kind.fold) if isinstance(value, str) else value
    if kind.fold == "number" and isinstance(value, str) and value.isdecimal():
        taken = int(value)
    for choice in kind.choices:
        if choice == taken and isinstance(choice, bool) == isinstance(taken, bool):
            return taken
    if kind.by_path and isinstance(value, str) and "." in value:
        return value  # a class by its path
    choices = [str(choice) for choice in kind.choices if choice is not None]
    raise InvalidValueError("choice", not_among(value, choices, str(taken)))


def _scalar(kind: Type, value: Any) -> Any:
    if kind.kind == "bool":
        if isinstance(value, bool):
            return value
        text = str(value).lower() if isinstance(value, str | int) else ""
        if text in TRUE | FALSE:
            return text in TRUE
    elif kind.kind == "str":
        if isinstance(value, str):
            _in_length(kind, value)
            return value
    elif isinstance(value, int | float | str) and not isinstance(value, bool) and kind.kind in NUMBERS:
        number = _number(kind, value)
        if number is not None:
            _in_range(kind, number)
            return number
    raise _wrong(kind, value)


def _number(kind: Type, value: float | str) -> int | float | None:
    try:
        number = float(value) if kind.kind == "float" or isinstance(value, float) else int(value)
    except (ValueError, OverflowError):
        return None
    if kind.kind == "float":
        return number
    whole = number == number // 1 and (isinstance(number, int) or abs(number) < LARGEST)
    return int(number) if whole else None


def _in_range(kind: Type, number: float) -> None:
    bounds = [
        (kind.ge, "at least", kind.ge is None or number >= kind.ge),
        (kind.gt, "more than", kind.gt is None or number > kind.gt),
        (kind.le, "at most", kind.le is None or number <= kind.le),
        (kind.lt, "less than", kind.lt is None or number < kind.lt),
        (kind.multiple_of, "a multiple of", kind.multiple_of is None or number % kind.multiple_of == 0),
    ]
    if all(kept for _, _, kept in bounds):
        return
    rule = " and ".join(f"{words} {bound:.15g}" for bound, words, _ in bounds if bound is not None)
    raise InvalidValueError("range", f"must be {rule}, not {number}")


def _in_length(kind: Type, value: Any) -> None:
    what = "characters" if isinstance(value, str) else "items"
    if kind.min_length is not None and len(value) < kind.min_length:
        raise InvalidValueError("range", f"must have at least {kind.min_length} {what}, not {len(value)}")
    if kind.max_length is not None and len(value) > kind.max_length:
        raise InvalidValueError("range", f"must have at most {kind.max_length} {what}, not {len(value)}")
