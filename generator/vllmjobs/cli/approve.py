"""`approve`: a change to an environment that wants approvals, approved by somebody else."""

from datetime import UTC, datetime

import click

from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.cluster.deployments import Deployments, where_of
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.deploy.gates import approvals, write_approval
from vllmjobs.rollout.gates import count, digest, listed, version_to_be
from vllmjobs.terminal.printing import show
from vllmjobs.text.visible import one_line


@click.command()
@environment_options
@click.option("--list", "only_list", is_flag=True, help="Show who has approved the change; approve nothing.")
def approve(selection: Selection, only_list: bool) -> None:
    """Approve a change of ENV that someone else deploys.

    ENV is the name of a file in envs/, or a path. You approve the job that ENV renders to here, with these
    templates and --set, as the next version of the job. `vllmjobs plan` shows what that version changes. Each
    person counts once, by NOMAD_TOKEN. Nobody can approve what they deploy themselves.

    Exits 4 where ACLs are off: without them Nomad cannot tell who approves.
    """
    environment, jobs = selection.environment, selection.jobs
    if not environment.approvals:
        show(f"{one_line(str(selection.path))} asks for no approvals (approvals: 0)\n")
        return
    deployments = Deployments(NomadApi())
    where = where_of(deployments.cluster.parse(jobs["vllm"], environment.nomad.namespace))
    job = deployments.cluster.job(*where)
    latest = job["Version"] if job else None
    version, content = version_to_be(latest), digest(jobs)
    if only_list:
        kept = approvals(deployments, where)
    else:
        kept = write_approval(deployments, where, latest, version, content, datetime.now(UTC))
    show(listed(count(kept, environment.approvals, where.id, version, content), kept))
