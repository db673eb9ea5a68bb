"""VJ331 to VJ337: what a change does, and keys of a release that contradict each other or cannot be read."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from vllmjobs.check.limits import no_time_zone
from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.derive import canaries
from vllmjobs.environment.problems import KeyPath, dotted
from vllmjobs.environment.quantity import seconds

CRON = ("minute", "hour", "day", "month", "weekday")
UNRENDERED: list[KeyPath] = [("vllm",), ("config",), ("install",)]  # of them only consequences are in a job
LEAST_INTERVAL_S = 1.0  # each measurement asks every instance for its metrics


@model_rule("VJ331", "note")
def canaries_try_a_change(subject: Subject) -> Findings:
    """Find a change since the commit of `--against` that reaches all instances at once, with no canary.

    Nomad places canaries for a destructive change only.
    """
    before = subject.facts.before
    group = before and before.groups.get(subject.name)
    if not before or not group or group.actions[:1] != ("in-place",) or not canaries(subject.model):
        return
    was, now = before.environment.models.get(subject.name), subject.model
    every = _changed(msgspec.to_builtins(was), msgspec.to_builtins(now))
    changed = [path for path in every if path not in UNRENDERED]
    if changed:
        yield (
            changed[0],
            f"Nomad makes the change of {', '.join(map(dotted, changed))} in place: in all instances at "
            "once, with no canary and no promotion",
        )


@environment_rule("VJ332", "warning")
def promotion_is_of_all(whole: Whole) -> Findings:
    """Find `auto_promote` in one model that another keeps from working.

    Nomad promotes a deployment by itself only where every group with canaries asks for it.
    """
    models = whole.environment.models
    waiting = [name for name, it in models.items() if canaries(it) and not it.rollout.auto_promote]
    for name, model in models.items():
        if waiting and model.rollout.auto_promote:
            yield (
                ("models", name, "rollout", "auto_promote"),
                f"does nothing while {waiting[0]!r} has canaries without it: Nomad waits for a person; set "
                "it for every model, or for none",
            )


@environment_rule("VJ333", "error")
def windows_can_be_read(whole: Whole) -> Findings:
    """Find maintenance windows that `deploy` cannot read, or that never open.

    Schedules are read as cronsim reads them, and time zones from those of this machine.
    """
    maintenance = whole.environment.maintenance
    if maintenance is None:
        return
    for number, window in enumerate(maintenance.windows):
        place = ("maintenance", "windows", number)
        if reason := _misread(window.schedule):
            yield (*place, "schedule"), reason
        if not seconds(window.duration):
            yield (*place, "duration"), "must be above 0s: the window would never be open"
    if reason := no_time_zone(maintenance.time_zone):
        yield ("maintenance", "time_zone"), reason


@model_rule("VJ334", "error")
def steps_ascend(subject: Subject) -> Findings:
    """Find steps of a canary release that do not grow. Each gives more requests; `weight` is the first."""
    rollout = subject.model.rollout
    if rollout.strategy != "canary":
        return
    names = ["weight", *("the step before" for _ in rollout.steps[1:])]
    for number, (before, step) in enumerate(pairwise((rollout.weight, *rollout.steps))):
        if step <= before:
            yield (
                ("rollout", "steps", number),
                f"{step:g} is not above {names[number]}, {before:g}; each step gives canaries more requests",
            )


@model_rule("VJ335", "warning")
def steps_are_used(subject: Subject) -> Findings:
    """Find steps that the strategy, or a missing balancer, leaves unused.

    Only canaries behind a balancer get a share of the requests that grows.
    """
    rollout = subject.model.rollout
    if not rollout.steps:
        return
    if rollout.strategy != "canary":
        is_rolling = rollout.strategy == "rolling"
        effect = "replaces one instance after the other" if is_rolling else "switches at once"
        yield ("rollout", "steps"), f"strategy {rollout.strategy} {effect} and uses no steps; leave them out"
    elif not subject.balancer.gives_shares:
        yield ("rollout", "steps"), "no balancer is there to give the canaries a share; leave them out"


@model_rule("VJ336", "warning")
def verdicts_come_first(subject: Subject) -> Findings:
    """Find `auto_promote`, which does not wait for the analysis.

    Nomad promotes by itself as soon as the canaries are healthy (nomad/deploymentwatcher).
    """
    rollout = subject.model.rollout
    if rollout.auto_promote and rollout.analysis and canaries(subject.model):
        yield (
            ("rollout", "auto_promote"),
            "Nomad promotes as soon as the canaries are healthy, before there is any verdict on them; leave "
            "auto_promote out, or set analysis: null",
        )


@model_rule("VJ337", "error")
def analysis_can_measure(subject: Subject) -> Findings:
    """Find measurements further apart than a step is long, or too close.

    At least one interval fits into a step's window, and none is a load of its own.
    """
    analysis = subject.model.rollout.analysis
    if analysis is None:
        return
    place = ("rollout", "analysis", "interval")
    if seconds(analysis.interval) < LEAST_INTERVAL_S:
        yield place, f"must be at least 1s (got {analysis.interval})"
    elif seconds(analysis.interval) > seconds(analysis.window):
        yield place, f"{analysis.interval} is longer than window {analysis.window}: nothing would be measured"


def _misread(schedule: str) -> str:
    # Only here, as few environments have windows; its reading of a whole schedule wants a date, too.
    from cronsim import CronSimError  # noqa: PLC0415
    from cronsim.cronsim import Field  # noqa: PLC0415

    for name, kind, field in zip(CRON, list(Field)[1:], schedule.upper().split(), strict=True):
        try:
            kind.parse(field)
        except (CronSimError, AssertionError, ValueError):  # the last two for 5#1/2, and for long numbers
            return f"{field!r} is no {name}; a schedule is {', '.join(CRON)}, as in a crontab: 0 22 * * 1-5"
    return ""


def _changed(before: Any, after: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changed(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield path
