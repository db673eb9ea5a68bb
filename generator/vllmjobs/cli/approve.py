"""`approve`: a change to an environment that wants approvals, approved by somebody else."""

from datetime import UTC, datetime
from pathlib import Path

import click

from vllmjobs.cli.common import environment_options, show
from vllmjobs.project.environments import find, load


@click.command()
@environment_options
@click.option("--list", "only_list", is_flag=True, help="Say who has approved it, and approve nothing.")
def approve(env: str, settings: tuple[str, ...], project: Path, only_list: bool) -> None:
    """Approve a change of ENV that others deploy.

    ENV is the name of a file in envs/, or a path. What is approved is what it renders to here, with these
    templates and --set, as the next version of the job; `vllmjobs plan` says what that changes. Each
    person counts once, by NOMAD_TOKEN, and not for what they deploy themselves.

    Exits 4 where ACLs are off, since nobody can tell who approves.
    """
    from vllmjobs.cluster.deployments import Deployments, where_of  # noqa: PLC0415
    from vllmjobs.cluster.nomad import Nomad  # noqa: PLC0415
    from vllmjobs.deploy import gates  # noqa: PLC0415 (requests takes 60 ms)
    from vllmjobs.project.jobs import rendered  # noqa: PLC0415
    from vllmjobs.project.templates import templates  # noqa: PLC0415
    from vllmjobs.rollout.gates import count, digest, listed, version_to_be  # noqa: PLC0415

    path = find(project, env)
    environment = load(path, settings, project)
    jobs = rendered(environment, templates(project))
    if not environment.approvals:
        click.echo(f"{path} asks for no approvals (approvals: 0)")
        return
    releases = Deployments(Nomad())
    where = where_of(releases.cluster.parse(jobs["vllm"], environment.nomad.namespace))
    job = releases.cluster.job(*where)
    latest = job["Version"] if job else None
    version, content = version_to_be(latest), digest(jobs)
    if only_list:
        kept = gates.approvals(releases, where)
    else:
        kept = gates.approve(releases, where, latest, version, content, datetime.now(UTC))
    show(listed(count(kept, environment.approvals, where.id, version, content), kept))
