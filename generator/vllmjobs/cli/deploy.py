"""`deploy`: a change, from the plan to the promotion on evidence, or back."""

from datetime import UTC, datetime
from pathlib import Path

import click

from vllmjobs.changes.model import EnvironmentChange, Report, is_unplaceable
from vllmjobs.cli.common import environment_options
from vllmjobs.cli.following import DURATION, end, follow_options, following
from vllmjobs.cli.reporting import NO_ROOM
from vllmjobs.project.environments import checked, find, findings, sound


@click.command()
@environment_options
@click.option(
    "--job",
    metavar="NAME",
    help="Only this job: vllm, fabio, nginx or prometheus; by default all of these that ENV has.",
)
@click.option(
    "--detach",
    is_flag=True,
    help="Register, print the deployment's id, all else to stderr, and leave the rest to a later run.",
)
@click.option(
    "--now", "reason", metavar="REASON", help="Deploy outside of the maintenance windows, and say why."
)
@click.option(
    "--timeout",
    type=DURATION,
    metavar="DURATION",
    help="For each job, such as 45m; by default what follows from the environment's deadlines and steps.",
)
@follow_options
def deploy(
    env: str,
    settings: tuple[str, ...],
    project: Path,
    job: str | None,
    detach: bool,
    reason: str | None,
    timeout: float | None,
    in_json: bool,
    hooks: tuple[str, ...],
) -> None:
    """Take a change of ENV to the cluster, on evidence, or back.

    ENV is checked and planned; canaries are placed, get their share of the requests step by step, and are
    compared with the instances that run. A passing verdict promotes them, a failing one stops them.
    Ended at any moment and run again, it goes on where the cluster is.

    Exits 0 when it is deployed, 3 when there is no room, 4 when a gate or a verdict refused it, else 1.
    """
    from vllmjobs.cluster.consul import Consul  # noqa: PLC0415 (these take 200 ms)
    from vllmjobs.cluster.deployments import Deployments  # noqa: PLC0415
    from vllmjobs.cluster.nomad import Nomad, Where  # noqa: PLC0415
    from vllmjobs.deploy.deploy import PATIENCE_S, DeployRequest, deploy_jobs  # noqa: PLC0415
    from vllmjobs.deploy.gates import approved, maintenance  # noqa: PLC0415
    from vllmjobs.deploy.records import now, who  # noqa: PLC0415
    from vllmjobs.project.jobs import rendered  # noqa: PLC0415
    from vllmjobs.project.plan import plans  # noqa: PLC0415
    from vllmjobs.project.templates import templates  # noqa: PLC0415
    from vllmjobs.rollout.gates import RefusedError, digest  # noqa: PLC0415
    from vllmjobs.rollout.model import Record  # noqa: PLC0415

    path = find(project, env)
    (found,) = checked([path], settings, project)
    environment = sound(found)
    sources = templates(project)
    whole = rendered(environment, sources)
    jobs = rendered(environment, sources, job) if job else whole
    releases = Deployments(Nomad())
    planned = plans(jobs, releases.cluster, environment.nomad.namespace, ["vllmjobs", "render", env])
    # One that is registered already is followed, and given up in time.
    if any(job.action != "none" and is_unplaceable(job) for job in planned):
        from vllmjobs.changes.report.text import as_text  # noqa: PLC0415

        changes = EnvironmentChange(
            name=path.stem, against=releases.address, jobs=planned, findings=findings(found)
        )
        click.echo(as_text(Report(command="plan", environments=(changes,)), color=False), err=True, nl=False)
        raise click.exceptions.Exit(NO_ROOM)

    def gate(where: Where, version: int, is_resumed: bool) -> Record:
        """Approvals also of a release that is resumed: it may have been registered by somebody else."""
        closed = None if is_resumed else maintenance(environment.maintenance, datetime.now(UTC))
        if closed and not reason:
            raise RefusedError(closed.refusal(str(path)))
        said = digest(whole)
        approved(releases, where, environment.approvals, version, said, f"vllmjobs approve {env}")
        return Record(version=0, at=now(), by=who(releases), now=reason or "", digest=said)

    with following(f"deploy {env}", env, in_json, hooks, to_stderr=detach) as reporter:
        request = DeployRequest(
            name=env,
            environment=environment,
            jobs=jobs,
            releases=Deployments(Nomad(patience=PATIENCE_S)),
            reporter=reporter,
            gate=gate,
            consul=Consul,
            timeout=timeout,
            detach=detach,
        )
        outcome = deploy_jobs(request, planned)
    end(outcome)
