"""The jobs of an environment as HCL, and what differs between two such sets."""

from collections.abc import Mapping

from vllmjobs.changes.compare import compare
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.model import JobChange
from vllmjobs.environment.model import Environment
from vllmjobs.render.job import RenderError, Templates, jobs, jobs_on_demand, render


def rendered(environment: Environment, templates: Templates, only: str | None = None) -> dict[str, str]:
    """Every job of an environment as HCL, by its name for `render --job`; or `only` the one of that name."""
    if only in jobs_on_demand(environment):
        raise RenderError(f"job {only!r} is run by hand: vllmjobs render … --job {only} | nomad job run -")
    return {name: render(environment, name, templates) for name in ([only] if only else jobs(environment))}


def differences(
    before: Mapping[str, str], after: Mapping[str, str], as_one: bool = False, other: str = ""
) -> tuple[JobChange, ...]:
    """What differs between two sets of jobs, each HCL by its name; `other` is the older's in errors.

    See `compare` for `as_one`. Raises `JobspecError` for a template whose output is not one job.
    """
    found: list[JobChange] = []
    for name in (*after, *(name for name in before if name not in after)):
        old, new = before.get(name), after.get(name)
        was = None if old is None else read(old, f"{other}job {name}, rendered")
        now = was if old == new else None if new is None else read(new, f"job {name}, rendered")
        found += compare(name, was, now, as_one)
    return tuple(found)
