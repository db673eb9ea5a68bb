"""A release, what is seen of it, and what can be done about it, as plain values.

Times are seconds on one clock that never goes back; nothing here knows the time of day.
"""

from typing import Any, Literal

import msgspec

Result = Literal["pass", "fail", "undecided"]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A base of all: never changed."""


class Number(Value, frozen=True):
    """One metric of a measurement: what the canaries show, and what it is held against."""

    metric: str
    """A key of `rollout.analysis.limits`: error_rate, time_to_first_token …"""
    canary: float | None
    """None where there is no data, as in `stable`."""
    stable: float | None
    limit: str
    """In words: at most 0.05; above 0.01, at most 2 times the stable instances' 0.004."""
    result: Result


class Verdict(Value, frozen=True):
    """What is to be said of one step of one group, and the numbers that it rests on."""

    result: Result
    reason: str
    """One clause: time_to_first_token is 1.31 s, more than 2 times the stable instances' 0.21 s."""
    numbers: tuple[Number, ...] = ()
    """Of the last measurement."""
    canary_requests: int = 0
    stable_requests: int = 0
    measurements: int = 0
    failures: int = 0
    """Measurements of this step that failed."""
    elapsed: float = 0
    """Seconds since the step began."""


class GroupPlan(Value, frozen=True):
    """How one group's canaries come to be promoted."""

    name: str
    shares: tuple[float, ...] = ()
    """One a step, of the requests; the first is what canaries have of themselves. Empty without canaries."""
    is_judged: bool = True
    """Whether each step needs a passing verdict; else canaries are promoted as soon as they are healthy."""


class Plan(Value, frozen=True):
    """One version of one job, on its way to be the stable one."""

    job: str
    version: int
    groups: tuple[GroupPlan, ...]
    place_within: float
    """Seconds in which a canary is to have a node."""
    promote_by: float
    """When canaries that are not promoted have taken too long: Nomad would wait for ever."""
    until: float
    """When the whole release has."""
    is_way_back: bool = False
    """Whether it is a person's word, or goes back: it is never failed for a lack of room or time."""


class Group(Value, frozen=True):
    """What is seen of a group of the deployment."""

    desired_canaries: int = 0
    placed_canaries: int = 0
    """That have not ended."""
    unplaced_for: float = 0
    """Seconds for which fewer are placed than desired."""
    healthy_canaries: int = 0
    """That run now, and became healthy."""
    restarted_canaries: int = 0
    """Whose task ended by itself after they were healthy, and was started again."""
    promoted: bool = False
    desired_total: int = 0
    healthy: int = 0
    """Of the deployment, canaries included."""
    unhealthy: int = 0
    old_healthy: int = 0
    """Instances of other versions that run and pass their check, and are not told to stop."""
    old_running: int = 0
    """Instances of other versions that have not ended, told to stop or not."""
    step: int = 0
    """Which of the plan's shares was asked for last."""
    routed: bool = True
    """Whether the balancers give the canaries that share; also where no balancer can be asked."""
    unrouted_for: float = 0
    """Seconds for which that share was asked and not given."""
    is_fed: bool = False
    """Whether the balancers give the canaries another share than that."""
    verdict: Verdict | None = None
    """Of this step."""


Status = Literal[
    "none", "initializing", "pending", "blocked", "unblocking", "running", "paused",
    "successful", "failed", "cancelled",
]  # fmt: skip
"""Nomad's words for a deployment (api/deployments.go), and `none` where there is none."""


class Observation(Value, frozen=True):
    """What is seen at one moment."""

    now: float
    version: int | None
    """The job's; None where the job was stopped or purged."""
    status: Status
    description: str = ""
    is_evaluated: bool = True
    """Whether the scheduler has looked at the version."""
    groups: dict[str, Group] = {}
    stable: int | None = None
    """The newest version of the job that was deployed with success and is another job than the plan's."""
    has_reverted: bool = False
    """Whether we registered an older version in its place."""
    failed: "Fail | None" = None
    """What we failed the deployment for, if it was us."""


class Wait(Value, frozen=True, tag=True):
    """Nothing is to be done before something changes."""

    reason: str


class Shift(Value, frozen=True, tag=True):
    """Give the canaries of these groups the share of that step."""

    steps: dict[str, int]


class Promote(Value, frozen=True, tag=True):
    """Promote all canaries: the old instances are stopped."""


class Fail(Value, frozen=True, tag=True):
    """Fail the deployment: the canaries are stopped."""

    reason: str
    outcome: "Outcome"


class Revert(Value, frozen=True, tag=True):
    """Register the last stable version anew; Nomad has not done so by itself."""

    version: int


class End(Value, frozen=True, tag=True):
    """Nothing is left to be done."""

    outcome: "Outcome"
    reason: str


Outcome = Literal["successful", "failed", "refused", "no-room", "superseded", "stopped", "left"]
"""How a release ended: `refused` by a verdict, `no-room` for its canaries, `superseded` by a newer version,
`stopped` with the job; `left` as it is, after its time was up."""

Action = Wait | Shift | Promote | Fail | Revert | End

EXIT_CODES: dict[Outcome, int] = {
    "successful": 0,
    "failed": 1,
    "superseded": 1,
    "stopped": 1,
    "left": 1,
    "no-room": 3,
    "refused": 4,
}


class Event(Value, frozen=True):
    """One thing that happened, as `--json` and `--notify` give it."""

    at: str
    """UTC, ISO 8601 with milliseconds: 2026-11-23T21:04:05.678Z."""
    kind: str
    """A word or two with a hyphen: registered, canary-healthy, verdict, shifted, promoted, failed, done …"""
    text: str
    """One line for a person, without time, job and group."""
    job: str
    group: str | None = None
    version: int | None = None
    deployment: str | None = None
    data: dict[str, Any] = {}


class Entry(Value, frozen=True):
    """What is kept of one version in the Nomad Variable `vllmjobs/releases/JOB`, as JSON under `vN`."""

    version: int
    at: str
    """When it was registered, as `Event.at`."""
    by: str
    """The name of the ACL token, else user@host."""
    outcome: Outcome | None = None
    reason: str = ""
    """Why it ended so; while it has not, empty."""
    now: str = ""
    """What `--now` said, where it was deployed outside of a maintenance window."""
    steps: dict[str, int] = {}
    """By group: the step that the verdict is of."""
    verdicts: dict[str, Verdict] = {}
    """By group: the last."""
    digest: str = ""
    """Of all jobs of the environment: `rollout.gates.digest`."""
    is_way_back: bool = False
    """Whether it is an older version, registered again by a person's word or after a failure."""
