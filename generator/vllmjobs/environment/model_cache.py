"""The jobs that fill, copy and restore the caches of the models."""

from typing import Annotated

from vllmjobs.environment.placement import Block, Constraint, doc
from vllmjobs.environment.rollout import Cron, Url
from vllmjobs.environment.values import EnvName, Positive, SecretRef, Size, Text, matching

StoreAddress = Annotated[
    str, matching(r"/[^\x00-\x1f]*|s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._~-]+)*", "directory or bucket")
]


class CacheJob(Block, frozen=True):
    """The keys that every job of the caches needs."""

    python: Annotated[
        Text,
        doc(
            "Python for it, which in a prefetch has `huggingface_hub`, as vLLM's own has.",
            "/opt/vllm/bin/python3",
        ),
    ] = "python3"
    cpu: Annotated[Positive, doc("CPU share in MHz, for each model.")] = 500
    memory: Annotated[Size, doc("Memory reserved, for each model.")] = "2 GiB"


class Prefetch(CacheJob, frozen=True):
    """The job that fills the caches ahead of a deployment: `vllmjobs render ENV --job prefetch`."""


class CacheBackup(CacheJob, frozen=True, kw_only=True):
    """The jobs that copy the caches, `vllmjobs render ENV --job cache-backup`, and back, `cache-restore`."""

    store: Annotated[
        StoreAddress,
        doc(
            "The place of the copies: a directory of the host, or a bucket.",
            "/mnt/backup/models",
            "s3://acme/models",
        ),
    ]
    endpoint: Annotated[
        Url | None, doc("Address of a bucket's server; AWS when not given.", "https://minio.example.com:9000")
    ] = None
    region: Annotated[Text, doc("A bucket's region.")] = "us-east-1"
    secrets: Annotated[
        dict[EnvName, SecretRef],
        doc(
            "A bucket's keys, by reference.",
            {"AWS_ACCESS_KEY_ID": "nomad/jobs#s3_key_id", "AWS_SECRET_ACCESS_KEY": "nomad/jobs#s3_key"},
        ),
    ] = {}
    schedule: Annotated[
        Cron | None, doc("The times of the backups; when not given, you dispatch them.", "0 3 * * *")
    ] = None
    time_zone: Annotated[Text, doc("The time zone of the schedule.", "Europe/Berlin")] = "UTC"
    constraints: Annotated[
        list[Constraint],
        doc("Nodes that reach the store, beside what `nomad` and the models say; all when empty."),
    ] = []
