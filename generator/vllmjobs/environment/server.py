"""The share of its node that each server gets: GPUs, other resources, container, model cache, logs."""

from typing import Annotated, Literal

from vllmjobs.environment.placement import Block, DeviceAffinity, DeviceConstraint, doc
from vllmjobs.environment.values import MOST, AbsolutePath, Positive, Size, Text


class Gpus(Block, frozen=True):
    """The GPUs that each server gets: Nomad's `device` block."""

    vendor: Annotated[Text, doc("Vendor of the device plugin.")] = "nvidia"
    type: Annotated[Text, doc("Device type.")] = "gpu"
    model: Annotated[Text | None, doc("Model name; any when not given.", "NVIDIA H100 80GB HBM3")] = None
    count: Annotated[int, doc("GPUs per server (VLLM_GPU_COUNT).", ge=1, le=64)] = 1
    memory: Annotated[
        Size | None,
        doc(
            "Least memory of each GPU. Name less than the label says: an H100 80GB reports 79.6 GiB.",
            "70 GiB",
        ),
    ] = None
    constraints: Annotated[list[DeviceConstraint], doc("Further requirements on the GPUs.")] = []
    affinities: Annotated[list[DeviceAffinity], doc("Preferences among GPUs.")] = []


class Resources(Block, frozen=True):
    """The resources that each server gets beside its GPUs."""

    cpu: Annotated[Positive | None, doc("CPU share in MHz; 1000 when neither cpu nor cores is given.")] = None
    cores: Annotated[Positive | None, doc("Whole cores instead of a share.")] = None
    memory: Annotated[Size, doc("Memory reserved.")] = "8 GiB"
    memory_max: Annotated[Size | None, doc("Memory limit, where the cluster allows more than `memory`.")] = (
        None
    )
    shm: Annotated[
        Size | None, doc("Shared memory (docker): 1 GiB for one GPU, 8 GiB for several when not given.")
    ] = None
    disk: Annotated[Size, doc("Disk of the allocation: logs, and without `cache` the model.")] = "1 GiB"


class Container(Block, frozen=True):
    """The hardening of the container; docker only."""

    network: Annotated[Literal["bridge", "host"], doc("Docker's network mode.")] = "bridge"
    read_only: Annotated[bool, doc("Root file system is read-only.")] = True
    privileged: Annotated[
        bool, doc("All devices and capabilities of the host; the clients' `allow_privileged` must be on.")
    ] = False
    pids: Annotated[int, doc("Limit of processes and threads.", ge=64, le=MOST)] = 4096
    tmp: Annotated[Size, doc("Size of the tmpfs at /tmp.")] = "1 GiB"
    cap_add: Annotated[
        list[Text],
        doc(
            "Capabilities given back after all were dropped. Only root can use them, "
            "and the clients' `allow_caps` must list them."
        ),
    ] = []


class Cache(Block, frozen=True):
    """The place where models and compiled kernels are kept between starts (MODEL_CACHE_PATH)."""

    volume: Annotated[Text | None, doc("Name of a Nomad host volume.")] = None
    bind: Annotated[AbsolutePath | None, doc("Directory of the host.", "/srv/models")] = None
    path: Annotated[AbsolutePath, doc("The cache's folder for the server; with raw_exec, `bind`.")] = (
        "/models"
    )
    read_only: Annotated[bool, doc("Mount it read-only; compiled kernels then stay in the allocation.")] = (
        False
    )
    per_alloc: Annotated[
        bool, doc("Each allocation its own volume, `NAME[0]`, `NAME[1]` …; Nomad refuses canaries then.")
    ] = False


class Logs(Block, frozen=True):
    """The destination of a server's output, and how much of it is kept."""

    driver: Annotated[Literal["json-file", "fluentd"], doc("Docker's log driver.")] = "json-file"
    max_size: Annotated[Size, doc("Size at which a log file is rotated.")] = "10 MiB"
    max_files: Annotated[Positive, doc("Files kept, of stdout and of stderr each.")] = 3
    fluentd_address: Annotated[Text | None, doc("Address of fluentd.", "127.0.0.1:24224")] = None
