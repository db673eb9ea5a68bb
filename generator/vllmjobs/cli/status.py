"""`status`, `history` and `logs`: what runs, what was released, what it says."""

import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from vllmjobs.cli.common import environment_options, models_job, show
from vllmjobs.cli.up import find_box
from vllmjobs.environment.problems import UserError

if TYPE_CHECKING:
    from vllmjobs.box.machine import Box
    from vllmjobs.rollout.overview import Overview


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _json(value: object) -> None:
    show(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


@click.command()
@environment_options
@click.option("--watch", is_flag=True, help="Keep it on the screen until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.5),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch, between two looks.",
)
@click.option("--json", "in_json", is_flag=True, help="For programs.")
def status(
    env: str, settings: tuple[str, ...], project: Path, watch: bool, interval: float, in_json: bool
) -> None:
    """Show what runs of ENV, and how its release stands.

    Groups, versions, health, shares of the requests, GPUs, the deployment, the last verdict. The first line
    says whether all is well, the last ones what to type next. Where ENV is up on this machine (vllmjobs up),
    its servers instead.

    Exits 0 whatever is shown; 1 where the job does not exist, or the cluster cannot be asked.
    """
    from vllmjobs.cluster.consul import Consul  # noqa: PLC0415 (these take 200 ms)
    from vllmjobs.cluster.deployments import Deployments  # noqa: PLC0415
    from vllmjobs.cluster.nomad import Nomad  # noqa: PLC0415
    from vllmjobs.deploy.status import read_overview  # noqa: PLC0415
    from vllmjobs.rollout.overview_text import status_text  # noqa: PLC0415

    if watch and in_json:
        raise click.UsageError("--watch is for a screen, --json for programs: give one of them")
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal; --json tells a program what is on the screen")
    box = find_box(env, None, project)
    if box.get("/live"):
        from vllmjobs.box.overview import overview  # noqa: PLC0415

        if watch:
            _watch(lambda: overview(box.job, box.health()), interval)
        elif in_json:
            _json(box.health())
        else:
            show(overview(box.job, box.health()))
        return
    environment, where = models_job(project, env, settings)

    def seen(releases: Deployments) -> "Overview":
        return read_overview(
            env, environment, releases, where, lambda: Consul(timeout=(2.0, 5.0), pauses=()), _warn
        )

    if watch:
        releases = Deployments(Nomad(pauses=()))
        _watch(lambda: status_text(seen(releases)), interval)
    elif in_json:
        _json(seen(Deployments(Nomad())))
    else:
        show(status_text(seen(Deployments(Nomad()))))


def _watch(screen: Callable[[], str], interval: float) -> None:
    """Show it again and again; while the cluster cannot be asked, why, above what was seen last."""
    from rich.live import Live  # noqa: PLC0415 (60 ms)
    from rich.text import Text  # noqa: PLC0415

    last = ""
    try:
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                try:
                    text = last = screen()
                except UserError as error:
                    text = f"{error}\n\n{last}"
                at = datetime.now(UTC).astimezone().strftime("%H:%M:%S")
                live.update(Text(f"{text}\n{at}, every {interval:g} s; Ctrl-C ends"), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


@click.command()
@environment_options
@click.option("--json", "in_json", is_flag=True, help="For programs: all that is known of each version.")
def history(env: str, settings: tuple[str, ...], project: Path, in_json: bool) -> None:
    """List the versions of ENV, and how each went.

    When, by whom, with which verdict, image and model. Nomad keeps six versions of a job; what vllmjobs
    recorded of the last twenty releases is shown for longer.
    """
    from vllmjobs.cluster.deployments import Deployments  # noqa: PLC0415
    from vllmjobs.cluster.nomad import Nomad  # noqa: PLC0415
    from vllmjobs.deploy.records import iso  # noqa: PLC0415
    from vllmjobs.deploy.status import no_job, read_records  # noqa: PLC0415 (these take 200 ms)
    from vllmjobs.rollout.history import past_releases  # noqa: PLC0415
    from vllmjobs.rollout.overview_text import history_text  # noqa: PLC0415

    _, where = models_job(project, env, settings)
    releases = Deployments(Nomad())
    versions = releases.versions(where)
    if not versions:
        raise no_job(env, releases, where)
    rows = past_releases(
        versions,
        releases.deployments(where),
        read_records(releases, where, _warn),
        lambda nanoseconds: iso(datetime.fromtimestamp(nanoseconds / 1e9, UTC)),
    )
    if in_json:
        _json(rows)
    else:
        show(history_text(rows))


@click.command()
@environment_options
@click.argument("group", required=False)
@click.option("--canary", "which", flag_value="canary", help="Only canaries.")
@click.option("--stable", "which", flag_value="stable", help="Only what is no canary.")
@click.option("--stdout", "kind", flag_value="stdout", help="Only what is written to stdout.")
@click.option("--stderr", "kind", flag_value="stderr", help="Only what is written to stderr.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "-n",
    "--tail",
    "lines",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="LINES",
    help="Of each log, at most so many of its last lines.",
)
def logs(
    env: str,
    group: str | None,
    settings: tuple[str, ...],
    project: Path,
    which: Literal["canary", "stable"] | None,
    kind: Literal["stdout", "stderr"] | None,
    follow: bool,
    lines: int,
) -> None:
    """Print the logs of the instances of ENV, side by side.

    Of all groups, or of one GROUP; each line with its instance. With --follow, instances that come are
    followed, too. Where ENV is up on this machine (vllmjobs up --detach), its servers' instead; GROUP may
    then be one of them (chat-0, nginx).
    """
    from vllmjobs.cluster.deployments import Deployments  # noqa: PLC0415
    from vllmjobs.cluster.logs import Kind, follow_logs, last_lines, select  # noqa: PLC0415 (200 ms)
    from vllmjobs.cluster.nomad import Json, Nomad  # noqa: PLC0415
    from vllmjobs.cluster.task_logs import TaskLogs  # noqa: PLC0415

    box = find_box(env, None, project)
    if box.get("/live"):
        _box_logs(box, group, follow, lines)
        return
    environment, where = models_job(project, env, settings)
    if group and group not in environment.models:
        raise click.UsageError(f"{env} has no group {group}; it has {', '.join(environment.models)}")
    kinds: tuple[Kind, ...] = (kind,) if kind else ("stdout", "stderr")
    nomad = Nomad(pauses=()) if follow else Nomad()
    task_logs, deployments = TaskLogs(nomad), Deployments(nomad)

    def selected() -> list[Json]:
        return select(deployments.allocations(where), group, which)

    try:
        if follow:
            printed = follow_logs(task_logs, where, selected, kinds, lines, _warn)
        else:
            allocations = selected()
            if not allocations:
                raise UserError(f"{nomad.address}: {where.id} has no such instance")
            printed = last_lines(task_logs, where, allocations, kinds, lines)
        for line in printed:
            show(f"{line}\n")
    except KeyboardInterrupt:
        return


def _box_logs(box: "Box", group: str | None, follow: bool, lines: int) -> None:
    """Those of a box, of which all stand in one file."""
    from vllmjobs.box.overview import log_line  # noqa: PLC0415

    there = list(box.health()["instances"])
    names = [one for one in there if group in (None, one, one.rpartition("-")[0])]
    if not names:
        raise click.UsageError(f"{box.job} has no server {group}; it has {', '.join(there)}")
    last: deque[str] | None = deque(maxlen=lines)
    try:
        for line in box.log_lines(follow):
            text = None if line is None else log_line(line, names)
            if last is None:
                if text is not None:
                    show(f"{text}\n")
            elif line is None:
                show("".join(f"{one}\n" for one in last))
                last = None
            elif text is not None:
                last.append(text)
    except KeyboardInterrupt:
        return
