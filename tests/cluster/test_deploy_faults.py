"""What goes wrong while a change is deployed: the old version serves on, and the exit code says what it was.

The old version is asked all the while; each test ends with which version serves, and with which share of it.
"""

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml

from sandbox.cluster import Sandbox
from sandbox.deploying import QUICK, Clock, Command, deploying
from sandbox.process import wait_until
from sandbox.release import NewRelease, Release, releases
from sandbox.traffic import Load, versions
from vllmjobs import releases as records
from vllmjobs.nomad_releases import Releases, where
from vllmjobs.rollout.model import Entry

OLD, NEW, NEWER = 1024, 2048, 1536
DEPLOYED, FAILED, NO_ROOM, REFUSED = 0, 1, 3, 4
SETTLED = 30.0  # seconds


class Served:
    """A release whose old version is asked ten times a second."""

    def __init__(self, release: Release, load: Load) -> None:
        self.release, self.sandbox, self._load = release, release.sandbox, load
        self.old = {one["ID"] for one in release.allocations()}
        self.is_forgiven: Callable[[str], bool] = lambda _: False
        """Which failures are to be expected: of a canary that fails, not of the old version."""

    def is_unhurt(self) -> None:
        """No request failed that the old version was to answer."""
        assert self._load.answered > 0
        assert [said for said in self._load.failures if not self.is_forgiven(said)] == []

    def still_serves(self) -> None:
        """The very same old instances, and nothing else; no share is left at the balancer."""
        self._settles_at(OLD)
        assert {one["ID"] for one in self.release.allocations()} == self.old
        self.is_unhurt()

    def serves_the_new(self) -> None:
        """The new version alone."""
        self._settles_at(NEW)
        assert self.sandbox.deployment(self.release.job)["Status"] == "successful"
        self.is_unhurt()

    def serves_the_old_again(self) -> None:
        """The old version alone, in instances that may be other ones."""
        self._settles_at(OLD)
        assert self.sandbox.deployment(self.release.job)["Status"] == "successful"
        self.is_unhurt()

    def _settles_at(self, length: int) -> None:
        wait_until(
            lambda: (
                len(self.release.allocations()) == 2 and versions(self.release.address, 20) == {length: 20}
            ),
            SETTLED,
            f"two instances of {length} serve alone",
            evidence=lambda: self.sandbox.evidence(self.release.job),
        )
        left = [key for key in _keys(self.sandbox) if self.release.job in key]
        assert left == []


def _keys(sandbox: Sandbox) -> list[str]:
    return [key for top in ("fabio/", "vllmjobs/") for key in sandbox.consul.kv.get(top, keys=True)[1] or ()]


@contextmanager
def serving(release: Release, **chat: Any) -> Iterator[Served]:
    release.run(**chat)
    release.wait_until_routed(OLD)
    with Load(release.address, per_second=10) as load:
        yield Served(release, load)


@pytest.fixture
def served(release: NewRelease) -> Iterator[Served]:
    """Two engines on one node, so that nothing that befalls the other touches them."""
    with serving(release(**QUICK), **{"placement.constraints": on("=", "gpu-1")}) as old:
        yield old


@pytest.fixture(scope="module")
def fleet() -> Iterator[Sandbox]:
    """Three servers, and three clients whose power can be cut."""
    with Sandbox(clients=3, gpus=3, servers=3, machines=True) as running:
        yield running


def on(operator: str, node: str) -> str:
    return f'[{{attribute: "${{node.unique.name}}", operator: "{operator}", value: "{node}"}}]'


def anywhere_but(node: str) -> dict[str, Any]:
    return {"placement.constraints": on("!=", node)}


def failure(mode: str) -> dict[str, Any]:
    return {"env.VLLMJOBS_STANDIN_FAILURE": mode}


def slow(tokens_per_second: int) -> dict[str, Any]:
    return {"env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": tokens_per_second}


SILENT = {"rollout.analysis.probe": "false"}


# The process that deploys


@pytest.mark.parametrize(
    "kind", ["registered", "placed", "healthy", "verdict", "shifted", "promoting", "stopping", "stopped"]
)
def test_killed_at_any_step_it_is_resumed_by_another(served: Served, kind: str) -> None:
    with deploying(served.release, at={kind: signal.SIGKILL}, max_model_len=NEW) as killed:
        assert killed.end() == -signal.SIGKILL
    with deploying(served.release, max_model_len=NEW) as resumed:
        assert resumed.end() == DEPLOYED, resumed.evidence()
        assert "registered" not in resumed.kinds()
    served.serves_the_new()


def rollback(served: Served, *words: str, at: Mapping[str, int] | None = None) -> Command:
    return Command(served.sandbox, ["rollback", *served.release.words(), *words], at)


BAD: dict[str, Any] = {
    "env.VLLMJOBS_STANDIN_FAILURE": "error-rate=1",
    "rollout.auto_revert": "false",
    "max_model_len": NEW,
}


def test_killed_after_it_has_failed_a_change_the_next_run_ends_as_that_would_have(served: Served) -> None:
    """It has recorded the reason, failed the deployment, and not yet registered the old version again."""
    served.is_forgiven = lambda said: "500 Internal" in said
    with deploying(served.release, "--detach", **BAD) as detached:
        assert detached.end() == DEPLOYED
    entry = Entry(
        version=1,
        at="2026-11-23T21:04:05.678Z",
        by="alice",
        outcome="refused",
        reason="chat: error_rate is 1",
    )
    records.write(Releases(served.sandbox.env), where(served.release.job), entry)
    served.sandbox.nomad.deployment.fail_deployment(served.sandbox.deployment(served.release.job)["ID"])
    with deploying(served.release, **BAD) as again:
        assert again.end() == REFUSED, again.evidence()
        assert "registered" not in again.kinds()
        assert again.kinds().index("reverted") > again.kinds().index("resumed")
        assert "chat: error_rate is 1" in again.wait_for("done")["text"]
    served.still_serves()


def test_killed_after_it_has_registered_the_old_version_again_the_way_back_goes_on(served: Served) -> None:
    served.is_forgiven = lambda said: "500 Internal" in said
    with deploying(served.release, at={"reverted": signal.SIGKILL}, **BAD) as killed:
        assert killed.end() == -signal.SIGKILL
    with rollback(served) as again:
        assert again.end() == DEPLOYED, again.evidence()
        assert again.kinds()[0] == "resumed"
    served.still_serves()


def test_killed_before_the_count_shrinks_it_shrinks_in_the_next_run(served: Served) -> None:
    """A count that shrinks beside a change is a registration of its own, after it."""
    change: dict[str, Any] = {"max_model_len": NEW, "replicas": 1}
    for kind in ("promoting", "done"):
        with deploying(served.release, at={kind: signal.SIGKILL}, **change) as killed:
            assert killed.end() == -signal.SIGKILL
    with deploying(served.release, **change) as again:
        assert again.end() == DEPLOYED, again.evidence()
    assert served.sandbox.nomad.job.get_job(served.release.job)["Version"] == 2, "each is registered once"
    wait_until(lambda: len(served.release.allocations()) == 1, SETTLED, "one is left")
    assert versions(served.release.address, 20) == {NEW: 20}
    served.is_unhurt()


def test_a_way_back_that_was_interrupted_goes_on_when_it_is_run_again(served: Served) -> None:
    """And does not take its own canaries for those of a change that is to be stopped."""
    served.release.run(max_model_len=NEW)
    served.sandbox.promote(served.release.job)
    served.sandbox.wait_until_healthy(served.release.job)
    for kind in ("registered", "placed"):
        with rollback(served, at={kind: signal.SIGKILL}) as killed:
            assert killed.end() == -signal.SIGKILL
    with rollback(served, at={"resumed": signal.SIGINT}) as left:
        assert left.end() == FAILED
        assert left.errors == ["left as it is: `vllmjobs rollback dev` goes on"]
    command = [str(served.sandbox.folder / "bin" / "vllmjobs"), "status", *served.release.words(), "--json"]
    status = subprocess.run(command, env=served.sandbox.env, check=True, capture_output=True, text=True)
    assert json.loads(status.stdout)["next"][0][0] == "vllmjobs rollback dev"
    with deploying(served.release, max_model_len=NEWER) as other:
        assert other.end() == REFUSED
        assert "`vllmjobs rollback dev` goes on with it" in other.evidence()
    with rollback(served) as again:
        assert again.end() == DEPLOYED, again.evidence()
    served.serves_the_old_again()


def test_a_wall_clock_that_jumps_changes_nothing(served: Served, tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with deploying(served.release, env=clock.env, max_model_len=NEW) as deploy:
        deploy.wait_for("healthy")
        clock.jump("+5h")
        deploy.wait_for("shifted")
        clock.jump("-3h")
        assert deploy.end() == DEPLOYED, deploy.evidence()
        hours = [event["at"][11:13] for event in deploy.events]
    assert len({*hours}) >= 3, "the clock did not jump"
    served.serves_the_new()


# The cluster


def test_nomads_only_server_is_killed_and_comes_back(served: Served) -> None:
    with deploying(served.release, max_model_len=NEW) as deploy:
        deploy.wait_for("shifted")
        served.sandbox.kill("nomad-server")
        served.sandbox.start_again("nomad-server")
        assert deploy.end() == DEPLOYED, deploy.evidence()
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


def test_killed_while_its_canary_has_no_room_it_is_given_up_by_the_next_run(
    served: Served, release: NewRelease
) -> None:
    """Nomad would wait for ever for what nobody follows."""
    hog = release(replicas=6)
    at = {"planned": signal.SIGSTOP, "registered": signal.SIGKILL}
    with deploying(served.release, at=at, max_model_len=NEW) as killed:
        killed.wait_for("planned")
        hog.run()
        killed.signal(signal.SIGCONT)
        assert killed.end() == -signal.SIGKILL
    with deploying(served.release, max_model_len=NEW) as resumed:
        assert resumed.end(150) == NO_ROOM, resumed.evidence()
        assert "registered" not in resumed.kinds()
    served.still_serves()


def test_gpus_that_are_taken_after_the_plan(served: Served, release: NewRelease) -> None:
    hog = release(replicas=6)
    with deploying(served.release, at={"planned": signal.SIGSTOP}, max_model_len=NEW) as deploy:
        deploy.wait_for("planned")
        hog.run()
        assert "registered" not in deploy.kinds()
        deploy.signal(signal.SIGCONT)
        assert deploy.end(150) == NO_ROOM, deploy.evidence()
    served.still_serves()


def test_a_change_that_somebody_registers_after_the_plan_is_not_pushed_aside(served: Served) -> None:
    """Check-and-set: Nomad takes the job only as it was when it was planned."""
    with deploying(served.release, at={"planned": signal.SIGSTOP}, max_model_len=NEW) as deploy:
        deploy.wait_for("planned")
        served.sandbox.run(served.release.render(max_model_len=NEWER))
        assert "registered" not in deploy.kinds()
        deploy.signal(signal.SIGCONT)
        assert deploy.end() == FAILED, deploy.evidence()
        assert "registered" not in deploy.kinds()
        assert "someone else has changed the job in the meantime" in "\n".join(deploy.errors)
    job = served.sandbox.nomad.job.get_job(served.release.job)
    assert (job["Version"], job["TaskGroups"][0]["Count"]) == (1, 2)
    assert f"--max-model-len={NEWER}" in job["TaskGroups"][0]["Tasks"][0]["Config"]["args"]
    served.is_unhurt()


# The canary


@pytest.mark.parametrize("mode", ["never-ready", "exit-1-before-ready"])
def test_a_canary_that_does_not_get_ready(served: Served, mode: str) -> None:
    with deploying(served.release, max_model_len=NEW, **failure(mode)) as deploy:
        assert deploy.end() == FAILED, deploy.evidence()
    served.still_serves()


def test_a_canary_that_answers_500(served: Served) -> None:
    served.is_forgiven = lambda said: "500 Internal" in said
    with deploying(served.release, max_model_len=NEW, **failure("error-rate=1")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "error_rate" in deploy.wait_for("done")["text"]
    served.still_serves()


def test_a_canary_that_hangs(release: NewRelease) -> None:
    """It is healthy, and counts no error; of three probes it answers none."""
    quiet = release(**QUICK)
    quiet.run()
    with deploying(quiet, max_model_len=NEW, **failure("hang")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "answered none of the last 3 probes" in deploy.wait_for("done")["text"]
    wait_until(lambda: versions(quiet.address, 20) == {OLD: 20}, SETTLED, "the old version serves alone")


def test_a_canary_that_dies_in_service(served: Served) -> None:
    served.is_forgiven = lambda said: any(word in said for word in ("500 Internal", "502", "Disconnected"))
    with deploying(served.release, max_model_len=NEW, **failure("exit-0-after=3")) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
    served.still_serves()


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
    settings = Path(__file__).parents[1] / "sandbox" / "sandbox.yaml"
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
    with deploying(served.release, at={"shifted": signal.SIGSTOP}, max_model_len=NEW) as deploy:
        deploy.wait_for("shifted")
        served.sandbox.run(served.release.render(max_model_len=NEWER))
        deploy.signal(signal.SIGCONT)
        assert deploy.end() == FAILED, deploy.evidence()
        assert deploy.wait_for("done")["data"]["outcome"] == "superseded"
    waiting = served.sandbox.wait_until_healthy(served.release.job)
    assert (waiting["JobVersion"], waiting["Status"]) == (2, "running")
    running = Counter(
        one["JobVersion"] for one in served.release.allocations() if one["DesiredStatus"] == "run"
    )
    assert running == {0: 2, 2: 1}
    assert [key for key in _keys(served.sandbox) if served.release.job in key] == []
    served.is_unhurt()


def test_another_person_promotes_first(served: Served) -> None:
    with deploying(served.release, max_model_len=NEW) as deploy:
        deploy.wait_for("verdict")
        served.sandbox.promote(served.release.job)
        assert deploy.end() == DEPLOYED, deploy.evidence()
    served.serves_the_new()


def test_another_person_fails_it_first(served: Served) -> None:
    with deploying(served.release, max_model_len=NEW) as deploy:
        deployment = deploy.wait_for("verdict")["deployment"]
        served.sandbox.nomad.deployment.fail_deployment(deployment)
        assert deploy.end() == FAILED, deploy.evidence()
    served.still_serves()


# Fabio


@contextmanager
def malformed_route(sandbox: Sandbox) -> Iterator[None]:
    """Fabio keeps its table as it is for as long as this is there."""
    sandbox.consul.kv.put("fabio/config/broken", "route wieght everything 1")
    try:
        yield
    finally:
        sandbox.consul.kv.delete("fabio/config/broken")


def test_a_malformed_route_refuses_a_deployment_before_it_begins(served: Served) -> None:
    with malformed_route(served.sandbox), deploying(served.release, max_model_len=NEW) as deploy:
        assert deploy.end() == REFUSED, deploy.evidence()
        assert "fabio/config/broken" in deploy.evidence()
    assert served.sandbox.nomad.job.get_job(served.release.job)["Version"] == 0
    served.still_serves()


@contextmanager
def counting(served: Served) -> Iterator[Callable[[], int]]:
    """How often deploy has looked at Fabio's table, which it does once in each turn of its loop."""
    looks: list[str] = []

    class Admin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = httpx.get(f"{served.sandbox.fabio_admin}{self.path}", trust_env=False)
            looks.append(self.path)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    Thread(target=server.serve_forever, daemon=True).start()
    served.release.settings["balancer.admin_port"] = str(server.server_port)
    try:
        yield lambda: len(looks)
    finally:
        server.shutdown()
        server.server_close()


def test_a_malformed_route_that_comes_later_is_waited_for(served: Served) -> None:
    """Nothing is measured of a share that Fabio does not give."""
    with counting(served) as looks, deploying(served.release, max_model_len=NEW) as deploy:
        deploy.wait_for("healthy")
        with malformed_route(served.sandbox):
            deploy.wait_for("shifted")
            before = looks()
            wait_until(lambda: looks() >= before + 5, SETTLED, "it has looked", evidence=deploy.evidence)
            assert deploy.kinds()[-1] == "shifted", deploy.evidence()
        deploy.wait_for("routed")
        assert deploy.end() == DEPLOYED, deploy.evidence()
        told = [kind for kind in deploy.kinds() if kind in ("shifted", "routed", "verdict", "promoting")]
        assert told[-4:] == ["shifted", "routed", "verdict", "promoting"]
    served.serves_the_new()


def test_a_malformed_route_that_stays_leaves_the_canary_to_which_fabio_goes_on_sending(
    served: Served,
) -> None:
    """Its table would not lose a canary that is stopped, and a tenth of the requests would fail."""
    with deploying(served.release, "--timeout", "25s", max_model_len=NEW) as deploy:
        deploy.wait_for("healthy")
        with malformed_route(served.sandbox):
            assert deploy.end(150) == FAILED, deploy.evidence()
            assert deploy.wait_for("done")["data"]["outcome"] == "left"
            with Load(served.release.address, per_second=10) as later:
                wait_until(lambda: later.answered > 20, SETTLED, "it is served")
            assert later.failures == []
            served.is_unhurt()
    with deploying(served.release, max_model_len=NEW) as resumed:
        assert resumed.end() == DEPLOYED, resumed.evidence()
    served.serves_the_new()
