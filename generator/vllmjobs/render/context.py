"""The names that the template of the models' job sees: the interface of whoever writes a template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllmjobs.balancers import balancer_of
from vllmjobs.environment.derive import Deadlines, canaries, image, is_bridged, service_name
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.quantity import duration, mebibytes, size_bytes, spaced
from vllmjobs.environment.supervision import ADMIN_PORT, health_path, is_supervised
from vllmjobs.render.arguments import arguments, served_names, variables
from vllmjobs.render.hcl import quote, quote_lines

RESTART_ATTEMPTS = 2
MIN_RESTART_INTERVAL_S = 1800.0

FILTERS: dict[str, Callable[..., Any]] = {
    "hcl": quote, "hcl_lines": quote_lines, "duration": duration, "mebibytes": mebibytes,
    "bytes": size_bytes, "spaced": spaced,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """One model, as `vllm.nomad.hcl.j2` writes it."""

    name: str
    model: Model
    service: str
    tags: list[str]
    canary_tags: list[str]
    canaries: int
    deadlines: Deadlines
    restart_attempts: int
    restart_interval: float
    supervised: bool
    health_path: str
    image: str
    command: str
    served_name: str
    args: list[str]
    env: dict[str, str]
    user: str | None
    secrets: dict[str, dict[str, list[tuple[str, str]]]]
    device: str
    shm_bytes: int
    bridged: bool
    admin_port: int


def vllm_context(environment: Environment, only: str | None = None) -> dict[str, Any]:
    """Return the context of `vllm.nomad.hcl.j2`; with `only`, a single group."""
    names = [only] if only else list(environment.models)
    return {"environment": environment, "groups": [group(environment, name) for name in names]}


def group(environment: Environment, name: str) -> Group:
    """Return one model of the environment, as `vllm.nomad.hcl.j2` writes it."""
    model = environment.models[name]
    balancer = balancer_of(environment)
    times = balancer.deadlines(model)
    given = arguments(name, model, times)
    # The exec driver sets HOME to that of the task's user, after `env`: /nonexistent for nobody.
    isolated = ["/usr/bin/env", "HOME=${NOMAD_TASK_DIR}"] if model.driver == "exec" else []
    words = [*isolated, *model.entrypoint] if model.driver != "docker" else []
    command, *before = words or [""]  # also of raw_exec without a program, which only `diff` renders
    return Group(
        name=name,
        model=model,
        service=service_name(environment, name),
        tags=balancer.tags(model),
        canary_tags=balancer.canary_tags(model),
        canaries=canaries(model),
        deadlines=times,
        restart_attempts=RESTART_ATTEMPTS,
        # Long enough that servers which crash while they load use the attempts up, and are rescheduled.
        restart_interval=max(MIN_RESTART_INTERVAL_S, (RESTART_ATTEMPTS + 1) * times.healthy_deadline),
        supervised=is_supervised(environment, model),
        health_path=health_path(environment, model),
        image=image(environment, model),
        command=command,
        served_name=served_names(name, model)[0],
        args=[*before, *given],
        env=variables(environment, model, times),
        user=model.user or ("65534" if model.driver == "docker" else None),
        secrets=secrets(model.secrets),
        device="/".join(filter(None, (model.gpus.vendor, model.gpus.type, model.gpus.model))),
        shm_bytes=size_bytes(model.resources.shm or ("1 GiB" if model.gpus.count == 1 else "8 GiB")),
        bridged=is_bridged(model),
        admin_port=ADMIN_PORT,
    )


def secrets(references: dict[str, str | None]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Return references by kind (`nomad`, `vault`), then by path: variables, and fields of the answer."""
    by_kind: dict[str, dict[str, list[tuple[str, str]]]] = {"nomad": {}, "vault": {}}
    for variable, reference in sorted(references.items()):
        if reference is None:
            continue
        path, _, key = reference.rpartition("#")
        kind = "vault" if path.startswith("vault:") else "nomad"
        place = path.removeprefix(f"{kind}:")
        # The second version of Vault's key-value store has `data` in its paths, and in its answers.
        answer = ".Data.data." if "/data/" in place else ".Data." if kind == "vault" else "."
        by_kind[kind].setdefault(place, []).append((variable, answer + key))
    return by_kind
