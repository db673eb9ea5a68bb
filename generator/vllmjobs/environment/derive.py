"""The deadlines and names that follow from an environment's own figures, all in one place.

pull_time + load_time = start
pull_time × 1.25      → image_pull_timeout
start × 1.25          → healthy_deadline, grace of the check, VLLM_ENGINE_READY_TIMEOUT_S
longest_stream        → --shutdown-timeout
  + 15 s              → kill_timeout
balancer              → shutdown_delay
all of these + 1 min  → progress_deadline
"""

import math
import re
from typing import NamedTuple

from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.quantity import seconds

START_MARGIN = 1.25  # a cold page cache or a busy registry is no reason to fail a deployment
KILL_MARGIN_S = 15.0  # vLLM 0.32 left 7 s after its last stream; the rest is for the executor
# Of any image of vLLM, whoever built it: `vllm/vllm-openai:v0.24.0`, `ghcr.io/acme/vllm:0.24.0-cu129`.
_VERSION_TAG = re.compile(r"vllm[^:@]*:v?(\d+\.\d+\.\d+(?:\.post\d+|rc\d+)?)(?![\w.])")
KEEP_ALIVE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
# vLLM closes idle connections after 5 s unless told so, before the balancer does (LoadBalancer.keep_alive_s),
# and a request that crosses the close is lost with a 502.
KEEP_ALIVE_S = 120
# The users of the tasks beside the models', by driver, where the environment names none.
TASK_USERS = {"docker": "65534", "exec": "nobody", "raw_exec": None}
MAX_SERVICE_NAME = 63  # RFC 1123, as Consul's DNS needs it
MIN_PULL_S = 300.0  # the docker driver's own default
MIN_ENGINE_READY_S = 600.0  # vLLM's own default


class Deadlines(NamedTuple):
    """All in seconds."""

    start: float
    pull: float
    min_healthy_time: float
    healthy_deadline: float
    progress_deadline: float
    grace: float
    engine_ready: float
    longest_stream: float
    kill_timeout: float
    shutdown_delay: float


def deadlines(model: Model, shutdown_delay_s: float) -> Deadlines:
    """Return the deadlines of one model in whole seconds, derived where the environment does not say.

    `shutdown_delay_s` is the balancer's, in which it learns that an instance stops.
    """
    start = math.ceil(seconds(model.pull_time) + seconds(model.load_time))
    patience = whole_minutes(start * START_MARGIN)
    longest_stream = math.ceil(seconds(model.drain.longest_stream))
    kill_timeout = _given(model.drain.kill_timeout, longest_stream + KILL_MARGIN_S)
    shutdown_delay = _given(model.drain.shutdown_delay, shutdown_delay_s)
    min_healthy_time = math.ceil(seconds(model.rollout.min_healthy_time))
    healthy = _given(model.rollout.healthy_deadline, patience + whole_minutes(min_healthy_time))
    # A replacement waits for the GPUs of the instance that it replaces.
    progress = whole_minutes(healthy + shutdown_delay + kill_timeout + 60)
    return Deadlines(
        start=start,
        pull=max(MIN_PULL_S, whole_minutes(seconds(model.pull_time) * START_MARGIN)),
        min_healthy_time=min_healthy_time,
        healthy_deadline=healthy,
        progress_deadline=_given(model.rollout.progress_deadline, progress),
        grace=_given(model.health.grace, patience),
        engine_ready=max(MIN_ENGINE_READY_S, patience),
        longest_stream=longest_stream,
        kill_timeout=kill_timeout,
        shutdown_delay=shutdown_delay,
    )


def canaries(model: Model) -> int:
    """Return the number of new instances that stand beside the old ones before a promotion."""
    rollout = model.rollout
    return {"canary": rollout.canaries, "blue_green": model.replicas, "rolling": 0}[rollout.strategy]


def image(environment: Environment, model: Model) -> str:
    """Return the container image of a model: its own, or the one of its `install`."""
    return model.image or getattr(environment.images, model.install)


def vllm_version(environment: Environment, model: Model) -> str | None:
    """Return vLLM's version: as the environment says, or as the image's tag does (`:v0.24.0`); else None."""
    if model.vllm or model.driver != "docker":
        return model.vllm
    tag = _VERSION_TAG.search(image(environment, model))
    return tag[1] if tag else None


def is_root(user: str | None) -> bool:
    """Tell whether a task's user, by name or number, with or without a group, is root."""
    return bool(re.match(r"(0+|root)(:|$)", user or ""))


def is_bridged(model: Model) -> bool:
    """Tell whether the server has a network namespace of its own."""
    return model.driver == "docker" and model.container.network == "bridge"


def service_name(environment: Environment, name: str) -> str:
    """Return the name in Consul of a model's instances, or of a job beside the models', such as `nginx`."""
    return f"{environment.job}-{name}"


def other_parallelism(model: Model) -> int:
    """Return the factor by which pipeline and data parallelism multiply the GPUs of a server."""
    sizes = {argument_name(key): value for key, value in model.args.items()}
    factors = (str(sizes.get(f"{kind}-parallel-size", 1)) for kind in ("pipeline", "data"))
    return math.prod(int(size) for size in factors if size.isdecimal() and size != "0")


def tensor_parallel_size(model: Model) -> int:
    """Return the GPUs over which each layer is split: a server's, less what other parallelism takes."""
    return max(1, model.gpus.count // other_parallelism(model))


def argument_name(name: str) -> str:
    """Return the spelling by which arguments are compared: vLLM reads `max_model_len` as `max-model-len`."""
    flag, dot, option = name.partition(".")
    return flag.replace("_", "-") + dot + option


def whole_minutes(value: float) -> float:
    """Return seconds, rounded up to whole minutes."""
    return math.ceil(value / 60) * 60


def _given(override: str | None, derived: float) -> float:
    return derived if override is None else math.ceil(seconds(override))
