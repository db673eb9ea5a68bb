"""Evidence for a job that does not do what it should: placements, task events, the end of its logs."""

from __future__ import annotations

from pathlib import Path

import nomad

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.process import indent, tail

EVENTS = 6  # of each task
LINES = 12  # of each log


def of_job(client: nomad.Nomad, job: str, folder: Path) -> str:
    """Collect the evidence for the newest version of a job, and leave out what cannot be had."""
    try:
        version = client.job.get_job(job)["Version"]
        evaluations = client.job.get_evaluations(job)
        allocations = client.job.get_allocations(job)
    except nomad.api.exceptions.BaseNomadException as error:
        return f"{job}: {error}"
    lines = [line for evaluation in evaluations for line in _unplaced(evaluation)]
    for allocation in allocations:
        if allocation["JobVersion"] == version:
            lines += _allocation(allocation, folder)
    return "\n".join(lines) or f"{job} has no allocations and no placement failures"


def _unplaced(evaluation: Json) -> list[str]:
    if evaluation["Status"] != "blocked":
        return []
    return [
        f"group {group}: not placed; filtered {failed['ConstraintFiltered']}, "
        f"exhausted {failed['DimensionExhausted']} on {failed['NodesEvaluated']} nodes"
        for group, failed in (evaluation["FailedTGAllocs"] or {}).items()
    ]


def _allocation(allocation: Json, folder: Path) -> list[str]:
    status = allocation["ClientStatus"]
    lines = [f"allocation {allocation['ID'][:8]} on {allocation['NodeName']}: {status}"]
    logs = folder / allocation["NodeName"] / "alloc" / allocation["ID"] / "alloc" / "logs"
    for task, state in (allocation["TaskStates"] or {}).items():
        lines += [f"  {task}: {event['DisplayMessage']}" for event in state["Events"][-EVENTS:]]
        for log in sorted(logs.glob(f"{task}.std*.0")):
            lines += [f"  the end of {log}:", indent(tail(log, LINES))]
    return lines
