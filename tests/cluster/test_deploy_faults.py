"""What goes wrong while a change is deployed: the old version serves on, and the exit code says what it was.

The old version is asked all the while; each test ends with which version serves, and with which share of it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from vllmjobs_sandbox.cluster.deploying import QUICK, deploying
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import ROOM
from vllmjobs_sandbox.cluster.release import NewRelease, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.fakes.holding import PROMOTION, REGISTRATION, holding
from vllmjobs_sandbox.traffic.requests import versions
from vllmjobs_sandbox.traffic.served import (
    DEPLOYED,
    FAILED,
    NEW,
    NEWER,
    NO_ROOM,
    OLD,
    REFUSED,
    SETTLED,
    SILENT,
    Served,
    anywhere_but,
    failure,
    keys,
    on,
    serving,
    slow,
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Sandbox]:
    """Three servers, and three clients whose power can be cut."""
    with Sandbox(clients=3, gpus=3, servers=3, machines=True) as running:
        yield running


# The cluster


def test_nomads_only_server_is_killed_and_comes_back(served: Served) -> None:
    """Its clients ask it again after up to 60 s (`getAllocRetryIntv`); what is promoted waits for that."""
    patient: dict[str, Any] = {"rollout.progress_deadline": "2m"}
    with deploying(served.release, max_model_len=NEW, **patient) as deploy:
        deploy.wait_for("shifted")
        served.sandbox.kill("nomad-server")
        served.sandbox.start_again("nomad-server")
        assert deploy.end(150) == DEPLOYED, deploy.evidence()
    served.serves_the_new()


@pytest.mark.parametrize("agent", ["consul-server", "consul-gpu-2"])
def test_a_consul_agent_is_killed_and_comes_back(served: Served, agent: str) -> None:
    """The server, whom deploy and the balancer ask; and the agent of the canary's node."""
    with deploying(served.release, max_model_len=NEW, **anywhere_but("gpu-1")) as deploy:
        deploy.wait_for("verdict")
        served.sandbox.kill(agent)
        served.sandbox.start_again(agent)
        assert deploy.end() == DEPLOYED, deploy.evidence()
    served.serves_the_new()


def test_the_leader_of_three_servers_is_killed(fleet: Sandbox) -> None:
    for new in releases(fleet, "leader"):
        leader = fleet.leader()
        other = next(address for name, address in fleet.servers().items() if name != leader)
        with (
            serving(new(**QUICK)) as served,
            deploying(served.release, env={"NOMAD_ADDR": other}, max_model_len=NEW) as deploy,
        ):
            deploy.wait_for("shifted")
            fleet.kill(f"nomad-{leader}")
            code = deploy.end()
            fleet.start_again(f"nomad-{leader}")
            assert code == DEPLOYED, deploy.evidence()
            served.serves_the_new()


def test_the_node_of_the_canary_loses_its_power(fleet: Sandbox) -> None:
    """Nomad starts another one elsewhere, which is judged from its begin."""
    for new in releases(fleet, "power"):
        with (
            serving(new(**QUICK), **{"placement.constraints": on("=", "gpu-1")}) as served,
            deploying(served.release, max_model_len=NEW, **anywhere_but("gpu-1")) as deploy,
        ):
            node = deploy.wait_for("healthy")["data"]["node"]
            served.is_forgiven = lambda said: "502" in said or "Disconnected" in said  # the canary's share
            fleet.kill(f"nomad-{node}")
            code = deploy.end()
            fleet.start_again(f"nomad-{node}")
            assert code == DEPLOYED, deploy.evidence()
            served.serves_the_new()


def test_gpus_that_are_taken_after_the_plan(unbroken: Served, release: NewRelease) -> None:
    hog = release(replicas=6)
    with (
        holding(unbroken.sandbox.nomad_address, REGISTRATION) as registration,
        deploying(unbroken.release, env=registration.env, max_model_len=NEW) as deploy,
    ):
        registration.wait(deploy.evidence)
        hog.run()
        registration.let_go()
        assert deploy.end(150) == NO_ROOM, deploy.evidence()
    unbroken.still_serves()


def test_a_change_that_somebody_registers_after_the_plan_is_not_pushed_aside(served: Served) -> None:
    """Check-and-set: Nomad takes the job only as it was when it was planned."""
    with (
        holding(served.sandbox.nomad_address, REGISTRATION) as registration,
        deploying(served.release, env=registration.env, max_model_len=NEW) as deploy,
    ):
        registration.wait(deploy.evidence)
        served.sandbox.run(served.release.render(max_model_len=NEWER))
        registration.let_go()
        assert deploy.end() == FAILED, deploy.evidence()
        assert "registered" not in deploy.kinds()
        assert "someone else has changed the job in the meantime" in "\n".join(deploy.errors)
    job = served.sandbox.nomad.job.get_job(served.release.job)
    assert (job["Version"], job["TaskGroups"][0]["Count"]) == (1, 2)
    assert f"--max-model-len={NEWER}" in job["TaskGroups"][0]["Tasks"][0]["Config"]["args"]
    served.is_unhurt()


# The canary


@pytest.mark.parametrize("mode", ["never-ready", "exit-1-before-ready"])
def test_a_canary_that_does_not_get_ready(unbroken: Served, mode: str) -> None:
    soon: dict[str, Any] = {"rollout.healthy_deadline": "12s", "rollout.progress_deadline": "20s"}
    with deploying(unbroken.release, max_model_len=NEW, **failure(mode), **soon) as deploy:
        assert deploy.end() == FAILED, deploy.evidence()
    unbroken.still_serves()


def test_a_canary_that_answers_500(unbroken: Served) -> None:
    unbroken.is_forgiven = lambda said: "500 Internal" in said
    with deploying(unbroken.release, max_model_len=NEW, **failure("error-rate=1")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "error_rate" in deploy.wait_for("done")["text"]
    unbroken.still_serves()


def test_a_canary_that_hangs(release: NewRelease) -> None:
    """It is healthy, and counts no error; of three probes it answers none."""
    quiet = release(**QUICK)
    quiet.run()
    with deploying(quiet, max_model_len=NEW, **failure("hang")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "answered none of the last 3 probes" in deploy.wait_for("done")["text"]
    wait_until(lambda: versions(quiet.address, 20) == {OLD: 20}, SETTLED, "the old version serves alone")


def test_a_canary_that_dies_in_service(unbroken: Served) -> None:
    unbroken.is_forgiven = lambda said: any(word in said for word in ("500 Internal", "502", "Disconnected"))
    with deploying(unbroken.release, max_model_len=NEW, **failure("exit-0-after=3")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
    unbroken.still_serves()


def test_a_canary_that_is_slow_by_a_factor_of_five(release: NewRelease) -> None:
    with serving(release(**QUICK), **slow(60)) as served:
        with deploying(served.release, max_model_len=NEW, **slow(12)) as deploy:
            assert deploy.end() == REFUSED, deploy.evidence()
            assert "times the stable instances'" in deploy.wait_for("done")["text"]
        served.still_serves()


@pytest.mark.parametrize(
    ("settings", "code", "length", "said"),
    [
        ({"rollout.analysis.probe": "true"}, DEPLOYED, NEW, "is deployed"),
        ({**SILENT, "rollout.analysis.on_no_data": "fail"}, REFUSED, OLD, "on_no_data is fail"),
        ({**SILENT, "rollout.analysis.on_no_data": "hold"}, REFUSED, OLD, "and the time is up"),
    ],
    ids=["probes stand in", "it fails", "it is held until the time is up"],
)
def test_a_canary_without_traffic(
    release: NewRelease, settings: dict[str, Any], code: int, length: int, said: str
) -> None:
    """Nomad would wait for its promotion for ever."""
    quiet = release(**QUICK)
    quiet.run(**settings)
    with deploying(quiet, "--timeout", "20s", max_model_len=NEW, **settings) as deploy:
        assert deploy.end() == code, deploy.evidence()
        assert said in deploy.wait_for("done")["text"]
    quiet.wait_until_routed(length)
    wait_until(lambda: versions(quiet.address, 20) == {length: 20}, SETTLED, f"{length} serves alone")


def test_one_model_of_two_that_fails_is_the_end_for_both(release: NewRelease) -> None:
    """Nomad promotes all groups of a job together."""
    both = release(**{**QUICK, "replicas": 1})
    settings = ROOM / "sandbox.yaml"
    small = yaml.safe_load(settings.read_text())["models"]["chat"] | {
        "model": "a/small", "replicas": 1, "gpus": {"count": 1, "memory": "7 GiB"}, "max_model_len": OLD,
        "gpu_memory_utilization": 0.7,
        "route": {"path": f"/{both.job}-small/v1/", "strip": f"/{both.job}-small"},
    }  # fmt: skip
    analysis = {"window": "3s", "interval": "1s", "min_requests": 5}
    both.settings["models.small"] = json.dumps(small | {"rollout": small["rollout"] | {"analysis": analysis}})
    both.run()
    both.wait_until_routed(OLD)
    both.settings |= {f"models.small.{key}": str(value) for key, value in failure("error-rate=1").items()}
    with deploying(both, max_model_len=NEW) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "small: error_rate is 100 %" in deploy.wait_for("done")["text"]
        assert "promoting" not in deploy.kinds()
    for address in (both.address, f"{both.address}-small"):
        wait_until(
            lambda address=address: versions(address, 20) == {OLD: 20},  # type: ignore[misc]
            SETTLED,
            "the old version serves alone",
        )
    assert {one["JobVersion"] for one in both.allocations()} == {2}


# Other people


def test_a_newer_version_is_registered_while_a_canary_is_judged(served: Served) -> None:
    with (
        holding(served.sandbox.nomad_address, PROMOTION) as promotion,
        deploying(served.release, env=promotion.env, max_model_len=NEW) as deploy,
    ):
        deploy.wait_for("shifted")
        served.sandbox.run(served.release.render(max_model_len=NEWER))
        promotion.let_go()
        assert deploy.end() == FAILED, deploy.evidence()
        assert deploy.wait_for("done")["data"]["outcome"] == "superseded"
    waiting = served.sandbox.wait_until_healthy(served.release.job)
    assert (waiting["JobVersion"], waiting["Status"]) == (2, "running")
    running = Counter(
        one["JobVersion"] for one in served.release.allocations() if one["DesiredStatus"] == "run"
    )
    assert running == {0: 2, 2: 1}
    assert [key for key in keys(served.sandbox) if served.release.job in key] == []
    served.is_unhurt()


def test_another_person_promotes_first(served: Served) -> None:
    with deploying(served.release, max_model_len=NEW) as deploy:
        deploy.wait_for("verdict")
        served.sandbox.promote(served.release.job)
        assert deploy.end() == DEPLOYED, deploy.evidence()
    served.serves_the_new()


def test_another_person_fails_it_first(unbroken: Served) -> None:
    with deploying(unbroken.release, max_model_len=NEW) as deploy:
        deployment = deploy.wait_for("verdict")["deployment"]
        unbroken.sandbox.nomad.deployment.fail_deployment(deployment)
        assert deploy.end() == FAILED, deploy.evidence()
    unbroken.still_serves()
