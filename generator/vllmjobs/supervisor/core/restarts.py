"""The rules for whether and when a child that failed is started again."""

import zlib

from vllmjobs.supervisor.core.model import ChildState, LogEvent, SupervisorSpec

JITTER = 0.25  # the largest random part of a pause


def failed(
    spec: SupervisorSpec, name: str, one: ChildState, now: float
) -> tuple[dict[str, object], list[LogEvent]]:
    """Return what a failure changes of a child, such as when it is due again, and the events to log."""
    limits = spec.limits
    failures = (*(at for at in one.failures if at > now - limits.window), now)
    was_steady = one.ready_at is not None and now - one.ready_at >= limits.steady
    in_a_row = 0 if was_steady else one.in_a_row
    changes: dict[str, object] = {"failures": failures, "in_a_row": in_a_row + 1}
    if one.then != "start":
        return changes, []
    if len(failures) > (limits.restarts if one.was_ready else limits.restarts_never_ready):
        fields = {"failures": len(failures), "window": limits.window}
        return changes | {"then": "give_up"}, [LogEvent("instance_given_up", "ERROR", name, fields)]
    pause = _backoff(spec, name, in_a_row, one.starts)
    fields = {"after_seconds": round(pause, 1), "failures": len(failures)}
    return changes | {"due": now + pause}, [LogEvent("instance_restarts", "WARNING", name, fields)]


def _backoff(spec: SupervisorSpec, name: str, in_a_row: int, starts: int) -> float:
    """Return the pause: doubled each time, and a little more that differs from child to child."""
    pause = min(spec.limits.backoff_most, spec.limits.backoff * 2.0 ** min(in_a_row, 30))
    chance = zlib.crc32(f"{spec.seed} {name} {starts}".encode()) / 2**32
    return pause * (1 + JITTER * chance)
