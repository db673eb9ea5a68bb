"""`logs`: what the instances write."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, takewhile
from typing import Literal

import click

from vllmjobs.box.machine import Box
from vllmjobs.box.overview import log_line
from vllmjobs.cli.box import find_box
from vllmjobs.cli.cluster import models_job, warn
from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.logs import LogType, TaskLogs, follow_logs, last_lines, select
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.environment.problems import UserError
from vllmjobs.terminal.printing import show
from vllmjobs.text.json import Json

_COLOR = re.compile(r"\x1b\[[\d;]*m")  # vLLM paints the name of each process, also where no terminal is


@click.command()
@environment_options
@click.argument("group", required=False)
@click.option("--canary", "which", flag_value="canary", help="Only logs of canaries.")
@click.option("--stable", "which", flag_value="stable", help="Only logs of instances that are not canaries.")
@click.option("--stdout", "kind", flag_value="stdout", help="Only stdout.")
@click.option("--stderr", "kind", flag_value="stderr", help="Only stderr.")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they come, until Ctrl-C.")
@click.option(
    "-n", "--tail", "lines", type=click.IntRange(min=0), default=50, show_default=True, metavar="LINES",
    help="Print at most this many of the last lines of each log.",
)  # fmt: skip
def logs(
    selection: Selection,
    group: str | None,
    which: Literal["canary", "stable"] | None,
    kind: Literal["stdout", "stderr"] | None,
    follow: bool,
    lines: int,
) -> None:
    """Print the logs of the instances of ENV, side by side.

    GROUP limits this to one group. Each line names its instance. --follow also shows instances that start
    later. Where ENV is up on this machine (vllmjobs up --detach), the logs of its servers are printed
    instead; GROUP may then be one server (chat-0, nginx).
    """
    box = find_box(selection)
    if box.get("/live"):
        _box_logs(box, group, follow, lines)
        return
    models, where = selection.environment.models, models_job(selection)
    if group and group not in models:
        raise click.UsageError(f"{selection.env} has no group {group}; it has {', '.join(models)}")
    kinds: tuple[LogType, ...] = (kind,) if kind else ("stdout", "stderr")
    nomad = NomadApi(pauses=()) if follow else NomadApi()
    task_logs, deployments = TaskLogs(nomad), Deployments(nomad)

    def selected() -> list[Json]:
        return select(deployments.allocations(where), group, which)

    with suppress(KeyboardInterrupt):
        if follow:
            printed = follow_logs(task_logs, where, selected, kinds, lines, warn)
        else:
            allocations = selected()
            if not allocations:
                lists = f"`{selection.command('status')}` shows which there are"
                raise UserError(f"{nomad.address}: {where.id} has no such instance; {lists}")
            printed = last_lines(task_logs, where, allocations, kinds, lines)
        for line in printed:
            show(f"{_COLOR.sub('', line)}\n")


def _box_logs(box: Box, group: str | None, follow: bool, lines: int) -> None:
    there = list(box.health()["instances"])
    names = [one for one in there if group in (None, one, one.rpartition("-")[0])]
    if not names:
        raise click.UsageError(f"{box.job} has no server {group}; it has {', '.join(there)}")
    written = box.log_lines(follow)
    until_now = takewhile(lambda line: line is not None, written)
    with suppress(KeyboardInterrupt):
        for text in chain(deque(_texts(until_now, names), maxlen=lines), _texts(written, names)):
            show(f"{text}\n")


def _texts(written: Iterable[str | None], names: list[str]) -> Iterator[str]:
    lines = (log_line(line, names) for line in written if line is not None)
    return (text for text in lines if text is not None)
