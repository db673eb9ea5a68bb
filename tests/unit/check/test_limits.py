"""Schedules, as Nomad 1.11's cronexpr read them or did not, and time zones."""

import pytest

from vllmjobs.check.limits import misread, no_time_zone


@pytest.mark.parametrize(
    "schedule",
    [
        "0 3 * * *", "*/15 0-6 1,15 JAN-mar mon-fri", "0 0 L * *", "0 0 lw * ?", "0 0 15W * *", "0 0 * * 5L",
        "0 0 * * sun#2", "5/20 * * * *", "05 00 01 01 00", "0 0 * * sunday", "1-59/2,,7 * * * *",
    ],
)  # fmt: skip
def test_schedules_that_nomad_reads_are_left_alone(schedule: str) -> None:
    assert misread(schedule) == ""


@pytest.mark.parametrize(
    ("schedule", "field"),
    [
        ("60 3 * * *", "'60' is no minute"),
        ("0 24 * * *", "'24' is no hour"),
        ("0 0 0 * *", "'0' is no day"),
        ("0 0 * 13 *", "'13' is no month"),
        ("0 0 * * 8", "'8' is no weekday"),
        ("three in the night please", "'three' is no minute"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("*/100 * * * *", "'*/100' is no minute"),
        ("0 0 L-3 * *", "'l-3' is no day"),
        ("0 0 * * 1#6", "'1#6' is no weekday"),
        (", * * * *", "',' is no minute"),
        # Nomad reads these, and they never come: its list of times is empty.
        ("50-10 * * * *", "'50-10' is no minute"),
        ("0 0 * nov-feb *", "'nov-feb' is no month"),
        ("0 0 * * 5-7", "'5-7' is no weekday"),
    ],
)
def test_schedules_that_nomad_cannot_read_or_that_never_come_name_their_field(
    schedule: str, field: str
) -> None:
    assert misread(schedule).startswith(field)


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+3"])
def test_time_zones_that_there_are_are_left_alone(name: str) -> None:
    assert no_time_zone(name) == ""


@pytest.mark.parametrize(
    "name", ["Europe", "../UTC", "/etc/passwd", "", "Mars/Olympus", "europe/berlin\n", "a" * 300]
)
def test_what_is_no_time_zone_is_said(name: str) -> None:
    assert "is no IANA name" in no_time_zone(name)


def test_the_time_zone_that_was_meant_is_named() -> None:
    assert no_time_zone("Europe/Berln").endswith("; did you mean Europe/Berlin?")
