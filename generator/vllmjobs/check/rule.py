"""A rule: an id, a severity, and a small function that says what is wrong."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import ModuleType
from typing import NamedTuple

from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.problems import Path, Severity

Findings = Iterator[tuple[Path, str]]


class Rule(NamedTuple):
    """`find` yields what is wrong as (path, sentence) pairs, the paths from the top of the environment."""

    id: str
    severity: Severity
    name: str
    find: Callable[[Whole], Iterable[tuple[Path, str]]]


def of_environment(rule: str, severity: Severity) -> Callable[[Callable[[Whole], Findings]], Rule]:
    """Make a rule of a function over the whole environment."""
    return lambda find: Rule(rule, severity, _name(find), find)


def of_model(
    rule: str, severity: Severity, name: str | None = None
) -> Callable[[Callable[[Subject], Findings]], Rule]:
    """Make a rule of a function over one model; its paths are from the model down."""

    return lambda find: Rule(rule, severity, name or _name(find), lambda whole: in_models(whole, find))


def in_models(whole: Whole, find: Callable[[Subject], Findings]) -> Findings:
    """What a function finds in each model, with its paths from the top of the environment."""
    for subject in whole.subjects:
        for path, message in find(subject):
            yield ("models", subject.name, *path), message


def rules_of(module: ModuleType) -> list[Rule]:
    """The rules that a module holds, in the order in which they are written."""
    values = vars(module).values()
    lists = [value for value in values if isinstance(value, list)]
    return [value for value in chain(values, *lists) if isinstance(value, Rule)]


def _name(function: Callable[..., object]) -> str:
    return function.__name__.replace("_", "-")
