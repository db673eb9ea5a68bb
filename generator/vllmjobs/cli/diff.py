"""`diff`: what a change does to the running jobs, with no cluster at hand."""

from pathlib import Path

import click

from vllmjobs.changes.model import Report
from vllmjobs.cli.common import PROJECT, SETTINGS, no_environments
from vllmjobs.cli.reporting import report_options
from vllmjobs.project.against import against, environment_changes, environments_of_both
from vllmjobs.project.environments import environment_files


@click.command()
@click.argument("envs", metavar="[ENV]...", nargs=-1)
@click.option(
    "--against", "other", metavar="REF|FILE|ENV", default="HEAD", show_default=True,
    help="The other side: a commit, such as origin/main; an environment; or a file with a job's HCL.",
)  # fmt: skip
@SETTINGS
@PROJECT
@report_options
def diff(envs: tuple[str, ...], other: str, settings: tuple[str, ...], project: Path) -> Report:
    """Show what a change does to the jobs of ENV.

    ENV is the name of a file in envs/, or a path. Without ENV, all environments of the project are compared.
    Both sides are rendered and compared as jobs, by Nomad's rules: layout, order and comments do not count.
    Jobs that are run by hand (prefetch, cache-backup, cache-restore) are left out. --set changes this side
    only. `diff` asks no cluster; `vllmjobs plan` does.

    Exits 2 when there are changes, 0 when there are none.
    """
    side = against(other, project)
    paths = environment_files(project, envs) or environments_of_both(project, side)
    if not paths:
        raise no_environments(project)
    return Report(command="diff", environments=tuple(environment_changes(paths, settings, project, side)))
