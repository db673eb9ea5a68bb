"""`history`: what was released."""

from datetime import UTC, datetime

import click

from vllmjobs.cli.cluster import models_job, print_json, warn
from vllmjobs.cli.common import show
from vllmjobs.cli.selection import Selection, environment_options
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import Nomad
from vllmjobs.deploy.records import iso
from vllmjobs.deploy.status import no_job, read_records
from vllmjobs.rollout.history import past_releases
from vllmjobs.rollout.overview_text import history_text


@click.command()
@environment_options
@click.option("--json", "in_json", is_flag=True, help="For programs: all that is known of each version.")
def history(selection: Selection, in_json: bool) -> None:
    """List the versions of ENV, and how each went.

    When, by whom, with which verdict, image and model. Nomad keeps six versions of a job; what vllmjobs
    recorded of the last twenty releases is shown for longer.
    """
    where = models_job(selection)
    deployments = Deployments(Nomad())
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
