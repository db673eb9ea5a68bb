"""The commands. Each joins a core room to the edge and holds no rule of its own."""

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vllmjobs import __version__
from vllmjobs.environment.problems import UserError, in_order
from vllmjobs.project import checked, environments, find, load, subjects
from vllmjobs.shipped import shipped

EXIT_CODES = """\b
Exit codes:
  0  done, or no change
  1  error
  2  there are changes
  3  valid, but cannot be placed
  4  refused by a gate or a verdict"""


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
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(1) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # `| head` has seen enough; Click ends quietly
            raise
        click.echo(f"{error.filename or 'standard output'}: {error.strerror}", err=True)
        raise click.exceptions.Exit(1) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="vllmjobs")
def main() -> None:
    """vLLM on HashiCorp Nomad, from one YAML file per environment."""


_PROJECT = click.option(
    "--project",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    envvar="VLLMJOBS_PROJECT",
    help="Folder with envs/ and, for templates of your own, jobs/.",
)
_SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one value, such as models.chat.replicas=3. May be repeated.",
)


def environment_options(command: Callable[..., None]) -> Callable[..., None]:
    """ENV, --set and --project: for every command that reads an environment."""
    for option in (_PROJECT, _SETTINGS, click.argument("env")):
        command = option(command)
    return command


@main.command()
@environment_options
@click.option("--job", metavar="NAME", help="Which job: vllm (the default), fabio or nginx.")
@click.option("--model", metavar="NAME", help="Only this model's group; to run it stops the other groups.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write every job of the environment there, one file each.",
)
def render(
    env: str, settings: tuple[str, ...], project: Path, job: str | None, model: str | None, out: Path | None
) -> None:
    """Print one Nomad job of ENV, for `nomad job run -`.

    ENV is the name of a file in envs/, or a path.
    """
    from vllmjobs.render.job import jobs  # noqa: PLC0415 (Jinja takes 30 ms)
    from vllmjobs.render.job import render as render_job  # noqa: PLC0415
    from vllmjobs.templates import templates  # noqa: PLC0415

    environment = load(find(project, env), settings, project)
    found = templates(project)
    if out is None:
        click.echo(render_job(environment, job or "vllm", found, model), nl=False)
        return
    chosen = [job] if job else jobs(environment)
    rendered = {
        name: render_job(environment, name, found, model if name == "vllm" else None) for name in chosen
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.items():
        path = out / f"{name}.nomad.hcl"
        path.write_text(text, encoding="utf-8")
        click.echo(f"wrote {path}", err=True)


@main.command()
@click.argument("envs", metavar="[ENV]...", nargs=-1)
@_SETTINGS
@_PROJECT
@click.option("--strict", is_flag=True, help="Exit 1 for warnings too.")
@click.option(
    "--select", metavar="RULES", help="Only these rules: ids, or their beginnings, such as VJ1,VJ503."
)
@click.option("--ignore", metavar="RULES", help="All but these rules.")
@click.option("--against", metavar="REF", help="Also say what changes since this commit do, such as main.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sarif", "github"]),
    default="text",
    show_default=True,
    help="For people, for programs, for code scanning, or as annotations of a pull request.",
)
def check(
    envs: tuple[str, ...],
    settings: tuple[str, ...],
    project: Path,
    strict: bool,
    select: str | None,
    ignore: str | None,
    against: str | None,
    form: str,
) -> None:
    """Say what would fail, before it holds a GPU.

    ENV is the name of a file in envs/, or a path; every environment of the project when none is named.
    Exits 1 when there are errors. `vllmjobs explain RULE` says more about a finding.
    """
    from vllmjobs.check import report  # noqa: PLC0415 (render has no use for it)
    from vllmjobs.check.check import choice, shared_jobs  # noqa: PLC0415

    wanted = choice(select, ignore)
    paths = [find(project, env) for env in envs] or environments(project)
    if not paths:
        raise click.ClickException(f"{project / 'envs'}/ has no environments; vllmjobs init writes some")
    before = None
    if against:
        from vllmjobs.git import files_at  # noqa: PLC0415 (4 ms)

        before = files_at(against, project)
    found = [checked(path, settings, project, before) for path in paths]
    loaded = {str(path): one.environment for path, one in zip(paths, found, strict=True) if one.environment}
    every = [problem for one in found for problem in one.problems] + shared_jobs(loaded)
    problems = in_order(filter(wanted, every))
    texts = {name: text for one in found for name, text in one.texts.items()}
    match form:
        case "text":
            click.echo(report.as_text(problems, texts), nl=False)
            click.echo(report.summary(problems, len(paths)), err=True)
        case "json":
            click.echo(report.as_json(problems, [str(path) for path in paths]), nl=False)
        case "sarif":
            click.echo(report.as_sarif(problems, __version__), nl=False)
        case _:
            click.echo(report.as_github(problems), nl=False)
    failing = ("error", "warning") if strict else ("error",)
    if any(problem.severity in failing for problem in problems):
        raise click.exceptions.Exit(1)


@main.command()
@environment_options
@click.option(
    "--gpu", "gpu_name", metavar="NAME", help='Ask about another GPU, such as "NVIDIA H100 80GB HBM3".'
)
@click.option("--model", "model_name", metavar="NAME", help="Only this model.")
@click.option("--json", "in_json", is_flag=True, help="For programs; bytes per GPU.")
def size(
    env: str,
    settings: tuple[str, ...],
    project: Path,
    gpu_name: str | None,
    model_name: str | None,
    in_json: bool,
) -> None:
    """Show what the models of ENV take of their GPUs, and what fits.

    ENV is the name of a file in envs/, or a path. Exits 1 when a model does not fit.
    """
    from vllmjobs.check import size as sizes  # noqa: PLC0415
    from vllmjobs.vllm.gpus import gpu, nearest_names  # noqa: PLC0415

    other = gpu(gpu_name) if gpu_name else None
    if gpu_name and not other:
        near = " or ".join(nearest_names(gpu_name))
        raise click.ClickException(
            f"{gpu_name} is not in the table of GPUs" + (near and f"; did you mean {near}?")
        )
    found = [
        sizes.size(subject, other)
        for subject in subjects(find(project, env), settings)
        if model_name in (None, subject.name)
    ]
    if not found:
        raise click.ClickException(f"{env} has no model {model_name!r}")
    click.echo(sizes.as_json(found) if in_json else sizes.as_text(found), nl=False)
    if any(each.estimate and not each.estimate.fits for each in found):
        raise click.exceptions.Exit(1)


@main.command("gpus")
@click.option("--nomad", "of_cluster", is_flag=True, help="The cluster's, asked of Nomad at NOMAD_ADDR.")
@click.option("--json", "in_json", is_flag=True, help="For programs: a list of objects.")
def show_gpus(of_cluster: bool, in_json: bool) -> None:
    """List this machine's GPUs, or the cluster's.

    With their memory, their health, MIG, and who holds them. Exits 0 also where there are none.
    """
    from vllmjobs import gpus, nomad, nvml  # noqa: PLC0415 (160 ms, for this command only)

    if of_cluster:
        cluster = nomad.Cluster()
        cards, reason = cluster.devices(), f"no node of {cluster.address} has a GPU"
    else:
        cards, reason = nvml.cards()
        reason += "; vllmjobs gpus --nomad asks the cluster" if reason else ""
    if not cards:
        click.echo(reason, err=True)
    click.echo(gpus.as_json(cards) if in_json else gpus.table(cards), nl=False)


@main.command()
@click.argument("rule", required=False)
def explain(rule: str | None) -> None:
    """Say what a rule is for, with an example; or list all rules."""
    from vllmjobs.check import report  # noqa: PLC0415

    if rule is None:
        click.echo(report.rules(), nl=False)
        return
    page = shipped("docs") / "rules" / f"{rule.upper()}.md"
    if not re.fullmatch(r"VJ\d{3}", rule.upper()) or not page.is_file():
        raise click.ClickException(f"{rule} is no rule; `vllmjobs explain` lists them")
    click.echo(page.read_text(encoding="utf-8"), nl=False)


@main.command()
@click.option("--format", "form", type=click.Choice(["json", "markdown"]), default="json", show_default=True,
              help="JSON Schema, or the reference as a page.")  # fmt: skip
def schema(form: str) -> None:
    """Print the JSON Schema of an environment."""
    # Not needed, and so not waited for, by any other command.
    from vllmjobs.environment.reference import reference  # noqa: PLC0415
    from vllmjobs.environment.schema import json_schema  # noqa: PLC0415

    text = (
        reference(json_schema(whole=True))
        if form == "markdown"
        else json.dumps(json_schema(), indent=2) + "\n"
    )
    click.echo(text, nl=False)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--templates", "with_templates", is_flag=True, help="Write the job templates too, to change them."
)
def init(directory: Path, with_templates: bool) -> None:
    """Write a project to start from."""
    folders = ("envs", "jobs") if with_templates else ("envs",)
    sources = [source for folder in folders for source in sorted(shipped(folder).iterdir())]
    targets = [directory / source.parent.name / source.name for source in sources]
    if there := [str(target) for target in targets if target.exists()]:
        raise click.ClickException(f"{', '.join(there)} would be overwritten; name an empty folder")
    for folder in folders:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, targets, strict=True):
        target.write_bytes(source.read_bytes())
        click.echo(f"wrote {target}", err=True)
    click.echo(f"next: vllmjobs render --project {directory} dev", err=True)


@main.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--as", "name", required=True, metavar="NAME", help="The new environment; - prints it instead.")
@click.option("--force", is_flag=True, help="Overwrite envs/NAME.yaml.")
@_PROJECT
def import_(file: Path, name: str, force: bool, project: Path) -> None:
    """Write an environment from balanced-vllm-docker.

    FILE is its .env, or an older instances.config, and becomes envs/NAME.yaml of the project; - is stdin.
    What is not carried over, or not as it stood, is named on stderr. Secrets are never copied: the
    environment refers to where they are to be stored.
    """
    from vllmjobs.importing.imported import imported  # noqa: PLC0415 (no other command has use for it)

    printed = name == "-"
    envs = project / "envs"
    base = "base.yaml" if (envs / "base.yaml").is_file() else None
    with click.open_file(str(file), "rb") as stream:
        text = stream.read().decode(errors="surrogateescape")
    found = imported(text, str(file), "imported" if printed else name, base)
    path = envs / f"{name}.yaml"
    if path.exists() and not (printed or force):
        raise click.ClickException(f"{path} exists; --force overwrites it")
    for note in found.notes:
        click.echo(str(note), err=True)
    if printed:
        click.echo(found.text, nl=False)
        return
    envs.mkdir(parents=True, exist_ok=True)
    path.write_text(found.text, encoding="utf-8")
    click.echo(f"wrote {path}", err=True)
    where = "" if project == Path() else f"--project {project} "
    click.echo(f"next: vllmjobs check {where}{name}", err=True)
