"""The law of the house, read from its folders: which room may import which.

A folder of the package is a room, and `supervisor/core` is one in a room. The core rooms named here are pure:
values in, values out. Every other folder is an edge, and so is whatever lies flat at the root.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vllmjobs
import vllmjobs_sandbox

PACKAGE = Path(vllmjobs.__file__).parent
SANDBOX = Path(vllmjobs_sandbox.__file__).parent
CORE = {
    "environment",
    "text",
    "importing",
    "vllm",
    "balancers",
    "render",
    "check",
    "changes",
    "rollout",
    "box",
    "gpus",
    "supervisor/core",
}
DOORS = {"environment/load.py", "box/machine.py", "gpus/nvml.py"}  # the one edge of a core room
FLAT = {"__init__.py", "__main__.py"}  # what may lie at the package's root
# A docstring that begins so leans on its neighbour, or turns its sentence round.
LEANING = {
    "Of", "As", "That", "Those", "What", "Which", "Who", "Whose", "Whom", "Where", "When", "Whether", "How",
    "Why", "If", "And", "But", "Or", "It", "They", "Its", "Their", "Them", "To", "From", "By", "With",
}  # fmt: skip
EDGES_OF_PYTHON = {
    "os", "pathlib", "io", "sys", "subprocess", "socket", "time", "datetime", "random", "shutil", "tempfile",
    "asyncio", "threading", "logging",
}  # fmt: skip
EDGES_OF_OTHERS = {"click", "rich", "httpx", "requests", "nomad", "consul", "pynvml"}


def modules(room: Path) -> list[Path]:
    return sorted(room.glob("**/*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def is_core(path: Path) -> bool:
    return any(path.is_relative_to(PACKAGE / room) for room in CORE) and name_of(path) not in DOORS


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return what a file holds, without its expressions: there are ten times as many."""
    found: list[ast.AST] = [ast.parse(path.read_text())]
    for node in found:
        children = ast.iter_child_nodes(node)
        found += (
            child for child in children if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
        )
    return found


@cache
def imported(path: Path) -> list[str]:
    """Return each module, and each name of a module, that a file imports."""
    names: list[str] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names += (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names += (node.module or "", *(f"{node.module}.{name.name}" for name in node.names))
    return names


@cache
def ours(path: Path) -> set[Path]:
    """Return the modules of the package that a file imports."""
    files = set()
    for name in imported(path):
        place = PACKAGE.parent / name.replace(".", "/")
        files |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return {file for file in files if file.is_relative_to(PACKAGE) and file != PACKAGE / "__init__.py"}


def others(path: Path) -> set[str]:
    """Return what a file imports of other packages, by their top names."""
    return {name.partition(".")[0] for name in imported(path)} - {"vllmjobs"}


def test_every_module_stands_in_a_room() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == FLAT
    assert {name for name in CORE if not (PACKAGE / name).is_dir()} <= {"balancers"}
    assert all((PACKAGE / name).is_file() for name in DOORS)


@pytest.mark.parametrize("path", [path for path in modules(PACKAGE) if is_core(path)], ids=name_of)
def test_a_core_room_imports_no_edge(path: Path) -> None:
    assert [name_of(module) for module in ours(path) if not is_core(module)] == []
    assert others(path) & (EDGES_OF_PYTHON | EDGES_OF_OTHERS) == set()


def test_the_package_never_imports_its_sandbox() -> None:
    assert [name_of(path) for path in modules(PACKAGE) if "vllmjobs_sandbox" in others(path)] == []


def test_rooms_import_each_other_in_one_direction() -> None:
    """No room imports one that imports it, over however many rooms."""
    arrows: dict[str, set[str]] = {}
    for path in modules(PACKAGE):
        room = path.relative_to(PACKAGE).parts[0]
        rooms = {module.relative_to(PACKAGE).parts[0] for module in ours(path)}
        arrows.setdefault(room, set()).update(rooms - {room} - FLAT)
    while leaves := {room for room, imports in arrows.items() if not imports}:
        arrows = {room: imports - leaves for room, imports in arrows.items() if room not in leaves}
    assert arrows == {}


def test_the_supervisor_needs_nothing_but_python_and_nvml() -> None:
    """It is put into images that hold nothing else of ours."""
    room = PACKAGE / "supervisor"
    assert {name for path in modules(room) for name in others(path)} - sys.stdlib_module_names == {"pynvml"}
    assert all(module.is_relative_to(room) for path in modules(room) for module in ours(path))


def test_what_the_jobs_of_the_caches_run_needs_nothing_but_python_and_the_hub() -> None:
    room = PACKAGE / "model_cache"
    found = {name for path in modules(room) for name in others(path)}
    assert found - sys.stdlib_module_names == {"huggingface_hub"}
    assert all(module.is_relative_to(room) for path in modules(room) for module in ours(path))


def prints(path: Path) -> Iterator[int]:
    """Yield the line of each call that prints, or that draws on the terminal, and of an import of rich."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id="print" | "Console")):
                yield node.lineno
            case ast.Attribute(
                value=ast.Name(id="click"), attr="echo" | "secho" | "echo_via_pager" | "prompt"
            ):
                yield node.lineno
            case ast.Attribute(value=ast.Attribute(attr="stdout" | "stderr"), attr="write" | "buffer"):
                yield node.lineno
            case ast.Import(names=[ast.alias(name=name), *_]) | ast.ImportFrom(module=str(name)):
                if name.partition(".")[0] == "rich" or name.partition(".")[0] == "logging":
                    yield node.lineno


def test_there_is_one_way_to_the_terminal() -> None:
    """What is printed goes through `terminal/`, which makes it visible, and takes secrets out.

    The supervisor and the model caches' program stand alone, and print into the log of a task.
    """
    alone = ("terminal/", "supervisor/", "model_cache/")
    found = {
        f"{name_of(path)}:{line}"
        for path in modules(PACKAGE)
        if not name_of(path).startswith(alone)
        for line in prints(path)
    }
    assert found == set()


@pytest.mark.parametrize("package", [PACKAGE, SANDBOX], ids=lambda path: path.name)
def test_no_module_is_longer_than_three_pages(package: Path) -> None:
    lines = {str(path.relative_to(package)): len(path.read_text().splitlines()) for path in modules(package)}
    assert {name: count for name, count in lines.items() if count > 350} == {}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each docstring of a module, its classes, functions and fields, with its line."""
    for node in nodes(path):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in node.body:
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    yield statement.lineno, text


@pytest.mark.parametrize("package", [PACKAGE, SANDBOX], ids=lambda path: path.name)
def test_a_docstring_can_be_read_alone(package: Path) -> None:
    leaning = [
        f"{path.relative_to(package)}:{line}: {text.strip().splitlines()[0]}"
        for path in modules(package)
        for line, text in docstrings(path)
        if text.split()[0].strip("`,:") in LEANING
    ]
    assert leaning == []


@pytest.mark.parametrize("package", [PACKAGE, SANDBOX], ids=lambda path: path.name)
def test_every_module_and_class_says_what_it_is(package: Path) -> None:
    silent = [
        f"{path.relative_to(package)}:{getattr(node, 'lineno', 1)}"
        for path in modules(package)
        for node in nodes(path)
        if isinstance(node, ast.Module | ast.ClassDef) and not ast.get_docstring(node)
    ]
    assert silent == []


def names_of_types(path: Path) -> Iterator[str]:
    """Yield the public classes and type aliases of a module: `Deadlines`, and `Json = dict[str, Any]`."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
                if name[0].isupper() and not name.isupper():
                    yield name


@pytest.mark.parametrize("package", [PACKAGE, SANDBOX], ids=lambda path: path.name)
def test_each_class_has_a_name_of_its_own(package: Path) -> None:
    """One name, one meaning: nobody has to look from which room a `Group` comes."""
    places: dict[str, list[str]] = {}
    for path in modules(package):
        for name in names_of_types(path):
            places.setdefault(name, []).append(str(path.relative_to(package)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
