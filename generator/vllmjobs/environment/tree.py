"""YAML text to a tree whose every key and value knows where it was written.

The tree is built from libyaml's events and not by PyYAML's composer, which recurses in C, keeps only
the last of two equal keys, and reads YAML 1.1 (`no` is false, `12:30` is 750). Scalars follow the core
schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), less infinities and NaN.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import yaml

from vllmjobs.environment.problems import KeyPath, Mark, Problem

UNREADABLE: re.Pattern[str] = yaml.reader.Reader.NON_PRINTABLE  # the characters that YAML does not allow
MAX_DEPTH = 64
MAX_VALUES = 1_000_000  # after aliases are expanded

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?([0-9]{0,300}\.[0-9]+|[0-9]{1,300}\.|[0-9]{1,200}(?=[eE]))([eE][-+]?[0-9]{1,2})?")
_NUMBERS_BEGIN = "+-.0123456789"
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_MERGE, _STRING_TAG = "<<", "tag:yaml.org,2002:str"


@dataclass(slots=True)
class Scalar:
    """A string, number, boolean or null; `text` is how it was written, which a key goes by."""

    mark: Mark
    value: str | int | float | bool | None
    text: str = ""


@dataclass(slots=True)
class Seq:
    """A list."""

    mark: Mark
    items: list["YamlNode"] = field(default_factory=list)


@dataclass(slots=True)
class Map:
    """A mapping; `keys` holds the place of each key."""

    mark: Mark
    entries: dict[str, "YamlNode"] = field(default_factory=dict)
    keys: dict[str, Mark] = field(default_factory=dict)


YamlNode = Scalar | Seq | Map


def parse(text: str, source: str) -> tuple[YamlNode | None, list[Problem]]:
    """Read one YAML document; the tree is None when the text cannot be read to its end.

    An empty document is an empty scalar. Anchors, aliases and merge keys (`<<`) are resolved.
    """
    if bad := UNREADABLE.search(text.removeprefix("\ufeff")):
        place = Mark.at(source, text, bad.start())
        return None, [Problem(place, (), f"holds the character U+{ord(bad[0]):04X}; YAML does not allow it")]
    composer = _Composer(source)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            composer.take(event)
    except _UnreadableError as error:
        return None, [*composer.problems, error.problem]
    except yaml.MarkedYAMLError as error:
        place = _mark(source, error.problem_mark or error.context_mark)
        reason = ", ".join(filter(None, (error.context, error.problem)))
        return None, [*composer.problems, Problem(place, (), f"is not valid YAML: {reason}")]
    return composer.root or Scalar(Mark(source, 1, 1), None), composer.problems


def plain(node: YamlNode) -> Any:
    """Return the tree as dicts, lists and scalars."""
    if isinstance(node, Map):
        return {key: plain(value) for key, value in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Seq) else node.value


def merge(base: YamlNode, over: YamlNode) -> YamlNode:
    """Lay `over` on `base`: maps merge deeply, everything else (lists too) replaces."""
    if not (isinstance(base, Map) and isinstance(over, Map)):
        return over
    entries = base.entries | {
        key: merge(base.entries[key], value) if key in base.entries else value
        for key, value in over.entries.items()
    }
    return Map(over.mark, entries, base.keys | over.keys)


def locate(node: YamlNode, path: KeyPath) -> Mark:
    """Return the place of the key or list item at `path`, or of the nearest one above it."""
    mark = node.mark
    for part in path:
        if isinstance(node, Map) and isinstance(part, str) and part in node.entries:
            mark, node = node.keys[part], node.entries[part]
        elif isinstance(node, Seq) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            mark = node.mark
        else:
            break
    return mark


def _mark(source: str, mark: Any) -> Mark:
    return Mark(source, mark.line + 1, mark.column + 1) if mark else Mark(source, 1, 1)


class _UnreadableError(Exception):
    """A text that is no YAML tree, with the problem."""

    def __init__(self, mark: Mark, message: str) -> None:
        self.problem = Problem(mark, (), message)


class _Composer:
    """Builds the tree with a stack of its own, so that deep nesting is an error and not a crash."""

    def __init__(self, source: str) -> None:
        self.root: YamlNode | None = None
        self.problems: list[Problem] = []
        self._source = source
        self._open: list[_Open] = []
        self._anchors: dict[str, YamlNode] = {}
        # Of each finished collection, by id: the values in it and its depth, with aliases expanded.
        self._measures: dict[int, tuple[int, int]] = {}
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """Add one event of the parser to the tree."""
        start: Any = event.start_mark
        mark = Mark(self._source, start.line + 1, start.column + 1)
        match event:
            case yaml.ScalarEvent():
                self._add(self._anchored(event, self._scalar(event, mark)), mark)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _UnreadableError(mark, "a second document starts here; write one file per document")
            case yaml.AliasEvent():
                self._add(self._aliased(str(event.anchor), mark), mark)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(self._open) == MAX_DEPTH:
                    raise _UnreadableError(mark, f"is nested deeper than {MAX_DEPTH} levels")
                kind = Seq if isinstance(event, yaml.SequenceStartEvent) else Map
                self._open.append(_Open(self._anchored(event, kind(mark)), mark))
                self._check_tag(event, mark)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = self._open.pop()
                for source in reversed(done.merges):
                    _inherit(done.node, source)
                self._measures[id(done.node)] = (done.size, done.depth)
                self._add(done.node, done.mark)

    def _add(self, node: YamlNode | None, mark: Mark) -> None:
        """Put a finished node where it belongs; None, an alias to nothing, leaves its key out."""
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if node is None:
            parent.key = None
            return
        size, depth = (1, 0) if isinstance(node, Scalar) else self._measures.get(id(node), (1, 0))
        parent.size += size
        if depth >= parent.depth:
            parent.depth = depth + 1
        if parent.size > MAX_VALUES:
            raise _UnreadableError(mark, f"its aliases expand to more than {MAX_VALUES:,} values")
        if len(self._open) + depth > MAX_DEPTH:
            raise _UnreadableError(mark, f"its aliases are nested deeper than {MAX_DEPTH} levels")
        if isinstance(parent.node, Seq):
            parent.node.items.append(node)
        elif parent.key is None:
            if not isinstance(node, Scalar):
                raise _UnreadableError(mark, "a key must be a plain word, not a list or a map")
            parent.key = node.text, mark
        else:
            key, parent.key = parent.key, None
            self._set(parent, key, node, mark)

    def _set(self, parent: "_Open", key: tuple[str, Mark], node: YamlNode, mark: Mark) -> None:
        name, place = key
        assert isinstance(parent.node, Map)
        if name == _MERGE:
            sources = node.items if isinstance(node, Seq) else [node]
            if all(isinstance(source, Map) for source in sources):
                parent.merges += sources
            else:
                self._report(place, "`<<` takes a map or a list of maps (aliases)")
        elif name in parent.node.entries:
            first = parent.node.keys[name]
            self._report(place, f"key {name!r} is given twice (first on line {first.line})")
        else:
            parent.node.entries[name], parent.node.keys[name] = node, place

    def _report(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(mark, (), message))

    def _anchored(self, event: yaml.NodeEvent, node: YamlNode) -> YamlNode:
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _aliased(self, name: str, mark: Mark) -> YamlNode | None:
        node = self._anchors.get(name)
        if node is None:
            # Its name is not repeated: it may be a secret that was to be quoted.
            way_out = "if it is text, quote it"
            self._report(mark, f"is an alias (*), and no anchor (&) above it has that name; {way_out}")
        elif any(opened.node is node for opened in self._open):
            self._report(mark, "is an alias inside its own anchor")
        else:
            return node
        return None

    def _check_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, mark: Mark) -> None:
        if event.tag not in (None, "!", _STRING_TAG):
            self._report(mark, "has a tag (!), which is not supported; if it is text, quote it")

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> Scalar:
        if event.tag is not None:
            self._check_tag(event, mark)
        text = event.value
        if "\0" in text:
            self._report(mark, "holds a NUL character, which no process can be given; leave it out")
        if not (text.isascii() or unicodedata.is_normalized("NFC", text)):
            self._report(mark, "is not in Unicode's normal form NFC: Nomad's HCL would change it; retype it")
        is_word = not event.implicit[0] or event.tag == _STRING_TAG
        return Scalar(mark, text if is_word else _resolve(text), text)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    node: YamlNode
    mark: Mark
    key: tuple[str, Mark] | None = None
    merges: list[YamlNode] = field(default_factory=list)
    size: int = 1
    depth: int = 1


def _inherit(node: YamlNode, source: YamlNode) -> None:
    """Fill what a `<<` brings below the map's own keys; of several sources the first wins."""
    assert isinstance(node, Map) and isinstance(source, Map)
    for key, value in source.entries.items():
        if key not in node.entries:
            node.entries[key], node.keys[key] = value, source.keys[key]


def _resolve(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBERS_BEGIN:
        return text
    if _INT.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    return float(text) if _FLOAT.fullmatch(text) else text
