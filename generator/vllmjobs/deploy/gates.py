"""The gates of a release: approvals in a Nomad Variable, and maintenance windows by the clock."""

import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from math import ceil
from typing import NamedTuple

import msgspec
from cronsim import CronSim, CronSimError

from vllmjobs.cluster.deployments import Deployments, Token
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy import records
from vllmjobs.deploy.records import iso, who
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.quantity import duration, seconds
from vllmjobs.environment.rollout import Maintenance, Window
from vllmjobs.rollout.gates import (
    Approval,
    Approved,
    Proposal,
    RefusedError,
    count,
    current,
    in_force,
    life,
    nobody,
    propose,
    refusal,
    rules_of,
    version_to_be,
)
from vllmjobs.rollout.model import Record
from vllmjobs.text.english import did_you_mean

# More than a clock was ever set back, so that a start in the hour that comes twice is not passed over.
_SET_BACK = timedelta(hours=3)


class Gates(NamedTuple):
    """The gates that a change of an environment passes before it is registered."""

    environment: Environment
    file: str  # the environment's file, as a person knows it
    digest: str  # the digest of what others have approved: see `rollout.gates.digest`
    reason: str  # the words of `--now`; empty without
    approve: str  # the command with which others approve the change
    deployments: Deployments

    def admit(self, where: Where, version: int, is_resumed: bool) -> Record:
        """Return the record of the release of this version; raise `RefusedError` where a gate is closed.

        A change that weakens a gate meets the rules of the last version that was deployed, too. A release
        that is resumed needs no window: its canaries are not left alone because one has ended. It needs
        approvals: it may have been registered by somebody else. Raises `NomadError`.
        """
        now = datetime.now(UTC)
        proposal = proposed(
            self.deployments, where, self.environment, self.digest, version, is_resumed, self.reason
        )
        counted = approved(self.deployments, where, proposal, self.approve)
        if not (is_resumed or self.reason):
            for rules in proposal.rules:
                if closed := maintenance(rules.maintenance, now):
                    is_old = rules.maintenance != self.environment.maintenance
                    raise RefusedError(
                        closed.refusal(f"{self.file} as last deployed" if is_old else self.file)
                    )
        return Record(
            version=0,
            at=iso(now),
            by=who(self.deployments),
            now=self.reason,
            digest=self.digest,
            rules=rules_of(self.environment),
            weakened=proposal.weakened,
            approved=tuple(each.who for each in counted.by) if counted else (),
        )


def proposed(
    deployments: Deployments,
    where: Where,
    environment: Environment,
    digest: str,
    version: int | None = None,
    is_resumed: bool = False,
    reason: str = "",
) -> Proposal:
    """Return an environment as a change of the job; `version` is the next one where it is not given.

    Needs read-job, and `read` on the Variable `vllmjobs/releases/JOB`: without the rules of the last version,
    nobody can tell what is weakened. Raises `NomadError`.
    """
    job, known = deployments.cluster.job(*where), records.read(deployments, where)
    created = job.get("CreateIndex", 0) if job else None
    if version is None:
        version = version_to_be(job["Version"] if job else None)
    registered = [record.life for record in known]
    if version == 0:  # of earlier lives that were not recorded, too, as long as Nomad remembers them
        evaluations = deployments.evaluations(where)
        registered += [one["CreateIndex"] for one in evaluations if one["TriggeredBy"] == "job-register"]
    return propose(
        where.id,
        version,
        life(version, created, registered),
        digest,
        rules_of(environment),
        in_force(known, version if is_resumed else None),
        reason,
    )


def approvals(deployments: Deployments, where: Where) -> list[Approval]:
    """Return the approvals in the Variable of a job, void or not. Needs `read` on it. Raises `NomadError`."""
    return list(_read(deployments.variable(_path(where), where)[0]))


def write_approval(
    deployments: Deployments, where: Where, proposal: Proposal, now: datetime
) -> list[Approval]:
    """Write the approval of the person whose NOMAD_TOKEN it is; return all that are kept then.

    See `current` for what is dropped. Needs `read` and `write` on the Variable. Raises `RefusedError` where
    ACLs are off, `NomadError`.
    """
    token = _person(deployments, proposal, "approves")
    mine = Approval(token.accessor, token.name, proposal.version, proposal.life, proposal.digest, iso(now))
    kept: dict[str, Approval] = {}

    def with_mine(items: dict[str, str]) -> dict[str, str] | None:
        nonlocal kept
        kept = {_key(each): each for each in current(_read(items), proposal)}
        if (old := kept.get(_key(mine))) and old.digest == proposal.digest:
            return None
        kept[_key(mine)] = mine
        return {key: msgspec.json.encode(each).decode() for key, each in kept.items()}

    deployments.update_variable(_path(where), where, with_mine)
    return list(kept.values())


def approved(deployments: Deployments, where: Where, proposal: Proposal, command: str) -> Approved | None:
    """Return the approvals, where enough people other than the one who deploys approve.

    None where no approvals are required. `command` is what others are to run. Raises `RefusedError` where
    approvals are missing, or cannot be told apart because ACLs are off; `NomadError`.
    """
    if not proposal.required:
        return None
    token = _person(deployments, proposal, "deploys")
    counted = count(approvals(deployments, where), proposal, token)
    if counted.missing:
        raise RefusedError(refusal(counted, command))
    return counted


def _person(deployments: Deployments, proposal: Proposal, does: str) -> Token:
    if token := deployments.token():
        return token
    raise RefusedError(f"{deployments.address}: {nobody(proposal, does)}")


def _path(where: Where) -> str:
    return f"vllmjobs/approvals/{where.id}"


def _key(approval: Approval) -> str:
    """Return a key for each version: to approve the next one takes nothing from a release that goes on."""
    return f"v{approval.version}.{approval.accessor}"


def _read(items: dict[str, str]) -> Iterator[Approval]:
    """Yield the approvals; anything else that is written there is left out."""
    for key, text in items.items():
        try:
            approval = msgspec.json.decode(text, type=Approval)
        except msgspec.DecodeError:
            continue
        if key == _key(approval):
            yield approval


class Closed(NamedTuple):
    """The state in which no maintenance window is open."""

    now: datetime  # the time, in UTC
    opens: datetime | None  # in the environment's time zone; None where none opens in the next 50 years
    time_zone: str  # the name of the environment's time zone

    def refusal(self, file: str) -> str:
        """Write why a change is refused, and the way out; `file` is the environment's."""
        if self.opens is None:
            until = "closed, and no window ever opens"
        else:
            this_year = self.now.astimezone(self.opens.tzinfo).year
            year = "" if self.opens.year == this_year else f" {self.opens.year}"
            wait = duration(ceil((self.opens - self.now).total_seconds() / 60) * 60)
            until = f"closed until {self.opens:%a} {self.opens.day} {self.opens:%b}{year} {self.opens:%H:%M}"
            until += f" {self.time_zone} (in {wait})"
        return f"{file}: maintenance: {until}; --now REASON deploys anyway"


def maintenance(maintenance: Maintenance | None, now: datetime) -> Closed | None:
    """Return the closed state, or None where a change may be deployed at this time, which has a time zone.

    A window lasts its duration in real time, whatever is done to the clocks meanwhile. Its schedule is read
    as Debian's cron does it: a start in the hour that a clock leaves out is at the end of that hour, and one
    in the hour that comes twice is in the first of the two (`*` for minute or hour: in both). Raises
    `UserError` for a schedule or time zone that cannot be read.
    """
    if maintenance is None:
        return None
    zone, now = _zone(maintenance.time_zone), now.astimezone(UTC)
    if any(_is_open(window, now, zone) for window in maintenance.windows):
        return None
    opens = min(_next_starts(maintenance.windows, now, zone), default=None)
    return Closed(now, opens and opens.astimezone(zone), maintenance.time_zone)


def _is_open(window: Window, now: datetime, zone: tzinfo) -> bool:
    # Of starts whose windows overlap, the last one's ends last.
    starts = _starts(window, now + _SET_BACK, zone, reverse=True)
    start = next((each for each in starts if each <= now), None)
    return start is not None and (now - start).total_seconds() < seconds(window.duration)


def _next_starts(windows: Iterable[Window], now: datetime, zone: tzinfo) -> Iterator[datetime]:
    for window in windows:
        starts = _starts(window, now - _SET_BACK, zone)
        if start := next((each for each in starts if each > now), None):
            yield start


def _starts(window: Window, origin: datetime, zone: tzinfo, reverse: bool = False) -> Iterator[datetime]:
    """Yield starts in UTC: Python compares and subtracts times of one zone by the faces of its clocks."""
    try:
        starts = CronSim(window.schedule, origin.astimezone(zone), reverse)
    except (CronSimError, AssertionError, ValueError) as error:  # `check` names the field
        wrong = f"schedule {window.schedule!r} cannot be read, or never comes"
        raise UserError(f"maintenance: {wrong}") from error
    return (start.astimezone(UTC) for start in starts)


def _zone(name: str) -> tzinfo:
    if name == "UTC":  # also where a machine has no time zones
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        if known := sorted(zoneinfo.available_timezones()):
            wrong = f"knows no time zone {name}{did_you_mean(name, known)}"
        else:
            way_out = "install tzdata (`pip install tzdata`, or the system's package of that name)"
            wrong = f"has no time zones, so {name} is not known; {way_out}"
        raise UserError(f"maintenance.time_zone: this machine {wrong}") from error
