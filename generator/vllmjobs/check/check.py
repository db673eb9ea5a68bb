"""All rules over an environment, and the choice among them."""

import re
from collections.abc import Callable

from vllmjobs.check import (
    arguments,
    balancing,
    deadlines,
    job,
    limits,
    memory,
    placement,
    release,
    security,
    supervision,
)
from vllmjobs.check.ignoring import IGNORED
from vllmjobs.check.rule import REGISTERED, Rule
from vllmjobs.check.subject import Facts, Whole
from vllmjobs.environment.derive import service_name
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import INVALID, KeyPath, Mark, Problem, UserError
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.environment.tree import YamlNode, locate

SHARED = "VJ003"
# Each of these modules registers its rules when it is imported.
MODULES = (arguments, memory, deadlines, job, placement, limits, release, supervision, balancing, security)
RULES: list[Rule] = [REGISTERED[rule] for rule in sorted(REGISTERED)]
"""Every rule that is a function over an environment, in the order of their ids."""
# What is wrong shows here while a file or its comments are read, or when several files are compared.
_UNREADABLE = "What cannot be read as an environment: YAML, keys, types, ranges."
_UNREASONED = "A comment that asks to ignore a rule without a reason, or names no rule."
OTHERS = [
    Rule(INVALID, "error", "environment-is-valid", _UNREADABLE),
    Rule(IGNORED, "warning", "ignoring-has-a-reason", _UNREASONED),
    Rule(SHARED, "warning", "jobs-are-not-shared", "Two environments that are one job to Nomad."),
]
"""The rules that no function over one environment stands for."""
NAMES = {rule.id: rule.name for rule in (*OTHERS, *RULES)}
SEVERITIES = {rule.id: rule.severity for rule in (*OTHERS, *RULES)}


def check(environment: Environment, tree: YamlNode, facts: Facts) -> list[Problem]:
    """Return every finding of every rule, each at the place that it is about."""
    whole = Whole(environment, facts)
    return [
        Problem(
            place if isinstance(place, Mark) else locate(tree, place),
            () if isinstance(place, Mark) else place,
            without_secrets(message),
            rule.id,
            rule.severity,
        )
        for rule in RULES
        for place, message in rule.find(whole)
    ]


def shared_jobs(environments: dict[str, Environment]) -> list[Problem]:
    """Find environments, by their files, that are one job or service: each run disturbs the other."""
    jobs: dict[tuple[str | None, ...], str] = {}
    services: dict[tuple[str | None, ...], str] = {}
    problems: list[tuple[str, KeyPath, str]] = []
    for file, environment in environments.items():
        nomad = environment.nomad
        other = jobs.setdefault((environment.job, nomad.namespace, nomad.region), file)
        if other != file:
            message = f"{environment.job} is the job of {other} too: on one cluster each replaces the other"
            way_out = "give it a name, a namespace or a region of its own"
            problems.append((file, ("job",), f"{message}; {way_out}"))
            continue
        for name in environment.models:
            service = service_name(environment, name)
            other = services.setdefault((service, nomad.region), file)
            if other != file:
                message = (
                    f"its service {service} is in {other} too: where both run, each gets the other's requests"
                )
                way_out = "give the model another key, or the job another name"
                problems.append((file, ("models", name), f"{message}; {way_out}"))
    severity = SEVERITIES[SHARED]
    return [Problem(Mark(file, 1, 1), path, message, SHARED, severity) for file, path, message in problems]


def choice(select: str | None, ignore: str | None) -> Callable[[Problem], bool]:
    """Return a test for the findings that are wanted, by ids or their beginnings: `VJ1,VJ503`.

    What cannot be read as an environment is always among them. Raises `UnknownRuleError` for a word that
    begins no rule.
    """
    chosen, passed_over = (_beginnings(text) for text in (select, ignore))

    def wanted(problem: Problem) -> bool:
        if problem.rule == INVALID:
            return True
        return problem.rule.startswith(chosen or ("VJ",)) and not problem.rule.startswith(passed_over)

    return wanted


class UnknownRuleError(UserError):
    """A word that begins the id of no rule."""


def _beginnings(text: str | None) -> tuple[str, ...]:
    given = tuple(word.upper() for word in re.split(r"[,\s]+", text or "") if word)
    for word in given:
        if not any(rule.startswith(word) for rule in NAMES):
            message = f"{word} is no rule, nor the beginning of one; `vllmjobs explain` lists them"
            raise UnknownRuleError(message)
    return given
