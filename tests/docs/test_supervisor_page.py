"""The tables of docs/supervisor.md name what the code says and counts, and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import vllmjobs.supervisor
from vllmjobs.supervisor.core.gpu_verdicts import Meaning

PAGE = Path(__file__).parents[2] / "docs/supervisor.md"
MODULES = sorted(Path(vllmjobs.supervisor.__file__).parent.rglob("*.py"))
LOGGING = ("LogEvent", "_log", "event")  # the calls whose first argument is an event's name


def named(head: str) -> list[str]:
    """What the first column of a table names."""
    _, _, rows = PAGE.read_text().partition(f"\n{head}\n")
    first = [row.split("|")[1] for row in rows.partition("\n\n")[0].splitlines()[1:]]
    return re.findall(r"`(\w+)`", " ".join(first))


def events() -> Iterator[str]:
    """Every name that some module gives an event, but for a GPU's verdicts: theirs follow from the type."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in LOGGING:
                match node.args[0]:
                    case ast.Constant(str(name)):
                        yield name
                    case ast.JoinedStr([ast.Constant("gpu_"), _]):
                        yield from (f"gpu_{what}" for what in verdicts() if what != "fatal")


def verdicts() -> tuple[str, ...]:
    return get_args(get_type_hints(Meaning)["what"])


def families() -> Iterator[str]:
    """The first word of each row of the table of metrics."""
    (module,) = (path for path in MODULES if path.name == "report.py")
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "_metrics":
            for part in ast.walk(node):
                match part:
                    case ast.Tuple([ast.Constant(str(name)), ast.Constant(str()), ast.Constant(str()), _]):
                        yield name


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def test_its_events_are_those_of_the_code() -> None:
    assert sorted(named("| event | fields and meaning |")) == sorted(set(events()))


def test_its_metrics_are_those_of_the_code() -> None:
    assert sorted(named("| metric `vllmjobs_supervisor_…` | labels | meaning |")) == sorted(families())


def test_its_verdicts_on_gpus_are_those_of_the_code() -> None:
    said = {"fatal": "condemned"}
    wanted = sorted(f"gpu_{said.get(what, what)}" for what in verdicts())
    assert sorted(named("| verdict | when | consequence |")) == wanted
