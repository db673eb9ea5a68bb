"""The command `vllmjobs-sandbox`: the whole story of a release, or with --keep a place to try things out."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.ports import MOST_CLIENTS
from vllmjobs_sandbox.cluster.process import tail
from vllmjobs_sandbox.cluster.sandbox import Sandbox

STORY_GPUS = 3


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Tell no story: stay up until Ctrl-C.")
@click.option("--gpus", type=click.IntRange(1, 16), default=4, show_default=True, help="GPUs of each node.")
@click.option(
    "--clients", type=click.IntRange(1, MOST_CLIENTS), default=2, show_default=True, help="Nodes with GPUs."
)
@click.option(
    "--dir",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    help="Make the sandbox's folder there.  [default: $TMPDIR or /tmp]",
)
def sandbox(keep: bool, gpus: int, clients: int, parent: Path | None) -> None:
    """Start Consul, Nomad, Fabio and nginx on loopback, with simulated GPUs, and release a change there.

    Each command of the story is shown as a person would type it, with what came of it.

    \b
    Exit codes: 0 all went well, 1 a step failed, 130 Ctrl-C during the story.
    """
    if not keep and clients * gpus < STORY_GPUS:
        raise click.UsageError(f"the story needs {STORY_GPUS} GPUs: two engines and a canary")
    if not keep:
        from vllmjobs_sandbox.story.story import Story  # noqa: PLC0415 - openai takes two seconds of a core
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    began = time.monotonic()
    try:
        with Sandbox(clients, gpus, parent, say=click.echo) as running:
            click.echo(f"ready after {time.monotonic() - began:.1f} s")
            if keep:
                _keep(running)
            else:
                Story(running).tell()
    except SandboxError as error:
        click.secho(f"\nfailed: {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    click.echo(f"\nall went well, in {time.monotonic() - began:.0f} s" if not keep else "stopped")


def _keep(running: Sandbox) -> None:
    """Stay until Ctrl-C, or until an agent ends by itself."""
    click.echo(f"\nto use it in another shell:\n  . {running.folder}/env")
    click.echo("  vllmjobs render dev | nomad job run -")
    click.echo("Ctrl-C stops it and removes it.")
    try:
        while not (ended := running.ended()):
            time.sleep(1)
    except KeyboardInterrupt:
        return
    raise SandboxError("\n".join(f"{agent.name} ended by itself\n{tail(agent.log)}" for agent in ended))


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
