"""A project's environments: found, read, checked, with the facts that the checks rest on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllmjobs.check.check import RULES, check
from vllmjobs.check.ignoring import without_ignored
from vllmjobs.check.subject import Facts, Subject, Whole
from vllmjobs.environment.load import Files, contents, load_file
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import InvalidEnvironmentError, Problem, in_order
from vllmjobs.environment.tree import Map, Scalar, YamlNode, parse
from vllmjobs.project.configs import configs

if TYPE_CHECKING:  # `render` does without them
    from vllmjobs.project.differences import Earlier
    from vllmjobs.project.git import Commit

PUBLIC_FILES = (".example", ".sample", ".template", ".dist")  # the ends of names of files without secrets


class Checked(NamedTuple):
    """An environment's findings, in reading order, and the texts that may be quoted with them."""

    environment: Environment | None
    problems: list[Problem]
    texts: dict[str, str]
    compared: bool = False  # the earlier commit has the environment, to compare it with


def environment_file(project: Path, name: str) -> Path:
    """Return an environment's file: `envs/NAME.yaml` of the project, or NAME itself when it is a path."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path
    return project / "envs" / f"{name}.yaml"


def environment_files(project: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of environments, each once, however it is named."""
    paths = [environment_file(project, name) for name in names]
    return list({os.path.realpath(path): path for path in paths}.values())


def environments(project: Path, commit: Commit | None = None) -> list[Path]:
    """Return every environment of the project: the files of `envs/`, less those that only others extend.

    With a commit, they are read from the commit.
    """
    folder = project / "envs"
    listed = commit.files(folder) if commit else [file for file in folder.glob("*.y*ml") if file.is_file()]
    # Not an editor's lock, or a copy's resource fork: `.#prod.yaml`, `._prod.yaml`.
    files = sorted(file for file in listed if file.suffix in (".yaml", ".yml") and file.name[0] != ".")
    read = commit.read if commit else contents
    trees = {file: _tree(file, read) for file in files}
    extended = {
        Path(os.path.normpath(file.parent / extends.value))
        for file, tree in trees.items()
        if isinstance(tree, Map)
        and isinstance(extends := tree.entries.get("extends"), Scalar)
        and isinstance(extends.value, str)
    }
    return [
        file
        for file, tree in trees.items()
        if Path(os.path.normpath(file)) not in extended
        or (isinstance(tree, Map) and "models" in tree.entries)
    ]


def _tree(file: Path, read: Files) -> YamlNode | None:
    try:
        return parse(read(file).decode(errors="replace"), str(file))[0]
    except OSError:  # reported when it is checked
        return None


def checked(
    paths: Sequence[Path], settings: Sequence[str], project: Path, earlier: Earlier | None = None
) -> list[Checked]:
    """Read environments and run every rule over each; with `earlier`, also over what changes since then."""
    files = _secret_files(project)
    return [_checked(path, settings, files, earlier) for path in paths]


def _checked(path: Path, settings: Sequence[str], files: dict[str, int], earlier: Earlier | None) -> Checked:
    environment, tree, texts, problems, foreign = load_file(path, settings)
    before = earlier.environment(path) if earlier else None
    if environment is not None and tree is not None:
        facts = Facts(configs(environment, tree), files)
        if earlier and before is not None and not problems:
            facts = facts._replace(before=earlier.before(before, environment))
        problems = problems + check(environment, tree, facts)
    ignorable = {rule.id for rule in RULES}
    problems = in_order(without_ignored(problems, texts, ignorable))
    quoted = {name: text for name, text in texts.items() if name not in foreign}
    return Checked(environment, problems, quoted, before is not None)


def accepted(result: Checked) -> Environment:
    """Return an environment in which `check` finds no error; raises `InvalidEnvironmentError` otherwise."""
    errors = [problem for problem in result.problems if problem.severity == "error"]
    if result.environment is None or errors:
        raise InvalidEnvironmentError(errors)
    return result.environment


def subjects(path: Path, settings: Sequence[str] = ()) -> list[Subject]:
    """Return the models of an environment with what is known of each, whether its rules hold or not.

    Raises `InvalidEnvironmentError` for a file that cannot be read as an environment.
    """
    environment, tree, _, problems, _ = load_file(path, settings)
    if environment is None or tree is None or problems:
        raise InvalidEnvironmentError(problems)
    return Whole(environment, Facts(configs(environment, tree))).subjects


def _secret_files(project: Path) -> dict[str, int]:
    """Return the permission bits of the files of a project that hold secrets by their name."""
    files = (
        path
        for folder in (project, project / "envs")
        for path in (*filter(_is_named_secret, _listed(folder)), *_listed(folder / "secrets"))
    )
    return {
        str(path): path.stat().st_mode & 0o777
        for path in sorted(files)
        if path.is_file() and not path.name.endswith(PUBLIC_FILES)
    }


def _is_named_secret(path: Path) -> bool:
    """Tell whether a file is named as one with secrets: .env, .env.prod, prod.env, secret, secrets.yaml."""
    name = path.name
    is_env = name.endswith(".env") or name.startswith(".env.")
    return is_env or name in ("secret", "secrets") or name.startswith(("secret.", "secrets."))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
