"""The rule of check: an id, a severity, and a small function that says what is wrong.

A rule is registered by its decorator, when the module that holds it is imported:

    @model_rule("VJ505", "warning")
    def users_are_not_root(subject: Subject) -> Findings:
        \"""Find a server that runs as root.\"""

Its name is the function's, with dashes; the first sentence of its docstring stands in docs/rules/README.md.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.problems import Mark, Path, Severity

Findings = Iterator[tuple[Path, str]]
Finder = Callable[[Whole], Iterable[tuple[Path | Mark, str]]]
E = TypeVar("E", bound=Finder)
M = TypeVar("M", bound=Callable[[Subject], Findings])

REGISTERED: dict[str, "Rule"] = {}  # Every rule of the modules that were imported, by its id


class Rule(NamedTuple):
    """One rule: `find` yields what is wrong as (path, sentence) pairs, the paths from the environment down.

    `finds` is a sentence that names what the rule finds.
    """

    id: str
    severity: Severity
    name: str
    finds: str
    find: Finder


def environment_rule(rule: str, severity: Severity) -> Callable[[E], E]:
    """Register a function over the whole environment as a rule."""

    def register(find: E) -> E:
        _register(rule, severity, find, find)
        return find

    return register


def model_rule(rule: str, severity: Severity) -> Callable[[M], M]:
    """Register a function over one model as a rule; its paths are from the model down."""

    def register(find: M) -> M:
        _register(rule, severity, find, lambda whole: in_models(whole, find))
        return find

    return register


def in_models(whole: Whole, find: Callable[[Subject], Findings]) -> Findings:
    """Yield what a function finds in each model, with its paths from the top of the environment."""
    for subject in whole.subjects:
        for path, message in find(subject):
            yield ("models", subject.name, *path), message


def sentence(docstring: str | None) -> str:
    """Return what a rule finds: the first sentence of a docstring that begins with `Find`."""
    text = " ".join((docstring or "").split()).partition(". ")[0].removeprefix("Find ").removesuffix(".")
    return f"{text[:1].upper()}{text[1:]}."


def _register(rule: str, severity: Severity, function: Callable[..., object], find: Finder) -> None:
    if rule in REGISTERED:
        raise ValueError(f"{rule} is registered twice: {REGISTERED[rule].name}, {function.__name__}")
    name = function.__name__.replace("_", "-")
    REGISTERED[rule] = Rule(rule, severity, name, sentence(function.__doc__), find)
