"""`approve`: a change to an environment that wants approvals, approved by somebody else."""

from datetime import UTC, datetime

import click

from vllmjobs.cli.cluster import models_job
from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.deploy.gates import approvals, proposed, write_approval
from vllmjobs.rollout.gates import count, digest, listed
from vllmjobs.terminal.printing import show
from vllmjobs.text.visible import one_line


@click.command()
@environment_options
@click.option("--list", "only_list", is_flag=True, help="Show who has approved the change; approve nothing.")
def approve(selection: Selection, only_list: bool) -> None:
    """Approve a change of ENV that someone else deploys.

    ENV is the name of a file in envs/, or a path. You approve the job that ENV renders to here, with these
    templates and --set, as the next version of the job, with all that decides its release. `vllmjobs plan`
    shows what that version changes, and this command the gates that it weakens. Each person counts once, by
    NOMAD_TOKEN. Nobody can approve what they deploy themselves.

    Exits 4 where ACLs are off: without them Nomad cannot tell who approves.
    """
    environment = selection.environment
    deployments = Deployments(NomadApi())
    where = models_job(selection)
    proposal = proposed(deployments, where, environment, digest(environment, selection.jobs))
    if not proposal.required:
        show(f"{one_line(str(selection.path))} asks for no approvals (approvals: 0)\n")
        return
    if only_list:
        kept = approvals(deployments, where)
    else:
        kept = write_approval(deployments, where, proposal, datetime.now(UTC))
    show(listed(count(kept, proposal), kept))
