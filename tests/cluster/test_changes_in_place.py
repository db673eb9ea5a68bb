"""VJ331 calls a change one that no canary tries exactly when Nomad's scheduler places none for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.cluster import Sandbox
from vllmjobs.check.rollout import canaries_try_a_change
from vllmjobs.check.subject import Facts, Whole
from vllmjobs.environment.load import load
from vllmjobs.environment.model import Environment

CHAT = "models.chat"
CHANGES = [
    "health.interval=2s",
    "health.restart_after=6",
    "health.grace=2m",
    "drain.shutdown_delay=4s",
    "drain.kill_timeout=40s",
    "drain.longest_stream=9s",
    "rollout.max_parallel=2",
    "rollout.weight=0.2",
    "rollout.progress_deadline=2m",
    "route.path=/chat/v1/",
    'placement.constraints=[{attribute: "${attr.kernel.name}", value: linux}]',
    'placement.affinities=[{attribute: "${node.datacenter}", value: dc1}]',
    'placement.spread=[{attribute: "${node.unique.name}"}]',
    "logs.max_files=2",
    "pull_time=6s",
    "load_time=16s",
    "max_model_len=512",
    "served_name=other",
    "env.GREETING=hello",
    "resources.cpu=400",
    "resources.memory=300 MiB",
    "resources.disk=120 MiB",
    "gpus.memory=8 GiB",
    "ports.static=28999",
    "vllm=0.33.0",
]


@pytest.fixture(scope="module")
def running(sandbox: Sandbox) -> Iterator[str]:
    """The job of `dev`, registered."""
    job = "changes-in-place"
    sandbox.run(sandbox.render("dev", "--set", f"job={job}"))
    yield job
    sandbox.purge(job)


def environment(sandbox: Sandbox, *settings: str) -> Environment:
    found = load(Path(sandbox.env["VLLMJOBS_PROJECT"]) / "envs/dev.yaml", settings).environment
    assert found is not None
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_the_rule_says_what_the_scheduler_does(sandbox: Sandbox, running: str, change: str) -> None:
    settings = (f"job={running}", f"{CHAT}.{change}")
    options = [option for setting in settings for option in ("--set", setting)]
    plan = sandbox.plan(sandbox.render("dev", *options))
    updates = plan["Annotations"]["DesiredTGUpdates"]["chat"]
    is_destructive = bool(updates["Canary"] or updates["DestructiveUpdate"])

    before = environment(sandbox, settings[0])
    after = environment(sandbox, *settings)
    said = list(canaries_try_a_change.find(Whole(after, Facts(before=before))))
    assert bool(said) == (plan["Diff"]["Type"] != "None" and not is_destructive)
