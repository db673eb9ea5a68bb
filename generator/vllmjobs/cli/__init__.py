"""The commands. Each joins a core room to the edge and holds no rule of its own."""

import click

from vllmjobs import __version__
from vllmjobs.cli.approve import approve
from vllmjobs.cli.check import check, explain, size
from vllmjobs.cli.common import Commands
from vllmjobs.cli.deploy import deploy
from vllmjobs.cli.diff import diff
from vllmjobs.cli.gpus import gpus
from vllmjobs.cli.plan import plan
from vllmjobs.cli.project import import_, init, schema
from vllmjobs.cli.release import abort, promote, rollback
from vllmjobs.cli.render import render
from vllmjobs.cli.status import history, logs, status
from vllmjobs.cli.up import down, reload, restart, up

EXIT_CODES = """\b
Exit codes:
  0  done, or no change
  1  error
  2  there are changes
  3  valid, but cannot be placed
  4  refused by a gate or a verdict"""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="vllmjobs")
def main() -> None:
    """vLLM on HashiCorp Nomad, from one YAML file per environment."""


for command in (
    abort, approve, check, deploy, diff, down, explain, gpus, history, import_, init, logs, plan, promote,
    reload, render, restart, rollback, schema, size, status, up,
):  # fmt: skip
    main.add_command(command)
