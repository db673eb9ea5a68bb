"""What the commands share: how errors end them, the options of an environment, printing."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllmjobs.environment.problems import UserError
from vllmjobs.environment.secrets import without_secrets

if TYPE_CHECKING:
    from vllmjobs.cluster.nomad import Where
    from vllmjobs.environment.model import Environment


class Commands(click.Group):
    """Turns what cannot be done into lines on stderr and exit code 1; Click's own 2 means changes here."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; see `click.Command.make_context`."""
        with _errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `click.Command.invoke`."""
        with _errors():
            return super().invoke(ctx)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        error.show()
        raise click.exceptions.Exit(1) from error
    except UserError as error:
        click.echo(without_secrets(str(error)), err=True)
        raise click.exceptions.Exit(error.exit_code) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # `| head` has seen enough; Click ends quietly
            raise
        click.echo(f"{error.filename or 'standard output'}: {error.strerror}", err=True)
        raise click.exceptions.Exit(1) from error


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


def environment_options(command: Callable[..., None]) -> Callable[..., None]:
    """ENV, --set and --project: for every command that reads an environment."""
    for option in (PROJECT, SETTINGS, click.argument("env")):
        command = option(command)
    return command


def models_job(project: Path, env: str, settings: tuple[str, ...]) -> "tuple[Environment, Where]":
    """An environment in which nothing is called an error, and where its models' job is."""
    from vllmjobs.cluster.deployments import where  # noqa: PLC0415 (requests takes 60 ms)
    from vllmjobs.project.environments import find, load  # noqa: PLC0415

    environment = load(find(project, env), settings, project)
    assert environment.job
    return environment, where(environment.job, environment.nomad.namespace, environment.nomad.region)


def show(text: str, color: bool | None = None) -> None:
    """What may repeat a file's values: no secrets, and `?` for what the terminal's encoding lacks.

    With `color`, escape sequences are kept even where it goes to a file.
    """
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(without_secrets(text).encode(encoding, "replace").decode(encoding), nl=False, color=color)
