"""What the commands that follow a release share: how it is told, how it ends, what Ctrl-C says."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vllmjobs.environment.quantity import is_duration, seconds
from vllmjobs.rollout.model import EXIT_CODES, Outcome

if TYPE_CHECKING:
    from vllmjobs.deploy.reporter import Reporter  # rich takes 60 ms


class Duration(click.ParamType[float]):
    """`45m`, as Nomad writes it, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType.convert`."""
        if not is_duration(str(value)):
            self.fail(f"{value!r} is no duration such as 90s, 45m or 1h30m", param, ctx)
        return seconds(value)


DURATION = Duration()


def follow_options(command: Callable[..., None]) -> Callable[..., None]:
    """--json and --notify."""
    for option in (
        click.option(
            "--notify",
            "hooks",
            multiple=True,
            metavar="COMMAND|URL",
            envvar="VLLMJOBS_NOTIFY",
            help="Give each event as JSON to a command's stdin, or POST it to a URL. May be repeated.",
        ),
        click.option("--json", "in_json", is_flag=True, help="For programs: each event as a line of JSON."),
    ):
        command = option(command)
    return command


@contextmanager
def following(
    command: str, env: str, in_json: bool, hooks: tuple[str, ...], to_stderr: bool = False
) -> Iterator["Reporter"]:
    """A reporter while something is followed; Ctrl-C leaves all as it is, and says how to go on. So does the
    SIGTERM of a pipeline that is cancelled. `command` is what was typed, such as `rollback prod 5`; what is
    told goes `to_stderr` where stdout is for its answer."""
    from rich.console import Console  # noqa: PLC0415

    from vllmjobs.deploy.reporter import Reporter  # noqa: PLC0415

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console = Console() if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None
    with Reporter(in_json, hooks, console, to_stderr) as reporter:
        try:
            yield reporter
        except KeyboardInterrupt:  # said before the hooks get what they have not yet, which takes its time
            words = f"rollback {env}" if reporter.is_way_back else command
            others = f", `vllmjobs promote {env}` promotes, `vllmjobs abort {env}` goes back"
            is_release = words == f"deploy {env}"
            click.echo(f"left as it is: `vllmjobs {words}` goes on{others if is_release else ''}", err=True)
            raise click.exceptions.Exit(1) from None


def end(outcome: Outcome) -> None:
    """End with the exit code of an outcome."""
    raise click.exceptions.Exit(EXIT_CODES[outcome])
