"""`vllmjobs deploy` and the ways back, on a real Nomad, Consul, Fabio and nginx."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from vllmjobs_sandbox.cluster.deploying import Command
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release
from vllmjobs_sandbox.fakes.listening import listening
from vllmjobs_sandbox.traffic.requests import Load, versions

OLD, NEW = 1024, 2048
QUICK: dict[str, Any] = {
    "rollout.analysis.interval": "1s",
    "rollout.analysis.window": "2s",
    "rollout.analysis.min_requests": 5,
}


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


def weights(release: Release) -> list[str]:
    """The keys of Consul by which shares are asked for."""
    kv = release.sandbox.consul.kv
    return [
        key
        for prefix in (f"vllmjobs/{release.job}", f"fabio/config/{release.job}")
        for key in kv.get(prefix, keys=True)[1] or ()
    ]


@pytest.fixture
def served(release: NewRelease) -> Release:
    """Two instances of the old version, which answer through Fabio."""
    released = release(replicas=2, **QUICK)
    released.run()
    released.wait_until_routed(OLD)
    return released


def test_a_first_deployment_has_nothing_to_compare_and_takes_the_short_way(release: NewRelease) -> None:
    first = release(replicas=1, **QUICK)
    ended = deploy(first)
    assert ended.code == 0, ended.stderr
    assert "verdict" not in ended.kinds()
    assert ended.kinds()[:2] == ["planned", "registered"]
    assert ended.events[-1]["data"] == {"outcome": "successful"}


def test_a_change_is_promoted_on_evidence_share_by_share(served: Release) -> None:
    with Load(served.address, per_second=10) as load:
        ended = deploy(served, max_model_len=NEW, **{"rollout.steps": "[0.5]"})
    assert ended.code == 0, ended.stderr
    assert load.failures == []
    verdicts = [event["data"] for event in ended.events if event["kind"] == "verdict"]
    assert [(one["step"], one["verdict"]["result"]) for one in verdicts] == [(0, "pass"), (1, "pass")]
    assert {number["metric"] for number in verdicts[0]["verdict"]["numbers"]} >= {"error_rate", "e2e_latency"}
    assert [event["data"]["share"] for event in ended.events if event["kind"] == "shifted"] == [0.5]
    assert ended.kinds().index("promoting") > ended.kinds().index("shifted")
    assert versions(served.address, 50) == {NEW: 50}
    assert running(served) == {1: 2}
    assert weights(served) == []

    newest = shown(served, "history")[0]
    assert (newest["version"], newest["outcome"], newest["is_stable"]) == (1, "successful", True)
    assert newest["by"]
    assert newest["verdicts"]["chat"] == verdicts[-1]["verdict"]
    status = shown(served, "status")
    assert (status["version"], status["is_well"], status["next"]) == (1, True, [])
    (chat,) = status["groups"]
    assert (chat["step"], chat["verdict"]) == (1, verdicts[-1]["verdict"])


def test_what_is_deployed_already_is_no_change(kept: Release) -> None:
    ended = deploy(kept)
    assert ended.code == 0
    assert ended.kinds() == ["unchanged"]


def test_a_change_in_place_and_a_larger_count_take_the_short_way(served: Release) -> None:
    slower: dict[str, Any] = {"health.interval": "2s"}
    in_place = deploy(served, **slower)
    assert in_place.code == 0, in_place.stderr
    assert "in place" in in_place.texts()
    assert "verdict" not in in_place.kinds()
    more = deploy(served, replicas=3, **slower)
    assert more.code == 0, more.stderr
    assert running(served) == {2: 3}


def test_a_smaller_count_waits_until_the_change_is_promoted(served: Release) -> None:
    """Beside canaries Nomad would stop old instances at once (hashicorp/nomad#19643)."""
    ended = deploy(served, max_model_len=NEW, replicas=1)
    assert ended.code == 0, ended.stderr
    assert ended.kinds().count("registered") == 2
    assert ended.kinds().index("held") < ended.kinds().index("promoting")
    assert running(served) == {2: 1}


def test_blue_green_starts_as_many_as_there_are_and_switches_all_requests_at_once(served: Release) -> None:
    with Load(served.address, per_second=10) as load:
        ended = deploy(served, max_model_len=NEW, **{"rollout.strategy": "blue_green"})
    assert ended.code == 0, ended.stderr
    assert load.failures == []
    assert [event["data"]["share"] for event in ended.events if event["kind"] == "shifted"] == [1.0]
    before = ended.events[: ended.kinds().index("shifted")]
    assert [event["kind"] for event in before].count("healthy") == 2, "as many as there are"
    assert running(served) == {1: 2}


def test_rolling_replaces_one_after_the_other(served: Release) -> None:
    with Load(served.address, per_second=10) as load:
        ended = deploy(served, max_model_len=NEW, **{"rollout.strategy": "rolling"})
    assert ended.code == 0, ended.stderr
    assert load.failures == []
    assert "promoting" not in ended.kinds()
    assert running(served) == {1: 2}


def test_a_canary_without_room_is_refused_before_anything_is_registered(release: NewRelease) -> None:
    whole: dict[str, Any] = {"strategy": "tensor_parallel", "gpus.count": 4}
    whole["placement.constraints"] = '[{attribute: "${node.unique.name}", value: gpu-2}]'
    full = release(replicas=1, **QUICK, **whole)
    assert deploy(full).code == 0
    ended = deploy(full, max_model_len=NEW)
    assert ended.code == 3
    assert "1 of 1 canary of chat cannot be placed" in ended.stderr
    assert running(full) == {0: 1}


def test_a_way_back_without_room_for_its_canaries_is_refused_before_anything_is_registered(
    release: NewRelease,
) -> None:
    whole: dict[str, Any] = {"strategy": "tensor_parallel", "gpus.count": 4}
    whole["placement.constraints"] = '[{attribute: "${node.unique.name}", value: gpu-2}]'
    full = release(replicas=1, **QUICK, **whole)
    full.run()
    assert deploy(full, max_model_len=NEW, **{"rollout.strategy": "rolling"}).code == 0
    ended = run(full, "rollback")
    assert ended.code == 3
    assert "version 0 has no room\nchat: " in ended.stderr
    assert running(full) == {1: 1}


def test_what_check_finds_wrong_is_not_deployed(kept: Release) -> None:
    ended = deploy(kept, **{"gpus.count": 2, "args.tensor-parallel-size": 3})
    assert ended.code == 1
    assert ended.events == []
    assert "tensor" in ended.stderr
    assert running(kept) == {0: 2}


def test_a_slow_canary_is_refused_with_the_numbers_and_the_old_version_serves_on(served: Release) -> None:
    slow: dict[str, Any] = {"env.VLLMJOBS_STANDIN_FAILURE": "slow-first-token=1", "max_model_len": NEW}
    with Load(served.address, per_second=10) as load:
        ended = deploy(served, **slow)
    assert ended.code == 4
    assert load.failures == []
    assert "time_to_first_token is" in ended.texts()
    assert "more than 2 times the stable instances'" in ended.texts()
    assert versions(served.address, 50) == {OLD: 50}


def test_a_detached_release_is_gone_on_with(served: Release) -> None:
    detach = command(served, "deploy", "--job", "vllm", "--detach", max_model_len=NEW)
    id = subprocess.run(detach, env=served.sandbox.env, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert id == f"{served.sandbox.deployment(served.job)['ID']}\n", "and nothing else, for a script"
    ended = deploy(served, max_model_len=NEW)
    assert ended.code == 0
    assert ended.kinds()[0] == "resumed"
    assert running(served) == {1: 2}


def test_another_change_does_not_push_a_release_aside(served: Release) -> None:
    deploy(served, "--detach", max_model_len=NEW)
    ended = deploy(served, max_model_len=512)
    assert ended.code == 4
    assert "vllmjobs abort dev" in ended.stderr


def test_promote_is_a_persons_word_against_any_verdict(served: Release) -> None:
    deploy(served, "--detach", max_model_len=NEW, **{"env.VLLMJOBS_STANDIN_FAILURE": "error-rate=1"})
    served.sandbox.wait_until_healthy(served.job)
    with Command(served.sandbox, ["promote", *served.words()], at={"promoting": signal.SIGKILL}) as killed:
        assert killed.end() == -signal.SIGKILL
    ended = run(served, "promote")
    assert ended.code == 0, ended.stderr
    ended_with = {one["JobVersion"] for one in served.allocations()}
    assert ended_with == {1}, "it is followed until the old instances have ended"
    assert running(served) == {1: 2}


def test_promote_has_nothing_to_do_where_no_canary_ever_was(kept: Release) -> None:
    ended = run(kept, "promote")
    assert ended.code == 1
    assert "version 0 has no canaries that wait for a promotion" in ended.stderr


def test_abort_stops_the_canaries_and_the_old_version_serves_on(served: Release) -> None:
    deploy(served, "--detach", max_model_len=NEW)
    served.sandbox.wait_until_healthy(served.job)
    with Load(served.address, per_second=10) as load:
        ended = run(served, "abort")
    assert ended.code == 0, ended.stderr
    assert load.failures == []
    assert versions(served.address, 50) == {OLD: 50}
    again = run(served, "abort")
    assert again.code == 1
    assert "no canaries that wait for a promotion" in again.stderr


def test_abort_leaves_the_last_healthy_instance_unless_it_is_forced(release: NewRelease) -> None:
    frail: dict[str, Any] = {"env.VLLMJOBS_STANDIN_FAILURE": "exit-0-after=1"}
    served = release(replicas=1, **QUICK)
    served.run(**frail)
    deploy(served, "--detach", max_model_len=NEW)
    served.sandbox.wait_until_healthy(served.job)

    def is_down() -> bool:
        """Whether the old instance waits to be started again, which takes Nomad 15 s."""
        with Load(served.address, per_second=20) as load:
            wait_until(lambda: load.answered + len(load.failures) > 3, 10, "it is asked")
        old = next(one for one in served.allocations() if one["JobVersion"] == 0)
        return bool(old["TaskStates"]["vllm"]["State"] == "pending")

    wait_until(is_down, 30, "the old instance is down")
    refused = run(served, "abort")
    assert refused.code == 1
    assert "only the canaries of chat are healthy" in refused.stderr
    assert running(served) == {0: 1, 1: 1}
    forced = run(served, "abort", "--force")
    assert forced.code == 0, forced.stderr
    assert 1 not in running(served)


def test_abort_without_auto_revert_registers_the_stable_version_all_the_same(served: Release) -> None:
    """Later placements would be of the version that failed (hashicorp/nomad#5619)."""
    deploy(served, "--detach", max_model_len=NEW, **{"rollout.auto_revert": "false"})
    served.sandbox.wait_until_healthy(served.job)
    ended = run(served, "abort")
    assert ended.code == 0, ended.stderr
    assert "reverted" in ended.kinds()
    job = served.sandbox.nomad.job.get_job(served.job)
    assert f"--max-model-len={OLD}" in job["TaskGroups"][0]["Tasks"][0]["Config"]["args"]


def test_rollback_deploys_the_version_before_and_promotes_it(served: Release) -> None:
    assert deploy(served, max_model_len=NEW).code == 0
    with Load(served.address, per_second=10) as load:
        ended = run(served, "rollback")
    assert ended.code == 0, ended.stderr
    assert load.failures == []
    assert "version 0 is registered again, as 2" in ended.texts()
    assert versions(served.address, 50) == {OLD: 50}
    assert deploy(served, **{"health.interval": "2s"}).code == 0  # of which 2 would be the one before
    named = run(served, "rollback", "1")
    assert named.code == 0, named.stderr
    assert "version 1 is registered again, as 4" in named.texts()
    assert versions(served.address, 50) == {NEW: 50}
    missing = run(served, "rollback", "9")
    assert missing.code == 1
    assert "there is no other version 9; Nomad keeps 3, 2, 1, 0" in missing.stderr


def test_a_rollback_passes_over_a_version_as_which_the_job_was_stopped(served: Release) -> None:
    """To Nomad it is as stable as any, and going back to it would stop all."""
    served.sandbox.nomad_cli("job", "stop", "-detach", served.job)
    started = deploy(served, max_model_len=NEW)
    assert started.code == 0, started.stderr
    ended = run(served, "rollback")
    assert ended.code == 0, ended.stderr
    assert "version 0 is registered again, as 3" in ended.texts()
    refused = run(served, "rollback", "1")
    assert refused.code == 1
    assert "as version 1 the job was stopped" in refused.stderr


def test_before_a_promotion_a_rollback_is_an_abort(served: Release) -> None:
    deploy(served, "--detach", max_model_len=NEW)
    served.sandbox.wait_until_healthy(served.job)
    assert run(served, "rollback").code == 0
    assert versions(served.address, 50) == {OLD: 50}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_the_deployment_and_says_how_to_go_on(served: Release, number: int) -> None:
    words = command(
        served, "deploy", "--job", "vllm", max_model_len=NEW, **{"rollout.analysis.window": "10m"}
    )
    process = subprocess.Popen(
        words,
        env=served.sandbox.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stdout or ())
    wait_until(lambda: "is healthy" in next(lines), 60, "the canary is healthy")
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    goes_on, promotes, goes_back = re.findall(r"`(vllmjobs .*?)`", said)
    assert goes_on == shlex.join(["vllmjobs", *map(str, words[1:])])
    assert promotes == goes_back.replace(" abort ", " promote ")
    assert served.sandbox.deployment(served.job)["Status"] == "running"
    ended = subprocess.run(goes_back, shell=True, env=served.sandbox.env, check=False)
    assert ended.returncode == 0, "typed as printed, it is of the same job"
    assert versions(served.address, 20) == {OLD: 20}


def test_outside_of_a_maintenance_window_a_reason_is_needed(served: Release) -> None:
    never = '{windows: [{schedule: "0 0 29 2 *", duration: 1s}], time_zone: Europe/Berlin}'
    served.settings["maintenance"] = never
    closed = deploy(served, max_model_len=NEW)
    assert closed.code == 4
    assert "--now REASON" in closed.stderr
    begun = deploy(served, "--now", "a fix that cannot wait", "--detach", max_model_len=NEW)
    assert begun.code == 0
    assert deploy(served, max_model_len=NEW).code == 0, "what has begun is gone on with"


def test_hooks_get_each_event(served: Release, tmp_path: Path) -> None:
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
        ended = deploy(served, *hooks, replicas=3)
    assert ended.code == 0
    assert posted == ended.events
    assert [json.loads(line) for line in log.read_text().splitlines() if line] == ended.events
