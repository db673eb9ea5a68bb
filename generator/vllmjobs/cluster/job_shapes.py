"""The shapes of Nomad's answers about jobs and plans: the fields that are read, as in `shapes`.

The names are those of api/{jobs,resources,tasks}.go of Nomad. What a job holds beside these, a report
compares word by word, whatever it is.
"""

from typing import Any, NotRequired, TypedDict


class _Rule(TypedDict):
    """A constraint."""

    LTarget: str
    RTarget: str
    Operand: str


class _AskedDevice(TypedDict):
    """The devices that a task asks for."""

    Name: str
    Count: NotRequired[int | None]
    Constraints: NotRequired[list[_Rule] | None]


class _AskedResources(TypedDict):
    """The resources that a task asks for."""

    Devices: NotRequired[list[_AskedDevice] | None]


class _Config(TypedDict):
    """The configuration of a task's driver."""

    image: NotRequired[str | None]
    args: NotRequired[list[Any] | None]


class _Task(TypedDict):
    """A task of a job."""

    Name: str
    Driver: str
    Config: NotRequired[_Config | None]
    Constraints: NotRequired[list[_Rule] | None]
    Resources: NotRequired[_AskedResources | None]


class _Group(TypedDict):
    """A group of a job."""

    Name: str
    Count: int
    Tasks: list[_Task]
    Constraints: NotRequired[list[_Rule] | None]


class _JobSpec(TypedDict):
    """A job, as far as somebody wrote it."""

    ID: str
    Type: str
    Name: NotRequired[str]
    NodePool: NotRequired[str | None]
    Datacenters: NotRequired[list[str] | None]
    Constraints: NotRequired[list[_Rule] | None]
    TaskGroups: list[_Group]


class ParsedJob(TypedDict):
    """A job that was only parsed: nothing is filled in."""

    Namespace: NotRequired[str | None]
    Region: NotRequired[str | None]


class CanonicalJob(_JobSpec):
    """A job that was parsed, with all defaults."""

    Namespace: str
    Region: str


class RegisteredJob(_JobSpec):
    """A version of a job, as Nomad keeps it."""

    Namespace: NotRequired[str | None]
    Region: NotRequired[str | None]
    Version: int
    JobModifyIndex: int
    SubmitTime: NotRequired[int]
    Stable: NotRequired[bool]
    Stop: NotRequired[bool]


class JobVersions(TypedDict):
    """The versions of a job."""

    Versions: NotRequired[list[RegisteredJob] | None]


class _FieldDiff(TypedDict):
    """A field that a plan compares."""

    Type: str
    Name: str
    Old: str
    New: str


class _ObjectDiff(TypedDict):
    """A block that a plan compares."""

    Type: str
    Name: str
    Fields: NotRequired[list[_FieldDiff] | None]
    Objects: "NotRequired[list[_ObjectDiff] | None]"


class _TaskDiff(_ObjectDiff):
    """A task that a plan compares."""


class _GroupDiff(_ObjectDiff):
    """A group that a plan compares."""

    Tasks: NotRequired[list[_TaskDiff] | None]


class _JobDiff(TypedDict):
    """A job that a plan compares."""

    Type: str
    Fields: NotRequired[list[_FieldDiff] | None]
    Objects: NotRequired[list[_ObjectDiff] | None]
    TaskGroups: NotRequired[list[_GroupDiff] | None]


class _Preempted(TypedDict):
    """An allocation that would have to go."""

    JobID: str
    TaskGroup: str
    Namespace: str
    NodeName: str


class _Annotations(TypedDict):
    """The numbers of a plan."""

    DesiredTGUpdates: NotRequired[dict[str, dict[str, int]] | None]
    PreemptedAllocs: NotRequired[list[_Preempted] | None]


class _Metric(TypedDict):
    """The reasons why a group has no room."""

    CoalescedFailures: NotRequired[int | None]
    NodesEvaluated: NotRequired[int | None]
    ConstraintFiltered: NotRequired[dict[str, int] | None]
    DimensionExhausted: NotRequired[dict[str, int] | None]
    QuotaExhausted: NotRequired[list[str] | None]


class Plan(TypedDict):
    """The scheduler's dry run of a job."""

    Diff: _JobDiff
    JobModifyIndex: int
    Warnings: NotRequired[str | None]
    Annotations: NotRequired[_Annotations | None]
    FailedTGAllocs: NotRequired[dict[str, _Metric] | None]
