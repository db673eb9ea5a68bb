"""What the types cannot say: values that Nomad or vLLM would refuse, or change in silence.

Each rule is one generator from an environment, or from one model of it, to (path, message) pairs.
"""

import re
from collections.abc import Callable, Iterator

import msgspec

from vllmjobs.environment.derive import (
    argument_name,
    balancer_name,
    balancer_port,
    canaries,
    deadlines,
    is_bridged,
    other_parallelism,
    service_name,
)
from vllmjobs.environment.model import Container, Environment, Model
from vllmjobs.environment.placement_rules import Findings, gpus_can_match, placement_is_possible
from vllmjobs.environment.problems import Path
from vllmjobs.environment.quantity import duration, mebibytes, seconds
from vllmjobs.environment.values import looks_secret

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
LOOKS_SECRET = "looks like a secret; put a reference to it under secrets (value not shown)"
MIN_MEMORY_MIB = 10  # Nomad's


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
    if mebibytes(balancer.memory) < MIN_MEMORY_MIB:
        yield ("balancer", "memory"), f"must be at least {MIN_MEMORY_MIB} MiB (got {balancer.memory})"
    # In its own network nginx listens above 1024, whatever the port outside; raw_exec runs as Nomad does.
    bridged = balancer.kind == "nginx" and balancer.driver == "docker"
    if balancer_port(balancer) < 1024 and not bridged and balancer.driver != "raw_exec":
        yield (
            ("balancer", "port"),
            f"{balancer_port(balancer)} is below 1024, where {balancer.kind} may not listen without root; "
            "choose a port above, or nginx in docker",
        )


def _stripped_is_a_prefix(_: Environment, model: Model) -> Findings:
    strip = model.route.strip
    if strip and not f"{model.route.path}/".startswith(f"{strip.rstrip('/')}/"):
        yield ("route", "strip"), f"{strip} does not begin path {model.route.path}; nothing would be stripped"


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
    if model.strategy == "multi_instance" and others != 1:
        yield (
            ("args",),
            f"multi_instance gives each server one GPU, and args ask for {others}; "
            "use strategy: tensor_parallel",
        )
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
    if mebibytes(resources.memory) < MIN_MEMORY_MIB:
        yield ("resources", "memory"), f"must be at least {MIN_MEMORY_MIB} MiB (got {resources.memory})"
    if mebibytes(model.logs.max_size) < 1:
        yield ("logs", "max_size"), f"must be at least 1 MiB (got {model.logs.max_size})"
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
    if model.driver != "docker":
        for key, given in (
            ("container", model.container != Container()),
            ("resources.shm", model.resources.shm is not None),
            ("logs.driver", model.logs.driver != "json-file"),
        ):
            if given:
                yield tuple(key.split(".")), f"is for driver: docker; {model.driver} would pass it over"
    host = model.ports.host or ""
    if is_bridged(model) and (host.startswith("127.") or host in ("localhost", "::1")):
        yield ("ports", "host"), f"{host} is the container's own loopback, which nothing outside reaches"
    if (model.logs.driver == "fluentd") != bool(model.logs.fluentd_address):
        yield ("logs", "fluentd_address"), "belongs to logs.driver: fluentd, and is needed there"


def _rollout_is_possible(_: Environment, model: Model) -> Findings:
    if model.rollout.auto_promote and canaries(model) == 0:
        yield ("rollout", "auto_promote"), "needs canaries; Nomad refuses it without"


def _arguments_are_free(_: Environment, model: Model) -> Findings:
    seen: dict[str, str] = {}
    for name, value in model.args.items():
        plain_name = argument_name(name)
        left_out = plain_name == "shutdown-timeout" and value is None  # for vLLM before 0.18
        if plain_name in OWN_ARGUMENTS and not left_out:
            yield ("args", name), f"is set by vllmjobs; use {OWN_ARGUMENTS[plain_name]}"
        if plain_name in seen:
            yield ("args", name), f"is the same argument as {seen[plain_name]!r}"
        seen[plain_name] = name


def _variables_are_free(_: Environment, model: Model) -> Findings:
    for name, value in model.env.items():
        if name in OWN_VARIABLES:
            yield ("env", name), f"is not for the environment: {OWN_VARIABLES[name]}"
        elif value is not None and SECRET_VARIABLES.search(name):
            yield ("env", name), LOOKS_SECRET
        if value is not None and model.secrets.get(name):
            yield ("env", name), "stands under secrets too; keep one"


def _no_secret_is_written(_: Environment, model: Model) -> Findings:
    for path, text in _texts(msgspec.to_builtins(model)):
        if looks_secret(text):
            yield path, LOOKS_SECRET


def _texts(value: object, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every string in plain data, and where it stands."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))


ENVIRONMENT_RULES: list[Callable[[Environment], Findings]] = [
    _service_names_fit,
    _routes_differ,
    _balancer_fits,
    placement_is_possible,
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
    gpus_can_match,
    _no_secret_is_written,
]
