"""Core rooms are pure: values in, values out. What they import shows it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllmjobs

PACKAGE = Path(vllmjobs.__file__).parent
CORE = ["environment", "importing", "vllm", "render", "check", "changes", "rollout"]
CORE_EXCEPTIONS = {"environment/load.py"}  # the one loader file
EDGE_OF_OURS = {
    "against",
    "cli",
    "git",
    "planning",
    "project",
    "rendered",
    "shipped",
    "templates",
    "nvml",
    "nomad",
    "logs",
    "nomad_answers",
    "nomad_logs",
    "nomad_releases",
    "nomad_session",
    "consul",
    "metrics",
    "notify",
    "releases",
    "deploy",
    "supervisor",
}
EDGE_OF_OTHERS = {
    "os", "pathlib", "io", "sys", "subprocess", "socket", "time", "datetime", "random", "shutil", "tempfile",
    "asyncio", "threading", "logging", "click", "rich", "httpx", "requests", "nomad", "consul",
    "pynvml",
}  # fmt: skip


def core_files() -> list[Path]:
    files = [PACKAGE / "gpus.py"]  # a room of one module
    files += [path for room in CORE for path in sorted((PACKAGE / room).glob("**/*.py"))]
    return [path for path in files if str(path.relative_to(PACKAGE)) not in CORE_EXCEPTIONS]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_core_room_imports_no_edge(path: Path) -> None:
    ours = {f"vllmjobs.{name}" for name in EDGE_OF_OURS} | {
        "vllmjobs." + name.removesuffix(".py").replace("/", ".") for name in CORE_EXCEPTIONS
    }
    found = set(imported(path))
    assert not found & ours
    assert not {name.partition(".")[0] for name in found} & EDGE_OF_OTHERS


def test_no_module_is_longer_than_three_pages() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.glob("**/*.py")
        if (lines := len(path.read_text().splitlines())) > 350
    }
    assert not long
