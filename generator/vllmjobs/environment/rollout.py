"""The release of a change to the running instances, and the limits by which it is judged."""

from typing import Annotated, Literal

from msgspec import Meta

from vllmjobs.environment.placement import Block, doc
from vllmjobs.environment.values import MOST, Duration, Positive, Text, matching

Share = Annotated[float, Meta(ge=0.001, le=1)]
NonNegative = Annotated[float, Meta(ge=0)]
Ratio = Annotated[float, Meta(ge=1)]
Url = Annotated[str, matching(r"https?://[!-~]+", "URL")]
# Five fields, as in crontab(5).
Cron = Annotated[str, matching(r"\S+( \S+){4}", "cron schedule")]


class Limit(Block, frozen=True):
    """The bounds of one metric of a canary. Both hold where both are given."""

    max: Annotated[NonNegative | None, doc("At most so much, whatever the others show.")] = None
    ratio: Annotated[Ratio | None, doc("At most so many times what the stable instances show.")] = None
    floor: Annotated[float, doc("Up to here a canary is well, whatever `ratio` says.", ge=0)] = 0


class Limits(Block, frozen=True):
    """The metrics that are compared; `null` leaves one out. Latencies are in seconds."""

    error_rate: Annotated[
        Limit | None,
        doc("Share of the requests under /v1/ that were answered with a 5xx, or ended in an error."),
    ] = Limit(max=0.05, ratio=2, floor=0.01)
    time_to_first_token: Annotated[Limit | None, doc("Seconds.")] = Limit(ratio=2, floor=0.2)
    inter_token_latency: Annotated[Limit | None, doc("Seconds.")] = Limit(ratio=2, floor=0.05)
    e2e_latency: Annotated[
        Limit | None, doc("Seconds; longer answers take longer, so few requests say little of it.")
    ] = Limit(ratio=3, floor=5)
    queue: Annotated[Limit | None, doc("Requests that wait, of each instance.")] = Limit(ratio=3, floor=10)
    kv_cache_usage: Annotated[Limit | None, doc("Share of the KV cache in use.")] = Limit(ratio=2, floor=0.9)
    preemptions: Annotated[Limit | None, doc("For each request that ended.")] = Limit(ratio=2, floor=0.1)


class Prometheus(Block, frozen=True):
    """The Prometheus in which the metrics are read, when not from the instances themselves."""

    address: Annotated[
        Url, doc("The HTTP address of the Prometheus.", "http://prometheus.service.consul:9090")
    ]
    instance_label: Annotated[
        Text, doc("The label that holds an instance's `address:port`; Prometheus's own is `instance`.")
    ] = "instance"


class Analysis(Block, frozen=True):
    """The judgement of the canaries of a step, against the stable instances in the same time."""

    interval: Annotated[Duration, doc("Time between two measurements.")] = "10s"
    window: Annotated[
        Duration, doc("Least time that a step is watched; a measurement looks back no further.")
    ] = "2m"
    min_requests: Annotated[
        Positive, doc("Requests that canaries and stable instances each need for a measurement.")
    ] = 50
    max_failures: Annotated[
        int, doc("Failed measurements of a step; one more fails the release.", ge=0, le=MOST)
    ] = 1
    on_no_data: Annotated[
        Literal["hold", "fail", "promote"],
        doc("The end of a step whose window ends with too few requests; `hold` waits for more."),
    ] = "hold"
    probe: Annotated[
        bool, doc("Send real requests for one token to instances that get too few of others.")
    ] = True
    quantile: Annotated[float, doc("The quantile of the latencies that is compared.", gt=0, lt=1)] = 0.95
    limits: Annotated[Limits, doc("The limits for a canary.")] = Limits()
    prometheus: Annotated[
        Prometheus | None, doc("Read the metrics there; from the instances' /metrics when not given.")
    ] = None


class Window(Block, frozen=True):
    """A time that comes again."""

    schedule: Annotated[Cron, doc("The start: minute, hour, day, month, weekday.", "0 22 * * 1-5")]
    duration: Annotated[Duration, doc("The length of the window.", "4h")]


class Maintenance(Block, frozen=True):
    """The times at which changes may be deployed; at any other time `--now REASON` is needed."""

    windows: Annotated[Annotated[list[Window], Meta(min_length=1)], doc("Any of them will do.")]
    time_zone: Annotated[Text, doc("The schedules' time zone, an IANA name.", "Europe/Berlin")] = "UTC"


class Rollout(Block, frozen=True):
    """The way a change reaches the running instances."""

    strategy: Annotated[
        Literal["canary", "blue_green", "rolling"],
        doc("Some new instances beside the old; as many new as old; or one after the other."),
    ] = "canary"
    canaries: Annotated[Positive, doc("New instances beside the old (canary).")] = 1
    weight: Annotated[
        Share,
        doc("Share of the requests that all canaries together get, of themselves and as the first step."),
    ] = 0.1
    steps: Annotated[
        list[Share],
        doc(
            "Shares that follow, each after a passing verdict on the one before (canary). With blue_green, "
            "one switch follows: all requests.",
            [0.25, 0.5],
        ),
    ] = []
    analysis: Annotated[
        Analysis | None, doc("The analysis of canaries; with `null`, healthy canaries are promoted.")
    ] = Analysis()
    max_parallel: Annotated[Positive, doc("Instances replaced at a time after promotion.")] = 1
    auto_promote: Annotated[bool, doc("Promote as soon as the canaries are healthy.")] = False
    auto_revert: Annotated[bool, doc("Go back to the last stable version when a deployment fails.")] = True
    placement_deadline: Annotated[
        Duration, doc("Time in which canaries find a node; Nomad itself would wait for GPUs without end.")
    ] = "2m"
    min_healthy_time: Annotated[Duration, doc("Time that an instance is healthy before it counts.")] = "10s"
    healthy_deadline: Annotated[
        Duration | None, doc("Time in which an instance becomes healthy; from pull_time and load_time.")
    ] = None
    progress_deadline: Annotated[
        Duration | None, doc("Time in which the next instance becomes healthy; above healthy_deadline.")
    ] = None
