"""The command that prints a report again, whole."""

import shlex

from vllmjobs.changes.model import Report


def rerun_command(report: Report) -> str:
    """Return the command to type for all of a report of which something was left out."""
    names = [environment.name for environment in report.environments]
    against = {environment.against for environment in report.environments}
    words = ["vllmjobs", report.command, *(names if len(names) <= 3 else [])]
    if report.command == "diff" and len(against) == 1:
        words += ["--against", against.pop()]
    return " ".join(map(shlex.quote, words))
