"""The findings of `check`, as the reports of `diff` and `plan` hold them."""

from vllmjobs.changes.model import Finding
from vllmjobs.environment.problems import dotted
from vllmjobs.project.environments import Checked


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
