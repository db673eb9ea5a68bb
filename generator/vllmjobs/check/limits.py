"""VJ342 and VJ343: schedules and counts that Nomad would refuse."""

import re

from vllmjobs.check.rule import Findings, environment_rule
from vllmjobs.check.subject import Whole
from vllmjobs.environment.problems import KeyPath
from vllmjobs.environment.values import MAX_COUNT
from vllmjobs.text.english import did_you_mean

# https://data.iana.org/time-zones/theory.html, Timezone identifiers.
TIME_ZONE = r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}"
_MONTHS = (
    "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
    "|january|february|march|april|june|july|august|september|october|november|december"
)
_DAYS = "sun|mon|tue|wed|thu|fri|sat|sunday|monday|tuesday|wednesday|thursday|friday|saturday"
_NUMBERS = {word: n for n, word in enumerate(_MONTHS.split("|")[:12], 1)} | {
    word: n for n, word in enumerate(_DAYS.split("|")[:7])
}
# Each field's name, its values, its highest one, and what only it may hold: hashicorp/cronexpr v1.1.3,
# cronexpr_parse.go, by which Nomad reads a periodic job's schedule.
_FIELDS = (
    ("minute", "0?[0-9]|[1-5][0-9]", 59, ""),
    ("hour", "0?[0-9]|1[0-9]|2[0-3]", 23, ""),
    ("day", "0?[1-9]|[12][0-9]|3[01]", 31, "l|lw|({value})w"),
    ("month", f"0?[1-9]|1[012]|{_MONTHS}", 12, ""),
    ("weekday", f"0?[0-7]|{_DAYS}", 6, "({value})l|({value})#[1-5]"),
)


@environment_rule("VJ342", "error")
def backups_have_a_time(whole: Whole) -> Findings:
    """Find a schedule or a time zone of `cache_backup` that Nomad cannot read, or that never comes."""
    backup = whole.environment.cache_backup
    if backup is None:
        return
    if backup.schedule and (reason := misread(backup.schedule)):
        yield ("cache_backup", "schedule"), reason
    if reason := no_time_zone(backup.time_zone):
        yield ("cache_backup", "time_zone"), reason


@environment_rule("VJ343", "error")
def a_job_is_no_larger_than_nomad_allows(whole: Whole) -> Findings:
    """Find more instances than Nomad takes in one job: 50,000, its job_max_count, over all groups."""
    counts: dict[KeyPath, int] = {
        ("models", name, "replicas"): model.replicas for name, model in whole.environment.models.items()
    }
    total = sum(counts.values())
    if total > MAX_COUNT:
        yield (
            max(counts, key=lambda path: counts[path]),
            f"the models have {total:,} replicas together, and Nomad takes {MAX_COUNT:,} in one job "
            "(job_max_count of the servers); lower it, or give some models an environment of their own",
        )


def misread(schedule: str) -> str:
    """Return why Nomad cannot read a schedule of five fields, or never runs it; empty where it can."""
    for (name, value, highest, special), field in zip(_FIELDS, schedule.lower().split(), strict=True):
        entries = [entry for entry in field.split(",") if entry]
        if not entries or not all(_is_entry(entry, value, highest, special) for entry in entries):
            return (
                f"{field!r} is no {name} that Nomad can read; a schedule is minute, hour, day, month, "
                "weekday, as in a crontab: 0 3 * * *"
            )
    return ""


def no_time_zone(name: str) -> str:
    """Return why a name is no IANA time zone; empty where it is one.

    Only its spelling is judged on a machine that has no time zones.
    """
    import zoneinfo  # noqa: PLC0415 (few environments name one, and it takes three milliseconds)

    wrong = f"{name!r} is no IANA name of a time zone, such as Europe/Berlin or UTC"
    if not re.fullmatch(TIME_ZONE, name):
        return wrong
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):  # the last two for a folder of zones
        known = zoneinfo.available_timezones() if name != "UTC" else set()
        return wrong + did_you_mean(name, sorted(known)) if known else ""
    return ""


def _is_entry(entry: str, value: str, highest: int, special: str) -> bool:
    """Tell whether Nomad reads one entry of a field, such as `1-5` or `*/15`, and whether it ever comes."""
    if special and re.fullmatch(special.format(value=value), entry):
        return True
    match = re.fullmatch(rf"(?:[*?]|({value})|({value})-({value}))(?:/([0-9]{{1,2}}))?", entry)
    if not match or entry.startswith("?/"):
        return False
    _, first, last, step = match.groups()
    is_ascending = first is None or _number(first, highest) <= _number(last, highest)
    return is_ascending and (step is None or 1 <= int(step) <= highest)


def _number(value: str, highest: int) -> int:
    """Return a value's number, as Nomad counts it: Sunday is 0, also where it is written as 7."""
    if value.isalpha():
        return _NUMBERS[value[:3]]
    return 0 if (int(value), highest) == (7, 6) else int(value)
