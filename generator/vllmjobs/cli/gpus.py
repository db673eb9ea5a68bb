"""`gpus`: this machine's, or the cluster's."""

import click

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.gpus import cards, nvml
from vllmjobs.terminal.printing import show, show_json, tell


@click.command()
@click.option("--nomad", "of_cluster", is_flag=True,
              help="List the GPUs of the cluster; Nomad at NOMAD_ADDR knows them.")  # fmt: skip
@click.option("--json", "in_json", is_flag=True, help="Print a list of JSON objects.")
def gpus(of_cluster: bool, in_json: bool) -> None:
    """List the GPUs of this machine, or of the cluster.

    The list shows their memory, their health, MIG, and who uses them. Exits 0 even where there are none.
    """
    if of_cluster:
        cluster = Cluster(NomadApi())
        rows, reason = cluster.devices(), f"no node of {cluster.address} has a GPU"
    else:
        rows, reason = nvml.cards()
        reason += "; vllmjobs gpus --nomad asks the cluster" if reason else ""
    if not rows:
        tell(reason)
    if in_json:
        show_json(cards.as_json(rows))
    else:
        show(cards.table(rows))
