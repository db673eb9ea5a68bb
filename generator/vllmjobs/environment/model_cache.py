"""The jobs that fill, copy and restore the caches of the models."""

from typing import Annotated

from vllmjobs.environment.placement import Block, said
from vllmjobs.environment.values import Positive, Size, Text


class Prefetch(Block, frozen=True):
    """What downloads the models of a `cache` ahead of a deployment: `vllmjobs render ENV --job prefetch`."""

    python: Annotated[
        Text,
        said("A Python that has `huggingface_hub`, as vLLM's own has.", "/opt/vllm/bin/python3"),
    ] = "python3"
    cpu: Annotated[Positive, said("CPU share in MHz of each model's download.")] = 500
    memory: Annotated[Size, said("Memory reserved for each.")] = "2 GiB"
