"""A deploy that is killed at any moment, or whose clock jumps: the next run goes on where the cluster is.

The old version is asked all the while; each test ends with which version serves, and with which share of it.
All tests live through the life of one release.
"""

import json
import shlex
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.cluster.deployments import Deployments, where
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.deploy import records
from vllmjobs.rollout.model import Record
from vllmjobs_sandbox.cluster.deploying import Clock, Command, deploying, succeeded
from vllmjobs_sandbox.traffic.served import DEPLOYED, FAILED, NEWER, REFUSED, Served, failure


@pytest.mark.parametrize(
    "kinds",
    [("registered", "placed", "healthy", "verdict"), ("shifted", "promoting"), ("stopping",)],
    ids="-".join,
)
def test_killed_at_any_step_it_is_resumed_by_another(served: Served, kinds: tuple[str, ...]) -> None:
    """Each goes on where the one before was killed; where that is a race, with a release of its own."""
    for number, kind in enumerate(kinds):
        with deploying(served.release, at={kind: signal.SIGKILL}, max_model_len=served.new) as killed:
            assert killed.end() == -signal.SIGKILL, killed.evidence()
            assert number == 0 or "registered" not in killed.kinds()
    with deploying(served.release, max_model_len=served.new) as resumed:
        assert resumed.end() == DEPLOYED, resumed.evidence()
        assert "registered" not in resumed.kinds()
    served.serves_the_new()


def rollback(served: Served, *words: str, at: Mapping[str, int] | None = None) -> Command:
    return Command(served.sandbox, ["rollback", *served.release.words(), *words], at)


BAD: dict[str, Any] = failure("error-rate=1") | {"rollout.auto_revert": "false"}


def test_killed_after_it_has_failed_a_change_the_next_run_ends_as_that_would_have(served: Served) -> None:
    """It has recorded the reason, failed the deployment, and not yet registered the old version again."""
    served.is_forgiven = lambda said: "500 Internal" in said
    bad = BAD | {"max_model_len": served.new}
    succeeded(deploying(served.release, "--detach", **bad))
    entry = Record(
        version=served.life.version,
        at="2026-11-23T21:04:05.678Z",
        by="alice",
        outcome="refused",
        reason="chat: error_rate is 1",
    )
    records.write(Deployments(NomadApi(served.sandbox.env)), where(served.release.job), entry)
    served.sandbox.nomad.deployment.fail_deployment(served.sandbox.deployment(served.release.job)["ID"])
    with deploying(served.release, **bad) as again:
        assert again.end() == REFUSED, again.evidence()
        assert "registered" not in again.kinds()
        assert again.kinds().index("reverted") > again.kinds().index("resumed")
        assert "chat: error_rate is 1" in again.wait_for("done")["text"]
    served.still_serves()


def test_killed_after_it_has_registered_the_old_version_again_the_way_back_goes_on(served: Served) -> None:
    served.is_forgiven = lambda said: "500 Internal" in said
    bad = BAD | {"max_model_len": served.new}
    with deploying(served.release, at={"reverted": signal.SIGKILL}, **bad) as killed:
        assert killed.end() == -signal.SIGKILL
    with rollback(served) as again:
        assert again.end() == DEPLOYED, again.evidence()
        assert again.kinds()[0] == "resumed"
    served.still_serves()


def test_killed_when_one_of_two_has_stopped_the_count_shrinks_in_the_next_run(served: Served) -> None:
    """A count that shrinks beside a change is a registration of its own, after it.

    Beside canaries Nomad would stop old instances at once (hashicorp/nomad#19643).
    """
    succeeded(deploying(served.release, max_model_len=served.old_length, replicas=2))
    version = served.life.version
    change: dict[str, Any] = {"max_model_len": served.new, "replicas": 1}
    with deploying(served.release, at={"stopped": signal.SIGKILL}, **change) as killed:
        assert killed.end() == -signal.SIGKILL
    assert killed.kinds()[:3] == ["planned", "held", "registered"]
    assert "promoting" in killed.kinds()
    with deploying(served.release, at={"done": signal.SIGKILL}, **change) as killed:
        assert killed.end() == -signal.SIGKILL
    succeeded(deploying(served.release, **change))
    assert served.life.version == version + 2, "each is registered once"
    served.serves_the_new()


def test_a_way_back_that_was_interrupted_goes_on_when_it_is_run_again(served: Served) -> None:
    """And does not take its own canaries for those of a change that is to be stopped.

    They take a while to count as healthy, so that a signal comes before they are promoted.
    """
    served.release.run(**{"max_model_len": served.old_length, "rollout.min_healthy_time": "5s"})
    served.release.run(max_model_len=served.new)
    served.sandbox.promote(served.release.job)
    served.sandbox.wait_until_healthy(served.release.job)
    with rollback(served, at={"registered": signal.SIGKILL}) as killed:
        assert killed.end() == -signal.SIGKILL
    with rollback(served, at={"placed": signal.SIGINT}) as left:
        assert left.end() == FAILED
        goes_on = shlex.join(["vllmjobs", "rollback", *served.release.words()])
        assert left.errors == [f"the release is left as it is: `{goes_on}` goes on"]
    command = [str(served.sandbox.folder / "bin" / "vllmjobs"), "status", *served.release.words(), "--json"]
    status = subprocess.run(command, env=served.sandbox.env, check=True, capture_output=True, text=True)
    assert json.loads(status.stdout)["next"][0][0] == goes_on
    with deploying(served.release, max_model_len=NEWER) as other:
        assert other.end() == REFUSED
        assert "`vllmjobs rollback dev --set job=" in other.evidence()
    with rollback(served) as again:
        assert again.end() == DEPLOYED, again.evidence()
    served.serves_the_old_again()


def test_a_wall_clock_that_jumps_changes_nothing(served: Served, tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with deploying(served.release, env=clock.env, max_model_len=served.new) as deploy:
        deploy.wait_for("healthy")
        clock.jump("+5h")
        deploy.wait_for("shifted")
        clock.jump("-3h")
        assert deploy.end() == DEPLOYED, deploy.evidence()
        hours = [event["at"][11:13] for event in deploy.events]
    assert len({*hours}) >= 3, "the clock did not jump"
    served.serves_the_new()
