"""What an environment may say: one class per block of the file, one field per key.

The descriptions are the reference: `vllmjobs schema` and docs/environment.md are made from them.
Defaults that depend on other keys are `None` here and are worked out in `derive.py`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from vllmjobs.environment.quantity import Duration, Size, matching


def _said(description: str, *examples: object) -> Meta:
    return Meta(description=description, examples=list(examples) or None)


Name = Annotated[str, matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "name")]
EnvName = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "variable name")]
Argument = Annotated[str, matching(r"[A-Za-z][A-Za-z0-9_.-]*", "argument name")]
Text = Annotated[str, Meta(min_length=1)]
AbsolutePath = Annotated[str, matching(r"/[^\x00-\x1f]*", "absolute path")]
UrlPath = Annotated[str, matching(r"/[!-~]*", "URL path")]
HostName = Annotated[str, matching(r"[a-z0-9.-]*", "host name")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
SecretRef = Annotated[
    str,
    matching(
        r"(nomad/[A-Za-z0-9/_~.-]+|vault:[A-Za-z0-9/_~. -]+)#[A-Za-z_][A-Za-z0-9_]*",
        "secret reference",
        "Where a secret is kept, never the secret: "
        "`nomad/jobs/vllm-prod#hf_token` (a Nomad Variable) or `vault:kv/data/vllm#hf_token`.",
    ),
]
Strategy = Literal["multi_instance", "tensor_parallel"]
Install = Literal["standard", "gptoss"]
Driver = Literal["docker", "exec", "raw_exec"]
Operator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any", "is_set", "is_not_set",
    "distinct_hosts", "distinct_property",
]  # fmt: skip
AffinityOperator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any",
]  # fmt: skip
DeviceOperator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any", "is_set", "is_not_set",
]  # fmt: skip


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A block of the file. Unknown keys are errors."""


class Constraint(Block):
    """A requirement that a node meets, or is not used."""

    attribute: Annotated[str, _said("What is compared.", "${node.class}", "${attr.kernel.name}")] = ""
    operator: Annotated[Operator, _said("How it is compared.")] = "="
    value: Annotated[str, _said("What it is compared with.")] = ""


class Affinity(Block, kw_only=True):
    """A preference among nodes."""

    attribute: Annotated[Text, _said("What is compared.", "${node.datacenter}")]
    operator: Annotated[AffinityOperator, _said("How it is compared.")] = "="
    value: Annotated[str, _said("What it is compared with.")]
    weight: Annotated[int, Meta(ge=-100, le=100, description="From -100 (avoid) to 100 (prefer).")] = 50


class Spread(Block):
    """An attribute over which allocations are spread."""

    attribute: Annotated[Text, _said("What is spread over.", "${node.datacenter}")]
    weight: Annotated[int, Meta(ge=0, le=100, description="Weight among several spreads.")] = 50
    targets: Annotated[
        dict[Text, Annotated[int, Meta(ge=0, le=100)]],
        _said("Percent of allocations per value; the rest is spread evenly.", {"dc1": 70, "dc2": 30}),
    ] = {}


class Placement(Block):
    """Where a model may run, beside what the whole job says under `nomad`."""

    constraints: Annotated[list[Constraint], _said("Requirements, as Nomad's `constraint` blocks.")] = []
    affinities: Annotated[list[Affinity], _said("Preferences, as Nomad's `affinity` blocks.")] = []
    spread: Annotated[list[Spread], _said("Spreading, as Nomad's `spread` blocks.")] = []


class Nomad(Placement):
    """The job as a whole, and what its clients allow."""

    region: Annotated[Text | None, _said("Region; the server's own when not given.")] = None
    datacenters: Annotated[
        Annotated[list[Text], Meta(min_length=1)], _said("Datacenters, with `*` as wildcard.", ["dc1"])
    ] = field(default_factory=lambda: ["*"])
    namespace: Annotated[Text | None, _said("Namespace; the CLI's own (`-namespace`) when not given.")] = None
    node_pool: Annotated[Text | None, _said("Node pool; the namespace's default when not given.")] = None
    priority: Annotated[int, Meta(ge=1, le=100, description="Scheduling priority.")] = 50
    max_kill_timeout: Annotated[
        Duration,
        _said("`max_kill_timeout` of the clients: Nomad caps every `kill_timeout` to it in silence."),
    ] = "30s"


class DeviceConstraint(Block):
    """A requirement on an attribute of the GPU."""

    attribute: Annotated[Text, _said("An attribute of the device.", "${device.attr.driver_version}")]
    operator: Annotated[DeviceOperator, _said("How it is compared.")] = "="
    value: Annotated[str, _said("What it is compared with; amounts carry a unit (`70 GiB`).")] = ""


class DeviceAffinity(Block, kw_only=True):
    """A preference among GPUs."""

    attribute: Annotated[Text, _said("An attribute of the device.", "${device.attr.memory}")]
    operator: Annotated[AffinityOperator, _said("How it is compared.")] = "="
    value: Annotated[str, _said("What it is compared with; amounts carry a unit.")]
    weight: Annotated[int, Meta(ge=-100, le=100, description="From -100 (avoid) to 100 (prefer).")] = 50


class Gpus(Block):
    """The GPUs that each server gets: Nomad's `device` block."""

    vendor: Annotated[Text, _said("Vendor of the device plugin.")] = "nvidia"
    type: Annotated[Text, _said("Device type.")] = "gpu"
    model: Annotated[Text | None, _said("Model name; any when not given.", "NVIDIA H100 80GB HBM3")] = None
    count: Annotated[int, Meta(ge=1, le=64, description="GPUs per server (VLLM_GPU_COUNT).")] = 1
    memory: Annotated[
        Size | None,
        _said(
            "Least memory of each GPU. Name less than the label says: an H100 80GB reports 79.6 GiB.",
            "70 GiB",
        ),
    ] = None
    constraints: Annotated[list[DeviceConstraint], _said("Further requirements on the GPUs.")] = []
    affinities: Annotated[list[DeviceAffinity], _said("Preferences among GPUs.")] = []


class Resources(Block):
    """What each server gets beside its GPUs."""

    cpu: Annotated[Positive | None, _said("CPU share in MHz; 1000 when neither cpu nor cores is given.")] = (
        None
    )
    cores: Annotated[Positive | None, _said("Whole cores instead of a share.")] = None
    memory: Annotated[Size, _said("Memory reserved.")] = "8 GiB"
    memory_max: Annotated[
        Size | None, _said("Memory limit, where the cluster allows more than `memory`.")
    ] = None
    shm: Annotated[
        Size | None,
        _said("Shared memory (docker): 1 GiB for one GPU, 8 GiB for several when not given."),
    ] = None
    disk: Annotated[Size, _said("Disk of the allocation, logs included.")] = "1 GiB"


class Container(Block):
    """How the container is hardened; docker only."""

    network: Annotated[Literal["bridge", "host"], _said("Docker's network mode.")] = "bridge"
    user: Annotated[Text | None, _said("User, by number or name.")] = "65534"
    read_only: Annotated[bool, _said("Root file system is read-only.")] = True
    pids: Annotated[int, Meta(ge=64, description="Limit of processes and threads.")] = 4096
    tmp: Annotated[Size, _said("Size of the tmpfs at /tmp.")] = "1 GiB"
    cap_add: Annotated[list[Text], _said("Capabilities given back, after all were dropped.")] = []


class Cache(Block):
    """Where models and compiled kernels are kept between starts (MODEL_CACHE_PATH)."""

    volume: Annotated[Text | None, _said("Name of a Nomad host volume.")] = None
    bind: Annotated[AbsolutePath | None, _said("Directory of the host.", "/srv/models")] = None
    path: Annotated[AbsolutePath, _said("Where the server sees it; with raw_exec it is `bind`.")] = "/models"
    read_only: Annotated[bool, _said("Mount it read-only; compiled kernels then stay in the allocation.")] = (
        False
    )


class Ports(Block):
    """What a server listens on."""

    host: Annotated[
        Text | None,
        _said("Address to listen on (VLLM_HOST): 0.0.0.0 in a bridged container, else the allocation's own."),
    ] = None
    base: Annotated[
        Port, _said("Port inside a bridged container, and first port on one box (VLLM_BASE_PORT).")
    ] = 8000
    static: Annotated[Port | None, _said("Fixed port on the host; Nomad picks one when not given.")] = None


class Route(Block):
    """Under which address the balancer serves the model."""

    host: Annotated[HostName, _said("Host name to match; any when empty.", "chat.example.com")] = ""
    path: Annotated[UrlPath, _said("Path prefix to match.", "/v1/", "/chat/v1/")] = "/v1/"
    strip: Annotated[
        UrlPath | None,
        _said("Prefix that is taken off before the request is passed on.", "/chat"),
    ] = None


class Health(Block):
    """The check that admits an instance to the balancer."""

    path: Annotated[UrlPath, _said("Path that answers 200 when ready.")] = "/health"
    interval: Annotated[Duration, _said("Time between two checks.")] = "5s"
    timeout: Annotated[Duration, _said("Time that one check may take.")] = "3s"
    restart_after: Annotated[
        int,
        Meta(ge=0, description="Failed checks in a row after which the server is restarted; 0 for never."),
    ] = 12
    grace: Annotated[
        Duration | None, _said("Time after a start in which failed checks restart nothing; derived.")
    ] = None


class Drain(Block):
    """How an instance is stopped without cutting a stream."""

    longest_stream: Annotated[
        Duration, _said("Longest answer that is waited for (vLLM's `--shutdown-timeout`).")
    ] = "15s"
    kill_timeout: Annotated[
        Duration | None, _said("Time from the signal to the kill; longest_stream + 15s when not given.")
    ] = None
    shutdown_delay: Annotated[
        Duration | None,
        _said("Time between leaving the balancer and the signal; 10s for fabio, 15s for nginx, else 0s."),
    ] = None


class Logs(Block):
    """Where a server's output goes and how much of it is kept."""

    driver: Annotated[Literal["json-file", "fluentd"], _said("Docker's log driver.")] = "json-file"
    max_size: Annotated[Size, _said("Size at which a log file is rotated.")] = "10 MiB"
    max_files: Annotated[Positive, _said("Files kept, of stdout and of stderr each.")] = 3
    fluentd_address: Annotated[Text | None, _said("Address of fluentd.", "127.0.0.1:24224")] = None


class Rollout(Block):
    """How a change reaches the running instances."""

    strategy: Annotated[
        Literal["canary", "blue_green", "rolling"],
        _said("Some new instances beside the old; as many new as old; or one after the other."),
    ] = "canary"
    canaries: Annotated[Positive, _said("New instances beside the old (canary).")] = 1
    weight: Annotated[
        float, Meta(ge=0, le=1, description="Share of the requests that all canaries together get.")
    ] = 0.1
    max_parallel: Annotated[Positive, _said("Instances replaced at a time after promotion.")] = 1
    auto_promote: Annotated[bool, _said("Promote as soon as the canaries are healthy.")] = False
    auto_revert: Annotated[bool, _said("Go back to the last stable version when a deployment fails.")] = True
    min_healthy_time: Annotated[Duration, _said("Time that an instance is healthy before it counts.")] = "10s"
    healthy_deadline: Annotated[
        Duration | None, _said("Time in which an instance becomes healthy; from pull_time and load_time.")
    ] = None
    progress_deadline: Annotated[
        Duration | None, _said("Time in which the next instance becomes healthy; above healthy_deadline.")
    ] = None


ArgValue = bool | int | float | str | list | dict | None  # type: ignore[type-arg]


class ModelDefaults(Block):
    """What every model of the environment starts from; each model may say otherwise."""

    served_name: Annotated[
        Text | None, _said("Name that clients ask for (VLLM_MODEL_NAME); the model's key when not given.")
    ] = None
    strategy: Annotated[
        Strategy,
        _said("One GPU per server and many servers, or one server over several GPUs (VLLM_STRATEGY)."),
    ] = "multi_instance"
    install: Annotated[Install, _said("Which of `images` is used (VLLM_INSTALL_TYPE).")] = "standard"
    replicas: Annotated[int, Meta(ge=0, description="Servers.")] = 1
    driver: Annotated[Driver, _said("Nomad's task driver.")] = "docker"
    image: Annotated[Text | None, _said("Container image; one of `images` when not given.")] = None
    entrypoint: Annotated[
        list[Text],
        _said(
            "Program, and what comes before the model's name. The image's own when empty; "
            "exec and raw_exec need it.",
            ["/opt/vllm/bin/vllm", "serve"],
        ),
    ] = []
    gpus: Annotated[Gpus, _said("GPUs per server.")] = Gpus()
    resources: Annotated[Resources, _said("CPU, memory, disk per server.")] = Resources()
    container: Annotated[Container, _said("Hardening of the container.")] = Container()
    gpu_memory_utilization: Annotated[
        float,
        Meta(ge=0.1, le=0.95, description="Share of each GPU that vLLM takes (VLLM_GPU_MEMORY_UTILIZATION)."),
    ] = 0.9
    max_model_len: Annotated[
        Positive | None,
        _said("Longest context in tokens (VLLM_MAX_MODEL_LEN); the model's own when not given."),
    ] = None
    args: Annotated[
        dict[Argument, ArgValue],
        _said(
            "Further arguments of `vllm serve`: `true` is the bare flag, `false` its `--no-` form, "
            "`null` leaves it out, a list repeats the value, a map is passed as JSON.",
            {"enable-prefix-caching": True, "max-num-seqs": 256},
        ),
    ] = {}
    env: Annotated[
        dict[EnvName, str | int], _said("Environment variables. Quote what looks like a number with a point.")
    ] = {}
    secrets: Annotated[
        dict[EnvName, SecretRef],
        _said(
            "Variables whose value is a secret, by reference.", {"HF_TOKEN": "nomad/jobs/vllm-prod#hf_token"}
        ),
    ] = {}
    cache: Annotated[Cache | None, _said("Model cache; the allocation's own disk when not given.")] = None
    ports: Annotated[Ports, _said("Ports.")] = Ports()
    route: Annotated[Route, _said("Route of the balancer.")] = Route()
    health: Annotated[Health, _said("Readiness check.")] = Health()
    drain: Annotated[Drain, _said("Stopping.")] = Drain()
    logs: Annotated[Logs, _said("Logs.")] = Logs()
    pull_time: Annotated[Duration, _said("Expected time to pull the image.")] = "5m"
    load_time: Annotated[Duration, _said("Expected time from the start to the first answer.")] = "10m"
    rollout: Annotated[Rollout, _said("Release.")] = Rollout()
    placement: Annotated[Placement, _said("Where it may run.")] = Placement()


class Model(ModelDefaults, kw_only=True):
    """One model: one task group of the job."""

    model: Annotated[Text, _said("Model name or path (VLLM_MODEL).", "facebook/opt-125m")]


class Images(Block):
    """The image for each `install`."""

    standard: Annotated[Text, _said("vLLM as released.")] = "vllm/vllm-openai:v0.33.0"
    gptoss: Annotated[Text, _said("vLLM for the gpt-oss models.")] = "vllm/vllm-openai:v0.33.0"


class Balancer(Block):
    """What stands in front of the models."""

    kind: Annotated[Literal["fabio", "nginx", "none"], _said("Which balancer the services register for.")] = (
        "fabio"
    )
    port: Annotated[
        Port | None, _said("Port that clients use (NGINX_PORT): 9999 for fabio, 80 for nginx when not given.")
    ] = None
    admin_port: Annotated[Port, _said("Port of its own status page and health check.")] = 9998
    count: Annotated[Positive, _said("Instances of nginx; fabio runs on every node that fits.")] = 1
    driver: Annotated[Driver, _said("Nomad's task driver.")] = "docker"
    image: Annotated[
        Text | None, _said("Container image: fabiolb/fabio:1.7.3 or nginx:1.30-alpine when not given.")
    ] = None
    command: Annotated[Text | None, _said("Program for exec and raw_exec; fabio or nginx on PATH.")] = None
    consul: Annotated[Text, _said("Consul's HTTP address, as seen from the balancer.")] = "127.0.0.1:8500"
    cpu: Annotated[Positive, _said("CPU share in MHz.")] = 200
    memory: Annotated[Size, _said("Memory reserved.")] = "256 MiB"
    placement: Annotated[Placement, _said("Where it may run.")] = Placement()


class Environment(Block, kw_only=True):
    """One environment: one Nomad job with a task group per model, and its balancer."""

    extends: Annotated[
        Text | None, _said("Another file of the same folder, over which this one is laid.", "base.yaml")
    ] = None
    job: Annotated[Name | None, _said("Name of the job; `vllm-` and the file's name when not given.")] = None
    debug: Annotated[bool, _said("vLLM logs at DEBUG (DEBUG).")] = False
    nomad: Annotated[Nomad, _said("The job as a whole.")] = Nomad()
    balancer: Annotated[Balancer, _said("The balancer.")] = Balancer()
    images: Annotated[Images, _said("Images by `install`.")] = Images()
    defaults: Annotated[ModelDefaults, _said("What every model starts from.")] = ModelDefaults()
    models: Annotated[
        Annotated[dict[Name, Model], Meta(min_length=1)],
        _said("The models by name; the name is the task group's."),
    ]
