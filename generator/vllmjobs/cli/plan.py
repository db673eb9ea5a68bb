"""`plan`: what the cluster would do with the jobs of an environment."""

import click

from vllmjobs.changes.model import Report
from vllmjobs.cli.cluster import planned
from vllmjobs.cli.common import JOB, Selection, environment_options
from vllmjobs.cli.reporting import report_options
from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.nomad import NomadApi


@click.command()
@environment_options
@JOB
@report_options
def plan(selection: Selection) -> Report:
    """Ask the cluster what it would do with the jobs of ENV.

    ENV is the name of a file in envs/, or a path. Nothing changes. The cluster is found as the nomad command
    finds it: by NOMAD_ADDR, NOMAD_TOKEN and their like.

    Exits 2 when there are changes, 3 when there is no room for them, 0 when nothing would be done.
    """
    return Report(command="plan", environments=(planned(selection, Cluster(NomadApi())),))
