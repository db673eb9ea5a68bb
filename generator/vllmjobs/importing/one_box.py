"""The settings of an `.env` file for its own machine, which an environment does not hold."""

from typing import NamedTuple

from msgspec import structs

from vllmjobs.environment.model import Environment
from vllmjobs.importing.dotenv import read
from vllmjobs.importing.instances import is_instances
from vllmjobs.importing.settings import ALL_GPUS


class OfTheBox(NamedTuple):
    """The settings of the machine that are not part of the environment."""

    takes_all: bool  # VLLM_GPU_COUNT asks for every GPU, as it does where it is not set
    secrets: dict[str, str]
    cache: str | None  # MODEL_CACHE_PATH, which holds models as HF_HOME does; relative to the file's folder
    gpus: str | None  # CUDA_VISIBLE_DEVICES


def of_the_box(text: str, source: str) -> OfTheBox:
    """Read an `.env` file once more; an `instances.config` names every server, and has no secrets."""
    if is_instances(text):
        return OfTheBox(False, {}, None, None)
    variables = read(text.replace("\r\n", "\n"), source).variables
    count = variables.get("VLLM_GPU_COUNT")
    takes_all = count is None or count.value.strip().lower() in ("", *ALL_GPUS)
    secrets = {name: one.value for name, one in variables.items() if one.secret}
    cache, gpus = (
        variables[name].value.strip() or None if name in variables else None
        for name in ("MODEL_CACHE_PATH", "CUDA_VISIBLE_DEVICES")
    )
    return OfTheBox(takes_all, secrets, cache, gpus)


def without_caches(environment: Environment) -> Environment:
    """Return the same without the cache of a fleet, which is laid out otherwise."""
    models = {key: structs.replace(model, cache=None) for key, model in environment.models.items()}
    return structs.replace(environment, models=models)
