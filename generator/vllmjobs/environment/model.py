"""The types of an environment: one class per block of the file, one field per key.

The descriptions are the reference: `vllmjobs schema` and docs/environment.md are made from them.
Defaults that depend on other keys are `None` here and are worked out in `derive.py`.
"""

from typing import Annotated, Literal

from msgspec import Meta, field

from vllmjobs.environment.model_cache import CacheBackup, Prefetch
from vllmjobs.environment.monitoring import Monitoring
from vllmjobs.environment.placement import OWN_NODE_POOL, OWN_NODES, USER, Block, Placement, doc
from vllmjobs.environment.rollout import Maintenance, Rollout
from vllmjobs.environment.server import Cache, Container, Gpus, Logs, Resources
from vllmjobs.environment.values import (
    MAX_COUNT,
    MOST,
    Argument,
    ArgValue,
    Count,
    Driver,
    Duration,
    EnvName,
    HostName,
    Install,
    Name,
    Port,
    Positive,
    RoutePath,
    SecretRef,
    Size,
    Strategy,
    Text,
    UrlPath,
    Version,
)
from vllmjobs.vllm.releases import NEWEST


class Nomad(Placement, frozen=True):
    """The job as a whole, and what its clients allow."""

    region: Annotated[Text | None, doc("Region; the server's own when not given.")] = None
    datacenters: Annotated[
        Annotated[list[Text], Meta(min_length=1)], doc("Datacenters, with `*` as wildcard.", ["dc1"])
    ] = field(default_factory=lambda: ["*"])
    namespace: Annotated[Text | None, doc("Namespace; the CLI's own (`-namespace`) when not given.")] = None
    node_pool: Annotated[Text | None, doc("Node pool; the namespace's default when not given.")] = None
    priority: Annotated[int, doc("Scheduling priority.", ge=1, le=100)] = 50
    max_kill_timeout: Annotated[
        Duration, doc("`max_kill_timeout` of the clients: Nomad caps every `kill_timeout` to it in silence.")
    ] = "30s"


class Ports(Block, frozen=True):
    """The address and ports that a server listens on."""

    host: Annotated[
        Text | None,
        doc("Address to listen on (VLLM_HOST): 0.0.0.0 in a bridged container, else the allocation's own."),
    ] = None
    base: Annotated[
        Port, doc("Port inside a bridged container, and first port on one box (VLLM_BASE_PORT).")
    ] = 8000
    static: Annotated[Port | None, doc("Fixed port on the host; Nomad picks one when not given.")] = None


class Route(Block, frozen=True):
    """The address under which the balancer serves the model."""

    host: Annotated[HostName, doc("Host name to match; any when empty.", "chat.example.com")] = ""
    path: Annotated[RoutePath, doc("Path prefix to match.", "/v1/", "/chat/v1/")] = "/v1/"
    strip: Annotated[
        RoutePath | None, doc("Prefix that is taken off before the request is passed on.", "/chat")
    ] = None
    allow: Annotated[
        list[RoutePath],
        doc(
            "Paths of vLLM outside its API that clients may reach, too, as vLLM calls them; `/` for all. "
            "nginx keeps the others closed.",
            ["/tokenize", "/pooling"],
        ),
    ] = []


class Health(Block, frozen=True):
    """The check that admits an instance to the balancer."""

    path: Annotated[
        UrlPath | None,
        doc("Path that answers 200 when ready: vLLM's /health, the supervisor's /ready when supervised."),
    ] = None
    interval: Annotated[Duration, doc("Time between two checks.")] = "5s"
    timeout: Annotated[Duration, doc("Time that one check may take.")] = "3s"
    restart_after: Annotated[
        int,
        doc(
            "Failed checks in a row after which Nomad restarts the server; 0 for never. Not when supervised.",
            ge=0,
            le=MOST,
        ),
    ] = 12
    grace: Annotated[
        Duration | None,
        doc("Time after a start in which nobody restarts what is not ready; derived from load_time."),
    ] = None


class Drain(Block, frozen=True):
    """The steps that stop an instance without cutting a stream."""

    longest_stream: Annotated[
        Duration, doc("Longest answer that is waited for (vLLM's `--shutdown-timeout`).")
    ] = "15s"
    kill_timeout: Annotated[
        Duration | None, doc("Time from the signal to the kill; longest_stream + 15s when not given.")
    ] = None
    shutdown_delay: Annotated[
        Duration | None,
        doc("Time between leaving the balancer and the signal; 10s for fabio, 15s for nginx, else 0s."),
    ] = None


class ModelDefaults(Block, frozen=True):
    """The keys that every model of the environment starts from; each model may say otherwise."""

    served_name: Annotated[
        Text | list[Text] | None,
        doc("Name, or names, that clients ask for (VLLM_MODEL_NAME); the model's key when not given."),
    ] = None
    strategy: Annotated[
        Strategy, doc("One GPU per server and many servers, or one server over several GPUs (VLLM_STRATEGY).")
    ] = "multi_instance"
    install: Annotated[Install, doc("The key of `images` to use (VLLM_INSTALL_TYPE).")] = "standard"
    replicas: Annotated[Count, doc("Servers.")] = 1
    driver: Annotated[Driver, doc("Nomad's task driver.")] = "docker"
    image: Annotated[Text | None, doc("Container image; one of `images` when not given.")] = None
    user: Annotated[Text | None, doc(USER, "vllm")] = None
    entrypoint: Annotated[
        list[Text],
        doc(
            "Program, and what comes before the model's name. The image's own when empty; "
            "exec and raw_exec need it.",
            ["/opt/vllm/bin/vllm", "serve"],
        ),
    ] = []
    supervised: Annotated[
        bool | None,
        doc(
            "True if `vllmjobs-supervise` starts the server; it restarts and drains. By default true if the "
            "entrypoint names it, or the image is called `vllmjobs-vllm`. vLLM's own /health stays 200 while "
            "it hangs, or drains and refuses work."
        ),
    ] = None
    vllm: Annotated[
        Version | None, doc("vLLM's version, where the image's tag does not tell it.", NEWEST)
    ] = None
    gpus: Annotated[Gpus, doc("GPUs per server.")] = Gpus()
    resources: Annotated[Resources, doc("CPU, memory, disk per server.")] = Resources()
    container: Annotated[Container, doc("Hardening of the container.")] = Container()
    gpu_memory_utilization: Annotated[
        float, doc("Share of each GPU that vLLM takes (VLLM_GPU_MEMORY_UTILIZATION).", gt=0, le=1)
    ] = 0.9
    max_model_len: Annotated[
        Positive | Literal["auto"] | None,
        doc(
            "Longest context in tokens (VLLM_MAX_MODEL_LEN), or `auto` for what fits; the model's own when "
            "not given."
        ),
    ] = None
    args: Annotated[
        dict[Argument, ArgValue],
        doc(
            "Further arguments of `vllm serve`: `true` is the bare flag, `false` its `--no-` form, "
            "`null` leaves it out, a list gives it several values, a map is passed as JSON.",
            {"enable-prefix-caching": True, "max-num-seqs": 256},
        ),
    ] = {}
    env: Annotated[
        dict[EnvName, str | int | None],
        doc("Environment variables; `null` leaves one out. Quote what looks like a number with a point."),
    ] = {}
    secrets: Annotated[
        dict[EnvName, SecretRef | None],
        doc(
            "Variables whose value is a secret, by reference; `null` leaves one out.",
            {"HF_TOKEN": "nomad/jobs/vllm-prod#hf_token"},
        ),
    ] = {}
    cache: Annotated[Cache | None, doc("Model cache; the allocation's own disk when not given.")] = None
    ports: Annotated[Ports, doc("Ports.")] = Ports()
    route: Annotated[Route, doc("Route of the balancer.")] = Route()
    health: Annotated[Health, doc("Readiness check.")] = Health()
    drain: Annotated[Drain, doc("Stopping.")] = Drain()
    logs: Annotated[Logs, doc("Logs.")] = Logs()
    pull_time: Annotated[Duration, doc("Expected time to pull the image.")] = "5m"
    load_time: Annotated[Duration, doc("Expected time from the start to the first answer.")] = "10m"
    rollout: Annotated[Rollout, doc("Release.")] = Rollout()
    placement: Annotated[Placement, doc("The nodes on which the model may run.")] = Placement()


class Model(ModelDefaults, frozen=True, kw_only=True):
    """One model: one task group of the job."""

    model: Annotated[Text, doc("Model name or path (VLLM_MODEL).", "facebook/opt-125m")]
    config: Annotated[
        Text | None,
        doc(
            "The model's `config.json`, from this file's folder, for the memory estimate; else it is looked "
            "for at `model`, in the Hugging Face cache, and in the table of known models.",
            "models/chat.json",
        ),
    ] = None


class Images(Block, frozen=True):
    """The image for each `install`."""

    standard: Annotated[Text, doc("vLLM as released.")] = f"vllm/vllm-openai:v{NEWEST}"
    gptoss: Annotated[Text, doc("vLLM for the gpt-oss models.")] = f"vllm/vllm-openai:v{NEWEST}"


class Balancer(Block, frozen=True):
    """The balancer in front of the models."""

    kind: Annotated[
        Literal["fabio", "nginx", "none"], doc("The balancer for which the services register.")
    ] = "fabio"
    port: Annotated[
        Port | None, doc("Port that clients use (NGINX_PORT): 9999 for fabio, 80 for nginx when not given.")
    ] = None
    admin_port: Annotated[Port, doc("Port of its own status page and health check.")] = 9998
    metrics: Annotated[
        bool | None,
        doc(
            "Show its metrics to Prometheus. Fabio before 1.6, and an nginx without "
            "ngx_http_stub_status_module, do not start with them. When not given: true for nginx in docker "
            "whose image is not given either."
        ),
    ] = None
    count: Annotated[
        int, doc("Instances of nginx; fabio runs on every node that fits.", ge=1, le=MAX_COUNT)
    ] = 1
    driver: Annotated[Driver, doc("Nomad's task driver.")] = "docker"
    image: Annotated[
        Text | None, doc("Container image: fabiolb/fabio:1.7.3 or nginx:1.30-alpine when not given.")
    ] = None
    command: Annotated[Text | None, doc("Program for exec and raw_exec; fabio or nginx on PATH.")] = None
    user: Annotated[Text | None, doc(USER, "nobody")] = None
    consul: Annotated[Text, doc("Consul's HTTP address, as seen from the balancer.")] = "127.0.0.1:8500"
    max_body: Annotated[Size, doc("Largest body of a request (nginx).", "256 MiB")] = "64 MiB"
    client_requests: Annotated[
        Positive, doc("Requests that one address may have at the same time (nginx).")
    ] = 512
    client_uploads: Annotated[
        Positive, doc("The same of requests with more than 300 kB, or of unknown length (nginx).")
    ] = 64
    cpu: Annotated[Positive, doc("CPU share in MHz.")] = 200
    memory: Annotated[Size, doc("Memory reserved.")] = "256 MiB"
    node_pool: Annotated[Text | None, doc(OWN_NODE_POOL, "all")] = None
    placement: Annotated[Placement, doc(OWN_NODES)] = Placement()


class Environment(Block, frozen=True, kw_only=True):
    """One environment: one Nomad job with a task group per model, and its balancer."""

    extends: Annotated[
        Text | None, doc("Another file of the same folder, over which this one is laid.", "base.yaml")
    ] = None
    job: Annotated[Name | None, doc("Name of the job; `vllm-` and the file's name when not given.")] = None
    debug: Annotated[bool, doc("vLLM logs at DEBUG (DEBUG).")] = False
    approvals: Annotated[
        int, doc("The number of other people who must approve a change (`vllmjobs approve`).", ge=0, le=20)
    ] = 0
    maintenance: Annotated[
        Maintenance | None, doc("The times at which changes are deployed; any time when not given.")
    ] = None
    nomad: Annotated[Nomad, doc("The job as a whole.")] = Nomad()
    balancer: Annotated[Balancer, doc("The balancer.")] = Balancer()
    monitoring: Annotated[Monitoring, doc("The monitoring of the environment.")] = Monitoring()
    prefetch: Annotated[Prefetch, doc("The job that fills the caches ahead of a deployment.")] = Prefetch()
    cache_backup: Annotated[
        CacheBackup | None,
        doc("The jobs that copy the models' caches to a store, and back; none when not given."),
    ] = None
    images: Annotated[Images, doc("Images by `install`.")] = Images()
    defaults: Annotated[ModelDefaults, doc("The keys that every model starts from.")] = ModelDefaults()
    models: Annotated[
        Annotated[dict[Name, Model], Meta(min_length=1)],
        doc("The models by name; the name is the task group's."),
    ]
