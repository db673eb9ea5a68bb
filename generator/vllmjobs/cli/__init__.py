"""The commands, each loaded when it is called. A command joins core rooms to edges and holds no rule."""

import click

from vllmjobs import __version__
from vllmjobs.cli.group import Commands, Listed, LoadedWhenCalled

EXIT_CODES = """\b
Exit codes:
  0  done, or no change
  1  error
  2  there are changes
  3  valid, but cannot be placed
  4  refused by a gate or a verdict"""

COMMANDS = {
    "abort": Listed("release", "Stop the canaries of ENV; the old version serves on."),
    "approve": Listed("approve", "Approve a change of ENV that someone else deploys."),
    "check": Listed("check", "Find what would fail, before it holds a GPU."),
    "deploy": Listed("deploy", "Deploy a change of ENV on evidence, or take it back."),
    "diff": Listed("diff", "Show what a change does to the jobs of ENV."),
    "down": Listed("up", "Stop ENV on this machine."),
    "explain": Listed("check", "Explain a rule with an example, or list all rules."),
    "gpus": Listed("gpus", "List the GPUs of this machine, or of the cluster."),
    "history": Listed("status", "List the versions of ENV, and how each release went."),
    "import": Listed("project", "Write an environment from balanced-vllm-docker."),
    "init": Listed("project", "Write a project to start from."),
    "logs": Listed("logs", "Print the logs of the instances of ENV, side by side."),
    "plan": Listed("plan", "Ask the cluster what it would do with the jobs of ENV."),
    "promote": Listed("release", "Promote the canaries of ENV, whatever the verdict."),
    "reload": Listed("up", "Apply what changed in ENV on this machine."),
    "render": Listed("render", "Print one Nomad job of ENV, for `nomad job run -`."),
    "restart": Listed("up", "Restart servers of ENV on this machine."),
    "rollback": Listed("release", "Go back to an old version of ENV."),
    "schema": Listed("schema", "Print the JSON Schema of an environment."),
    "size": Listed("size", "Show how much GPU memory the models of ENV take."),
    "status": Listed("status", "Show what runs of ENV, and how its release goes."),
    "up": Listed("up", "Run ENV on this machine: servers and nginx."),
}


@click.group(
    cls=Commands,
    commands=LoadedWhenCalled(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="vllmjobs")
def main() -> None:
    """vLLM on HashiCorp Nomad, from one YAML file per environment."""
