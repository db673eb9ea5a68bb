"""The names that the templates of the model caches see: models, places, and the program that does it."""

import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec import structs

from vllmjobs.balancers import balancer_of
from vllmjobs.environment.derive import argument_name, service_name
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.model_cache import CacheBackup
from vllmjobs.environment.placement import Constraint
from vllmjobs.render.arguments import cache_path, cache_variables
from vllmjobs.render.context import group, secrets

PROGRAM = "model_cache"
COPIES = ["__init__", "__main__", "files", "answers", "copies", "stores", "s3"]
MODULES = {
    "prefetch": ["__init__", "__main__", "files", "prefetch"],
    "cache-backup": COPIES,
    "cache-restore": COPIES,
}
STORE = "/store"  # in a container
ELSEWHERE = r"[/.~]|[a-z][a-z0-9]*://"  # a folder or another store, not a name on the hub
# Names of the hub, its token, and the way there.
_SECRETS = r"(?i:HF_|HUGGING_FACE_|.*_PROXY$)"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# They count allocations of a job; a job of the caches has one on each node in any case.
_COUNTING = ("distinct_hosts", "distinct_property")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One model's cache, as `model-cache.hcl.j2` writes it."""

    name: str
    model: Model
    image: str
    pull: float
    user: str | None
    volume: str | None
    args: list[str]
    env: dict[str, str]
    secrets: dict[str, dict[str, list[tuple[str, str]]]]
    constraints: list[Constraint]


def cached_models(environment: Environment) -> list[str]:
    """Return the models that are on the hub and have a cache."""
    models = environment.models.items()
    return [name for name, model in models if model.cache and not re.match(ELSEWHERE, model.model)]


def cache_context(environment: Environment, job: str) -> dict[str, Any]:
    """Return the context of `prefetch`, `cache-backup` and `cache-restore.nomad.hcl.j2`."""
    nomad, backup = environment.nomad, _backup(environment, job)
    constraints = _of_nodes([*nomad.constraints, *(backup.constraints if backup else [])])
    return {
        "environment": environment,
        # Its affinities and spreads are refused of a sysbatch job, which is on every node anyway.
        "nomad": structs.replace(nomad, constraints=constraints, affinities=[], spread=[]),
        "name": service_name(environment, job),
        "job": job,
        "settings": backup or environment.prefetch,
        # One copy of it is enough; the others are on every node, each of which has a cache of its own.
        "type": "batch" if job == "cache-backup" else "sysbatch",
        "schedule": backup.schedule if backup and job == "cache-backup" else None,
        "store": backup.store if backup and not _is_bucket(backup) else None,
        "store_in_container": STORE,
        "groups": [one for name in cached_models(environment) for one in _groups(environment, name, job)],
        "program": PROGRAM,
        "modules": {module: _source(module) for module in MODULES[job]},
    }


@cache
def _source(module: str) -> str:
    text = pkgutil.get_data(f"vllmjobs.{PROGRAM}", f"{module}.py")
    assert text is not None
    return text.decode()


def _groups(environment: Environment, name: str, job: str) -> list[CachedModel]:
    """Return one cache, or one for each volume to fill where each allocation of the server has its own."""
    model, backup = environment.models[name], _backup(environment, job)
    assert model.cache
    server = group(environment, name)
    given = {argument_name(key): value for key, value in model.args.items()}
    words = [model.model, f"--cache={cache_path(model)}"]
    if given.get("revision") is not None:
        words.append(f"--revision={given['revision']}")
    if backup:
        mounted = model.driver == "docker" and not _is_bucket(backup)
        words.append(f"--store={STORE if mounted else backup.store}")
    references = {key: value for key, value in model.secrets.items() if re.match(_SECRETS, key)}
    volumes = {name: model.cache.volume}
    if model.cache.per_alloc:
        count = 1 if job == "cache-backup" else model.replicas
        volumes = {f"{name}-{index}": f"{model.cache.volume}[{index}]" for index in range(count)}
    return [
        CachedModel(
            name=one,
            model=model,
            image=server.image,
            pull=balancer_of(environment).deadlines(model).pull,
            user=server.user,
            volume=volume,
            args=["-m", f"vllmjobs.{PROGRAM}", job, *words],
            env=_variables(model) | (_of_bucket(backup) if backup else {}),
            secrets=secrets(dict(backup.secrets) if backup else references),
            constraints=_of_nodes(model.placement.constraints),
        )
        for one, volume in volumes.items()
    ]


def _backup(environment: Environment, job: str) -> CacheBackup | None:
    """Return the keys of the copies, for the jobs that make them."""
    return environment.cache_backup if job != "prefetch" else None


def _of_bucket(backup: CacheBackup) -> dict[str, str]:
    if not _is_bucket(backup):
        return {}
    endpoint = {"AWS_ENDPOINT_URL": backup.endpoint} if backup.endpoint else {}
    return {"AWS_REGION": backup.region, **endpoint}


def _is_bucket(backup: CacheBackup) -> bool:
    return backup.store.startswith("s3://")


def _variables(model: Model) -> dict[str, str]:
    """Return the server's variables, for the same hub, proxy and folders, without those for offline."""
    own = {
        "HOME": "${NOMAD_TASK_DIR}",
        # None only where `check` refuses the cache, and `diff` renders it all the same.
        "HF_HOME": cache_variables(model).get("HF_HOME", ""),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": "${NOMAD_TASK_DIR}",
    }
    if model.driver == "docker":
        own["NVIDIA_VISIBLE_DEVICES"] = "void"  # the image asks for all of them
    given = {key: str(value) for key, value in model.env.items() if value is not None}
    return own | {key: value for key, value in given.items() if key not in _OFFLINE}


def _of_nodes(constraints: list[Constraint]) -> list[Constraint]:
    return [one for one in constraints if one.operator not in _COUNTING]
