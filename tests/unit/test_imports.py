"""Core rooms are pure: values in, values out. What they import shows it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllmjobs

PACKAGE = Path(vllmjobs.__file__).parent
CORE = ["environment", "importing", "vllm", "render", "check", "changes", "rollout", "box"]
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
    "model_cache",
    "supervisor",
    "boxes",
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


def test_the_supervisor_needs_nothing_but_python_and_nvml() -> None:
    """It is put into images that hold nothing else of ours."""
    found = {name for path in (PACKAGE / "supervisor").glob("**/*.py") for name in imported(path)}
    others = {name.partition(".")[0] for name in found if not name.startswith("vllmjobs")}
    assert others - sys.stdlib_module_names == {"pynvml"}
    ours = {
        name for name in found if name.startswith("vllmjobs") and not name.startswith("vllmjobs.supervisor")
    }
    assert ours <= {"vllmjobs", "vllmjobs.__version__"}


def test_what_the_jobs_of_the_caches_run_needs_nothing_but_python_and_the_hub() -> None:
    found = {name for path in (PACKAGE / "model_cache").glob("*.py") for name in imported(path)}
    assert {name.partition(".")[0] for name in found} - sys.stdlib_module_names == {
        "huggingface_hub",
        "vllmjobs",
    }
    assert all(name.startswith("vllmjobs.model_cache") for name in found if name.startswith("vllmjobs"))


def test_policies_are_pure() -> None:
    for name in ("model", "policy", "gpu_policy", "report", "records"):
        found = {module.partition(".")[0] for module in imported(PACKAGE / "supervisor" / f"{name}.py")}
        assert not found & (EDGE_OF_OTHERS - {"pathlib"}), name


def test_no_module_is_longer_than_three_pages() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.glob("**/*.py")
        if (lines := len(path.read_text().splitlines())) > 350
    }
    assert not long
