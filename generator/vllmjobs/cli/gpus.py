"""`gpus`: this machine's, or the cluster's."""

import click

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.nomad import Nomad
from vllmjobs.gpus import cards, nvml


@click.command()
@click.option("--nomad", "of_cluster", is_flag=True, help="The cluster's, asked of Nomad at NOMAD_ADDR.")
@click.option("--json", "in_json", is_flag=True, help="For programs: a list of objects.")
def gpus(of_cluster: bool, in_json: bool) -> None:
    """List this machine's GPUs, or the cluster's.

    With their memory, their health, MIG, and who holds them. Exits 0 also where there are none.
    """
    if of_cluster:
        cluster = Cluster(Nomad())
        rows, reason = cluster.devices(), f"no node of {cluster.address} has a GPU"
    else:
        rows, reason = nvml.cards()
        reason += "; vllmjobs gpus --nomad asks the cluster" if reason else ""
    if not rows:
        click.echo(reason, err=True)
    click.echo(cards.as_json(rows) if in_json else cards.table(rows), nl=False)
