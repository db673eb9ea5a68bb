"""What the types cannot say: values that Nomad or vLLM would refuse, or change in silence.

Each rule is one generator from an environment, or from one model of it, to (path, message) pairs.
"""

import re
from collections.abc import Callable, Iterator

from vllmjobs.environment.derive import (
    argument_name,
    balancer_name,
    balancer_port,
    canaries,
    deadlines,
    other_parallelism,
    service_name,
)
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.placement import Placement
from vllmjobs.environment.problems import Path
from vllmjobs.environment.quantity import duration, mebibytes, seconds

Findings = Iterator[tuple[Path, str]]

# Set by vllmjobs from other keys of the environment.
OWN_ARGUMENTS = {
    "model": "model",
    "served-model-name": "served_name",
    "host": "ports.host",
    "port": "ports",
    "tensor-parallel-size": "strategy and gpus.count",
    "tp": "strategy and gpus.count",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "max-model-len": "max_model_len",
    "shutdown-timeout": "drain.longest_stream",
    "api-key": "secrets.VLLM_API_KEY",
}
OWN_VARIABLES = {
    "VLLM_PORT": "it is set so that engines on one node do not race for ports",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "it is set above the balancer's keep-alive",
    "VLLM_ENGINE_READY_TIMEOUT_S": "it follows from load_time",
    "NVIDIA_VISIBLE_DEVICES": "Nomad sets it to the GPUs that it reserved",
    "CUDA_VISIBLE_DEVICES": "the GPUs are the ones that Nomad reserved",
}
SECRET_VARIABLES = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD|ACCESS_KEY)$", re.IGNORECASE)
# Hugging Face, OpenAI, GitHub, AWS, Vault and JWT; none has a space.
SECRET_VALUES = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|AKIA\w{16}|hvs\.[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.\S+)"
)
# Go's regular expressions (RE2) have neither; Nomad's scheduler answers with a 500.
NOT_IN_RE2 = re.compile(r"\(\?(=|!|<=|<!)|\\[1-9]")
AMOUNTS = ("memory", "bar1")  # device attributes that the nvidia plugin reports with a unit
AMOUNT = re.compile(r"[0-9.]+ ?(k|K|M|G|T|P|E)?(i?B)(/s)?")


def problems(environment: Environment) -> Findings:
    """Everything wrong with the environment, beyond its types."""
    for environment_rule in ENVIRONMENT_RULES:
        yield from environment_rule(environment)
    for name, model in environment.models.items():
        for model_rule in MODEL_RULES:
            for path, message in model_rule(environment, model):
                yield ("models", name, *path), message


def _service_names_fit(environment: Environment) -> Findings:
    for name in environment.models:
        service = service_name(environment, name)
        if len(service) > 63:
            yield (
                ("models", name),
                f"service name {service!r} has {len(service)} characters; Consul allows 63",
            )


def _routes_differ(environment: Environment) -> Findings:
    if environment.balancer.kind == "none":
        return
    first: dict[tuple[str, str], str] = {}
    for name, model in environment.models.items():
        route = (model.route.host, model.route.path)
        other = first.setdefault(route, name)
        if other != name:
            yield (
                ("models", name, "route"),
                f"serves {''.join(route)}, and so does {other!r}: requests would reach either; "
                f"give it a path such as /{name}/v1/ with strip: /{name}",
            )


def _balancer_fits(environment: Environment) -> Findings:
    balancer = environment.balancer
    if balancer.kind == "none":
        return
    name = balancer_name(environment)
    if len(name) > 63:
        yield ("balancer",), f"its service name {name!r} has {len(name)} characters; Consul allows 63"
    if balancer_port(balancer) == balancer.admin_port:
        yield ("balancer", "admin_port"), f"is {balancer.admin_port}, as port is; give each its own"


def _stripped_is_a_prefix(_: Environment, model: Model) -> Findings:
    strip = model.route.strip
    if strip and not model.route.path.startswith(strip):
        yield ("route", "strip"), f"{strip} does not begin path {model.route.path}; nothing would be stripped"


def _placement_is_complete(environment: Environment) -> Findings:
    yield from _placement(environment.nomad, ("nomad",))
    yield from _placement(environment.balancer.placement, ("balancer", "placement"))
    for name, model in environment.models.items():
        yield from _placement(model.placement, ("models", name, "placement"))


def _placement(placement: Placement, at: Path) -> Findings:
    for index, constraint in enumerate(placement.constraints):
        path = (*at, "constraints", index)
        if not constraint.attribute and constraint.operator != "distinct_hosts":
            yield path, f"operator {constraint.operator} needs an attribute"
        if not constraint.value and constraint.operator not in ("is_set", "is_not_set", "distinct_hosts",
                                                                 "distinct_property"):  # fmt: skip
            yield path, f"operator {constraint.operator} needs a value"
        yield from _re2(constraint.operator, constraint.value, path)
    for index, affinity in enumerate(placement.affinities):
        if affinity.weight == 0:
            yield (*at, "affinities", index), "weight 0 has no effect; Nomad refuses it"
        yield from _re2(affinity.operator, affinity.value, (*at, "affinities", index))
    for index, spread in enumerate(placement.spread):
        total = sum(spread.targets.values())
        if total > 100:
            yield (*at, "spread", index, "targets"), f"the percentages add up to {total}; 100 at most"


def _re2(operator: str, value: str, at: Path) -> Findings:
    if operator == "regexp" and NOT_IN_RE2.search(value):
        yield (*at, "value"), "holds a lookaround or back-reference, which Nomad's RE2 does not know"


def _deadlines_are_in_order(environment: Environment, model: Model) -> Findings:
    d = deadlines(model, environment.balancer)
    if d.healthy_deadline <= d.min_healthy_time:
        yield (
            ("rollout", "min_healthy_time"),
            f"{duration(d.min_healthy_time)} is not below healthy_deadline {duration(d.healthy_deadline)}; "
            "Nomad refuses it",
        )
    if d.healthy_deadline < d.start:
        yield (
            ("rollout", "healthy_deadline"),
            f"{duration(d.healthy_deadline)} is shorter than pull_time + load_time = {duration(d.start)}: "
            "the instance would be failed while it loads",
        )
    if d.grace < d.start:
        yield (
            ("health", "grace"),
            f"{duration(d.grace)} is shorter than pull_time + load_time = {duration(d.start)}: "
            "the instance would be restarted while it loads",
        )
    if 0 < d.progress_deadline <= d.healthy_deadline:
        yield (
            ("rollout", "progress_deadline"),
            f"{duration(d.progress_deadline)} is not above healthy_deadline {duration(d.healthy_deadline)}; "
            "Nomad refuses it",
        )
    if 0 < d.progress_deadline < d.kill_timeout:
        yield (
            ("rollout", "progress_deadline"),
            f"{duration(d.progress_deadline)} is below kill_timeout {duration(d.kill_timeout)}; "
            "Nomad refuses it",
        )


def _kill_timeout_is_kept(environment: Environment, model: Model) -> Findings:
    d = deadlines(model, environment.balancer)
    at: Path = ("drain", "kill_timeout" if model.drain.kill_timeout else "longest_stream")
    if d.kill_timeout < d.longest_stream:
        yield (
            at,
            (
                f"kill_timeout {duration(d.kill_timeout)} would cut streams of longest_stream "
                f"{duration(d.longest_stream)}; leave it out, or make it longer"
            ),
        )
    cap = environment.nomad.max_kill_timeout
    if d.kill_timeout > seconds(cap):
        yield (
            at,
            (
                f"kill_timeout would be {duration(d.kill_timeout)}, which Nomad cuts to the clients' "
                f"max_kill_timeout {cap} in silence; raise it in the clients' configuration and name it in "
                f"nomad.max_kill_timeout, or shorten drain.longest_stream"
            ),
        )


def _check_times_are_valid(_: Environment, model: Model) -> Findings:
    for key, value in (("interval", model.health.interval), ("timeout", model.health.timeout)):
        if seconds(value) < 1:
            yield ("health", key), f"must be at least 1s (got {value}); Nomad refuses less"


def _strategy_fits_gpus(_: Environment, model: Model) -> Findings:
    count = model.gpus.count
    if model.strategy == "multi_instance" and count != 1:
        yield (
            ("gpus", "count"),
            (
                f"multi_instance gives each server one GPU (got {count}); "
                f"use replicas: {count} with gpus.count: 1, or strategy: tensor_parallel"
            ),
        )
    others = other_parallelism(model)
    if model.strategy == "tensor_parallel" and count % others:
        yield (
            ("gpus", "count"),
            f"{count} GPUs do not divide by the {others} of pipeline and data parallelism in args",
        )


def _resources_are_consistent(_: Environment, model: Model) -> Findings:
    resources = model.resources
    if resources.cpu and resources.cores:
        yield ("resources", "cores"), "give cpu (a share in MHz) or cores (whole ones), not both"
    if resources.memory_max and mebibytes(resources.memory_max) < mebibytes(resources.memory):
        yield ("resources", "memory_max"), f"{resources.memory_max} is below memory {resources.memory}"
    logs = mebibytes(model.logs.max_size) * model.logs.max_files * 2
    if logs >= mebibytes(resources.disk):
        yield (
            ("resources", "disk"),
            f"must be above what the logs may take, {logs} MiB (got {resources.disk})",
        )


def _driver_can_do_it(_: Environment, model: Model) -> Findings:
    if model.driver != "docker" and not model.entrypoint:
        yield ("entrypoint",), f'{model.driver} needs a program, such as ["/opt/vllm/bin/vllm", "serve"]'
    if model.driver != "docker" and model.image:
        yield ("image",), f"{model.driver} runs no image; remove it, or use driver: docker"
    if model.cache and bool(model.cache.volume) == bool(model.cache.bind):
        yield ("cache",), "give either volume (a Nomad host volume) or bind (a directory of the host)"
    if model.cache and model.cache.volume and model.driver == "raw_exec":
        yield ("cache", "volume"), "raw_exec sees the host's own files and mounts nothing; use bind"
    if model.cache and model.cache.bind and model.driver == "exec":
        yield ("cache", "bind"), "exec cannot mount a directory of the host; use volume"
    if (model.logs.driver == "fluentd") != bool(model.logs.fluentd_address):
        yield ("logs", "fluentd_address"), "belongs to logs.driver: fluentd, and is needed there"


def _rollout_is_possible(_: Environment, model: Model) -> Findings:
    if model.rollout.auto_promote and canaries(model) == 0:
        yield ("rollout", "auto_promote"), "needs canaries; Nomad refuses it without"


def _arguments_are_free(_: Environment, model: Model) -> Findings:
    seen: dict[str, str] = {}
    for name, value in model.args.items():
        plain_name = argument_name(name)
        if plain_name in OWN_ARGUMENTS:
            yield ("args", name), f"is set by vllmjobs; use {OWN_ARGUMENTS[plain_name]}"
        if plain_name in seen:
            yield ("args", name), f"is the same argument as {seen[plain_name]!r}"
        seen[plain_name] = name
        if isinstance(value, str) and SECRET_VALUES.search(value):
            yield ("args", name), "looks like a token; put it under secrets, by reference"


def _variables_are_free(_: Environment, model: Model) -> Findings:
    for name, value in model.env.items():
        if name in OWN_VARIABLES:
            yield ("env", name), f"is not for the environment: {OWN_VARIABLES[name]}"
        elif SECRET_VARIABLES.search(name) or SECRET_VALUES.search(str(value)):
            yield ("env", name), "looks like a secret; put a reference to it under secrets (value not shown)"
        if name in model.secrets:
            yield ("env", name), "stands under secrets too; keep one"


def _amounts_have_units(_: Environment, model: Model) -> Findings:
    for index, constraint in enumerate(model.gpus.constraints):
        path: Path = ("gpus", "constraints", index, "value")
        attribute = constraint.attribute.removeprefix("${device.attr.").removesuffix("}")
        unset = constraint.operator in ("is_set", "is_not_set", "regexp")
        if attribute in AMOUNTS and not unset and not AMOUNT.fullmatch(constraint.value):
            yield (
                path,
                f"{constraint.value!r} has no unit that Nomad knows, and would match no GPU; write 70 GiB",
            )
        yield from _re2(constraint.operator, constraint.value, ("gpus", "constraints", index))
    for index, affinity in enumerate(model.gpus.affinities):
        if affinity.weight == 0:
            yield ("gpus", "affinities", index), "weight 0 has no effect; Nomad refuses it"


ENVIRONMENT_RULES: list[Callable[[Environment], Findings]] = [
    _service_names_fit,
    _routes_differ,
    _balancer_fits,
    _placement_is_complete,
]
MODEL_RULES: list[Callable[[Environment, Model], Findings]] = [
    _deadlines_are_in_order,
    _kill_timeout_is_kept,
    _check_times_are_valid,
    _strategy_fits_gpus,
    _resources_are_consistent,
    _driver_can_do_it,
    _stripped_is_a_prefix,
    _rollout_is_possible,
    _arguments_are_free,
    _variables_are_free,
    _amounts_have_units,
]
