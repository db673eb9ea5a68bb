"""`size`: what the models of an environment take of their GPUs."""

from typing import TextIO

import click

from vllmjobs.check.size import as_json, as_text, beside, size_of
from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.project.environments import subjects
from vllmjobs.terminal.printing import show, show_json
from vllmjobs.vllm.memory.gpus import gpu, nearest_names
from vllmjobs.vllm.memory.kv_cache import BLOCK_SIZE
from vllmjobs.vllm.memory.startup_log import LINES, startup_log


@click.command()
@environment_options
@click.option("--gpu", "gpu_name", metavar="NAME",
              help='Use another GPU than ENV says, such as "NVIDIA H100 80GB HBM3".')  # fmt: skip
@click.option("--model", "model_name", metavar="NAME", help="Only this model.")
@click.option(
    "--log",
    type=click.File(encoding="utf-8", errors="replace", lazy=False),
    help="Log of a start of vLLM; its own figures are shown beside the estimate. - is stdin.",
)
@click.option("--json", "in_json", is_flag=True, help="Print JSON, in bytes per GPU.")
def size(
    selection: Selection, gpu_name: str | None, model_name: str | None, log: TextIO | None, in_json: bool
) -> None:
    """Show how much GPU memory the models of ENV take.

    ENV is the name of a file in envs/, or a path. Exits 1 when a model does not fit, or cannot run on its
    GPUs. --log shows beside it what vLLM logged when it last started; `vllmjobs logs` prints such a log.
    """
    other = gpu(gpu_name) if gpu_name else None
    if gpu_name and not other:
        near = " or ".join(nearest_names(gpu_name))
        meant = f"; did you mean {near}?" if near else ""
        raise click.ClickException(f"{gpu_name} is not in the table of GPUs{meant}")
    every = subjects(selection.path, selection.settings)
    asked = [subject for subject in every if model_name in (None, subject.name)]
    if not asked:
        raise click.ClickException(f"{selection.env} has no model {model_name!r}")
    found = [size_of(subject, other) for subject in asked]
    if log:
        if len(asked) > 1:
            names = " or ".join(f"--model {subject.name}" for subject in asked)
            raise click.ClickException(
                f"{selection.env} has {len(asked)} models, but --log is the log of one; add {names}"
            )
        others = [subject.name for subject in every if subject is not asked[0]]
        heard = startup_log(log, others, asked[0].serving.block_size or BLOCK_SIZE)
        if heard is None:
            looked_for = ", ".join(f'"{line}"' for line in LINES)
            raise click.ClickException(f"{log.name} has no line of vLLM's start-up; looked for {looked_for}")
        found = [beside(asked[0], found[0], heard)]
    if in_json:
        show_json(as_json(found))
    else:
        show(as_text(found))
    if any(each.refused or (each.estimate and not each.estimate.fits) for each in found):
        raise click.exceptions.Exit(1)
