"""Whether and when a child that failed is started again. Pure."""

from __future__ import annotations

import zlib

from vllmjobs.supervisor.model import Instance, Plan, Say

JITTER = 0.25
"""Of a pause, at most."""


def failed(plan: Plan, name: str, one: Instance, now: float) -> tuple[dict[str, object], list[Say]]:
    """What its failure changes of an instance, such as when it is due again, and what is to be said of it."""
    limits = plan.limits
    failures = (*(at for at in one.failures if at > now - limits.window), now)
    was_steady = one.ready_at is not None and now - one.ready_at >= limits.steady
    in_a_row = 0 if was_steady else one.in_a_row
    changes: dict[str, object] = {"failures": failures, "in_a_row": in_a_row + 1}
    if one.then != "start":
        return changes, []
    if len(failures) > (limits.restarts if one.was_ready else limits.restarts_never_ready):
        fields = {"failures": len(failures), "window": limits.window}
        return changes | {"then": "give_up"}, [Say("instance_given_up", "ERROR", name, fields)]
    pause = _backoff(plan, name, in_a_row, one.starts)
    fields = {"after_seconds": round(pause, 1), "failures": len(failures)}
    return changes | {"due": now + pause}, [Say("instance_restarts", "WARNING", name, fields)]


def _backoff(plan: Plan, name: str, in_a_row: int, starts: int) -> float:
    """Doubled each time, and a little more that differs from child to child."""
    pause = min(plan.limits.backoff_most, plan.limits.backoff * 2.0 ** min(in_a_row, 30))
    chance = zlib.crc32(f"{plan.seed} {name} {starts}".encode()) / 2**32
    return pause * (1 + JITTER * chance)
