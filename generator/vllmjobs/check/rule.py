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
from vllmjobs.environment.problems import KeyPath, Mark, Severity

Findings = Iterator[tuple[KeyPath, str]]
Finder = Callable[[Whole], Iterable[tuple[KeyPath | Mark, str]]]
E = TypeVar("E", bound=Finder)
M = TypeVar("M", bound=Callable[[Subject], Findings])

REGISTERED: dict[str, "Rule"] = {}  # Every rule of the modules that were imported, by its id


class Rule(NamedTuple):
    """One rule: `find` yields (path, sentence) pairs, from the environment down; `finds` says of what."""

    id: str
    severity: Severity
    name: str
    finds: str
    find: Finder = lambda _: ()


def environment_rule(rule: str, severity: Severity) -> Callable[[E], E]:
    """Register a function over the whole environment as a rule."""

    def register(find: E) -> E:
        _register(Rule(rule, severity, _name(find), sentence(find.__doc__), find))
        return find

    return register


def model_rule(rule: str, severity: Severity, name: str = "", finds: str = "") -> Callable[[M], M]:
    """Register a function over one model as a rule; its paths are from the model down.

    Rules that share a function are given a name, and a sentence that says what each finds.
    """

    def register(find: M) -> M:
        said = name or _name(find), finds or sentence(find.__doc__)
        _register(Rule(rule, severity, *said, lambda whole: in_models(whole, find)))
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


def _name(function: Callable[..., object]) -> str:
    return function.__name__.replace("_", "-")


def _register(rule: Rule) -> None:
    if rule.id in REGISTERED:
        raise ValueError(f"{rule.id} is registered twice: {REGISTERED[rule.id].name}, {rule.name}")
    REGISTERED[rule.id] = rule
