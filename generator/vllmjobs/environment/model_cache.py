"""The jobs that fill, copy and restore the caches of the models."""

from typing import Annotated

from vllmjobs.environment.placement import Block, Constraint, said
from vllmjobs.environment.rollout import Cron
from vllmjobs.environment.values import AbsolutePath, Positive, Size, Text


class CacheJob(Block, frozen=True):
    """What every job of the caches needs."""

    python: Annotated[
        Text,
        said(
            "Python for it, which in a prefetch has `huggingface_hub`, as vLLM's own has.",
            "/opt/vllm/bin/python3",
        ),
    ] = "python3"
    cpu: Annotated[Positive, said("CPU share in MHz, for each model.")] = 500
    memory: Annotated[Size, said("Memory reserved, for each model.")] = "2 GiB"


class Prefetch(CacheJob, frozen=True):
    """What downloads the models of a `cache` ahead of a deployment: `vllmjobs render ENV --job prefetch`."""


class CacheBackup(CacheJob, frozen=True, kw_only=True):
    """What copies the caches, `vllmjobs render ENV --job cache-backup`, and back, `--job cache-restore`."""

    store: Annotated[
        AbsolutePath, said("Where the copies are: a directory of the host.", "/mnt/backup/models")
    ]
    schedule: Annotated[
        Cron | None,
        said("When a backup is made; only when it is dispatched, when not given.", "0 3 * * *"),
    ] = None
    time_zone: Annotated[Text, said("Of the schedule.", "Europe/Berlin")] = "UTC"
    constraints: Annotated[
        list[Constraint],
        said("Nodes that reach the store, beside what `nomad` and the models say; all when empty."),
    ] = []
