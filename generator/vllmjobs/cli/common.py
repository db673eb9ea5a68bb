"""The parts that commands share: the options of a project, and printing."""

import shlex
import sys
from pathlib import Path

import click

from vllmjobs.environment.secrets import without_secrets

PROJECT = click.option(
    "--project",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    envvar="VLLMJOBS_PROJECT",
    help="Folder with envs/ and, for templates of your own, jobs/.",
)
SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one value, such as models.chat.replicas=3. May be repeated.",
)


def no_environments(project: Path) -> click.ClickException:
    """Return the error for a project without environments."""
    init = shlex.join(["vllmjobs", "init", str(project)])
    return click.ClickException(f"{project / 'envs'}/ has no environments; {init} writes some")


def show(text: str, color: bool | None = None) -> None:
    """Print a text that may repeat a file's values: without secrets, `?` for what the encoding lacks.

    With `color`, escape sequences are kept even where it goes to a file.
    """
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(without_secrets(text).encode(encoding, "replace").decode(encoding), nl=False, color=color)
