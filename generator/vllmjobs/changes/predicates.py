"""Questions about what changes, which can be answered with yes or no."""

from vllmjobs.changes.model import GroupChange, JobChange


def has_changed(job: JobChange) -> bool:
    """Tell whether a run of the job would do anything: a change, or placements that wait."""
    return job.action != "none" or any(map(is_waiting, job.groups))


def is_unplaceable(job: JobChange) -> bool:
    """Tell whether some of the job's allocations have no room."""
    return any(group.unplaced for group in job.groups)


def is_changed(group: GroupChange) -> bool:
    """Tell whether a report has anything to say about a group."""
    return bool(group.actions or group.fields or is_waiting(group))


def is_waiting(group: GroupChange) -> bool:
    """Tell whether instances are missing that a plan would place, if it could."""
    return bool(group.unplaced or (group.updates and group.updates.place))


def is_untried(group: GroupChange) -> bool:
    """Tell whether running instances change, or go, without a canary before them."""
    is_less = "scale-down" in group.actions and ("destructive" in group.actions or not group.count_after)
    is_replaced = "destructive" in group.actions and not group.canaries
    return "in-place" in group.actions or is_replaced or is_less
