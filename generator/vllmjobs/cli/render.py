"""`render`: one job on stdout."""

from pathlib import Path

import click

from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.files.private import make_folder, replace_file
from vllmjobs.render.job import jobs, jobs_on_demand
from vllmjobs.render.job import render as render_job
from vllmjobs.terminal.printing import show_exact, tell

SUPERVISED = "VJ338"


@click.command()
@environment_options
@click.option(
    "--job",
    metavar="NAME",
    help="Which job: vllm (the default), fabio, nginx, prometheus, prefetch, cache-backup or cache-restore.",
)
@click.option("--model", metavar="NAME",
              help="Only this model's group of the job vllm. Running it stops the other groups.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Write all jobs of the environment into this folder, one file each.",
)  # fmt: skip
def render(selection: Selection, model: str | None, out: Path | None) -> None:
    """Print one Nomad job of ENV, for `nomad job run -`.

    ENV is the name of a file in envs/, or a path. Where the supervisor does not start vLLM, a message on
    stderr says what you lose by that (VJ338).
    """
    environment, templates, job = selection.environment, selection.templates, selection.job
    # The one note that whoever runs the job has to know: what nobody does for it.
    notes = [str(problem) for problem in selection.checked.problems if problem.rule == SUPERVISED]
    chosen = [job] if job else [*jobs(environment), *jobs_on_demand(environment)]
    if out is None:
        show_exact(render_job(environment, job or "vllm", templates, model))
    else:
        rendered = {
            name: render_job(environment, name, templates, model if name in ("vllm", job) else None)
            for name in chosen
        }
        make_folder(out)
        for name, text in rendered.items():
            path = out / f"{name}.nomad.hcl"
            replace_file(path, text)
            tell(f"wrote {path}")
    for note in notes if "vllm" in chosen else ():
        tell(note)
