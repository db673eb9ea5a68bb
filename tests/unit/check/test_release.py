"""Schedules that `check` lets through are schedules that `deploy` reads; tests/cases/check has the rest."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from vllmjobs.check.release import windows_can_be_read
from vllmjobs.check.subject import Facts, Whole
from vllmjobs.deploy.gates import maintenance
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.rollout import Maintenance, Window

FIELD = st.text("0123456789*/,-#LWMON", min_size=1, max_size=6)


@given(st.lists(st.one_of(st.just("*"), FIELD), min_size=5, max_size=5).map(" ".join))
@example("0 22 * * 1-5")
@example("*/5 8-18/2 1,15 JAN-MAR MON#2")
@example("0 22 * * 5#1/2")
@example("0 24 * * *")
def test_a_schedule_is_found_wrong_before_it_is_needed(schedule: str) -> None:
    windows = Maintenance(windows=[Window(schedule, "4h")])
    whole = Whole(Environment(models={"chat": Model(model="m")}, maintenance=windows), Facts())
    findings = [path for path, _ in windows_can_be_read(whole)]
    try:
        maintenance(windows, datetime(2026, 11, 23, tzinfo=UTC))
    except UserError as error:
        _, _, days, _, weekdays = schedule.split()
        never_comes = "*" in days[0] + weekdays[0]  # the 31st of February: not a matter of one field
        assert findings or never_comes, str(error)
    else:
        assert findings == []
