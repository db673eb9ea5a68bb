"""`plan`: what the cluster would do with the jobs of an environment."""

from pathlib import Path

import click

from vllmjobs.changes.model import EnvironmentChange, Report
from vllmjobs.cli.common import environment_options
from vllmjobs.cli.reporting import report_options, say
from vllmjobs.project.environments import checked, find, findings, sound


@click.command()
@environment_options
@click.option(
    "--job",
    metavar="NAME",
    help="Only this job: vllm, fabio, nginx or prometheus; by default all of these that ENV has.",
)
@report_options
def plan(
    env: str,
    settings: tuple[str, ...],
    project: Path,
    job: str | None,
    detailed: bool,
    form: str,
    color: bool | None,
) -> None:
    """Ask the cluster what it would do with the jobs of ENV.

    ENV is the name of a file in envs/, or a path. Nothing is changed. The cluster is found as the nomad
    command finds it: by NOMAD_ADDR, NOMAD_TOKEN and the others.

    Exits 2 when there are changes, 3 when there is no room for them, 0 when nothing would be done.
    """
    from vllmjobs.cluster.cluster import Cluster  # noqa: PLC0415 (requests takes 60 ms)
    from vllmjobs.cluster.nomad import Nomad  # noqa: PLC0415
    from vllmjobs.project.jobs import rendered  # noqa: PLC0415
    from vllmjobs.project.plan import plans  # noqa: PLC0415
    from vllmjobs.project.templates import templates  # noqa: PLC0415

    path = find(project, env)
    (found,) = checked([path], settings, project)
    environment = sound(found)
    jobs = rendered(environment, templates(project), job)
    cluster = Cluster(Nomad())
    command = ["vllmjobs", "render", env, *(word for setting in settings for word in ("--set", setting))]
    if project != Path():
        command += ["--project", str(project)]
    planned = EnvironmentChange(
        name=path.stem,
        against=cluster.address,
        jobs=plans(jobs, cluster, environment.nomad.namespace, command),
        findings=findings(found),
    )
    say(Report(command="plan", environments=(planned,)), form, color, detailed)
