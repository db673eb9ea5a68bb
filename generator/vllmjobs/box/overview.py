"""The views of one box, for `status` and `logs`, from the answers of its supervisor."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from vllmjobs.text.english import columns, counted
from vllmjobs.text.json import Json
from vllmjobs.text.visible import one_line


def overview(job: str, health: Json) -> str:
    """Return the answer of /health (docs/supervisor.md) as lines: the box, then each server."""
    rows = [_row(name, one) for name, one in health["instances"].items()]
    lines = columns(rows).splitlines()
    up = _span(health["uptime_seconds"])
    head = f"{job} on this machine: {health['status']}, up for {up}"
    return "".join(f"{one_line(line)}\n" for line in [head, *lines, *_notes(health)])


def log_line(line: str, names: Collection[str]) -> str | None:
    """Return a line of the supervisor's log for people; None for a line of another server.

    A line of no server at all, such as a GPU that is condemned, is shown for every one.
    """
    try:
        record: Any = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):  # a line of Python itself
        return line
    name = record.pop("instance", None)
    if name is not None and name not in names:
        return None
    time, level = record.pop("time", ""), record.pop("level", "")
    for key in ("stream", "source", "logger"):
        record.pop(key, None)
    text = str(record.pop("message", record.pop("event", "")))
    more = " ".join(f"{key}={value}" for key, value in record.items())
    # A traceback is one record: each of its lines is told to be of this server, and of no other.
    lines = f"{time} {level} {text} {more}".rstrip().split("\n")
    return "\n".join(f"{name or 'all'} | {line}" for line in lines)


def _row(name: str, one: Json) -> list[str]:
    ready = f" for {_span(one['ready_seconds'])}" if one["ready_seconds"] is not None else ""
    asked = "" if one["unanswered"] is None else counted(one["unanswered"], "request")
    restarts = counted(one["restarts"], "restart") if one["restarts"] else ""
    pid = "" if one["pid"] is None else f"pid {one['pid']}"
    return [f"  {name}", f"{one['phase']}{ready}", pid, asked, ", ".join(one["gpus"]), restarts]


def _notes(health: Json) -> Iterator[str]:
    """Yield for each server that is not ready what it does, and why."""
    for name, one in health["instances"].items():
        if not one["ready"] and one["why"]:
            yield f"  {name}: {one['why']}"
        if text := health["progress"].get(name) if one["phase"] == "starting" else None:
            yield f"  {name}: {text}"


def _span(seconds: float) -> str:
    """Return a time in two units: 3h12m, 4m10s, 8s."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
