"""`check`, `explain` and `size`: what would fail, before it holds a GPU."""

import re
from pathlib import Path
from typing import TextIO

import click

from vllmjobs import __version__
from vllmjobs.cli.common import PROJECT, SETTINGS, environment_options, show
from vllmjobs.environment.problems import in_order
from vllmjobs.project.environments import checked, environments, find, named, subjects
from vllmjobs.project.shipped import shipped


@click.command()
@click.argument("envs", metavar="[ENV]...", nargs=-1)
@SETTINGS
@PROJECT
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
    paths = named(project, envs) or environments(project)
    if not paths:
        raise click.ClickException(f"{project / 'envs'}/ has no environments; vllmjobs init writes some")
    before = None
    if against is not None:
        from vllmjobs.project.git import Commit  # noqa: PLC0415 (5 ms)

        before = Commit(against, project)
    found = checked(paths, settings, project, before)
    for path in [path for path, one in zip(paths, found, strict=True) if before and not one.compared]:
        click.echo(f"{path}: {against} has no such environment to compare with", err=True)
    loaded = {str(path): one.environment for path, one in zip(paths, found, strict=True) if one.environment}
    every = [problem for one in found for problem in one.problems] + shared_jobs(loaded)
    problems = in_order(filter(wanted, every))
    texts = {name: text for one in found for name, text in one.texts.items()}
    match form:
        case "text":
            show(report.as_text(problems, texts))
            click.echo(report.summary(problems, len(paths)), err=True)
        case "json":
            show(report.as_json(problems, [str(path) for path in paths]))
        case "sarif":
            show(report.as_sarif(problems, __version__))
        case _:
            show(report.as_github(problems))
    failing = ("error", "warning") if strict else ("error",)
    if any(problem.severity in failing for problem in problems):
        raise click.exceptions.Exit(1)


@click.command()
@environment_options
@click.option(
    "--gpu", "gpu_name", metavar="NAME", help='Ask about another GPU, such as "NVIDIA H100 80GB HBM3".'
)
@click.option("--model", "model_name", metavar="NAME", help="Only this model.")
@click.option(
    "--log",
    type=click.File(encoding="utf-8", errors="replace", lazy=False),
    help="Show beside it what vLLM said when it started, in its log; - is stdin.",
)
@click.option("--json", "in_json", is_flag=True, help="For programs; bytes per GPU.")
def size(
    env: str,
    settings: tuple[str, ...],
    project: Path,
    gpu_name: str | None,
    model_name: str | None,
    log: TextIO | None,
    in_json: bool,
) -> None:
    """Show what the models of ENV take of their GPUs, and what fits.

    ENV is the name of a file in envs/, or a path. Exits 1 when a model does not fit, or cannot run there.
    With --log, it is shown beside what vLLM logged when it last started; vllmjobs logs prints such a log.
    """
    from vllmjobs.check import size as sizes  # noqa: PLC0415
    from vllmjobs.vllm.memory.gpus import gpu, nearest_names  # noqa: PLC0415
    from vllmjobs.vllm.memory.kv_cache import BLOCK_SIZE  # noqa: PLC0415
    from vllmjobs.vllm.memory.startup_log import LINES, startup_log  # noqa: PLC0415

    other = gpu(gpu_name) if gpu_name else None
    if gpu_name and not other:
        near = " or ".join(nearest_names(gpu_name))
        raise click.ClickException(
            f"{gpu_name} is not in the table of GPUs" + (near and f"; did you mean {near}?")
        )
    every = subjects(find(project, env), settings)
    asked = [subject for subject in every if model_name in (None, subject.name)]
    if not asked:
        raise click.ClickException(f"{env} has no model {model_name!r}")
    found = [sizes.size(subject, other) for subject in asked]
    if log:
        if len(asked) > 1:
            names = " or ".join(f"--model {subject.name}" for subject in asked)
            raise click.ClickException(f"{env} has {len(asked)} models, and --log is of one; say {names}")
        others = [subject.name for subject in every if subject is not asked[0]]
        heard = startup_log(log, others, asked[0].serving.block_size or BLOCK_SIZE)
        if heard is None:
            looked_for = ", ".join(f'"{line}"' for line in LINES)
            raise click.ClickException(
                f"{log.name}: no line of vLLM's start-up is in it; looked for {looked_for}"
            )
        found = [sizes.beside(asked[0], found[0], heard)]
    show(sizes.as_json(found) if in_json else sizes.as_text(found))
    if any(each.refused or (each.estimate and not each.estimate.fits) for each in found):
        raise click.exceptions.Exit(1)


@click.command()
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
