"""What an `.env` file means for the machine that it stands on, and an environment does not say."""

from typing import NamedTuple

from vllmjobs.importing.dotenv import read
from vllmjobs.importing.instances import is_instances
from vllmjobs.importing.settings import ALL_GPUS


class OfTheBox(NamedTuple):
    """What is not part of the environment."""

    takes_all: bool
    """Whether VLLM_GPU_COUNT asks for every GPU, as it does where it is not set."""
    secrets: dict[str, str]


def of_the_box(text: str, source: str) -> OfTheBox:
    """Read an `.env` file once more; an `instances.config` names every server, and has no secrets."""
    if is_instances(text):
        return OfTheBox(False, {})
    variables = read(text.replace("\r\n", "\n"), source).variables
    count = variables.get("VLLM_GPU_COUNT")
    takes_all = count is None or count.value.strip().lower() in ("", *ALL_GPUS)
    return OfTheBox(takes_all, {name: one.value for name, one in variables.items() if one.secret})
