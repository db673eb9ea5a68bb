"""Approvals, counted, and maintenance windows, open or closed."""

from __future__ import annotations

import sys
import zoneinfo
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.deploy.gates import maintenance
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.rollout import Maintenance, Window
from vllmjobs.rollout.gates import Approval, count, current, digest, listed, refusal, version_to_be
from vllmjobs.text.visible import visible

D = "3f2a9c1b04de" + 52 * "0"
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def by(accessor: str, name: str = "", version: int = 8, content: str = D, at: str = "") -> Approval:
    return Approval(
        accessor, name, version, content, at or f"2026-11-23T21:00:{len(accessor + name):02}.000Z"
    )


def names(*approvals: Approval, deployer: tuple[str, str] | None = None) -> list[str]:
    return [each.who for each in count(approvals, 2, "vllm-prod", 8, D, deployer).by]


# Approvals


def test_two_people_are_two() -> None:
    counted = count([by("a1", "ann"), by("b1", "ben")], 2, "vllm-prod", 8, D, ("d1", "dan"))
    assert (len(counted.by), counted.missing, counted.own) == (2, 0, False)


def test_an_approval_is_for_one_version_and_one_content() -> None:
    assert names(by("a1", "ann", version=7), by("b1", "ben", version=9), by("c1", "cem", content="0")) == []


def test_one_person_counts_once_however_often_they_log_in() -> None:
    assert names(by("a1", "ann"), by("a2", "ann"), by("a1", "ann")) == ["ann"]


def test_tokens_without_a_name_are_told_apart_by_their_accessor_ids() -> None:
    assert names(by("11111111-2222"), by("33333333-4444")) == ["11111111", "33333333"]


def test_what_shares_its_name_with_one_and_its_accessor_with_another_makes_them_one() -> None:
    assert names(by("a1", "ann"), by("b1", "ben"), by("a1", "ben", at="2027")) == ["ann"]


@pytest.mark.parametrize("deployer", [("a1", "other"), ("z9", "ann"), ("a1", "ann")])
def test_who_deploys_cannot_approve(deployer: tuple[str, str]) -> None:
    assert names(by("a1", "ann"), by("b1", "ben"), deployer=deployer) == ["ben"]
    assert count([by("a1", "ann")], 1, "vllm-prod", 8, D, deployer).own


def test_a_nameless_deployer_is_not_every_nameless_approver() -> None:
    assert names(by("b1"), deployer=("a1", "")) == ["b1"]


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "ann", "ben", "cem"])), max_size=6),
    st.permutations(range(6)),
)
def test_the_count_does_not_depend_on_the_order(people: list[tuple[str, str]], order: list[int]) -> None:
    ones = [by(*person, at=f"2026-{number}") for number, person in enumerate(people)]
    others = [by(*person, at=f"2026-{number}") for number, person in zip(order, people, strict=False)]
    assert len(names(*ones, deployer=("a", "ann"))) == len(names(*others, deployer=("a", "ann")))


def test_the_next_version_follows_the_latest() -> None:
    assert (version_to_be(None), version_to_be(0), version_to_be(7)) == (0, 1, 8)


def test_what_neither_runs_nor_comes_next_is_void() -> None:
    kept = current([by("a", version=version) for version in range(10)], latest=7)
    assert [each.version for each in kept] == [7, 8]
    assert [each.version for each in current([by("a", version=0), by("a", version=1)], None)] == [0]


def test_the_digest_is_of_all_jobs_as_a_person_would_take_it() -> None:
    # printf 'job "a" {}\njob "b" {}\n' | sha256sum
    assert digest({"vllm": 'job "a" {}\n', "fabio": 'job "b" {}\n'}) == (
        "f54a4af4022551e2f8f5350bf676220d8d1aa46134655386eef7a065b89eb67c"
    )


def test_a_refusal_says_what_is_missing_and_who_is_to_run_what() -> None:
    approvals = [by("a1", "ann"), by("d1", "dan")]
    assert refusal(count(approvals, 2, "vllm-prod", 8, D, ("d1", "dan")), "vllmjobs approve prod") == (
        "vllm-prod, version 8, 3f2a9c1b04de: 1 of 2 approvals (ann); your own does not count; "
        "one other person must run vllmjobs approve prod"
    )
    assert refusal(count([], 2, "vllm-prod", 8, D), "vllmjobs approve prod") == (
        "vllm-prod, version 8, 3f2a9c1b04de: 0 of 2 approvals; 2 other people must run vllmjobs approve prod"
    )


def test_a_list_names_approvals_of_other_content_too() -> None:
    approvals = [by("a1", "ann", at="2026-11-23T21:04:05.678Z"), by("b1", "ben", content=64 * "9", at="2026")]
    assert listed(count(approvals, 2, "vllm-prod", 8, D), approvals) == (
        "vllm-prod, version 8, 3f2a9c1b04de: 1 of 2 approvals\n"
        "  ann, 2026-11-23T21:04:05.678Z\n"
        "  ben, 2026: for other content, 999999999999; does not count\n"
    )


# Maintenance windows


def refusal_at(schedule: str, duration: str, now: datetime, zone: str = "Europe/Berlin") -> str | None:
    """Return the refusal at that time; None where a window is open."""
    closed = maintenance(Maintenance(windows=[Window(schedule, duration)], time_zone=zone), now)
    return closed.refusal("envs/prod.yaml") if closed else None


def local(*numbers: int, fold: int = 0) -> datetime:
    return datetime(*numbers, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type,misc]


def test_without_windows_it_is_always_time() -> None:
    assert maintenance(None, datetime.now(UTC)) is None


def test_a_window_is_open_from_its_start_and_no_longer_than_it_lasts() -> None:
    for hour, minute, second, is_open in [
        (21, 59, 59, False), (22, 0, 0, True), (23, 59, 59, True), (0, 0, 0, False),
    ]:  # fmt: skip
        assert (refusal_at("0 22 * * *", "2h", local(2026, 11, 23, hour, minute, second)) is None) == is_open


def test_a_refusal_says_when_the_next_window_opens_and_the_way_out() -> None:
    assert refusal_at("0 22 * * 1-5", "4h", local(2026, 11, 23, 18, 48, 1)) == (
        "envs/prod.yaml: maintenance: closed until Mon 23 Nov 22:00 Europe/Berlin (in 3h12m); "
        "--now REASON deploys anyway"
    )
    assert "closed until Mon 4 Jan 2027 22:00 Europe/Berlin" in str(
        refusal_at("0 22 * 1 1", "4h", local(2026, 11, 23))
    )


def test_of_several_windows_any_will_do_and_the_next_is_named() -> None:
    windows = Maintenance(windows=[Window("0 22 * * *", "2h"), Window("0 23 * * *", "3h")], time_zone="UTC")
    assert maintenance(windows, datetime(2026, 11, 24, 1, 30, tzinfo=UTC)) is None
    closed = maintenance(windows, datetime(2026, 11, 24, 2, 30, tzinfo=UTC))
    assert closed and closed.opens == datetime(2026, 11, 24, 22, 0, tzinfo=UTC)


def test_a_window_may_overlap_itself() -> None:
    assert refusal_at("0 * * * *", "90m", local(2026, 11, 23, 12, 59)) is None


def test_the_time_of_the_machine_does_not_matter() -> None:
    now = local(2026, 11, 23, 22, 30)
    assert refusal_at("0 22 * * *", "1h", now.astimezone(zoneinfo.ZoneInfo("Asia/Tokyo"))) is None


@pytest.mark.parametrize(("evening", "end"), [((2026, 3, 28), 3), ((2026, 10, 24), 2)])
def test_four_hours_are_four_hours_in_the_nights_in_which_the_clocks_change(
    evening: tuple[int, int, int], end: int
) -> None:
    start = local(*evening, 22).astimezone(UTC)
    assert refusal_at("0 22 * * *", "4h", start + timedelta(hours=4, seconds=-1)) is None
    assert refusal_at("0 22 * * *", "4h", start + timedelta(hours=4)) is not None
    # In autumn, the hour that comes twice begins then.
    assert (start + timedelta(hours=4)).astimezone(BERLIN).hour == end


def test_a_start_in_the_hour_that_is_left_out_is_at_its_end() -> None:
    assert refusal_at("30 2 * * *", "10m", local(2026, 3, 29, 3, 5)) is None


def test_a_start_in_the_hour_that_comes_twice_is_in_the_first() -> None:
    assert refusal_at("30 2 * * *", "1h", local(2026, 10, 25, 2, 45)) is None
    assert refusal_at("30 2 * * *", "1h", local(2026, 10, 25, 2, 15, fold=1)) is None
    assert refusal_at("30 2 * * *", "1h", local(2026, 10, 25, 2, 45, fold=1)) is not None


MINUTES = st.integers(0, 366 * 24 * 60)


@given(
    st.sampled_from(
        ["0 22 * * 1-5", "30 2 * * *", "15,45 1-3 * * 0", "*/20 * * * *", "0 0 1 * *", "30 * * * 0"]
    ),
    st.sampled_from(["10m", "4h", "30h"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
    MINUTES,
)
def test_a_window_is_open_where_a_start_lies_within_its_duration(
    schedule: str, duration: str, zone: str, minute: int
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    lasts = timedelta(hours=float(duration[:-1])) if duration[-1] == "h" else timedelta(minutes=10)
    origin = (now - lasts - timedelta(hours=30)).astimezone(zoneinfo.ZoneInfo(zone))
    starts = [start.astimezone(UTC) for start in islice(CronSim(schedule, origin), 400)]
    is_open = any(start <= now < start + lasts for start in starts)
    closed = maintenance(Maintenance(windows=[Window(schedule, duration)], time_zone=zone), now)
    assert (closed is None) == is_open
    if closed:
        assert closed.opens == min(start for start in starts if start > now)


def test_a_window_that_never_opens_is_told_so() -> None:
    closed = str(
        refusal_at("0 0 */31 * 2#2", "1h", local(2026, 1, 1))
    )  # the first of a month and its second Tuesday
    assert "maintenance: closed, and no window ever opens; --now REASON" in closed
    with pytest.raises(UserError, match="or never comes"):
        refusal_at("0 0 31 2 *", "1h", local(2026, 1, 1))


@pytest.mark.parametrize(
    ("zone", "meant"),
    [
        ("Europe/Berln", "; did you mean Europe/Berlin?"),
        ("Europe", ""),
        ("../../etc/passwd", ""),
        ("a\0b", ""),
    ],
)
def test_a_time_zone_that_is_none_is_told_with_the_nearest(zone: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        refusal_at("0 22 * * *", "1h", local(2026, 1, 1), zone)
    begin = f"maintenance.time_zone: this machine knows no time zone {visible(zone)}"
    assert str(error.value).startswith(begin)
    assert str(error.value).endswith(meant)


def test_a_machine_without_time_zones_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tzdata", None)  # which brings some
    zoneinfo.reset_tzpath(())
    zoneinfo.ZoneInfo.clear_cache()
    try:
        with pytest.raises(UserError, match=r"this machine has no time zones.*pip install tzdata"):
            refusal_at("0 22 * * *", "1h", datetime(2026, 1, 1, tzinfo=UTC))
        assert refusal_at("0 0 * * *", "1h", datetime(2026, 1, 1, tzinfo=UTC), "UTC") is None
    finally:
        zoneinfo.reset_tzpath()


@given(st.lists(st.text("0123456789*/,-#LWMON? ", min_size=1, max_size=8), min_size=5, max_size=5))
def test_no_schedule_ends_in_a_traceback(fields: list[str]) -> None:
    schedule = " ".join(field.replace(" ", "") or "*" for field in fields)
    try:
        refusal_at(schedule, "1h", datetime(2026, 1, 1, tzinfo=UTC), "UTC")
    except UserError as error:
        assert "cannot be read" in str(error)
