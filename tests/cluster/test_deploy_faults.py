"""What goes wrong while a change is deployed: the old version serves on, and the exit code says what it was.

The old version is asked all the while; each test ends with which version serves, and with which share of it.
Most tests live through the life of one release.
"""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from vllmjobs_sandbox.cluster.deploying import QUICK, Command, deploying, succeeded
from vllmjobs_sandbox.cluster.jobs import holder
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import ROOM
from vllmjobs_sandbox.cluster.release import NewRelease, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.fakes.holding import FAILURE, PROMOTION, REGISTRATION, holding
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
    Life,
    Served,
    anywhere_but,
    asking,
    failure,
    keys,
    on,
    serving,
    slow,
)

# One that holds all GPUs of a node but the one that a life has.
HOG = f'job "hog" {{\n{holder("hog", gpus=3, node="gpu-1")}}}\n'


@contextmanager
def deploying_what_is_taken(served: Served, **how: Any) -> Iterator[Command]:
    """Deploy a change, whose node's GPUs are taken between its plan and its registration."""
    sandbox = served.sandbox
    with (
        holding(sandbox.nomad_address, REGISTRATION) as registration,
        deploying(served.release, env=registration.env, max_model_len=served.new, **how) as deploy,
    ):
        registration.wait(deploy.evidence)
        sandbox.run(HOG)
        wait_until(lambda: sandbox.allocations("hog"), 30, "the GPUs are taken")
        try:
            registration.let_go()
            yield deploy
        finally:
            sandbox.purge("hog")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Life]:
    """An engine on the first of three clients whose power can be cut, with three servers."""
    with Sandbox(clients=3, gpus=3, servers=3, machines=True) as running:
        for new in releases(running, "fleet"):
            yield serving(new(**QUICK | {"replicas": 1}), **{"placement.constraints": on("=", "gpu-1")})


# The cluster


def test_nomads_only_server_is_killed_and_comes_back(served: Served) -> None:
    with deploying(served.release, max_model_len=served.new) as deploy:
        deploy.wait_for("shifted")
        served.sandbox.kill("nomad-server")
        served.sandbox.start_again("nomad-server")
        assert deploy.end(150) == DEPLOYED, deploy.evidence()
    served.serves_the_new()


@pytest.mark.parametrize("agent", ["consul-gpu-2", "consul-server"])
def test_a_consul_agent_is_killed_and_comes_back(served: Served, agent: str) -> None:
    """The agent of the canary's node; and the server, whom deploy and the balancer ask."""
    node = agent.removeprefix("consul-")
    where: dict[str, Any] = {"placement.constraints": on("=", node)} if node in served.sandbox.nodes else {}
    with deploying(served.release, max_model_len=served.new, **where) as deploy:
        deploy.wait_for("verdict")
        served.sandbox.kill(agent)
        served.sandbox.start_again(agent)
        assert deploy.end() == DEPLOYED, deploy.evidence()
    served.serves_the_new()


def test_the_leader_of_three_servers_is_killed(fleet: Life) -> None:
    sandbox = fleet.release.sandbox
    leader = sandbox.leader()
    other = next(address for name, address in sandbox.servers().items() if name != leader)
    where: dict[str, Any] = {"placement.constraints": on("=", "gpu-1")}
    with (
        asking(fleet) as served,
        deploying(served.release, env={"NOMAD_ADDR": other}, max_model_len=served.new, **where) as deploy,
    ):
        deploy.wait_for("shifted")
        sandbox.kill(f"nomad-{leader}")
        code = deploy.end()
        sandbox.start_again(f"nomad-{leader}")
        assert code == DEPLOYED, deploy.evidence()
        served.serves_the_new()


def test_the_node_of_the_canary_loses_its_power(fleet: Life) -> None:
    """Nomad starts another one elsewhere, which is judged from its begin."""
    sandbox = fleet.release.sandbox
    with (
        asking(fleet) as served,
        deploying(served.release, max_model_len=served.new, **anywhere_but("gpu-1")) as deploy,
    ):
        node = deploy.wait_for("healthy")["data"]["node"]
        served.is_forgiven = lambda said: "502" in said or "Disconnected" in said  # the canary's share
        sandbox.kill(f"nomad-{node}")
        code = deploy.end()
        sandbox.start_again(f"nomad-{node}")
        assert code == DEPLOYED, deploy.evidence()
        served.serves_the_new()


def test_gpus_that_are_taken_after_the_plan(served: Served) -> None:
    with deploying_what_is_taken(served) as deploy:
        assert deploy.end(150) == NO_ROOM, deploy.evidence()
    served.still_serves()


def test_killed_while_its_canary_has_no_room_it_is_given_up_by_the_next_run(served: Served) -> None:
    """Nomad would wait for ever for what nobody follows."""
    with deploying_what_is_taken(served, at={"registered": signal.SIGKILL}) as killed:
        assert killed.end() == -signal.SIGKILL
        with deploying(served.release, max_model_len=served.new) as resumed:
            assert resumed.end(150) == NO_ROOM, resumed.evidence()
            assert "registered" not in resumed.kinds()
    served.still_serves()


def test_a_change_that_somebody_registers_after_the_plan_is_not_pushed_aside(served: Served) -> None:
    """Check-and-set: Nomad takes the job only as it was when it was planned."""
    version = served.life.version
    with (
        holding(served.sandbox.nomad_address, REGISTRATION) as registration,
        deploying(served.release, env=registration.env, max_model_len=served.new) as deploy,
    ):
        registration.wait(deploy.evidence)
        served.sandbox.run(served.release.render(max_model_len=NEWER))
        registration.let_go()
        assert deploy.end() == FAILED, deploy.evidence()
        assert "registered" not in deploy.kinds()
        assert "someone else has changed the job in the meantime" in "\n".join(deploy.errors)
    job = served.sandbox.nomad.job.get_job(served.release.job)
    assert (job["Version"], job["TaskGroups"][0]["Count"]) == (version + 1, 1)
    assert f"--max-model-len={NEWER}" in job["TaskGroups"][0]["Tasks"][0]["Config"]["args"]
    fails(served)


# The canary


@pytest.mark.parametrize("mode", ["never-ready", "exit-1-before-ready"])
def test_a_canary_that_does_not_get_ready(served: Served, mode: str) -> None:
    soon: dict[str, Any] = {
        "load_time": "1s",
        "drain.kill_timeout": "4s",
        "rollout.healthy_deadline": "3s",
        "rollout.progress_deadline": "5s",
    }
    with deploying(served.release, max_model_len=served.new, **failure(mode), **soon) as deploy:
        assert deploy.end() == FAILED, deploy.evidence()
        assert deploy.wait_for("done")["data"]["outcome"] == "failed"
    served.still_serves()


def test_a_canary_that_answers_500(served: Served) -> None:
    served.is_forgiven = lambda said: "500 Internal" in said
    with deploying(served.release, max_model_len=served.new, **failure("error-rate=1")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "error_rate" in deploy.wait_for("done")["text"]
    served.still_serves()


def test_a_canary_that_hangs(life: Life) -> None:
    """It is healthy, and counts no error; of three probes it answers none."""
    # A probe that is given up has a latency, too.
    hangs = failure("hang") | {"rollout.analysis.limits.e2e_latency": "null"}
    with deploying(life.release, max_model_len=life.other, **hangs) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "answered none of the last 3 probes" in deploy.wait_for("done")["text"]
    life.settles_at(life.length)


def test_a_canary_that_dies_in_service(served: Served) -> None:
    served.is_forgiven = lambda said: any(word in said for word in ("500 Internal", "502", "Disconnected"))
    with deploying(served.release, max_model_len=served.new, **failure("exit-0-after=3")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
    served.still_serves()


def test_a_canary_that_is_slow_by_a_factor_of_five(release: NewRelease) -> None:
    """Probes have one token, and would fill a window in which no other answer of it ends: there are none."""
    judged = SILENT | {
        "rollout.analysis.limits.inter_token_latency": "{ratio: 2, floor: 0.05}",
        "rollout.analysis.window": "8s",  # an answer takes it 3 s
        "rollout.analysis.min_requests": 2,
    }
    with asking(serving(release(**QUICK | judged | {"replicas": 1}), **slow(60))) as served:
        with deploying(served.release, max_model_len=served.new, **slow(12)) as deploy:
            assert deploy.end() == REFUSED, deploy.evidence()
            assert "times the stable instances'" in deploy.wait_for("done")["text"]
        served.still_serves()


# Nomad would wait for the promotion of a canary without traffic for ever.


def test_a_canary_without_traffic_may_fail_the_change(life: Life) -> None:
    silent = SILENT | {"rollout.analysis.on_no_data": "fail"}
    with deploying(life.release, max_model_len=life.other, **silent) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "on_no_data is fail" in deploy.wait_for("done")["text"]
    life.settles_at(life.length)


def test_a_canary_without_traffic_is_held_until_the_time_is_up(life: Life) -> None:
    silent = SILENT | {"rollout.analysis.on_no_data": "hold"}
    succeeded(deploying(life.release, "--detach", max_model_len=life.other, **silent))
    life.release.sandbox.wait_until_healthy(life.release.job)
    with deploying(life.release, "--timeout", "4s", max_model_len=life.other, **silent) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "and the time is up" in deploy.wait_for("done")["text"]
    life.settles_at(life.length)


def test_a_deployment_that_nomad_collects_as_it_fails_was_refused_all_the_same(life: Life) -> None:
    """Nomad 1.11 collects a failed deployment at its next round, every 5 minutes: here, at once."""
    silent = SILENT | {"rollout.analysis.on_no_data": "fail"}
    nomad = life.release.sandbox.nomad
    with (
        holding(life.release.sandbox.nomad_address, FAILURE) as failure,
        deploying(life.release, env=failure.env, max_model_len=life.other, **silent) as deploy,
    ):
        deploy.wait_for("verdict")
        id = life.release.sandbox.wait_until_healthy(life.release.job)["ID"]
        nomad.deployment.fail_deployment(id)

        def is_collected() -> bool:
            nomad.system.initiate_garbage_collection()
            return id not in {one["ID"] for one in nomad.deployments.get_deployments()}

        wait_until(is_collected, SETTLED, "Nomad has collected the deployment")
        failure.let_go()
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "on_no_data is fail" in deploy.wait_for("done")["text"]
    life.settles_at(life.length)


def test_probes_stand_in_for_the_traffic_that_a_canary_lacks(life: Life) -> None:
    probing: dict[str, Any] = {"rollout.analysis.probe": "true"}
    succeeded(deploying(life.release, max_model_len=life.other, **probing))
    life.settles_at(life.other)


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


def fails(served: Served) -> None:
    """Have somebody fail what waits for its promotion: the old instances serve on."""
    waiting = served.sandbox.wait_until_healthy(served.release.job)
    served.sandbox.nomad.deployment.fail_deployment(waiting["ID"])
    served.sandbox.wait_until_healthy(served.release.job)
    served.still_serves()


def test_a_newer_version_is_registered_while_a_canary_is_judged(served: Served) -> None:
    version = served.life.version
    with (
        holding(served.sandbox.nomad_address, PROMOTION) as promotion,
        deploying(served.release, env=promotion.env, max_model_len=served.new) as deploy,
    ):
        deploy.wait_for("shifted")
        served.sandbox.run(served.release.render(max_model_len=NEWER))
        promotion.let_go()
        assert deploy.end() == FAILED, deploy.evidence()
        assert deploy.wait_for("done")["data"]["outcome"] == "superseded"
    waiting = served.sandbox.wait_until_healthy(served.release.job)
    assert (waiting["JobVersion"], waiting["Status"]) == (version + 2, "running")
    running = Counter(
        one["JobVersion"] for one in served.release.allocations() if one["DesiredStatus"] == "run"
    )
    assert running == {version: 1, version + 2: 1}
    assert [key for key in keys(served.sandbox) if served.release.job in key] == []
    fails(served)


def test_another_person_promotes_first(served: Served) -> None:
    with deploying(served.release, max_model_len=served.new) as deploy:
        deploy.wait_for("verdict")
        served.sandbox.promote(served.release.job)
        assert deploy.end() == DEPLOYED, deploy.evidence()
    served.serves_the_new()


def test_another_person_fails_it_first(served: Served) -> None:
    with deploying(served.release, max_model_len=served.new) as deploy:
        deployment = deploy.wait_for("verdict")["deployment"]
        served.sandbox.nomad.deployment.fail_deployment(deployment)
        assert deploy.end() == FAILED, deploy.evidence()
    served.still_serves()
