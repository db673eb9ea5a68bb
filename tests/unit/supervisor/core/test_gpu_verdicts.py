"""What is done about a GPU: each rule of docs/supervisor.md, and what holds for any order of events."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.supervisor.core.gpu_events import (
    RECOVERY_ACTIONS,
    GpuEvent,
    GpuReading,
    Hung,
    Lost,
    NoAccess,
    NoDriver,
    Unanswered,
    Xid,
)
from vllmjobs.supervisor.core.gpu_verdicts import (
    FAULTS,
    HOUR,
    INCIDENT,
    LASTING,
    NO_ACCESS,
    NOTHING,
    SLOWDOWN_WINDOW,
    SLOWDOWNS,
    XIDS,
    History,
    Meaning,
    health,
    is_free,
    judge,
)

GPU = "GPU-1"
GIB = 2**30
WELL = GpuReading(GPU, recovery_action=0, remap_pending=False, remap_failed=False, corrected_ecc=0,
            uncorrected_ecc=0, clocks_reasons=4)  # fmt: skip
LOG = (43, 63, 92, 93, 121, 137, 141)
RESTART = (8, 11, 13, 25, 31, 32, 39, 40, 41, 69, 80, 94)
LINK = (74, *range(144, 151))
FATAL = (46, 48, 62, 64, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158)


def after(
    *events: tuple[float, GpuEvent], history: History | None = None, is_tensor_parallel: bool = False
) -> tuple[History, list[Meaning]]:
    """Judge what happened when; return all verdicts."""
    history = history or History()
    verdicts = []
    for now, event in events:
        history, verdict = judge(history, event, now, is_tensor_parallel)
        verdicts.append(verdict)
    return history, verdicts


def only(event: GpuEvent, is_tensor_parallel: bool = False) -> Meaning:
    return judge(History(), event, 0.0, is_tensor_parallel)[1]


def test_a_gpu_that_is_well_is_not_worth_a_word() -> None:
    history, verdicts = after((0.0, WELL), (5.0, WELL))
    assert verdicts == [NOTHING, NOTHING]
    assert health(history, GPU, 5.0) == "ok"
    assert health(history, "GPU-2", 5.0) == "unknown"


def test_a_gpu_that_tells_nothing_is_not_worth_a_word() -> None:
    assert only(GpuReading(GPU)) == NOTHING


@pytest.mark.parametrize("action", [*RECOVERY_ACTIONS, 99])
def test_any_recovery_action_is_fatal(action: int) -> None:
    assert only(replace(WELL, recovery_action=action)).what == "fatal"


def test_the_recovery_action_is_named() -> None:
    assert only(replace(WELL, recovery_action=2)) == Meaning("fatal", "the driver asks to reboot the node")


@pytest.mark.parametrize("code", LOG)
@pytest.mark.parametrize("is_tensor_parallel", [False, True])
def test_some_xids_are_only_logged(code: int, is_tensor_parallel: bool) -> None:
    assert only(Xid(GPU, code), is_tensor_parallel).what == "log"


@pytest.mark.parametrize("code", RESTART)
@pytest.mark.parametrize("is_tensor_parallel", [False, True])
def test_some_xids_may_fail_the_engine_and_condemn_nothing(code: int, is_tensor_parallel: bool) -> None:
    assert only(Xid(GPU, code), is_tensor_parallel).what == "watch"


@pytest.mark.parametrize("code", LINK)
def test_a_faulty_link_matters_to_those_who_need_it(code: int) -> None:
    assert only(Xid(GPU, code), is_tensor_parallel=False).what == "degrade"
    assert only(Xid(GPU, code), is_tensor_parallel=True).what == "fatal"


@pytest.mark.parametrize("code", FATAL)
@pytest.mark.parametrize("is_tensor_parallel", [False, True])
def test_some_xids_are_fatal(code: int, is_tensor_parallel: bool) -> None:
    assert only(Xid(GPU, code), is_tensor_parallel).what == "fatal"


@pytest.mark.parametrize("code", [*FATAL, *LINK])
def test_where_the_driver_says_what_it_needs_an_xid_alone_condemns_nothing(code: int) -> None:
    history, verdicts = after((0.0, WELL), (1.0, Xid(GPU, code)), is_tensor_parallel=True)
    assert verdicts[1].what == "degrade"
    assert health(history, GPU, 1.0) == "degraded"
    history, (then,) = after((1.5, replace(WELL, recovery_action=1)), history=history)
    assert then == Meaning("fatal", "the driver asks to reset the GPU")


def test_nor_do_many_incidents() -> None:
    incidents = [(100.0 * number, Xid(GPU, 31)) for number in range(FAULTS + 1)]
    verdicts = after((0.0, WELL), *incidents)[1]
    assert [verdict.what for verdict in verdicts[1:]] == ["watch", "watch", "degrade", "degrade"]


def test_an_xid_is_called_by_its_name() -> None:
    assert only(Xid(GPU, 79)).reason == "XID 79 (GPU has fallen off the bus)"


def test_an_unknown_xid_is_logged_as_such() -> None:
    assert only(Xid(GPU, 9999)) == Meaning("log", "XID 9999 (unknown to us)")


def test_the_table_holds_the_known_xids_and_two_that_come_with_others() -> None:
    assert set(XIDS) == {*LOG, *RESTART, *LINK, *FATAL, 45, 154}
    assert {XIDS[code][1:] for code in (45, 154)} == {("log", "log")}


def test_the_third_incident_in_an_hour_is_the_fault_of_the_gpu() -> None:
    *earlier, third = after((0.0, Xid(GPU, 31)), (1800.0, Xid(GPU, 94)), (3599.0, Xid(GPU, 13)))[1]
    assert [verdict.what for verdict in earlier] == ["watch", "watch"]
    assert third == Meaning("fatal", "XID 13 (Graphics Engine Exception), 3 such incidents in an hour")


def test_incidents_are_forgotten_after_an_hour() -> None:
    times = [number * HOUR / (FAULTS - 1) for number in range(20)]
    assert {verdict.what for verdict in after(*((time, Xid(GPU, 31)) for time in times))[1]} == {"watch"}


def test_one_incident_may_be_reported_many_times() -> None:
    burst = [(100.0 + INCIDENT * number / 200, Xid(GPU, 13)) for number in range(200)]
    assert {verdict.what for verdict in after(*burst)[1]} == {"watch"}


def test_incidents_of_two_gpus_do_not_add_up() -> None:
    events = [(100.0 * number, Xid(f"GPU-{number % 2}", 31)) for number in range(2 * (FAULTS - 1))]
    assert {verdict.what for verdict in after(*events)[1]} == {"watch"}


@pytest.mark.parametrize("reason", [8, 32, 64, 128, 72])
def test_six_slowdowns_in_ten_minutes_degrade(reason: int) -> None:
    slow = replace(WELL, clocks_reasons=reason)
    events = [
        event for number in range(SLOWDOWNS) for event in ((100.0 * number, slow), (100.0 * number + 5, WELL))
    ]
    history, verdicts = after(*events)
    assert [verdict.what for verdict in verdicts[::2]] == ["log"] * (SLOWDOWNS - 1) + ["degrade"]
    assert sum(verdict.is_new for verdict in verdicts) == 2
    assert health(history, GPU, 600.0) == "degraded"
    assert health(history, GPU, 600.0 + HOUR) == "ok"


def test_a_slowdown_that_lasts_counts_again_each_minute() -> None:
    slow = replace(WELL, clocks_reasons=64)
    events = [(5.0 * number, slow) for number in range(200)]
    degraded = [now for (now, _), verdict in zip(events, after(*events)[1], strict=True)
                if verdict.what == "degrade"]  # fmt: skip
    assert degraded[0] == LASTING * (SLOWDOWNS - 1)


def test_rare_slowdowns_do_not_degrade() -> None:
    slow = replace(WELL, clocks_reasons=64)
    pause = SLOWDOWN_WINDOW / (SLOWDOWNS - 1)
    events = [event for number in range(30) for event in ((pause * number, slow), (pause * number + 5, WELL))]
    assert {verdict.what for verdict in after(*events)[1]} == {"log"}


def test_the_power_cap_of_a_busy_gpu_is_no_slowdown() -> None:
    assert only(replace(WELL, clocks_reasons=1 | 2 | 4 | 16)) == NOTHING


def test_a_remapping_that_failed_is_fatal_and_one_to_come_is_logged_once() -> None:
    assert only(replace(WELL, remap_failed=True, remap_pending=True)).what == "fatal"
    pending = replace(WELL, remap_pending=True)
    first, second, later = after((0.0, pending), (5.0, pending), (HOUR, pending))[1]
    assert (first.what, first.is_new) == ("log", True)
    assert (second.is_new, later.is_new) == (False, True)


@pytest.mark.parametrize("kind", ["corrected", "uncorrected"])
def test_ecc_errors_are_logged_when_there_are_more(kind: str) -> None:
    more = GpuReading(GPU, **{f"{kind}_ecc": 3})  # type: ignore[arg-type]
    _, verdicts = after((0.0, more), (5.0, GpuReading(GPU, **{f"{kind}_ecc": 4})), (10.0, more))  # type: ignore[arg-type]
    assert verdicts == [NOTHING, Meaning("log", f"it counts {kind} ECC errors"), NOTHING]


def test_a_lost_gpu_is_condemned_for_good() -> None:
    history, verdicts = after((0.0, Lost(GPU, "GPU is lost")), (5.0, WELL), (6.0, Xid(GPU, 43)))
    assert verdicts == [
        Meaning("fatal", "GPU is lost"),
        Meaning("fatal", "GPU is lost", is_new=False),
        Meaning("fatal", "GPU is lost", is_new=False),
    ]
    assert health(history, GPU, 6.0) == "failed"


def test_another_gpu_is_not_condemned_with_it() -> None:
    other = replace(WELL, gpu="GPU-2")
    history, verdicts = after((0.0, Lost(GPU, "GPU is lost")), (5.0, other))
    assert verdicts[1] == NOTHING
    assert health(history, "GPU-2", 5.0) == "ok"


def test_nvml_that_hangs_three_times_in_a_row_condemns_all() -> None:
    history, verdicts = after((0.0, WELL), (10.0, Hung()), (20.0, Hung()))
    assert [verdict.what for verdict in verdicts] == ["log", "watch", "watch"]
    assert health(history, GPU, 20.0) == "unknown"
    history, (third, last) = after((30.0, Hung()), (31.0, WELL), history=history)
    assert third == Meaning("fatal", "NVML does not answer (3 of 3 times in a row)")
    assert last == replace(third, is_new=False)
    assert health(history, GPU, 31.0) == "failed"


def test_an_answer_between_hangs_begins_anew() -> None:
    hangs = [event for number in range(9) for event in ((30.0 * number, Hung()), (30.0 * number + 9, WELL))]
    assert "fatal" not in {verdict.what for verdict in after((0.0, Hung()), *hangs)[1]}


def test_an_unknown_error_of_one_gpu_is_its_own() -> None:
    other = replace(WELL, gpu="GPU-2")
    _, verdicts = after((0.0, WELL), (0.1, other), (5.0, Unanswered(GPU, 999, "Unknown Error")))
    assert verdicts[-1] == Meaning("log", "it cannot be asked: Unknown Error")


def test_an_unknown_error_of_all_gpus_is_lost_access_and_no_fault_of_theirs() -> None:
    other = replace(WELL, gpu="GPU-2")
    gone = [(5.0, Unanswered(GPU, 999, "Unknown Error")), (5.1, Unanswered("GPU-2", 999, "Unknown Error"))]
    history, verdicts = after((0.0, WELL), (0.1, other), *gone)
    assert verdicts[-1] == Meaning("log", NO_ACCESS)
    assert health(history, GPU, 6.0) == "unknown"
    again = [(now + 5, event) for now, event in gone]
    history, verdicts = after(*again, history=history)
    assert not any(verdict.is_new for verdict in verdicts)
    history, verdicts = after((20.0, WELL), (20.1, other), *[(now + 100, event) for now, event in gone],
                              history=history)  # fmt: skip
    assert verdicts[-1] == Meaning("log", NO_ACCESS)  # it came back, and was lost once more


def test_a_container_that_nvml_refuses_has_lost_its_access() -> None:
    assert only(NoAccess(999, "Unknown Error")) == Meaning("log", NO_ACCESS)
    assert only(NoAccess(4, "Insufficient Permissions")).reason.endswith("Insufficient Permissions")


def test_no_driver_is_said_once() -> None:
    _, (first, second) = after((0.0, NoDriver("no driver")), (5.0, NoDriver("no driver")))
    assert (first, second.is_new) == (Meaning("log", "no driver"), False)


numbers = st.none() | st.integers(0, 300)
gpus = st.sampled_from(["GPU-1", "GPU-2"])
events: st.SearchStrategy[GpuEvent] = st.one_of(
    st.builds(
        GpuReading, gpu=gpus, memory_used=numbers, recovery_action=st.none() | st.integers(0, 9),
        remap_pending=st.none() | st.booleans(), remap_failed=st.none() | st.booleans(),
        corrected_ecc=numbers, uncorrected_ecc=numbers, clocks_reasons=numbers,
    ),
    st.builds(Xid, gpu=gpus, code=st.integers(-1, 200) | st.sampled_from(RESTART)),
    st.builds(Lost, gpu=gpus, reason=st.text()),
    st.builds(Unanswered, gpu=gpus, code=st.sampled_from([999, 3]), reason=st.text()),
    st.builds(Hung),
    st.builds(NoDriver, reason=st.text()),
    st.builds(NoAccess, code=st.sampled_from([999, 3]), reason=st.text()),
)  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 2 * HOUR), events), max_size=40), st.booleans())
def test_any_order_of_events_is_judged_and_nothing_condemned_is_trusted_again(
    steps: list[tuple[float, GpuEvent]], is_tensor_parallel: bool
) -> None:
    history, now, condemned = History(), 0.0, set[str]()
    for pause, event in steps:
        now += pause
        before = history
        history, verdict = judge(history, event, now, is_tensor_parallel)
        assert (history, verdict) == judge(before, event, now, is_tensor_parallel)
        gpu = getattr(event, "gpu", None)
        if gpu in condemned:
            assert (verdict.what, verdict.is_new) == ("fatal", False)
        if verdict.what == "fatal":
            condemned |= {"GPU-1", "GPU-2"} if gpu is None else {gpu}
        assert all(health(history, one, now) == "failed" for one in condemned)
        if not condemned:
            assert health(history, "GPU-1", now) != "failed"
        if verdict.is_new and not isinstance(event, Lost | NoDriver):
            assert verdict.reason


def used(memory: int | None, at: float = 10.0) -> dict[str, GpuReading]:
    return {GPU: GpuReading(GPU, at=at, memory_used=memory)}


def test_a_gpu_is_free_with_about_the_memory_in_use_that_was_there_before() -> None:
    before = {GPU: 3 * GIB}  # of somebody else
    assert is_free(used(4 * GIB), [GPU], since=9.0, before=before)
    assert not is_free(used(4 * GIB + 1), [GPU], since=9.0, before=before)
    assert is_free(used(70 * GIB), [GPU], since=9.0, before={})
    assert not is_free(used(70 * GIB), [GPU], since=9.0, before={GPU: 0})


def test_a_reading_from_before_the_end_tells_nothing() -> None:
    assert not is_free(used(0, at=10.0), [GPU], since=10.1, before={GPU: 0})
    assert not is_free({}, [GPU], since=0.0, before={})


def test_every_gpu_of_an_instance_has_to_be_free() -> None:
    readings = {**used(0), "GPU-2": GpuReading("GPU-2", at=10.0, memory_used=70 * GIB)}
    assert not is_free(readings, [GPU, "GPU-2"], since=9.0, before={GPU: 0, "GPU-2": 0})


def test_a_gpu_that_shares_the_machines_memory_is_free() -> None:
    assert is_free(used(None), [GPU], since=9.0, before={GPU: 0})


def test_an_instance_without_a_gpu_holds_none() -> None:
    assert is_free({}, [], since=0.0, before={})
