"""What a change does to jobs, as plain values. `--format json` prints them, so a name here is a promise.

Whoever makes a `Field` has hidden what may be a secret: see `vllmjobs.changes.hiding`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

VERSION = 1  # of the JSON: raised when a name goes, or means another thing; a new name does not raise it

GroupAction = Literal["new", "gone", "destructive", "in-place", "scale-up", "scale-down"]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A base of all: never changed, and every name always there."""


class Field(Value, frozen=True):
    """One value that differs."""

    path: Annotated[
        tuple[str, ...],
        Meta(
            description="In the jobspec's words, labels included, from below the job or the group: task, "
            "vllm, config, image; or service, vllm-prod-chat, check, ready, interval."
        ),
    ]
    before: Annotated[
        str | None,
        Meta(
            description="As the jobspec writes it, unquoted; null where there was none. One item of a list."
        ),
    ]
    after: str | None
    replaces: Annotated[
        bool,
        Meta(description="Whether Nomad replaces the group's allocations because of it."),
    ] = False
    hidden: Annotated[
        bool,
        Meta(description="May be a secret; `before` and `after` then only tell whether there was one."),
    ] = False


class Updates(Value, frozen=True):
    """What the scheduler would do with a group's allocations: Annotations.DesiredTGUpdates of a plan."""

    place: int = 0
    canary: int = 0
    destructive_update: int = 0
    in_place_update: int = 0
    stop: int = 0
    migrate: int = 0
    ignore: int = 0
    preemptions: int = 0


class Unplaced(Value, frozen=True):
    """Allocations for which there is no room: FailedTGAllocs of a plan."""

    wanted: Annotated[int, Meta(description="How many would be placed, canaries or others.")]
    failed: Annotated[int, Meta(description="How many of them cannot be.")]
    canaries: Annotated[bool, Meta(description="Whether it is canaries that cannot be placed.")]
    why: Annotated[
        tuple[str, ...],
        Meta(
            description="What stands in the way, one clause each: 4 nodes have nvidia/gpu, 3 GPUs are free, "
            "each canary needs 4 on one node."
        ),
    ]
    way_out: Annotated[
        tuple[str, ...],
        Meta(description="What a person may do, one clause each: set rollout.canaries: 1."),
    ]


class GroupChange(Value, frozen=True):
    """A task group, changed or not."""

    name: str
    actions: Annotated[
        tuple[GroupAction, ...],
        Meta(description="What Nomad does to its allocations; empty where it leaves them as they are."),
    ]
    count_before: Annotated[int | None, Meta(description="Instances; None where the group was not there.")]
    count_after: int | None
    gpus_before: Annotated[int | None, Meta(description="GPUs of one instance.")]
    gpus_after: int | None
    canaries: Annotated[
        int,
        Meta(
            description="How many are started beside the old ones, and wait for a promotion, before any old "
            "one is stopped."
        ),
    ] = 0
    fields: tuple[Field, ...] = ()
    updates: Annotated[Updates | None, Meta(description="Of a plan only, as `unplaced`.")] = None
    unplaced: Unplaced | None = None


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
        Meta(description="What is known of each group, such as chat: 1 of 1 canaries healthy, not promoted."),
    ]


class JobPlan(Value, frozen=True):
    """What only the cluster knows of a job."""

    modify_index: Annotated[
        int,
        Meta(description="For `nomad job run -check-index`; 0 where the job does not run."),
    ]
    run: Annotated[str, Meta(description="The command that makes this very change, and no other.")]
    warnings: Annotated[tuple[str, ...], Meta(description="Of Nomad's validation.")] = ()
    deployment: Deployment | None = None
    preempted: tuple[Preempted, ...] = ()


class JobChange(Value, frozen=True):
    """One job, changed or not."""

    job: Annotated[str, Meta(description="Its name for `render --job`: vllm, fabio, nginx.")]
    id: str
    namespace: str
    region: str
    action: Annotated[
        Literal["none", "new", "gone", "changed"],
        Meta(description="What is `gone` nobody stops: nothing renders it any more."),
    ]
    fields: Annotated[tuple[Field, ...], Meta(description="Changes of the job as a whole.")] = ()
    groups: Annotated[
        tuple[GroupChange, ...],
        Meta(description="Every group of both sides, in the order of the newer one."),
    ] = ()
    notes: Annotated[
        tuple[str, ...],
        Meta(description="What a person should know beside, one sentence each."),
    ] = ()
    plan: JobPlan | None = None


class Finding(Value, frozen=True):
    """What `check` says, at its place."""

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
        Meta(
            description="What they are compared with: a commit, a file, an environment, a cluster's address."
        ),
    ]
    jobs: tuple[JobChange, ...]
    findings: tuple[Finding, ...] = ()


class Report(Value, frozen=True):
    """What `diff` or `plan` says, whole."""

    command: Literal["diff", "plan"]
    environments: tuple[EnvironmentChange, ...]
    version: int = VERSION


def has_changed(job: JobChange) -> bool:
    """Whether a run of the job would do anything: a change, or placements that wait."""
    return job.action != "none" or any(map(is_waiting, job.groups))


def is_waiting(group: GroupChange) -> bool:
    """Whether instances are missing that a plan would place, if it could."""
    return bool(group.unplaced or (group.updates and group.updates.place))


def is_unplaceable(job: JobChange) -> bool:
    """Whether some of its allocations have no room."""
    return any(group.unplaced for group in job.groups)
