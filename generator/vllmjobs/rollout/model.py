"""The values of a release: its plan, what is observed of it, what can be done next, and what is recorded.

Times are seconds on one clock that never goes back; nothing here knows the time of day.
"""

from typing import Any, Literal

from vllmjobs.environment.rollout import Maintenance
from vllmjobs.text.value import Value

Result = Literal["pass", "fail", "undecided"]


class Number(Value, frozen=True):
    """One metric of a measurement: what the canaries show, and what it is compared with."""

    metric: str  # a key of `rollout.analysis.limits`: error_rate, time_to_first_token …
    canary: float | None  # the canaries' value; None without data
    stable: float | None  # the stable instances' value; None without data
    limit: str  # at most 0.05; above 0.01, at most 2 times the stable instances' 0.004
    result: Result  # the result for this metric alone


class Verdict(Value, frozen=True):
    """The result for one step of one group, with its reason and the numbers that it rests on."""

    result: Result
    reason: str  # time_to_first_token is 1.31 s, more than 2 times the stable instances' 0.21 s
    numbers: tuple[Number, ...] = ()  # the numbers of the last measurement
    canary_requests: int = 0  # the requests that the canaries had in the last window
    stable_requests: int = 0  # the requests that the stable instances had in the last window
    measurements: int = 0  # measurements of this step
    failures: int = 0  # measurements of this step that failed
    elapsed: float = 0  # seconds since the step began


class GroupPlan(Value, frozen=True):
    """The steps by which one group's canaries come to be promoted."""

    name: str
    shares: tuple[float, ...] = ()
    """The canaries' share of the requests at each step. Canaries have the first one by themselves; a group
    without canaries has no shares."""
    is_judged: bool = True  # each step needs a passing verdict; else they are promoted once healthy


class ReleasePlan(Value, frozen=True):
    """The release of one version of one job: its steps and its deadlines."""

    job: str
    version: int  # the job's version that is released
    groups: tuple[GroupPlan, ...]
    place_within: float  # seconds in which a canary is to have a node
    promote_by: float  # when canaries that are not promoted have taken too long: Nomad would wait for ever
    until: float  # the time at which the whole release has taken too long
    is_way_back: bool = False  # asked for by a person, or after a failure: never failed for room or time


class GroupState(Value, frozen=True):
    """The state of one group of the deployment."""

    desired_canaries: int = 0  # canaries that the deployment wants
    placed_canaries: int = 0  # canaries that have a node and have not ended
    unplaced_for: float = 0  # seconds for which fewer canaries are placed than desired
    healthy_canaries: int = 0  # canaries that run now and became healthy
    restarted_canaries: int = 0  # whose task ended by itself after they were healthy, and was started again
    promoted: bool = False
    desired_total: int = 0  # instances that the deployment wants, canaries included
    healthy: int = 0  # the deployment's healthy instances, canaries included
    unhealthy: int = 0  # the deployment's unhealthy instances
    old_healthy: int = 0  # of other versions: that run, pass their check, and are not told to stop
    old_running: int = 0  # of other versions: that have not ended, told to stop or not
    step: int = 0  # the index of the plan's share that was asked for last
    routed: bool = True  # the balancers give the canaries that share; also where none can be asked
    unrouted_for: float = 0  # seconds for which that share was asked for and not given
    gets_another_share: bool = False  # they give the canaries another share than that
    is_share_assumed: bool = False  # no balancer could be asked for the share, so it was taken as given
    verdict: Verdict | None = None  # the verdict on this step, once there is one


Status = Literal[
    "none", "initializing", "pending", "blocked", "unblocking", "running", "paused",
    "successful", "failed", "cancelled",
]  # fmt: skip
"""Nomad's words for a deployment (api/deployments.go), and `none` without a deployment."""


class Observation(Value, frozen=True):
    """A release as it is at one moment."""

    now: float
    version: int | None  # the job's version; None where the job was stopped or purged
    status: Status  # the status of the version's deployment
    deployment: str | None = None  # the ID of the version's deployment, once there is one
    description: str = ""  # Nomad's description of the deployment's status
    is_evaluated: bool = True  # the scheduler has evaluated the version
    groups: dict[str, GroupState] = {}  # the state of each group of the deployment, by name
    stable: int | None = None  # the newest that was deployed with success and is another job than the plan's
    has_reverted: bool = False  # we registered an older version in its place
    failed: "Fail | None" = None  # why we failed the deployment, if we did


class Wait(Value, frozen=True, tag=True):
    """Do nothing before something changes."""

    reason: str  # the thing that is waited for, in one clause


class Shift(Value, frozen=True, tag=True):
    """Give the canaries of some groups another share of the requests."""

    steps: dict[str, int]  # the index of the plan's share, by group


class Promote(Value, frozen=True, tag=True):
    """Promote all canaries: the old instances are stopped."""


class Fail(Value, frozen=True, tag=True):
    """Fail the deployment: the canaries are stopped."""

    reason: str  # the reason, in one clause
    outcome: "Outcome"  # the outcome of the release that follows from it


class Revert(Value, frozen=True, tag=True):
    """Register the last stable version anew; Nomad has not done so by itself."""

    version: int


class End(Value, frozen=True, tag=True):
    """Stop following: nothing is left to be done."""

    outcome: "Outcome"
    reason: str  # the reason, in one clause; empty after a success


Outcome = Literal["successful", "failed", "refused", "no-room", "superseded", "stopped", "left"]
"""The end of a release: `refused` by a verdict, `no-room` for its canaries, `superseded` by a newer version,
`stopped` with the job; `left` as it is, after its time was up."""

FAILED: tuple[Outcome, ...] = ("failed", "refused", "no-room")
"""The ends after which the version before is deployed again."""

Action = Wait | Shift | Promote | Fail | Revert | End

EXIT_CODES: dict[Outcome, int] = {
    "successful": 0, "failed": 1, "superseded": 1, "stopped": 1, "left": 1, "no-room": 3, "refused": 4,
}  # fmt: skip


class Notification(Value, frozen=True):
    """One event with its time and its place, as `--json` and `--notify` give it."""

    at: str  # the time in UTC, ISO 8601 with milliseconds: 2026-11-23T21:04:05.678Z
    kind: str  # a word or two with a hyphen: registered, canary-healthy, verdict, shifted, done …
    text: str  # one line for a person, without time, job and group
    job: str
    group: str | None = None  # the group's name, where the event is about one
    version: int | None = None  # the job's version, where it is known
    deployment: str | None = None  # the deployment's ID, once there is one
    data: dict[str, Any] = {}


class GateRules(Value, frozen=True):
    """The rules of an environment's gates."""

    approvals: int  # other people who have to approve a change
    maintenance: Maintenance | None  # the times at which changes are deployed; None for any time


class Record(Value, frozen=True):
    """The record of one version's release: item `vN` of the Nomad Variable `vllmjobs/releases/JOB`."""

    version: int
    at: str  # the time of its registration, as `Notification.at`
    by: str  # the name of the ACL token, else user@host
    outcome: Outcome | None = None  # None until the release has ended
    reason: str = ""  # empty until the release has ended
    now: str = ""  # given with `--now`; without secrets
    steps: dict[str, int] = {}  # the step that the verdict is about, by group
    verdicts: dict[str, Verdict] = {}  # the last verdict, by group
    digest: str = ""  # of all jobs of the environment: see `rollout.gates.digest`
    is_way_back: bool = False  # an older version, registered again by a person or after a failure
    life: int = 0  # the job's CreateIndex: another after a purge
    rules: GateRules | None = None  # the rules of the gates that it was deployed under
    weakened: tuple[str, ...] = ()  # the gates that it has weakened: `approvals: 2 → 0`
    approved: tuple[str, ...] = ()  # the people whose approval counted
