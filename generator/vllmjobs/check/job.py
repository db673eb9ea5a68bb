"""VJ311 to VJ320: what Nomad refuses of a job, or takes and does not do."""

from vllmjobs.balancers import balancer_of
from vllmjobs.check.rule import Findings, environment_rule, in_models, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment import derive
from vllmjobs.environment.problems import KeyPath
from vllmjobs.environment.quantity import mebibytes
from vllmjobs.environment.server import Container

MIN_MEMORY_MIB = 10  # nomad/structs/structs.go, MinResources
MIN_DISK_MIB = 10  # nomad/structs/structs.go, EphemeralDisk.Validate
PROMETHEUS_DISK_MIB = 31  # more than its logs, 3 files of 10 MiB (TaskGroup.Validate)
DENIED = "the exec driver refuses root (user.denylist of the clients); name another user"


@environment_rule("VJ311", "error")
def service_names_fit(whole: Whole) -> Findings:
    """Find service names longer than a DNS label."""
    environment = whole.environment
    named: dict[KeyPath, str] = {
        ("models", key): derive.service_name(environment, key) for key in environment.models
    }
    if service := balancer_of(environment).service:
        named[("balancer",)] = service
    if environment.monitoring.prometheus:
        named[("monitoring", "prometheus")] = derive.service_name(environment, "prometheus")
    for path, service in named.items():
        if len(service) > derive.MAX_SERVICE_NAME:
            yield (
                path,
                f"service name {service!r} has {len(service)} characters; Nomad allows "
                f"{derive.MAX_SERVICE_NAME}: shorten job, or the model's key",
            )


@environment_rule("VJ312", "error")
def service_names_differ(whole: Whole) -> Findings:
    """Find a model with the service name of the balancer or of Prometheus.

    Two services of one name share their instances: the balancer would send requests to itself.
    """
    environment = whole.environment
    others: dict[str, str] = {}
    if job := balancer_of(environment).job:
        others[job] = "the balancer's"
    if environment.monitoring.prometheus:
        others["prometheus"] = "Prometheus's"
    for key, whose in others.items():
        if key in environment.models:
            service = derive.service_name(environment, key)
            yield ("models", key), f"its service {service!r} is {whose} too; give the model another key"


@environment_rule("VJ313", "error")
def resources_are_consistent(whole: Whole) -> Findings:
    """Find CPU, memory, disk or logs that contradict each other. Nomad refuses such a `resources` block."""
    yield from in_models(whole, _resources)
    environment = whole.environment
    amounts: dict[KeyPath, str] = {("prefetch", "memory"): environment.prefetch.memory}
    if backup := environment.cache_backup:
        amounts[("cache_backup", "memory")] = backup.memory
    if prometheus := environment.monitoring.prometheus:
        amounts[("monitoring", "prometheus", "memory")] = prometheus.memory
        amounts[("monitoring", "prometheus", "disk")] = prometheus.disk
    for path, amount in amounts.items():
        least = PROMETHEUS_DISK_MIB if path[-1] == "disk" else MIN_MEMORY_MIB
        if mebibytes(amount) < least:
            yield path, f"must be at least {least} MiB (got {amount})"


@environment_rule("VJ314", "error")
def driver_can_do_it(whole: Whole) -> Findings:
    """Find keys that the task driver needs and does not get, or passes over."""
    yield from in_models(whole, _driver)
    environment = whole.environment
    if environment.cache_backup and environment.cache_backup.store.startswith("/"):
        for name, model in environment.models.items():
            if model.cache and model.driver == "exec":
                yield (
                    ("cache_backup", "store"),
                    f"the exec driver of {name} does not see a directory of the host; use a bucket (s3://…)",
                )
    if prometheus := environment.monitoring.prometheus:
        at: KeyPath = ("monitoring", "prometheus")
        if prometheus.driver == "exec" and derive.is_root(prometheus.user):
            yield (*at, "user"), DENIED
        if prometheus.driver == "raw_exec" and prometheus.volume:
            yield (*at, "volume"), "raw_exec mounts nothing; leave it out, or use another driver"


@model_rule("VJ315", "error")
def promotion_has_canaries(subject: Subject) -> Findings:
    """Find `auto_promote` without canaries. Nomad refuses it (nomad/structs, UpdateStrategy.Validate)."""
    if subject.model.rollout.auto_promote and derive.canaries(subject.model) == 0:
        yield ("rollout", "auto_promote"), "needs canaries, or Nomad refuses it; add some, or leave it out"


@model_rule("VJ316", "error")
def volumes_of_allocations_have_no_canaries(subject: Subject) -> Findings:
    """Find a volume per allocation beside canaries. A canary gets another's (TaskGroup.Validate)."""
    model = subject.model
    if model.cache and model.cache.per_alloc and model.cache.volume and derive.canaries(model):
        yield (
            ("cache", "per_alloc"),
            "each allocation has its own volume, and a canary would share one with an old allocation: Nomad "
            "refuses that; use rollout.strategy: rolling, or one volume for all",
        )
    if model.cache and model.cache.per_alloc and not model.cache.volume:
        yield ("cache", "per_alloc"), "is for cache.volume; with bind, all share one directory: leave it out"


@model_rule("VJ317", "warning")
def gpus_reach_the_task(subject: Subject) -> Findings:
    """Find the exec driver, which shows a task no GPU. Its chroot has no /dev/nvidia*; none is mounted."""
    if subject.model.driver == "exec":
        yield (
            ("driver",),
            "a task of exec has no /dev/nvidia*, so vLLM finds no GPU; use docker, or raw_exec with a user",
        )


@model_rule("VJ318", "error")
def strategy_fits_the_gpus(subject: Subject) -> Findings:
    """Find GPUs that are reserved and not used, or too few for the arguments."""
    model = subject.model
    count, others = model.gpus.count, derive.other_parallelism(model)
    if model.strategy == "multi_instance" and count != 1:
        yield (
            ("gpus", "count"),
            f"multi_instance gives each server one GPU (got {count}); "
            f"use replicas: {count} with gpus.count: 1, or strategy: tensor_parallel",
        )
    if model.strategy == "multi_instance" and others != 1:
        yield (
            ("args",),
            f"multi_instance gives each server one GPU, but args ask for {others}; "
            "use strategy: tensor_parallel",
        )
    if model.strategy == "tensor_parallel" and count % others:
        message = f"must be a multiple of {others}, the pipeline and data parallelism in args (got {count})"
        yield ("gpus", "count"), message


@model_rule("VJ319", "warning")
def dockers_keys_are_for_docker(subject: Subject) -> Findings:
    """Find keys for docker, with another driver. `defaults` for models of both kinds may hold them."""
    model = subject.model
    given = {
        ("container",): model.container != Container(),
        ("resources", "shm"): model.resources.shm is not None,
        ("logs", "driver"): model.logs.driver != "json-file",
    }
    for path, is_given in given.items():
        if is_given and model.driver != "docker":
            yield path, f"is for driver: docker, and {model.driver} ignores it; leave it out"


@model_rule("VJ320", "warning")
def disk_holds_the_logs(subject: Subject) -> Findings:
    """Find logs that may fill the disk. Nomad counts max_files once, and keeps so many of each stream."""
    disk = mebibytes(subject.model.resources.disk)
    if _logs(subject) < disk <= _logs(subject) * 2:
        yield (
            ("resources", "disk"),
            f"the logs may fill {subject.model.resources.disk}: {_logs(subject)} MiB each of stdout "
            "and stderr; raise it, or lower logs.max_size or logs.max_files",
        )


def _resources(subject: Subject) -> Findings:
    model = subject.model
    resources = model.resources
    if resources.cpu and resources.cores:
        yield ("resources", "cores"), "give cpu (a share in MHz) or cores (whole ones), not both"
    if resources.memory_max and mebibytes(resources.memory_max) < mebibytes(resources.memory):
        yield ("resources", "memory_max"), f"{resources.memory_max} is below memory {resources.memory}"
    if mebibytes(resources.memory) < MIN_MEMORY_MIB:
        yield ("resources", "memory"), f"must be at least {MIN_MEMORY_MIB} MiB (got {resources.memory})"
    if mebibytes(model.logs.max_size) < 1:
        yield ("logs", "max_size"), f"must be at least 1 MiB (got {model.logs.max_size})"
    if mebibytes(resources.disk) < MIN_DISK_MIB:
        yield ("resources", "disk"), f"must be at least {MIN_DISK_MIB} MiB (got {resources.disk})"
    if _logs(subject) >= mebibytes(resources.disk):
        message = f"must be above what the logs may take, {_logs(subject)} MiB (got {resources.disk})"
        yield ("resources", "disk"), message


def _driver(subject: Subject) -> Findings:
    model = subject.model
    if model.driver != "docker" and not model.entrypoint:
        yield ("entrypoint",), f'{model.driver} needs a program, such as ["/opt/vllm/bin/vllm", "serve"]'
    if model.driver != "docker" and model.image:
        yield ("image",), f"{model.driver} runs no image; remove it, or use driver: docker"
    if model.driver == "exec" and derive.is_root(model.user):
        yield ("user",), DENIED
    if model.cache and bool(model.cache.volume) == bool(model.cache.bind):
        yield ("cache",), "give either volume (a Nomad host volume) or bind (a directory of the host)"
    if model.cache and model.cache.volume and model.driver == "raw_exec":
        yield ("cache", "volume"), "raw_exec sees the host's own files and mounts nothing; use bind"
    if model.cache and model.cache.bind and model.driver == "exec":
        yield ("cache", "bind"), "exec cannot mount a directory of the host; use volume"
    host = model.ports.host or ""
    if derive.is_bridged(model) and (host.startswith("127.") or host in ("localhost", "::1")):
        yield ("ports", "host"), f"{host} is the container's loopback, unreachable from outside; leave it out"
    if (model.logs.driver == "fluentd") != bool(model.logs.fluentd_address):
        yield ("logs", "fluentd_address"), "goes together with logs.driver: fluentd; give both, or neither"


def _logs(subject: Subject) -> int:
    """Return the MiB that Nomad's rotation keeps of each stream."""
    logs = subject.model.logs
    return mebibytes(logs.max_size) * logs.max_files
