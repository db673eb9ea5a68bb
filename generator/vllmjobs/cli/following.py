"""The parts that commands which follow a release share: their options, reports, and what Ctrl-C prints."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from vllmjobs.cli.common import Selection, with_options
from vllmjobs.deploy.reporter import HASTY_FLUSH_S, Reporter
from vllmjobs.environment.quantity import is_duration, seconds
from vllmjobs.rollout.model import EXIT_CODES, Outcome
from vllmjobs.terminal.live import LiveTable
from vllmjobs.terminal.printing import tell

INTERRUPTS = (signal.SIGTERM, signal.SIGHUP)  # of a pipeline that is cancelled, of a terminal that is closed


class DurationParam(click.ParamType[float]):
    """A duration such as `45m`, as Nomad writes it, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a duration; see `click.ParamType.convert`."""
        if not is_duration(str(value)):
            self.fail(f"{value!r} is not a duration; write it as in 90s, 45m or 1h30m", param, ctx)
        return seconds(value)


DURATION = DurationParam()
follow_options = with_options(
    click.option("--json", "in_json", is_flag=True, help="Print each event as a line of JSON."),
    click.option(
        "--notify", "hooks", multiple=True, metavar="COMMAND|URL", envvar="VLLMJOBS_NOTIFY",
        help="Send each event as JSON to a command's stdin, or POST it to a URL. May be repeated.",
    ),
)  # fmt: skip


def timeout_words(timeout: float | None) -> list[str]:
    """Return --timeout as a person types it."""
    return [] if timeout is None else ["--timeout", f"{timeout:.10g}s"]


@contextmanager
def following(
    selection: Selection,
    resume: str,
    in_json: bool,
    hooks: tuple[str, ...],
    *,
    is_release: bool = False,
    to_stderr: bool = False,
) -> Iterator[Reporter]:
    """Yield a reporter while something is followed; an interrupt leaves all as it is.

    Ctrl-C, SIGTERM and SIGHUP then say how to go on: with `resume`, the command that does so. Where
    `is_release`, also how else a release of the models can end. Events go `to_stderr` where stdout is for
    the answer.
    """
    table = LiveTable() if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None
    with _interrupted_by(INTERRUPTS), Reporter(in_json, hooks, table, to_stderr) as reporter:
        try:
            yield reporter
        except KeyboardInterrupt:  # printed before the hooks get the rest of the events
            reporter.flush_s = HASTY_FLUSH_S
            is_of_models = reporter.job == selection.environment.job
            if reporter.is_way_back and is_of_models:
                hint = f"`{selection.command('rollback')}` goes on"
            elif reporter.is_way_back:
                hint = f"Nomad goes on with the rollback of {reporter.job}"
            else:
                hint = f"`{resume}` goes on"
                if is_release and is_of_models:
                    promote, abort = selection.command("promote"), selection.command("abort")
                    hint += f", `{promote}` promotes, `{abort}` goes back"
            tell(f"the release is left as it is: {hint}")
            raise click.exceptions.Exit(1) from None


@contextmanager
def _interrupted_by(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Let signals end what runs as Ctrl-C does, and restore their handlers afterwards."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end(outcome: Outcome) -> None:
    """End with the exit code of an outcome."""
    raise click.exceptions.Exit(EXIT_CODES[outcome])
