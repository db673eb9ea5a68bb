"""Differences between a job as it runs and as it is planned.

Nomad's own Diff (nomad/structs/diff.go) names things as its Go structs do, tells a network of which one port
changed as one network less and one more, and leaves out most lists: spreads, a device's constraints, the
arguments of a check. So it is asked only where something differs; the two jobs tell what.
"""

import re
from collections.abc import Iterator, Set

from vllmjobs.changes.differences import fields
from vllmjobs.changes.jobs.registered import word
from vllmjobs.changes.jobs.tree import Path, Tree, below
from vllmjobs.changes.model import Field
from vllmjobs.text.json import Json

_PLACE = range(1, 5)  # words of a place in the Diff
# Blocks of a task that nomad/structs/diff.go does not compare.
_NOT_COMPARED = ("lifecycle", "restart", "scaling", "csi_plugin")


def planned_fields(diff: Json, before: Tree, after: Tree, of_job: bool = False) -> tuple[Field, ...]:
    """Return what differs, where Nomad sees a difference too: it adds to a job what nobody wrote.

    `diff` is a plan's Diff for a job without its groups, `of_job`, and for a group its part of TaskGroups.
    """
    places = set(_places(diff, ()))
    for task in diff.get("Tasks") or ():
        place = ("task", task["Name"])
        places.update([place] if task["Type"] in ("Added", "Deleted") else _places(task, place))
    tasks_of_both = below(before, "task").keys() & below(after, "task").keys()
    return tuple(
        field
        for field in fields(before, after, of_job)
        if _is_not_compared(field.path, tasks_of_both) or _is_at(field.path, places)
    )


def _places(diff: Json, place: Path) -> Iterator[Path]:
    """Yield where a job, a group or a task differs; for constraints, in which one."""
    for part in (*(diff.get("Fields") or ()), *(diff.get("Objects") or ())):
        if part["Type"] == "None":
            continue
        values = {field["Name"]: field["New"] or field["Old"] for field in part.get("Fields") or ()}
        which = [values.get("LTarget") or values["Operand"]] if part["Name"] == "Constraint" else []
        yield (*place, word(part["Name"].partition("[")[0]), *which)
        if any(inner["Name"] == "Identity" for inner in part.get("Objects") or ()):
            yield (*place, "service", "identity")


def _is_at(path: Path, places: Set[Path]) -> bool:
    """Tell whether a path is at one of the places.

    A service whose identity is at none has the identity that the servers' configuration gives to all
    (nomad/job_endpoint_hook_implicit_identities.go).
    """
    start = 2 if path[0] == "task" else 0
    if (path[start : start + 1], path[start + 2 : start + 3]) == (("service",), ("identity",)):
        return (*path[: start + 1], "identity") in places
    # A second constraint of the same attribute has a number.
    unnumbered = tuple(re.sub(r"#\d+$", "", part) for part in path)
    return any(unnumbered[:length] in places for length in _PLACE)


def _is_not_compared(path: Path, tasks_of_both: Set[str]) -> bool:
    """Tell whether nomad/structs/diff.go leaves out a path, so that it may differ all the same.

    A task that only one side has, and that is not in the Diff, is Nomad's: the proxy of a Connect service.
    """
    return path[0] == "spread" or (len(path) > 2 and path[2] in _NOT_COMPARED and path[1] in tasks_of_both)
