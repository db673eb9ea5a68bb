"""Changes of jobs, as plain values. `--format json` prints them, so the name of a field is a promise.

Whoever makes a `Field` has hidden what may be a secret: see `vllmjobs.changes.hiding`.
"""

from typing import Annotated, Literal

from vllmjobs.environment.placement import doc
from vllmjobs.text.value import Value

VERSION = 1  # of the JSON: raised when a name goes, or means another thing; a new name does not raise it

GroupAction = Literal["new", "gone", "destructive", "in-place", "scale-up", "scale-down"]


class Field(Value, frozen=True):
    """One value that differs."""

    path: Annotated[
        tuple[str, ...],
        doc(
            "In the jobspec's words, labels included, from below the job or the group: task, "
            "vllm, config, image; or service, vllm-prod-chat, check, ready, interval."
        ),
    ]
    before: Annotated[
        str | None,
        doc("As the jobspec writes it, unquoted; null where there was none. One item of a list."),
    ]
    after: str | None
    replaces: Annotated[bool, doc("Whether Nomad replaces the group's allocations because of it.")] = False
    hidden: Annotated[
        bool, doc("May be a secret; `before` and `after` then only tell whether there was one.")
    ] = False


class Updates(Value, frozen=True):
    """The scheduler's numbers for a group's allocations: Annotations.DesiredTGUpdates of a plan."""

    place: int = 0
    canary: int = 0
    destructive_update: int = 0
    in_place_update: int = 0
    stop: int = 0
    migrate: int = 0
    ignore: int = 0
    preemptions: int = 0


ReasonKind = Literal[
    # the nodes that there are
    "node-pool", "datacenter", "no-nodes", "node-state", "node-fenced", "nodes-unknown",
    # nodes that are ruled out
    "ruled-out", "nodes-fenced", "constraint", "distinct-hosts", "distinct-property", "driver", "host-volume",
    "network-mode", "secrets-provider", "consul", "vault", "signals", "service-discovery", "nomad-version",
    "cni-plugin", "device", "unusable",
    # nodes that are full
    "quota", "resource", "cores", "port", "full",
    # GPUs
    "no-gpus", "gpus-elsewhere", "gpus-missing", "gpu-model", "gpu-memory", "gpu-constraints", "gpus",
    "gpus-taken", "gpus-unhealthy", "gpus-given",
]  # fmt: skip
RemedyKind = Literal[
    "set", "lower", "change", "change-constraint", "move", "raise-quota", "free-gpus", "free-gpus-on-any",
    "mend-gpus", "check-device-plugin", "make-eligible", "lift-fence", "read-runbook", "run-consul",
    "set-up-vault", "upgrade-nomad", "install-cni-plugins",
]  # fmt: skip


class Amount(Value, frozen=True):
    """A name and how many there are of it."""

    name: str
    count: int


class Holder(Value, frozen=True):
    """A job that holds what is missing."""

    job: str
    count: int
    own: Annotated[bool, doc("Whether it is the job that is planned.")] = False


class Setting(Value, frozen=True):
    """A key of the environment and its new value."""

    key: str
    value: Annotated[str | None, doc("null where it is for a person to choose, such as a free port.")] = None


class Reason(Value, frozen=True):
    """One thing that stands in the way of an allocation; what a kind has no use for is null or empty."""

    kind: ReasonKind
    nodes: Annotated[int | None, doc("How many nodes it is about.")] = None
    node: Annotated[str | None, doc("The one node that it is about.")] = None
    resource: Annotated[
        str | None,
        doc(
            "What is missing: memory, cpu, disk; a driver; a port's label; nvidia/gpu with what "
            "is asked of it; a GPU's model."
        ),
    ] = None
    unit: Annotated[str | None, doc("MiB or MHz.")] = None
    needed: Annotated[int | None, doc("How much each allocation needs.")] = None
    free: Annotated[int | None, doc("How much is free on all nodes together.")] = None
    most_free: Annotated[int | None, doc("How much is free on one node at most.")] = None
    largest: Annotated[
        int | None, doc("How much one node has at most, free or not; for gpu-memory, one GPU in MiB.")
    ] = None
    port: int | None = None
    node_pool: str | None = None
    datacenters: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()
    counts: Annotated[
        tuple[Amount, ...],
        doc(
            "What there is instead: node pools, datacenters and drivers with their nodes, models "
            "with their GPUs. Of gpus-unhealthy, the faults; of gpus-given, groups and the GPUs they get."
        ),
    ] = ()
    text: Annotated[
        str | None, doc("What Nomad says of it: a constraint, a node's state, why a node is fenced.")
    ] = None


class Remedy(Value, frozen=True):
    """One thing that a person may do; what a kind has no use for is null or empty."""

    kind: RemedyKind
    settings: Annotated[
        tuple[Setting, ...], doc("Keys of the environment that are to be changed together.")
    ] = ()
    node: str | None = None
    node_pool: str | None = None
    datacenter: str | None = None
    gpus: Annotated[
        tuple[Amount, ...], doc("How many GPUs, on which nodes; on one of them for free-gpus-on-any.")
    ] = ()
    command: Annotated[str | None, doc("What to type.")] = None


class Unplaced(Value, frozen=True):
    """Allocations for which there is no room: FailedTGAllocs of a plan."""

    wanted: Annotated[int, doc("How many would be placed, canaries or others.")]
    failed: Annotated[int, doc("How many of them cannot be.")]
    canaries: Annotated[bool, doc("Whether it is canaries that cannot be placed.")]
    reasons: Annotated[tuple[Reason, ...], doc("What stands in the way.")] = ()
    remedies: Annotated[tuple[Remedy, ...], doc("What a person may do; each of them may be enough.")] = ()


class GroupChange(Value, frozen=True):
    """A task group, changed or not."""

    name: str
    actions: Annotated[
        tuple[GroupAction, ...],
        doc("What Nomad does to its allocations; empty where it leaves them as they are."),
    ]
    count_before: Annotated[int | None, doc("Instances; None where the group was not there.")]
    count_after: int | None
    gpus_before: Annotated[int | None, doc("GPUs of one instance.")]
    gpus_after: int | None
    canaries: Annotated[
        int,
        doc(
            "How many are started beside the old ones, and wait for a promotion, before any old "
            "one is stopped."
        ),
    ] = 0
    fields: tuple[Field, ...] = ()
    updates: Annotated[Updates | None, doc("Of a plan only, as `unplaced`.")] = None
    unplaced: Unplaced | None = None

    @property
    def is_changed(self) -> bool:
        """True where a report has anything to say about it."""
        return bool(self.actions or self.fields or self.is_waiting)

    @property
    def is_waiting(self) -> bool:
        """True where instances are missing that a plan would place, if it could."""
        return bool(self.unplaced or (self.updates and self.updates.place))

    @property
    def is_untried(self) -> bool:
        """True where running instances change, or go, without a canary before them."""
        is_less = "scale-down" in self.actions and ("destructive" in self.actions or not self.count_after)
        is_replaced = "destructive" in self.actions and not self.canaries
        return "in-place" in self.actions or is_replaced or is_less


class Preempted(Value, frozen=True):
    """An allocation of another job that would be stopped to make room."""

    job: str
    group: str
    namespace: str
    node: str
    count: int


class Deployment(Value, frozen=True):
    """A deployment that has not ended, which a run of the job would cancel."""

    id: str
    job_version: int
    status: str
    description: str
    groups: Annotated[
        tuple[str, ...],
        doc("What is known of each group, such as chat: 1 of 1 canaries healthy, not promoted."),
    ]


class JobPlan(Value, frozen=True):
    """Facts about a job that only the cluster knows."""

    modify_index: Annotated[int, doc("For `nomad job run -check-index`; 0 where the job does not run.")]
    run: Annotated[str, doc("The command that makes exactly this change.")]
    warnings: Annotated[tuple[str, ...], doc("Of Nomad's validation.")] = ()
    deployment: Deployment | None = None
    preempted: tuple[Preempted, ...] = ()


class JobChange(Value, frozen=True):
    """One job, changed or not."""

    job: Annotated[str, doc("Its name for `render --job`: vllm, fabio, nginx.")]
    id: str
    namespace: str
    region: str
    action: Annotated[
        Literal["none", "new", "gone", "changed"],
        doc("What is `gone` nobody stops: nothing renders it any more."),
    ]
    fields: Annotated[tuple[Field, ...], doc("Changes of the job as a whole.")] = ()
    groups: Annotated[
        tuple[GroupChange, ...], doc("Every group of both sides, in the order of the newer one.")
    ] = ()
    notes: Annotated[tuple[str, ...], doc("What a person should know beside, one sentence each.")] = ()
    plan: JobPlan | None = None

    @property
    def has_changed(self) -> bool:
        """True where a run of the job would do anything: a change, or placements that wait."""
        return self.action != "none" or any(group.is_waiting for group in self.groups)

    @property
    def is_unplaceable(self) -> bool:
        """True where some of its allocations have no room."""
        return any(group.unplaced for group in self.groups)


class Finding(Value, frozen=True):
    """A finding of `check`, at its place."""

    file: str
    line: int
    column: int
    rule: str
    severity: Literal["error", "warning", "note"]
    path: str
    message: str


class EnvironmentChange(Value, frozen=True):
    """All jobs of an environment."""

    name: str
    against: Annotated[
        str,
        doc("What they are compared with: a commit, a file, an environment, a cluster's address."),
    ]
    jobs: tuple[JobChange, ...]
    findings: tuple[Finding, ...] = ()


class Report(Value, frozen=True):
    """The whole report of `diff` or `plan`."""

    command: Literal["diff", "plan"]
    environments: tuple[EnvironmentChange, ...]
    version: int = VERSION

    @property
    def jobs(self) -> list[JobChange]:
        """The jobs of all environments."""
        return [job for environment in self.environments for job in environment.jobs]
