"""The parts that commands share: the environment that a person selects, and its options."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import click

from vllmjobs.environment.model import Environment
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.project.environments import Checked, accepted, checked, environment_file
from vllmjobs.project.templates import rendered, templates
from vllmjobs.render.job import RenderError, Templates, jobs_on_demand

Callback = Callable[..., None]

PROJECT = click.option(
    "--project", type=click.Path(path_type=Path, file_okay=False), default=".", envvar="VLLMJOBS_PROJECT",
    help="Folder with envs/, and with jobs/ if you have your own templates.",
)  # fmt: skip
SETTINGS = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Set one value, such as models.chat.replicas=3. May be repeated.",
)  # fmt: skip
JOB = click.option(
    "--job",
    metavar="NAME",
    help="Only this job: vllm, fabio, nginx or prometheus. By default, all of these that ENV has.",
)
_TAKES_JOB = ("render", "plan", "deploy")  # the commands with --job


@dataclass(frozen=True)
class Selection:
    """ENV, --set, --project and --job of one command line."""

    env: str
    settings: tuple[str, ...] = ()
    project: Path = Path()
    job: str | None = None

    @property
    def path(self) -> Path:
        """The environment's file."""
        return environment_file(self.project, self.env)

    @cached_property
    def checked(self) -> Checked:
        """The environment as it was read, with what `check` finds in it."""
        (result,) = checked([self.path], self.settings, self.project)
        return result

    @cached_property
    def environment(self) -> Environment:
        """The environment, where nothing in it is an error; raises `InvalidEnvironmentError` otherwise."""
        return accepted(self.checked)

    @cached_property
    def templates(self) -> Templates:
        """The templates of the project."""
        return templates(self.project)

    @cached_property
    def jobs(self) -> dict[str, str]:
        """Every job of the environment as HCL, by its name for `render --job`."""
        return rendered(self.environment, self.templates)

    @cached_property
    def selected_jobs(self) -> dict[str, str]:
        """The job that --job names, or every job. Raises `RenderError` for a job that is run by hand."""
        if self.job is None:
            return self.jobs
        if self.job in jobs_on_demand(self.environment):
            raise RenderError(f"job {self.job!r} is run by hand: {self.command('render')} | nomad job run -")
        return rendered(self.environment, self.templates, self.job)

    def words(self, command: str, *arguments: str) -> list[str]:
        """Return a command of vllmjobs on this selection, word by word; `arguments` follow ENV."""
        words = ["vllmjobs", command, self.env, *arguments]
        words += [word for setting in self.settings for word in ("--set", setting)]
        if self.project != Path(os.environ.get("VLLMJOBS_PROJECT") or "."):
            words += ["--project", str(self.project)]
        if self.job and command in _TAKES_JOB:
            words += ["--job", self.job]
        return words

    def command(self, command: str, *arguments: str) -> str:
        """Return what a person is to type for a command on this selection, less what looks like a secret."""
        return without_secrets(shlex.join(self.words(command, *arguments)))

    def of_all_jobs(self) -> "Selection":
        """Return the selection without its --job."""
        return replace(self, job=None)


def with_options(*options: Callable[[Callback], Callback]) -> Callable[[Callback], Callback]:
    """Return what gives a command several options at once."""

    def give(command: Callback) -> Callback:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def with_selection(command: Callback) -> Callback:
    """Hand a command one `Selection` in the place of ENV, --set, --project and --job."""

    @wraps(command)
    def run(
        env: str, project: Path, settings: tuple[str, ...] = (), job: str | None = None, **others: Any
    ) -> None:
        command(selection=Selection(env, settings, project, job), **others)

    return run


def environment_options(command: Callback) -> Callback:
    """Give a command ENV, --set and --project, and hand it the `Selection` that they make."""
    return with_options(click.argument("env"), SETTINGS, PROJECT)(with_selection(command))


def no_environments(project: Path) -> click.ClickException:
    """Return the error for a project without environments."""
    init = shlex.join(["vllmjobs", "init", str(project)])
    return click.ClickException(f"{project / 'envs'}/ has no environments; {init} writes some")
