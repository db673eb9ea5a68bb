"""`status` and `history`: what runs, and what was released."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import click

from vllmjobs.box.overview import overview
from vllmjobs.cli.box import find_box
from vllmjobs.cli.cluster import models_job, print_json, warn
from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.cluster.consul import ConsulApi
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.deploy.records import iso
from vllmjobs.deploy.status import no_job, read_overview, read_records
from vllmjobs.rollout.history import past_releases
from vllmjobs.rollout.overview import Overview
from vllmjobs.rollout.overview_text import history_text, status_text
from vllmjobs.terminal.printing import show

T = TypeVar("T")


@click.command()
@environment_options
@click.option("--watch", "is_watched", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(min=0.5), default=2.0, show_default=True, metavar="SECONDS",
    help="Pause before --watch asks again.",
)  # fmt: skip
@click.option("--json", "in_json", is_flag=True, help="Print JSON.")
def status(selection: Selection, is_watched: bool, interval: float, in_json: bool) -> None:
    """Show what runs of ENV, and how its release goes.

    This shows groups, versions, health, shares of the requests, GPUs, the deployment and the last verdict.
    The first line says whether all is well. The last lines say what to type next. Where ENV is up on this
    machine (vllmjobs up), its servers are shown instead.

    Exits 0 whatever is shown, and 1 where the job does not exist or the cluster cannot be asked.
    """
    if is_watched and in_json:
        raise click.UsageError("--watch is for a screen, --json for programs: give one of them")
    if is_watched and not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal; --json tells a program what is on the screen")
    box = find_box(selection)
    if box.get("/live"):
        _show(box.health, lambda health: overview(box.job, health), interval if is_watched else None, in_json)
        return
    # A screen that is drawn again soon does not wait for answers that do not come.
    deployments = Deployments(NomadApi(pauses=()) if is_watched else NomadApi())
    where = models_job(selection)

    def observed() -> Overview:
        consul = partial(ConsulApi, timeout=(2.0, 5.0), pauses=())
        return read_overview(selection.command, selection.environment, deployments, where, consul, warn)

    _show(observed, status_text, interval if is_watched else None, in_json)


def _show(
    observe: Callable[[], T], as_text: Callable[[T], str], interval: float | None, in_json: bool
) -> None:
    """Print what is observed once, or keep it on the screen where there is an `interval`."""
    if interval is not None:
        from vllmjobs.terminal.live import watch  # noqa: PLC0415 (rich takes 60 ms, and only --watch needs it)

        watch(lambda: as_text(observe()), interval)
    elif in_json:
        print_json(observe())
    else:
        show(as_text(observe()))


@click.command()
@environment_options
@click.option("--json", "in_json", is_flag=True, help="Print JSON with all that is known of each version.")
def history(selection: Selection, in_json: bool) -> None:
    """List the versions of ENV, and how each release went.

    The list shows when each was deployed, by whom, with which verdict, image and model. Nomad keeps six
    versions of a job; vllmjobs keeps its own record of the last twenty releases.
    """
    where = models_job(selection)
    deployments = Deployments(NomadApi())
    versions = deployments.versions(where)
    if not versions:
        raise no_job(selection.command, deployments, where)
    rows = past_releases(
        versions,
        deployments.of_job(where),
        read_records(deployments, where, warn),
        lambda nanoseconds: iso(datetime.fromtimestamp(nanoseconds / 1e9, UTC)),
    )
    if in_json:
        print_json(rows)
    else:
        show(history_text(rows))
