"""What happened between two looks, one line for a person each."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vllmjobs.rollout.deployments import Instance, is_ready
from vllmjobs.rollout.model import Observation, Verdict


class Happening(NamedTuple):
    """An `Event` without its time and place."""

    kind: str
    text: str
    group: str | None = None
    data: dict[str, Any] = {}


Seen = tuple[Observation, Mapping[str, Instance]]
"""A look: the observation, and every allocation by its id."""


def happenings(before: Seen | None, after: Seen) -> Iterator[Happening]:
    """What is new since the look before; at the first look, what there is of what is released."""
    was, now = (before[0] if before else None), after[0]
    for id, instance in after[1].items():
        yield from _of_instance(before[1].get(id) if before else None, instance, before is None)
    if now.status != "none" and (was is None or was.status != now.status):
        said = f": {now.description}" if now.description else ""
        yield Happening("deployment", f"deployment {now.status}{said}", None, {"status": now.status})
    for name, group in now.groups.items():
        old = was.groups.get(name) if was else None
        if group.promoted and old and not old.promoted:
            yield Happening("promoted", "canaries are promoted", name)
        if old and old.step == group.step and group.routed and not old.routed:
            yield Happening("routed", "the balancers give that share", name)
        if group.verdict and (news := _verdict(old.verdict if old else None, group.verdict)):
            yield news._replace(group=name, data=news.data | {"step": group.step})


def _of_instance(old: Instance | None, new: Instance, is_first: bool) -> Iterator[Happening]:
    """Of instances of other versions only that they stop is news."""
    data = {"allocation": new.id, "node": new.node, "version": new.version}
    name = f"{'canary' if new.is_canary else 'instance'} {new.id[:8]}"

    def happened(kind: str, text: str) -> Happening:
        return Happening(kind, f"{name} {text}", new.group, data)

    if new.is_of_deployment:
        if old is None:
            yield happened("placed", f"is {'' if is_first else 'placed '}on {new.node}")
        if is_ready(new) and not (old and is_ready(old)):
            yield happened("healthy", "is healthy")
        if new.healthy is False and not (old and old.healthy is False):
            yield happened("unhealthy", f"is unhealthy{_because(new)}")
        if old and new.restarts > old.restarts:
            yield happened("restarted", f"ended and was restarted{_because(new)}")
    if old is None and (is_first or not new.is_of_deployment):
        return
    if old and old.is_wanted and not new.is_wanted:
        yield happened("stopping", f"of version {new.version} is told to stop")
    if old and old.state != new.state:
        if new.state == "complete":
            yield happened("stopped", f"of version {new.version} has stopped")
        elif new.state in ("failed", "lost", "unknown"):
            yield happened(new.state, f"is {new.state}{_because(new)}")


def _because(instance: Instance) -> str:
    return f": {instance.why}" if instance.why else ""


def _verdict(old: Verdict | None, new: Verdict) -> Happening | None:
    """Whether a verdict is news: its result, or one more failed measurement. All are in the JSON."""
    if old and new.measurements == old.measurements:
        return None
    is_other = new.result != (old.result if old else "undecided")
    is_news = is_other or new.failures > (old.failures if old else 0)
    kind = "verdict" if is_news else "measured"
    return Happening(kind, f"{new.result}: {new.reason}", None, {"verdict": new})
