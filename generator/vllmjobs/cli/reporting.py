"""The parts that `diff` and `plan` share: their options, the printing of a report, and the exit code."""

import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

from vllmjobs.changes.model import Report
from vllmjobs.changes.report.json import as_json
from vllmjobs.changes.report.markdown import as_markdown
from vllmjobs.changes.report.text import as_text
from vllmjobs.cli.common import with_options
from vllmjobs.terminal.printing import show, show_json

CHANGES, NO_ROOM = 2, 3


_OPTIONS = with_options(
    click.option("--detailed/--no-detailed", default=True, show_default=True,
                 help="Exit 2 when there are changes, or always 0."),
    click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text",
                 show_default=True,
                 help="Output for a terminal, for a comment on a pull request, or for programs."),
    click.option("--color/--no-color", default=None,
                 help="Use colours. The default is yes on a terminal, unless NO_COLOR is set."),
)  # fmt: skip


def report_options(command: Callable[..., Report]) -> Callable[..., None]:
    """Give a command --detailed, --format and --color, and print the report that it returns."""

    @_OPTIONS
    @wraps(command)
    def run(detailed: bool, form: str, color: bool | None, **others: Any) -> None:
        print_report(command(**others), form, color, detailed)

    return run


def typed(context: click.Context, *but: str) -> str:
    """Return a command as a person typed it, without the parameters of these names."""
    words = ["vllmjobs", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in but or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        option = parameter.opts[:1] if isinstance(parameter, click.Option) else []
        value = context.params[name]
        for one in value if isinstance(value, tuple) else [value]:
            words += [*option, str(one)]
    return shlex.join(words)


def print_report(report: Report, form: str, color: bool | None, detailed: bool) -> None:
    """Print a report and end with its exit code."""
    match form:
        case "markdown":
            again = typed(click.get_current_context(), "form", "color", "detailed")
            # forges take UTF-8, whatever the terminal
            show(as_markdown(report, again=again), encoding="utf-8")
        case "json":
            show_json(as_json(report))
        case _:
            # https://no-color.org: whatever its value, unless it is empty
            if color is None:
                color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            show(as_text(report, color, sys.stdout.encoding or "utf-8"), painted=color)
    if any(job.is_unplaceable for job in report.jobs):
        raise click.exceptions.Exit(NO_ROOM)
    if detailed and any(job.has_changed for job in report.jobs):
        raise click.exceptions.Exit(CHANGES)
