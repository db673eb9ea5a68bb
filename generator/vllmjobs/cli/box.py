"""The box of this machine that a person selects."""

from pathlib import Path

from vllmjobs.box.machine import Box
from vllmjobs.cli.common import Selection
from vllmjobs.environment.load import load_file


def find_box(selection: Selection, state: Path | None = None) -> Box:
    """Return the box of an environment's job; of `vllm-ENV` where an .env file was started without one."""
    path = selection.path
    environment = load_file(path, selection.settings).environment if path.is_file() else None
    job = environment.job if environment and environment.job else f"vllm-{selection.env}"
    return Box(job, state)
