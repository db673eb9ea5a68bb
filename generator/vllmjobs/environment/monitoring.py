"""The Prometheus that watches an environment, as a job of its own."""

from typing import Annotated

from vllmjobs.environment.placement import OWN_NODE_POOL, OWN_NODES, USER, Block, Placement, doc
from vllmjobs.environment.values import (
    Address,
    Driver,
    Duration,
    Interval,
    LinkBase,
    Name,
    Port,
    Positive,
    Size,
    Text,
)


class PrometheusJob(Block, frozen=True):
    """A Prometheus that scrapes the instances and raises alerts: `vllmjobs render ENV --job prometheus`."""

    port: Annotated[Port, doc("Port of its pages and its API, which know no password.")] = 9090
    driver: Annotated[Driver, doc("Nomad's task driver.")] = "docker"
    image: Annotated[Text, doc("Container image.")] = "prom/prometheus:v3.5.0"
    command: Annotated[Text, doc("Program for exec and raw_exec.")] = "prometheus"
    user: Annotated[Text | None, doc(USER)] = None
    scrape_interval: Annotated[
        Interval, doc("Time between two looks at an instance, 1m at most: the alerts look back over 5m.")
    ] = "15s"
    retention: Annotated[Duration, doc("The time for which Prometheus keeps its data.")] = "360h"
    alertmanager: Annotated[
        Address | None, doc("The Alertmanager; none when not given.", "alertmanager.example.com:9093")
    ] = None
    runbooks: Annotated[
        LinkBase,
        doc(
            "The beginning of the alerts' links to a runbook; the page's name follows.",
            "https://git.example.com/llm/docs/runbooks",
        ),
    ] = "docs/runbooks"
    dcgm: Annotated[
        Name | None,
        doc(
            "Consul service of NVIDIA's dcgm-exporter, for the alert of GPU memory; without it, that goes by "
            "the supervisors.",
            "dcgm-exporter",
        ),
    ] = None
    volume: Annotated[
        Text | None, doc("Nomad host volume for its data; the allocation's own disk when not given.")
    ] = None
    disk: Annotated[Size, doc("Disk for its data, of which it uses four fifths at most.")] = "10 GiB"
    cpu: Annotated[Positive, doc("CPU share in MHz.")] = 500
    memory: Annotated[Size, doc("Memory reserved.")] = "1 GiB"
    node_pool: Annotated[Text | None, doc(OWN_NODE_POOL)] = None
    placement: Annotated[Placement, doc(OWN_NODES)] = Placement()


class Monitoring(Block, frozen=True):
    """The monitoring of the environment."""

    prometheus: Annotated[PrometheusJob | None, doc("A Prometheus of its own; none when not given.")] = None
