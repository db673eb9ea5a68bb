"""Approvals, counted, and maintenance windows, open or closed."""

from __future__ import annotations

import sys
import unicodedata
import zoneinfo
from datetime import UTC, datetime, timedelta
from itertools import islice

import msgspec
import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vllmjobs.deploy.gates import maintenance
from vllmjobs.environment.model import Environment, Model, ModelDefaults
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.rollout import Maintenance, Window
from vllmjobs.rollout.gates import (
    Approval,
    Proposal,
    count,
    current,
    digest,
    folded,
    in_force,
    life,
    listed,
    nobody,
    propose,
    refusal,
    version_to_be,
    words,
)  # fmt: skip
from vllmjobs.rollout.model import GateRules, Outcome, Record
from vllmjobs.text.visible import visible

D = "3f2a9c1b04de" + 52 * "0"
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def by(
    accessor: str, name: str = "", version: int = 8, content: str = D, at: str = "", life: int = 40
) -> Approval:
    at = at or f"2026-11-23T21:00:{len(accessor + name):02}.000Z"
    return Approval(accessor, name, version, life, content, at)


def rules(approvals: int = 2, *windows: str, zone: str = "Europe/Berlin") -> GateRules:
    """Return rules with windows such as `0 22 * * *, 4h`."""
    pairs = [Window(*window.split(", ")) for window in windows]
    return GateRules(approvals, Maintenance(pairs, zone) if pairs else None)


def proposal(*old: GateRules, new: GateRules | None = None, life: int = 40, reason: str = "") -> Proposal:
    return propose("vllm-prod", 8, life, D, new or rules(), old, reason)


def names(*approvals: Approval, deployer: tuple[str, str] | None = None, life: int = 40) -> list[str]:
    return [each.who for each in count(approvals, proposal(life=life), deployer).by]


# Who counts


def test_two_people_are_two() -> None:
    counted = count([by("a1", "ann"), by("b1", "ben")], proposal(), ("d1", "dan"))
    assert (len(counted.by), counted.missing, counted.own) == (2, 0, False)


def test_an_approval_is_for_one_version_and_one_content() -> None:
    assert names(by("a1", "ann", version=7), by("b1", "ben", version=9), by("c1", "cem", content="0")) == []


def test_one_person_counts_once_however_often_they_log_in() -> None:
    assert names(by("a1", "ann"), by("a2", "ann"), by("a1", "ann")) == ["ann"]


def test_tokens_without_a_name_are_told_apart_by_their_accessor_ids() -> None:
    assert names(by("11111111-2222"), by("33333333-4444")) == ["11111111", "33333333"]
    assert names(by("11111111-2222", "\u200b"), by("33333333-4444", " \ufe0f")) == ["11111111", "33333333"]


def test_what_shares_its_name_with_one_and_its_accessor_with_another_makes_them_one() -> None:
    assert names(by("a1", "ann"), by("b1", "ben"), by("a1", "ben", at="2027")) == ["ann"]


SPELLINGS = ["ann", "Ann", "ANN", "ann ", "\u3000ann", "ann\u200b", "a\u00adnn", "\u202eann", "ann\ufe0f",
             "an\u034fn", "ａｎｎ", "ann\U000e0061", "an\x00n", "ann\u3164", "\u2800ann"]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS, ids=ascii)
def test_a_person_is_one_however_their_name_is_spelt(spelling: str) -> None:
    assert len(names(by("a1", "ann"), by("a2", spelling), by("b1", "ben"))) == 2
    assert names(by("a2", spelling), by("b1", "ben"), deployer=("d1", "ann")) == ["ben"]
    assert count([by("a2", "ann")], proposal(), ("d1", spelling)).own


def test_people_whose_names_look_different_are_different() -> None:
    people = ["ann", "anna", "änn", "hann", "安", "ann@example.com", "ann-2"]
    assert len(names(*[by(str(number), name) for number, name in enumerate(people)])) == len(people)


# Format characters, spaces, variation selectors, fillers: nothing of them is seen.
UNSEEN = st.text(
    st.characters(categories=["Cf", "Zs", "Cc"]) | st.sampled_from("\u034f\u115f\u3164\ufe0f\U000e0100"),
    max_size=3,
)


@given(st.text(min_size=1, max_size=8), st.data())
def test_case_form_and_what_nobody_sees_make_no_second_person(name: str, data: st.DataObject) -> None:
    assert folded(folded(name)) == folded(name)
    assert (
        folded(unicodedata.normalize("NFKC", name))
        == folded(unicodedata.normalize("NFD", name))
        == folded(name)
    )
    respelt = "".join(data.draw(UNSEEN) + char for char in name) + data.draw(UNSEEN)
    if name.isascii():  # elsewhere a mark may keep two characters apart that compose
        assert folded(respelt.upper()) == folded(respelt) == folded(name)
        assert len(names(by("a1", name), by("a2", respelt))) == (1 if folded(name) else 2)


@pytest.mark.parametrize("deployer", [("a1", "other"), ("z9", "ann"), ("a1", "ann"), ("z9", "ANN\u200d")])
def test_who_deploys_cannot_approve(deployer: tuple[str, str]) -> None:
    assert names(by("a1", "ann"), by("b1", "ben"), deployer=deployer) == ["ben"]
    assert count([by("a1", "ann")], proposal(new=rules(1)), deployer).own


def test_a_nameless_deployer_is_not_every_nameless_approver() -> None:
    assert names(by("b1"), deployer=("a1", "")) == ["b1"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["", *SPELLINGS, "ben", "BEN ", "cem"])),
        max_size=6,
    ),
    st.permutations(range(6)),
)
def test_the_count_does_not_depend_on_the_order(people: list[tuple[str, str]], order: list[int]) -> None:
    ones = [by(*person, at=f"2026-{number}") for number, person in enumerate(people)]
    others = [by(*person, at=f"2026-{number}") for number, person in zip(order, people, strict=False)]
    assert len(names(*ones, deployer=("a", "ann"))) == len(names(*others, deployer=("a", "ann")))
    assert len(names(*ones)) <= len({person[0] for person in people})
    assert len(names(*ones, deployer=("a", "ann"))) <= 4  # b, c, d without a name; ben; cem


# What is approved


def test_the_next_version_follows_the_latest() -> None:
    assert (version_to_be(None), version_to_be(0), version_to_be(7)) == (0, 1, 8)


def test_what_neither_runs_nor_comes_next_is_void() -> None:
    kept = current([by("a", version=version) for version in range(10)], proposal())
    assert [each.version for each in kept] == [7, 8]
    first = propose("vllm-prod", 0, 0, D, rules())
    assert [each.version for each in current([by("a", version=0), by("a", version=1)], first)] == [0]


def test_a_life_begins_with_the_job_and_is_told_from_those_before_it() -> None:
    assert life(3, 40, [7, 40]) == 40
    assert life(0, None, []) == 0, "a job that never was"
    assert life(0, None, [7, 20]) == 20, "one that was purged, to be made again"
    assert life(0, 40, [7, 20, 40]) == 20, "its first version, which was approved before it was there"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_a_purge_voids_every_approval_and_nothing_else_does(versions: list[int], is_remembered: bool) -> None:
    """Each life has some versions: all are approved as they come, and count until theirs is over."""
    index = 1
    registered: list[int] = []
    approvals: list[Approval] = []
    for versions_of_life in versions:
        created = None
        for version in range(versions_of_life):
            now = life(version, created, registered)
            assert (
                names(*[replace(one, version=8) for one in approvals if one.version == version], life=now)
                == []
            )
            approvals.append(by(f"{index}", version=version, life=now))
            index += 1
            created = created or index
            registered.append(index)
            resumed = life(version, created, registered if is_remembered else [*registered[-1:]])
            (mine,) = [one for one in approvals if one.version == version and one.life >= resumed][-1:]
            assert mine.accessor == f"{index - 1}", "the release may be resumed"
        index += 3  # the purge


ENVIRONMENT = Environment(models={"chat": Model(model="m")}, job="vllm-prod")
JOBS = {"vllm": 'job "a" {}\n', "fabio": 'job "b" {}\n'}


def of(**chat: object) -> Environment:
    """Return the environment with other keys of `rollout` for its model."""
    return msgspec.convert(
        {"models": {"chat": {"model": "m", "rollout": chat}}, "job": "vllm-prod"}, Environment
    )


def test_content_is_what_decides_the_release_and_every_job() -> None:
    others = [
        digest(ENVIRONMENT, JOBS | {"fabio": ""}),
        digest(replace(ENVIRONMENT, approvals=1), JOBS),
        digest(replace(ENVIRONMENT, maintenance=rules(0, "0 22 * * *, 1h").maintenance), JOBS),
        *[
            digest(of(**rollout), JOBS)
            for rollout in (
                {"analysis": None},
                {"analysis": {"on_no_data": "promote"}},
                {"analysis": {"limits": {"error_rate": None}}},
                {"analysis": {"limits": {"queue": {"ratio": 9}}}},
                {"analysis": {"min_requests": 1}},
                {"analysis": {"prometheus": {"address": "http://elsewhere"}}},
                {"steps": [0.5]},
                {"weight": 1},
                {"strategy": "rolling"},
                {"auto_promote": True},
                {"placement_deadline": "1h"},
            )
        ],
    ]
    assert len({digest(ENVIRONMENT, JOBS), *others}) == 1 + len(others)


def test_content_is_the_same_however_it_is_written() -> None:
    again = replace(ENVIRONMENT, extends="base.yaml", defaults=ModelDefaults(replicas=9))
    assert digest(again, dict(reversed(JOBS.items()))) == digest(ENVIRONMENT, JOBS) == digest(of(), JOBS)


# What weakens a gate


@pytest.mark.parametrize(
    ("old", "new", "weakened"),
    [
        (rules(2), rules(0), ["approvals: 2 → 0"]),
        (rules(2), rules(1), ["approvals: 2 → 1"]),
        (rules(1), rules(2), []),
        (rules(0, "0 22 * * *, 4h"), rules(0), ['maintenance: "0 22 * * *" for 4h Europe/Berlin → any time']),
        (rules(0), rules(0, "0 22 * * *, 4h"), []),
        (rules(0, "0 22 * * *, 4h"), rules(0, "0 22 * * *, 240m"), []),
        (rules(0, "0 22 * * *, 4h"), rules(0, "0 22 * * *, 3h59m"), []),
        (rules(0, "0 22 * * *, 4h", "0 3 * * *, 1h"), rules(0, "0 3 * * *, 1h"), []),
        (
            rules(0, "0 22 * * *, 4h"),
            rules(0, "0 22 * * *, 5h"),
            ['maintenance: "0 22 * * *" for 4h Europe/Berlin → "0 22 * * *" for 5h Europe/Berlin'],
        ),
        (
            rules(2, "0 22 * * *, 4h"),
            rules(1, "0 22 * * *, 4h", zone="UTC"),
            [
                "approvals: 2 → 1",
                'maintenance: "0 22 * * *" for 4h Europe/Berlin → "0 22 * * *" for 4h UTC',
            ],
        ),
    ],
)
def test_fewer_approvals_and_wider_windows_weaken_a_gate(
    old: GateRules, new: GateRules, weakened: list[str]
) -> None:
    assert list(proposal(old, new=new).weakened) == weakened


LINES = st.sampled_from(
    ["0 22 * * *, 4h", "0 22 * * *, 2h", "0 3 * * 6, 1h", "* * * * *, 1m", "0 0 1 * *, 30h"]
)
RULES = st.builds(
    lambda number, windows: rules(number, *windows), st.integers(0, 3), st.lists(LINES, max_size=3)
)


@given(st.lists(RULES, max_size=2), RULES, st.integers(0, 100_000))
def test_what_is_not_said_to_weaken_lets_nothing_through_that_was_refused(
    old: list[GateRules], new: GateRules, minute: int
) -> None:
    one = proposal(*old, new=new)
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    for before in old:
        assert one.required >= before.approvals
        if maintenance(before.maintenance, now):
            assert any(maintenance(each.maintenance, now) for each in one.rules), "closed as before"
    assert one.required >= bool(one.weakened)
    words = proposal(*old, new=new, reason="fire")
    assert words.required == max(each.approvals for each in [new, *old])


def test_the_rules_in_force_are_those_of_the_last_version_that_was_deployed() -> None:
    def record(version: int, approvals: int | None, outcome: Outcome | None = "successful") -> Record:
        given = None if approvals is None else rules(approvals)
        return Record(version=version, at="", by="", outcome=outcome, rules=given)

    def approvals(*records: Record, resumed: int | None = None) -> list[int]:
        return [each.approvals for each in in_force(records, resumed)]

    assert approvals() == []
    assert approvals(record(1, 1), record(0, 2)) == [1]
    assert approvals(record(2, None), record(1, 1)) == [1], "of a version that was not recorded with rules"
    for failed in ("failed", "refused", "no-room"):
        assert approvals(record(1, 0, failed), record(0, 2)) == [2]
    assert approvals(record(1, 1, "failed"), record(0, 2, "failed")) == [1], "where none has succeeded"
    assert approvals(record(1, 0, None), record(0, 2), resumed=1) == [0, 2]
    assert approvals(record(1, 3, None), record(0, 2), resumed=1) == [3, 2], "both, where it is resumed"


# What is said


def test_a_refusal_says_what_is_missing_and_who_is_to_run_what() -> None:
    approvals = [by("a1", "ann"), by("d1", "dan")]
    assert refusal(count(approvals, proposal(), ("d1", "dan")), "vllmjobs approve prod") == (
        "vllm-prod, version 8, 3f2a9c1b04de: 1 of 2 approvals (ann); your own does not count; "
        "one other person must run vllmjobs approve prod"
    )
    assert refusal(count([], proposal()), "vllmjobs approve prod") == (
        "vllm-prod, version 8, 3f2a9c1b04de: 0 of 2 approvals; 2 other people must run vllmjobs approve prod"
    )


def test_a_refusal_names_what_is_weakened_and_the_way_out() -> None:
    weaker = count([], proposal(rules(2), new=rules(0)))
    assert refusal(weaker, "vllmjobs approve prod --set approvals=0") == (
        "vllm-prod, version 8, 3f2a9c1b04de: 0 of 2 approvals; it weakens approvals: 2 → 0; "
        "2 other people must run vllmjobs approve prod --set approvals=0"
    )
    wider = proposal(rules(0, "0 22 * * *, 4h"), new=rules(0))
    weakens = 'it weakens maintenance: "0 22 * * *" for 4h Europe/Berlin → any time'
    assert refusal(count([], wider), "vllmjobs approve prod") == (
        f"vllm-prod, version 8, 3f2a9c1b04de: 0 of 1 approvals; {weakens}; one other person must run "
        "vllmjobs approve prod, or --now REASON deploys it anyway"
    )
    assert nobody(wider, "deploys") == (
        f"vllm-prod: {weakens}, for which others have to approve, and with ACLs off nobody can tell who "
        "deploys; turn ACLs on (docs/approvals.md), or --now REASON deploys it anyway"
    )


def test_a_list_names_what_is_weakened_and_approvals_that_do_not_count_too() -> None:
    approvals = [
        by("a1", "ann", at="2026-11-23T21:04:05.678Z"), by("b1", "ben", content=64 * "9", at="2026"),
        by("c1", "cem", life=39, at="2025"),
    ]  # fmt: skip
    assert listed(count(approvals, proposal(rules(2), new=rules(0))), approvals) == (
        "vllm-prod, version 8, 3f2a9c1b04de: 1 of 2 approvals\n"
        "  weakens approvals: 2 → 0\n"
        "  ann, 2026-11-23T21:04:05.678Z\n"
        "  ben, 2026: for other content, 999999999999; does not count\n"
        "  cem, 2025: before the job was purged; does not count\n"
    )


def test_the_words_of_now_are_one_short_line_without_secrets() -> None:
    assert words("  CVE-2026-1234,\n see\tthe ticket ") == "CVE-2026-1234, see the ticket"
    assert words(f"with hf_{'a' * 30}") == "with …"
    assert len(words("x" * 70_000)) == 500
    assert words(" \u200b\n") == words("") == ""


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
