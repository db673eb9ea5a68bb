"""Differences between two sets of jobs, with an earlier commit's, and the findings beside them."""

from collections.abc import Mapping
from pathlib import Path

from vllmjobs.changes.compare import compare
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.model import Finding, JobChange
from vllmjobs.check.subject import Before
from vllmjobs.environment.load import load_file
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import dotted
from vllmjobs.project.environments import Checked
from vllmjobs.project.git import Commit
from vllmjobs.project.templates import rendered, templates


def differences(
    before: Mapping[str, str], after: Mapping[str, str], as_one: bool = False, other: str = ""
) -> tuple[JobChange, ...]:
    """Return what differs between two sets of jobs, each HCL by its name; `other` is the older's in errors.

    See `compare` for `as_one`. Raises `UserError` for a template whose output is not one job.
    """
    changes: list[JobChange] = []
    for name in {**after, **before}:
        old, new = before.get(name), after.get(name)
        was = None if old is None else read(old, f"{other}job {name}, rendered")
        now = was if old == new else None if new is None else read(new, f"job {name}, rendered")
        changes += compare(name, was, now, as_one)
    return tuple(changes)


def findings(checked: Checked) -> tuple[Finding, ...]:
    """Return what `check` finds in an environment, as the reports of `diff` and `plan` hold it."""
    return tuple(
        Finding(
            file=problem.mark.source,
            line=problem.mark.line,
            column=problem.mark.column,
            rule=problem.rule,
            severity=problem.severity,
            path=dotted(problem.path),
            message=problem.message,
        )
        for problem in checked.problems
    )


class Earlier:
    """The project as a commit has it: its environments, and its templates."""

    def __init__(self, commit: Commit, project: Path) -> None:
        self._commit = commit
        self._then, self._now = templates(project, commit.read), templates(project)

    def environment(self, path: Path) -> Environment | None:
        """Return the environment of a file as it was; None where it was not, or cannot be read."""
        return load_file(path, (), self._commit.read).environment

    def before(self, was: Environment, now: Environment) -> Before:
        """Return what the checks of a change are to know: the environment before, and its groups' changes."""
        jobs = differences(rendered(was, self._then, "vllm"), rendered(now, self._now, "vllm"))
        return Before(was, {group.name: group for job in jobs for group in job.groups})
