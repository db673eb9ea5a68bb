"""`vllmjobs deploy` and the ways back, on a real Nomad, Consul, Fabio and nginx.

Most tests live through the life of one release: each begins and ends with one instance that serves alone.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from vllmjobs_sandbox.cluster import deploying
from vllmjobs_sandbox.cluster.deploying import Command
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.fakes.listening import listening
from vllmjobs_sandbox.traffic.requests import Trickle, versions
from vllmjobs_sandbox.traffic.served import NEW, OLD, Life, failure, on, serving

QUICK = deploying.QUICK | {"rollout.steps": "[]"}


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    events: list[dict[str, Any]]
    stderr: str

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def texts(self) -> str:
        return "\n".join(event["text"] for event in self.events)

    def said(self) -> str:
        return f"{self.texts()}\n{self.stderr}"


def command(release: Release, word: str, *others: str, **chat: Any) -> list[str | Path]:
    return [release.sandbox.folder / "bin" / "vllmjobs", word, *release.words(**chat), *others]


def run(release: Release, *words: str, **chat: Any) -> Ended:
    ended = subprocess.run(
        [*command(release, *words, **chat), "--json"],
        env=release.sandbox.env,
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    return Ended(ended.returncode, events, ended.stderr)


def shown(release: Release, word: str) -> Any:
    """What `status` or `history` prints for programs."""
    ended = subprocess.run(
        [*command(release, word), "--json"], env=release.sandbox.env, check=True, capture_output=True
    )
    return json.loads(ended.stdout)


def deploy(release: Release, *words: str, **chat: Any) -> Ended:
    """The models' job only: the sandbox has its balancers already."""
    return run(release, "deploy", "--job", "vllm", *words, **chat)


def running(release: Release) -> dict[int, int]:
    """How many instances of which version run."""
    found: dict[int, int] = {}
    for one in release.allocations():
        if one["DesiredStatus"] == "run":
            found[one["JobVersion"]] = found.get(one["JobVersion"], 0) + 1
    return found


@pytest.fixture(scope="module")
def first(sandbox: Sandbox) -> Iterator[tuple[Life, Ended]]:
    """One instance behind Fabio, and the end of its first deployment."""
    for new in releases(sandbox, "first"):
        one = new(**QUICK | {"replicas": 1, "placement.constraints": on("=", "gpu-1")})
        ended = deploy(one)
        one.wait_until_routed(OLD)
        yield Life(one), ended


@pytest.fixture(scope="module")
def life(first: tuple[Life, Ended]) -> Life:
    """The same, through whose life most tests go."""
    return first[0]


@pytest.fixture(scope="module")
def pair(sandbox: Sandbox) -> Iterator[Life]:
    """Two instances behind Fabio."""
    for new in releases(sandbox, "pair"):
        yield serving(new(**QUICK), 2)


def test_a_first_deployment_has_nothing_to_compare_and_takes_the_short_way(
    first: tuple[Life, Ended],
) -> None:
    _, ended = first
    assert ended.code == 0, ended.said()
    assert "verdict" not in ended.kinds()
    assert ended.kinds()[:2] == ["planned", "registered"]
    assert ended.events[-1]["data"] == {"outcome": "successful"}


def test_what_is_deployed_already_is_no_change(life: Life) -> None:
    ended = deploy(life.release, max_model_len=life.length)
    assert ended.code == 0, ended.said()
    assert ended.kinds() == ["unchanged"]


def test_what_check_finds_wrong_is_not_deployed(life: Life) -> None:
    before = life.version
    ended = deploy(life.release, **{"gpus.count": 2, "args.tensor-parallel-size": 3})
    assert ended.code == 1, ended.said()
    assert ended.events == []
    assert "tensor" in ended.stderr
    assert life.version == before


def test_promote_has_nothing_to_do_where_no_canary_ever_was(life: Life) -> None:
    ended = run(life.release, "promote")
    assert ended.code == 1, ended.said()
    assert f"version {life.version} has no canaries that wait for a promotion" in ended.stderr


def test_a_change_is_promoted_on_evidence_share_by_share(life: Life) -> None:
    release, version = life.release, life.version + 1
    with Trickle(release.address, per_second=10) as load:
        ended = deploy(release, max_model_len=life.other, **{"rollout.steps": "[0.5]"})
    assert ended.code == 0, ended.said()
    assert load.failures == []
    verdicts = [event["data"] for event in ended.events if event["kind"] == "verdict"]
    assert [(one["step"], one["verdict"]["result"]) for one in verdicts] == [(0, "pass"), (1, "pass")]
    assert {number["metric"] for number in verdicts[0]["verdict"]["numbers"]} >= {"error_rate", "e2e_latency"}
    assert [event["data"]["share"] for event in ended.events if event["kind"] == "shifted"] == [0.5]
    assert ended.kinds().index("promoting") > ended.kinds().index("shifted")
    assert versions(release.address, 50) == {life.other: 50}
    life.settles_at(life.other)
    assert running(release) == {version: 1}

    newest = shown(release, "history")[0]
    assert (newest["version"], newest["outcome"], newest["is_stable"]) == (version, "successful", True)
    assert newest["by"]
    assert newest["verdicts"]["chat"] == verdicts[-1]["verdict"]
    status = shown(release, "status")
    assert (status["version"], status["is_well"], status["next"]) == (version, True, [])
    (chat,) = status["groups"]
    assert (chat["step"], chat["verdict"]) == (1, verdicts[-1]["verdict"])


LIMIT = {"rollout.analysis.limits.time_to_first_token": "{ratio: 2, floor: 0.2}"}
SLOW: dict[str, Any] = failure("slow-first-token=1") | LIMIT


def test_a_slow_canary_is_refused_with_the_numbers_and_the_old_version_serves_on(life: Life) -> None:
    with Trickle(life.release.address, per_second=10) as load:
        ended = deploy(life.release, max_model_len=life.other, **SLOW)
    assert ended.code == 4, ended.said()
    assert load.failures == []
    assert "time_to_first_token is" in ended.texts()
    assert "more than 2 times the stable instances'" in ended.texts()
    life.settles_at(life.length)


def test_promote_is_a_persons_word_against_any_verdict_and_rollback_takes_it_back(life: Life) -> None:
    release, old, new, version = life.release, life.length, life.other, life.version
    deploy(release, "--detach", max_model_len=new, **SLOW)
    release.sandbox.wait_until_healthy(release.job)
    with Command(release.sandbox, ["promote", *release.words()], at={"promoting": signal.SIGKILL}) as killed:
        assert killed.end() == -signal.SIGKILL
    ended = run(release, "promote")
    assert ended.code == 0, ended.said()
    ended_with = {one["JobVersion"] for one in release.allocations()}
    assert ended_with == {version + 1}, "it is followed until the old instances have ended"
    assert running(release) == {version + 1: 1}

    with Trickle(release.address, per_second=10) as load:
        ended = run(release, "rollback")
    assert ended.code == 0, ended.said()
    assert load.failures == []
    assert f"version {version} is registered again, as {version + 2}" in ended.texts()
    life.settles_at(old)


def test_rollback_goes_back_to_the_version_that_is_named(life: Life) -> None:
    release, old, version = life.release, life.length, life.version
    assert deploy(release, max_model_len=life.other).code == 0
    assert (
        deploy(release, max_model_len=life.other, **{"health.interval": "2s"}).code == 0
    )  # where it would go without a name
    named = run(release, "rollback", f"{version}")
    assert named.code == 0, named.said()
    assert f"version {version} is registered again, as {version + 3}" in named.texts()
    life.settles_at(old)
    missing = run(release, "rollback", "99")
    assert missing.code == 1, missing.said()
    kept = f"{version + 2}, {version + 1}, {version}"
    assert f"there is no other version 99; Nomad keeps {kept}" in missing.stderr


def test_a_rollback_passes_over_a_version_as_which_the_job_was_stopped(life: Life) -> None:
    """To Nomad it is as stable as any, and going back to it would stop all."""
    release, old, version = life.release, life.length, life.version
    release.sandbox.nomad_cli("job", "stop", "-detach", release.job)
    started = deploy(release, max_model_len=life.other)
    assert started.code == 0, started.said()
    ended = run(release, "rollback")
    assert ended.code == 0, ended.said()
    assert f"version {version} is registered again, as {version + 3}" in ended.texts()
    life.settles_at(old)
    refused = run(release, "rollback", f"{version + 1}")
    assert refused.code == 1, refused.said()
    assert f"version {version + 1} is a stop of the job" in refused.stderr


def test_before_a_promotion_a_rollback_is_an_abort(life: Life) -> None:
    """Without auto_revert, it registers the stable version all the same.

    Later placements would be of the version that failed (hashicorp/nomad#5619).
    """
    release = life.release
    deploy(release, "--detach", max_model_len=life.other, **{"rollout.auto_revert": "false"})
    release.sandbox.wait_until_healthy(release.job)
    ended = run(release, "rollback")
    assert ended.code == 0, ended.said()
    assert "reverted" in ended.kinds()
    job = release.sandbox.nomad.job.get_job(release.job)
    assert f"--max-model-len={life.length}" in job["TaskGroups"][0]["Tasks"][0]["Config"]["args"]
    life.settles_at(life.length)


def test_ctrl_c_leaves_the_deployment_and_says_how_to_go_on(life: Life) -> None:
    """The way back is typed as printed: an abort, which stops the canaries."""
    release = life.release
    watched = {"max_model_len": life.other, "rollout.analysis.window": "10m"}
    words = command(release, "deploy", "--job", "vllm", **watched)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            words,
            env=release.sandbox.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = iter(process.stdout or ())
        wait_until(lambda lines=lines: "is healthy" in next(lines), 60, "the canary is healthy")  # type: ignore[misc]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        goes_on, promotes, goes_back = re.findall(r"`(vllmjobs .*?)`", said)
        assert goes_on == shlex.join(["vllmjobs", *map(str, words[1:])])
        assert promotes == goes_back.replace(" abort ", " promote ")
        assert release.sandbox.deployment(release.job)["Status"] == "running"
    with Trickle(release.address, per_second=10) as load:
        ended = subprocess.run(goes_back, shell=True, env=release.sandbox.env, check=False)
    assert ended.returncode == 0, "typed as printed, it is of the same job"
    assert load.failures == []
    life.settles_at(life.length)
    again = run(release, "abort")
    assert again.code == 1, again.said()
    assert "no canaries that wait for a promotion" in again.stderr


def test_outside_of_a_maintenance_window_a_reason_is_needed_and_what_has_begun_is_gone_on_with(
    life: Life,
) -> None:
    """The last of this life: its windows stay in force for each later change that names none."""
    release, new = life.release, life.other
    never = '{windows: [{schedule: "0 0 29 2 *", duration: 1s}], time_zone: Europe/Berlin}'
    closed = ("--set", f"maintenance={never}")
    refused = deploy(release, *closed, max_model_len=new)
    assert refused.code == 4, refused.said()
    assert "--now REASON" in refused.stderr

    now = ("--now", "a fix that cannot wait", "--detach")
    detach = command(release, "deploy", "--job", "vllm", *closed, *now, max_model_len=new)
    begun = subprocess.run(detach, env=release.sandbox.env, check=True, stdout=subprocess.PIPE, text=True)
    id = release.sandbox.deployment(release.job)["ID"]
    assert begun.stdout == f"{id}\n", "and nothing else, for a script"

    another = deploy(release, *closed, *now[:2], max_model_len=512)
    assert another.code == 4, "another change does not push a release aside"
    assert "vllmjobs abort dev" in another.stderr

    ended = deploy(release, *closed, max_model_len=new)
    assert ended.code == 0, ended.said()
    assert ended.kinds()[0] == "resumed"
    assert running(release) == {life.version: 1}
    life.settles_at(new)


def test_abort_leaves_the_last_healthy_instance_unless_it_is_forced(release: NewRelease) -> None:
    alone = release(**QUICK | {"replicas": 1})
    soon = {"load_time": "1s", "rollout.healthy_deadline": "2s"}
    alone.sandbox.run(alone.render(**failure("never-ready"), **soon))
    old = wait_until(alone.allocations, 30, "it is placed")[0]["ID"]
    wait_until(
        lambda: (
            (alone.sandbox.nomad.allocation.get_allocation(old).get("DeploymentStatus") or {}).get("Healthy")
            is False
        ),
        30,
        "the old instance is not healthy",
    )
    alone.run(max_model_len=NEW)
    refused = run(alone, "abort")
    assert refused.code == 1, refused.said()
    assert "only the canaries of chat are healthy" in refused.stderr
    assert running(alone) == {0: 1, 1: 1}
    forced = run(alone, "abort", "--force")
    assert forced.code == 0, forced.said()
    assert 1 not in running(alone)


def test_canaries_without_room_are_refused_before_anything_is_registered(release: NewRelease) -> None:
    """Those of a change, and those of a way back."""
    whole: dict[str, Any] = {"strategy": "tensor_parallel", "gpus.count": 4, "replicas": 1}
    whole["placement.constraints"] = on("=", "gpu-2")
    full = release(**QUICK | whole)
    full.run()
    ended = deploy(full, max_model_len=NEW)
    assert ended.code == 3, ended.said()
    assert "1 of 1 canary of chat cannot be placed" in ended.stderr
    assert running(full) == {0: 1}

    assert deploy(full, max_model_len=NEW, **{"rollout.strategy": "rolling"}).code == 0
    back = run(full, "rollback")
    assert back.code == 3, back.said()
    assert "version 0 has no room\nchat: " in back.stderr
    assert running(full) == {1: 1}


def test_blue_green_starts_as_many_as_there_are_and_switches_all_requests_at_once(pair: Life) -> None:
    release = pair.release
    with Trickle(release.address, per_second=10) as load:
        ended = deploy(release, max_model_len=pair.other, **{"rollout.strategy": "blue_green"})
    assert ended.code == 0, ended.said()
    assert load.failures == []
    assert [event["data"]["share"] for event in ended.events if event["kind"] == "shifted"] == [1.0]
    before = ended.events[: ended.kinds().index("shifted")]
    assert [event["kind"] for event in before].count("healthy") == 2, "as many as there are"
    assert running(release) == {pair.version: 2}
    pair.settles_at(pair.other)


def test_rolling_replaces_one_after_the_other(pair: Life) -> None:
    release = pair.release
    with Trickle(release.address, per_second=10) as load:
        ended = deploy(release, max_model_len=pair.other, **{"rollout.strategy": "rolling"})
    assert ended.code == 0, ended.said()
    assert load.failures == []
    assert "promoting" not in ended.kinds()
    assert running(release) == {pair.version: 2}
    pair.settles_at(pair.other)


def test_a_change_in_place_and_a_larger_count_take_the_short_way(pair: Life, tmp_path: Path) -> None:
    """Hooks get each of their events."""
    release, slower = pair.release, {"max_model_len": pair.length, "health.interval": "2s"}
    in_place = deploy(release, **slower)
    assert in_place.code == 0, in_place.said()
    assert "in place" in in_place.texts()
    assert "verdict" not in in_place.kinds()

    posted: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    log = tmp_path / "events"
    with listening(Hook) as address:
        hooks = ("--notify", f"{address}/hook", "--notify", f"cat >>{log}; echo >>{log}")
        more = deploy(release, *hooks, **slower | {"replicas": 3})
    assert more.code == 0, more.said()
    assert running(release) == {pair.version: 3}
    assert posted == more.events
    assert [json.loads(line) for line in log.read_text().splitlines() if line] == more.events
