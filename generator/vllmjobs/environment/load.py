"""The one file of this room that reads files: a path, to the environment that it describes."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import KeyPath, Mark, Problem
from vllmjobs.environment.tree import MAX_DEPTH, UNREADABLE, Map, Scalar, Seq, YamlNode, merge, parse, plain

Parsed = tuple[YamlNode | None, list[Problem]]
Texts = dict[str, str]
Files = Callable[[Path], bytes]
Foreign = dict[str, tuple[Mark, KeyPath]]  # the files outside of the project, and where each is asked for
_BOM = "\ufeff"
MAX_JOB_NAME = 63
MAX_BYTES = 32 * 2**20  # of a file; a thousand models are some 200 KiB
_FOREIGN = (
    "is not as an environment must be; it stands outside of the project, so nothing of it is shown: check it "
    "where it stands"
)


class Loaded(NamedTuple):
    """An environment that was read: it is of the types, and may still break rules of `check`.

    Where some models are not of the types, `environment` has the others, so that everything is said at
    once; where too little is, it is None. `texts` are the files by the name that marks call them; those in
    `foreign` stand outside of the project, and are not quoted.
    """

    environment: Environment | None
    tree: YamlNode | None
    texts: Texts
    problems: list[Problem]
    foreign: frozenset[str] = frozenset()


def contents(path: Path) -> bytes:
    """Return the bytes of a file that a person wrote; raises `OSError`, also for one above MAX_BYTES.

    Else `config: /dev/zero` would fill the memory.
    """
    with path.open("rb") as file:
        read = file.read(MAX_BYTES + 1)
    if len(read) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES // 2**20} MiB", str(path))
    return read


def load_file(path: Path, settings: Sequence[str] = (), files: Files = contents) -> Loaded:
    """Read an environment, what it extends, and `--set` options; `files` may read from a commit."""
    texts: Texts = {}
    foreign: Foreign = {}
    tree, problems = _read(path, files, texts, foreign)
    for setting in settings:
        over, wrong = _setting(setting)
        problems += wrong
        tree = merge(tree, over) if tree and over and not wrong else tree
    if tree is None:
        return Loaded(None, None, texts, _unquoted(problems, foreign), frozenset(foreign))
    environment, wrong = _decode(tree, path.stem, problems)
    problems = _unquoted(problems + wrong, foreign)
    return Loaded(environment, _with_defaults(tree), texts, problems, frozenset(foreign))


def _unquoted(problems: list[Problem], foreign: Foreign) -> list[Problem]:
    """Return the problems without a word of the files outside of the project, which may be anybody's."""
    return [
        Problem(*foreign[one.mark.source], f"{one.mark.source} {_FOREIGN}")
        if one.mark.source in foreign
        else one
        for one in problems
    ]


def _is_foreign(base: Path, path: Path) -> bool:
    """Tell whether a file stands outside of the project of the one that extends it, links followed."""
    folder = path.parent.parent if path.parent.name == "envs" else path.parent
    with suppress(ValueError):  # a NUL in the name, which reading tells
        return not Path(os.path.realpath(base)).is_relative_to(os.path.realpath(folder))
    return False


def _setting(text: str) -> tuple[YamlNode | None, list[Problem]]:
    """Read `--set key.key=value` as a tree with that one value, which is YAML (`3`, `true`, `[a, b]`).

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


def _remarked(node: YamlNode, mark: Mark) -> YamlNode:
    """Return the same values, all with `mark` as their place."""
    if isinstance(node, Map):
        entries = {key: _remarked(value, mark) for key, value in node.entries.items()}
        return Map(mark, entries, dict.fromkeys(entries, mark))
    if isinstance(node, Scalar):
        return Scalar(mark, node.value)
    return Seq(mark, [_remarked(item, mark) for item in node.items])


def _decode(tree: YamlNode, name: str, before: list[Problem]) -> tuple[Environment | None, list[Problem]]:
    try:
        return _typed(tree, name), []
    except msgspec.ValidationError as error:
        from vllmjobs.environment.schema import explain  # noqa: PLC0415 (a sound file never waits for it)

        problems = explain(tree) or [Problem(tree.mark, (), str(error))]
        try:
            return _typed(_without_broken_models(tree, before + problems), name), problems
        except msgspec.ValidationError:
            return None, problems


def _typed(tree: YamlNode, name: str) -> Environment:
    data = plain(_with_defaults(tree))
    if isinstance(data, dict):
        job = re.sub(r"[^a-z0-9]+", "-", f"vllm-{name.lower()}")
        if data.get("job") is None:  # not given, or `null`, which is the same of every key
            data["job"] = job[:MAX_JOB_NAME].strip("-")
    return msgspec.convert(data, Environment)


def _with_defaults(tree: YamlNode) -> YamlNode:
    """Lay every model over `defaults`."""
    defaults = tree.entries.get("defaults") if isinstance(tree, Map) else None
    if not isinstance(defaults, Map):
        return tree
    return _with_models(tree, lambda models: {name: merge(defaults, model) for name, model in models.items()})


def _without_broken_models(tree: YamlNode, problems: list[Problem]) -> YamlNode:
    broken = {problem.path[1] for problem in problems if problem.path[:1] == ("models",) and problem.path[1:]}
    return _with_models(
        tree, lambda models: {name: model for name, model in models.items() if name not in broken}
    )


def _with_models(tree: YamlNode, change: Callable[[dict[str, YamlNode]], dict[str, YamlNode]]) -> YamlNode:
    """Return the same tree with other models, where it has any."""
    if not (isinstance(tree, Map) and isinstance(models := tree.entries.get("models"), Map)):
        return tree
    changed = Map(models.mark, change(models.entries), models.keys)
    return Map(tree.mark, tree.entries | {"models": changed}, tree.keys)


def _read(
    path: Path,
    files: Files,
    texts: Texts,
    foreign: Foreign,
    asked: Mark | None = None,
    above: tuple[Path, ...] = (),
) -> Parsed:
    """Return a file's tree over the trees that it extends, and add what is read to `texts`.

    `asked` is where the file was named, and `above` are those that extend it. One outside of the project is
    added to `foreign`; it is read where its name is that of a YAML file, and is one.
    """
    if _is_foreign(path, above[0] if above else path):
        place: tuple[Mark, KeyPath] = (asked, ("extends",)) if asked else (Mark(str(path)), ())
        foreign[str(path)] = place
        if Path(os.path.realpath(path)).suffix not in (".yaml", ".yml"):
            message = f"{path} stands outside of the project, and is no .yaml file; it is not read"
            return None, [Problem(*place, message)]
    text, problems = _text(path, files, asked, str(path) in foreign)
    if text is None:
        return None, problems
    texts[str(path)] = text
    tree, more = parse(text.removeprefix(_BOM), str(path))
    problems += more
    if isinstance(tree, Scalar) and tree.value is None and not asked:
        return None, [*problems, Problem(tree.mark, (), "is empty; an environment needs at least `models:`")]
    extends = tree.entries.get("extends") if isinstance(tree, Map) else None
    if not (isinstance(tree, Map) and isinstance(extends, Scalar) and isinstance(extends.value, str)):
        return tree, problems  # anything but a string is reported by the schema
    named = tree.keys["extends"]
    base_path = Path(os.path.normpath(path.parent / extends.value))
    chain = (*above, Path(os.path.normpath(path)))
    if base_path in chain or len(chain) > MAX_DEPTH:
        loop = " → ".join(step.name for step in (*chain[:3], base_path))
        return tree, [*problems, Problem(named, ("extends",), f"is a circle, or too long a chain: {loop}")]
    base, more = _read(base_path, files, texts, foreign, asked=named, above=chain)
    problems += more
    if base is None or (isinstance(base, Scalar) and base.value is None):  # an empty one holds nothing
        return tree, problems
    if not isinstance(base, Map):
        return tree, [*problems, Problem(named, ("extends",), f"{base_path} must be a map of keys")]
    return merge(base, tree), problems


def _text(path: Path, files: Files, asked: Mark | None, is_foreign: bool) -> tuple[str | None, list[Problem]]:
    """Return a file's text with line feeds only, and what is wrong with its bytes."""
    try:
        raw = files(path)
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        reason = f"cannot be read: {getattr(error, 'strerror', error)}"
        if isinstance(error, FileNotFoundError):
            files_there = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml")))
            reason = "does not exist"
            if not is_foreign:
                reason += f"; {path.parent}/ has {files_there or 'no *.yaml files'}"
        elif isinstance(error, IsADirectoryError):
            reason = "is a directory; name a file, such as envs/prod.yaml"
        if asked:
            return None, [Problem(asked, ("extends",), f"{path} {reason}")]
        return None, [Problem(Mark(str(path)), (), reason)]
    problems = []
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        place = Mark.at(str(path), before, len(before))
        message = f"byte 0x{raw[error.start]:02x} is not valid UTF-8; save the file as UTF-8"
        return None, [Problem(place, (), message)]
    if text.startswith(_BOM):
        message = "starts with a byte order mark; save the file as UTF-8 without BOM"
        problems.append(Problem(Mark(str(path), 1, 1), (), message))
    if (at := text.find("\r")) >= 0:
        ends = "CRLF line ends" if text[at : at + 2] == "\r\n" else "a carriage return"
        message = f"has {ends}; save the file with LF (git: `*.yaml text eol=lf` in .gitattributes)"
        problems.append(Problem(Mark.at(str(path), text, at), (), message))
    return text.replace("\r\n", "\n").replace("\r", "\n"), problems
