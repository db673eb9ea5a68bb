"""`check` and `explain`: what would fail, before it holds a GPU."""

import re
from pathlib import Path

import click

from vllmjobs import __version__
from vllmjobs.check import report
from vllmjobs.check.check import choice, shared_jobs
from vllmjobs.cli.common import PROJECT, SETTINGS, no_environments
from vllmjobs.environment.problems import in_order
from vllmjobs.project.environments import checked, environment_files, environments
from vllmjobs.project.shipped import shipped
from vllmjobs.terminal.printing import show, show_exact, show_json, show_orders, tell


@click.command()
@click.argument("envs", metavar="[ENV]...", nargs=-1)
@SETTINGS
@PROJECT
@click.option("--strict", is_flag=True, help="Exit 1 also when there are only warnings.")
@click.option(
    "--select", metavar="RULES", help="Check only these rules: ids, or how they begin, such as VJ1,VJ503."
)
@click.option("--ignore", metavar="RULES", help="Leave these rules out.")
@click.option("--against", metavar="REF", help="Also check what has changed since this commit, such as main.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "sarif", "github"]), default="text",
    show_default=True,
    help="Output for people, for programs, for code scanning, or for annotations of a pull request.",
)  # fmt: skip
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
    """Find what would fail, before it holds a GPU.

    ENV is the name of a file in envs/, or a path. Without ENV, all environments of the project are checked.
    Exits 1 when there are errors. `vllmjobs explain RULE` says more about a finding.
    """
    wanted = choice(select, ignore)
    paths = environment_files(project, envs) or environments(project)
    if not paths:
        raise no_environments(project)
    earlier = None
    if against is not None:
        # Jinja and the parser of HCL take 40 ms, and only --against has use for them.
        from vllmjobs.project.differences import Earlier  # noqa: PLC0415
        from vllmjobs.project.git import Commit  # noqa: PLC0415

        earlier = Earlier(Commit(against, project), project)
    found = checked(paths, settings, project, earlier)
    for path in [path for path, one in zip(paths, found, strict=True) if earlier and not one.compared]:
        tell(f"{path}: {against} does not have this environment, so nothing is compared")
    loaded = {str(path): one.environment for path, one in zip(paths, found, strict=True) if one.environment}
    every = [problem for one in found for problem in one.problems] + shared_jobs(loaded)
    problems = in_order(filter(wanted, every))
    texts = {name: text for one in found for name, text in one.texts.items()}
    match form:
        case "text":
            show(report.as_text(problems, texts))
            tell(report.summary(problems, len(paths)))
        case "json":
            show_json(report.as_json(problems, [str(path) for path in paths]))
        case "sarif":
            show_json(report.as_sarif(problems, __version__))
        case _:
            show_orders(report.as_github(problems))
    failing = ("error", "warning") if strict else ("error",)
    if any(problem.severity in failing for problem in problems):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("rule", required=False)
def explain(rule: str | None) -> None:
    """Explain a rule with an example, or list all rules."""
    if rule is None:
        show(report.rules())
        return
    page = shipped("docs") / "rules" / f"{rule.upper()}.md"
    if not re.fullmatch(r"VJ\d{3}", rule.upper()) or not page.is_file():
        raise click.ClickException(f"there is no rule {rule}; `vllmjobs explain` lists the rules")
    show_exact(page.read_text(encoding="utf-8"))
