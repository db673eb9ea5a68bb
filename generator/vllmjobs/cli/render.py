"""`render`: one job on stdout."""

from pathlib import Path

import click

from vllmjobs.cli.common import environment_options
from vllmjobs.project import find, load


@click.command()
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
