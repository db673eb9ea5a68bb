"""The events of a release: what happened between two snapshots, one line for a person each."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vllmjobs.rollout.deployments import Allocation, is_ready
from vllmjobs.rollout.model import GroupState, Observation, Verdict


class Event(NamedTuple):
    """One thing that happened: a `Notification` without its time and place."""

    kind: str  # a word, as `Notification.kind`
    text: str
    group: str | None = None  # the group's name, where the event is about one
    data: dict[str, Any] = {}


class Snapshot(NamedTuple):
    """A release at one moment, with its allocations."""

    observation: Observation
    allocations: Mapping[str, Allocation]  # every allocation of the job, by its ID


def events(before: Snapshot | None, after: Snapshot) -> Iterator[Event]:
    """Yield what is new since the snapshot before; without one, the state of what is released."""
    was, now = (before.observation if before else None), after.observation
    for id, allocation in after.allocations.items():
        old = before.allocations.get(id) if before else None
        yield from _of_allocation(old, allocation, is_first=before is None)
    if now.status != "none" and (was is None or was.status != now.status):
        description = f": {now.description}" if now.description else ""
        yield Event("deployment", f"deployment {now.status}{description}", None, {"status": now.status})
    for name, group in now.groups.items():
        yield from _of_group(name, was.groups.get(name) if was else None, group)


def _of_group(name: str, old: GroupState | None, new: GroupState) -> Iterator[Event]:
    if new.is_share_assumed and not (old and old.is_share_assumed):
        text = f"{name}: no balancer tells which share canaries get; the share asked for is assumed"
        yield Event("warning", text)
    if new.promoted and old and not old.promoted:
        yield Event("promoted", "canaries are promoted", name)
    if old and old.step == new.step and new.routed and not old.routed:
        yield Event("routed", "the balancers give that share", name)
    if new.verdict and (event := _of_verdict(old.verdict if old else None, new.verdict)):
        yield event._replace(group=name, data=event.data | {"step": new.step})


def _of_allocation(old: Allocation | None, new: Allocation, is_first: bool) -> Iterator[Event]:
    """Yield the events of one allocation; of other versions, only that they stop is an event."""
    data = {"allocation": new.id, "node": new.node, "version": new.version}
    name = f"{'canary' if new.is_canary else 'instance'} {new.id[:8]}"

    def event(kind: str, text: str) -> Event:
        return Event(kind, f"{name} {text}", new.group, data)

    if new.is_of_deployment:
        if old is None:
            yield event("placed", f"is {'' if is_first else 'placed '}on {new.node}")
        if is_ready(new) and not (old and is_ready(old)):
            yield event("healthy", "is healthy")
        if new.healthy is False and not (old and old.healthy is False):
            yield event("unhealthy", f"is unhealthy{_because(new)}")
        if old and new.restarts > old.restarts:
            yield event("restarted", f"ended and was restarted{_because(new)}")
    if old is None and (is_first or not new.is_of_deployment):
        return
    if old and old.is_wanted and not new.is_wanted:
        yield event("stopping", f"of version {new.version} is told to stop")
    if old and old.state != new.state:
        if new.state == "complete":
            yield event("stopped", f"of version {new.version} has stopped")
        elif new.state in ("failed", "lost", "unknown"):
            yield event(new.state, f"is {new.state}{_because(new)}")


def _because(allocation: Allocation) -> str:
    return f": {allocation.why}" if allocation.why else ""


def _of_verdict(old: Verdict | None, new: Verdict) -> Event | None:
    """Return `verdict` for another result or one more failed measurement, else `measured`, for the JSON."""
    if old and new.measurements == old.measurements:
        return None
    is_other = new.result != (old.result if old else "undecided")
    is_news = is_other or new.failures > (old.failures if old else 0)
    kind = "verdict" if is_news else "measured"
    return Event(kind, f"{new.result}: {new.reason}", None, {"verdict": new})
