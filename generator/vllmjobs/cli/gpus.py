"""`gpus`: this machine's, or the cluster's."""

import click


@click.command()
@click.option("--nomad", "of_cluster", is_flag=True, help="The cluster's, asked of Nomad at NOMAD_ADDR.")
@click.option("--json", "in_json", is_flag=True, help="For programs: a list of objects.")
def gpus(of_cluster: bool, in_json: bool) -> None:
    """List this machine's GPUs, or the cluster's.

    With their memory, their health, MIG, and who holds them. Exits 0 also where there are none.
    """
    from vllmjobs.cluster.cluster import Cluster  # noqa: PLC0415 (160 ms, for this command only)
    from vllmjobs.cluster.nomad import Nomad  # noqa: PLC0415
    from vllmjobs.gpus import cards as rows  # noqa: PLC0415
    from vllmjobs.gpus import nvml  # noqa: PLC0415

    if of_cluster:
        cluster = Cluster(Nomad())
        cards, reason = cluster.devices(), f"no node of {cluster.address} has a GPU"
    else:
        cards, reason = nvml.cards()
        reason += "; vllmjobs gpus --nomad asks the cluster" if reason else ""
    if not cards:
        click.echo(reason, err=True)
    click.echo(rows.as_json(cards) if in_json else rows.table(cards), nl=False)
