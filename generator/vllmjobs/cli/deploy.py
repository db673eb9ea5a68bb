"""`deploy`: a change, from the plan to the promotion on evidence, or back."""

from functools import partial

import click

from vllmjobs.changes.model import Report
from vllmjobs.changes.report.text import as_text
from vllmjobs.cli.cluster import planned
from vllmjobs.cli.common import JOB, Selection, environment_options
from vllmjobs.cli.following import DURATION, end, follow_options, following, timeout_words
from vllmjobs.cli.reporting import NO_ROOM
from vllmjobs.cluster.consul import ConsulApi
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.cluster.reasons import Deadline
from vllmjobs.deploy.deploy import PATIENCE_S, DeployRequest, deploy_jobs
from vllmjobs.deploy.gates import Gates
from vllmjobs.rollout.gates import digest, words
from vllmjobs.terminal.printing import show


@click.command()
@environment_options
@JOB
@click.option(
    "--detach",
    is_flag=True,
    help="Register the job, print the deployment's id, and end; a later run goes on. All else is on stderr.",
)
@click.option(
    "--now",
    "reason",
    metavar="REASON",
    help="Deploy outside of the maintenance windows, for this reason, which the history keeps.",
)
@click.option(
    "--timeout", type=DURATION, metavar="DURATION",
    help="Longest time for each job, such as 45m; by default, it follows from ENV's deadlines and steps.",
)  # fmt: skip
@follow_options
def deploy(
    selection: Selection,
    detach: bool,
    reason: str | None,
    timeout: float | None,
    in_json: bool,
    hooks: tuple[str, ...],
) -> None:
    """Deploy a change of ENV on evidence, or take it back.

    First ENV is checked and planned. Then canaries start. They get their share of the requests step by step,
    and are compared with the instances that run already. A verdict of pass promotes them; a verdict of fail
    stops them. You may end this command at any moment: run it again, and it goes on from what it finds in
    the cluster.

    Exits 0 when the change is deployed, 3 when there is no room, 4 when a gate or a verdict refused it, and 1
    after any other error.
    """
    deadline = Deadline(timeout)
    deployments = Deployments(NomadApi(deadline=deadline))
    change = planned(selection, deployments.cluster)
    # A job that is registered already is followed, and given up in time.
    if any(job.action != "none" and job.is_unplaceable for job in change.jobs):
        report = Report(command="plan", environments=(change,))
        show(as_text(report, color=False), err=True)
        raise click.exceptions.Exit(NO_ROOM)
    gates = Gates(
        environment=selection.environment,
        file=str(selection.path),
        digest=digest(selection.environment, selection.jobs),
        reason=words(reason or ""),
        approve=selection.command("approve"),
        deployments=deployments,
    )
    typed = [*(["--detach"] if detach else []), *(["--now", reason] if reason else [])]
    resume = selection.command("deploy", *typed, *timeout_words(timeout))
    with following(selection, resume, in_json, hooks, is_release=True, to_stderr=detach) as reporter:
        request = DeployRequest(
            command=selection.command,
            environment=selection.environment,
            jobs=selection.selected_jobs,
            deployments=Deployments(NomadApi(patience=PATIENCE_S, deadline=deadline)),
            reporter=reporter,
            gate=gates.admit,
            consul=partial(ConsulApi, deadline=deadline),
            timeout=timeout,
            detach=detach,
        )
        outcome = deploy_jobs(request, change.jobs)
    end(outcome)
