"""During a way back, what `deploy` and `status` say can be typed is what the commands then do."""

from __future__ import annotations

import copy

import pytest
from click.testing import CliRunner

from unit.cli.test_odd_answers import RECORDED, Recorded, Run, recorded, run
from vllmjobs.cli import main

__all__ = ["recorded", "run"]


@pytest.mark.parametrize("promoted", [False, True])
def test_deploy_names_abort_only_while_abort_has_canaries_to_stop(
    promoted: bool, run: Run, recorded: Recorded
) -> None:
    old = {**RECORDED["GET job/ID/versions"]["Versions"][-1], "Stable": True}
    back = {**old, "Version": 1, "Stable": False, "JobModifyIndex": 28}
    deployment = copy.deepcopy(RECORDED["GET job/ID/deployment"])
    deployment["TaskGroups"]["chat"]["Promoted"] = promoted
    recorded.over |= {
        "GET job/ID": back,
        "GET job/ID/versions": {"Versions": [back, old]},
        "GET job/ID/deployment": deployment,
        "GET job/ID/deployments": [deployment],
        "POST job/ID/plan": {"Diff": {"Type": "Edited"}, "JobModifyIndex": 28},
    }
    refused = CliRunner().invoke(main, ["deploy", "dev", "--job", "vllm"]).output
    assert "version 1 is a rollback that has not ended; `vllmjobs rollback dev" in refused
    assert ("`vllmjobs abort dev` ends it" in refused) is not promoted
    assert ("vllmjobs abort dev" in run("status").output) is not promoted
    aborted = run("abort").output
    nothing = "no canaries that wait for a promotion; `vllmjobs rollback dev` goes on with the rollback"
    assert (nothing in aborted) is promoted, aborted
