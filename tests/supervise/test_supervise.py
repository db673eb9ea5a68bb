"""The supervisor as a process, over real engines: what it survives, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from vllmjobs.supervisor.core.model import GAVE_UP
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import SECONDS, Supervise, Supervised, marked
from vllmjobs_sandbox.traffic.requests import ENDLESS

STANDIN = "VLLMJOBS_STANDIN_"
SLOW = {f"{STANDIN}TOKENS_PER_SECOND": "10"}
PROGRAMS = Path(__file__).with_name("programs")
TINY = [sys.executable, "-IS", str(PROGRAMS / "tiny.py")]
FAMILY = f"{sys.executable} {PROGRAMS / 'family.py'}"


def failing(*modes: str, **knobs: object) -> dict[str, str]:
    """A stand-in that misbehaves so."""
    return {f"{STANDIN}FAILURE": ",".join(modes), **{f"{STANDIN}{key}": str(knobs[key]) for key in knobs}}


class TestReady:
    def test_it_is_when_the_model_has_answered(self, supervise: Supervise) -> None:
        one = supervise(env=failing(LOAD_SECONDS=1))
        one.wait_for("instance_started")
        assert one.get("/live") == (200, {"live": True})
        assert one.get("/ready") == (503, {"ready": False, "instances": {"chat-0": False}})
        assert one.get("/health")[1]["status"] == "starting"
        one.wait_until_ready()
        assert one.wait_for("instance_ready")["load_seconds"] >= 1
        status, body = one.get("/health")
        assert (status, body["status"], body["model_loaded"]) == (200, "ok", True)

    def test_it_is_not_while_completions_fail_though_health_is_well(self, supervise: Supervise) -> None:
        one = supervise(env=failing("error-rate=1"), limits={"load": 3, "restarts_never_ready": 0})
        reason = one.wait_for("instance_failed")["reason"]
        assert reason.startswith("not ready after 3 s: /v1/completions answered 500: {")
        assert one.end() == GAVE_UP

    def test_what_the_engine_says_is_passed_on_as_json(self, supervise: Supervise) -> None:
        one = supervise()
        one.wait_until_ready()
        said = {line["message"]: line for line in one.events if "message" in line}
        assert said["Application startup complete."] == {
            "time": said["Application startup complete."]["time"],
            "level": "INFO",
            "instance": "chat-0",
            "stream": "stderr",
            "message": "Application startup complete.",
            "source": said["Application startup complete."]["source"],
        }

    def test_a_port_that_another_program_has_is_named(self, supervise: Supervise) -> None:
        first = supervise(commands=[TINY])
        first.wait_until_ready()
        port = str(first.ports[0])
        second = supervise(commands=[TINY], limits={"restarts_never_ready": 0})
        second.stop()
        second.end()
        config = second._config.read_text().replace(str(second.ports[0]), port)
        second._config.write_text(config)
        second.start()
        assert second.end() == GAVE_UP
        assert second.wait_for("instance_not_started")["reason"] == f"port {port} is taken by another program"
        assert first.complete().status_code == 200

    def test_an_admin_port_that_is_taken_is_an_error(self, supervise: Supervise, tmp_path: Path) -> None:
        first = supervise(commands=[TINY])
        first.wait_until_ready()
        command = [sys.executable, "-m", "vllmjobs.supervisor", "--config", str(first._config)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert ended.returncode == 1
        address = first.admin.removeprefix("http://")
        assert f"the admin address {address} is taken by another program" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert first.complete().status_code == 200  # nothing of the first was ended


class TestRestart:
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    def test_after_a_signal(self, supervise: Supervise, how: signal.Signals) -> None:
        one = supervise()
        one.wait_until_ready()
        os.kill(one.pid(), how)
        failed = one.wait_for("instance_failed")
        assert failed["was_ready"] is True
        one.wait_for("instance_ready", count=2)
        assert one.complete().status_code == 200
        assert one.instance()["restarts"] == 1

    def test_after_an_end_with_exit_code_0(self, supervise: Supervise) -> None:
        """vLLM's API server ends so when its engine has died."""
        one = supervise(env=failing("exit-0-after=1", DEATH_SECONDS=0))
        one.wait_for("instance_ready")
        assert one.complete().status_code == 500
        assert one.wait_for("instance_failed")["status"] == 0
        one.wait_for("instance_ready", count=2)

    def test_whatever_the_exit_code_before_it_is_ready(self, supervise: Supervise) -> None:
        three = supervise(engines=3, commands=[["sh", "-c", f"exit {code}"] for code in (0, 1, 137)])
        assert three.end() == GAVE_UP
        for number, code in enumerate((0, 1, 137)):
            failed = three.said("instance_failed", f"chat-{number}")
            assert [(one["status"], one["was_ready"]) for one in failed] == [(code, False)] * 3

    def test_whatever_the_exit_code_once_it_is_ready(self, supervise: Supervise) -> None:
        """A shell, as an entry point may have one, tells of a kill as 137."""
        codes = {"chat-0": 0, "chat-1": 1, "chat-2": 137}
        ending = [["sh", "-c", f'{" ".join(TINY)} "$@"; exit {code}', "sh"] for code in codes.values()]
        three = supervise(engines=3, commands=ending)
        for name in codes:
            three.wait_for("instance_ready", name)
            shell = three.pid(name)
            (engine,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
            os.kill(int(engine), signal.SIGKILL)
        for name, code in codes.items():
            failed = three.wait_for("instance_failed", name)
            assert (failed["status"], failed["was_ready"]) == (code, True)
            three.wait_for("instance_ready", name, count=2)

    def test_an_engine_that_never_gets_ready_is_given_up(self, supervise: Supervise) -> None:
        one = supervise(env=failing("exit-1-before-ready", LOAD_SECONDS=0))
        assert one.end() == GAVE_UP
        assert len(one.said("instance_started")) == 3
        pauses = [event["after_seconds"] for event in one.said("instance_restarts")]
        assert len(pauses) == 2
        assert pauses[0] < pauses[1]
        assert one.said("instance_given_up")[0]["failures"] == 3

    def test_a_command_that_is_not_there_is_named(self, supervise: Supervise) -> None:
        one = supervise(commands=[["vllm-that-is-nowhere"]], limits={"restarts_never_ready": 0})
        assert one.end() == GAVE_UP
        assert "vllm-that-is-nowhere: not found on its PATH" in one.said("instance_not_started")[0]["reason"]

    def test_the_others_serve_on_while_one_is_restarted(self, supervise: Supervise) -> None:
        two = supervise(engines=2, commands=[TINY] * 2)
        for name in ("chat-0", "chat-1"):
            two.wait_for("instance_ready", name)
        other = two.pid("chat-1")
        os.kill(two.pid("chat-0"), signal.SIGKILL)
        two.wait_for("instance_failed", "chat-0")
        assert two.get("/ready")[0] == 200
        assert two.complete(1).status_code == 200
        two.wait_for("instance_ready", "chat-0", count=2)
        assert two.pid("chat-1") == other

    def test_of_all_of_eight_that_die_at_once(self, supervise: Supervise) -> None:
        eight = supervise(engines=8, commands=[TINY] * 8)
        names = [f"chat-{number}" for number in range(8)]
        for name in names:
            eight.wait_for("instance_ready", name)
        for pid in [eight.pid(name) for name in names]:
            os.kill(pid, signal.SIGKILL)
        for name in names:
            eight.wait_for("instance_ready", name, count=2)
        assert eight.get("/ready")[0] == 200

    def test_one_that_fails_again_and_again_is_given_up_and_the_other_serves_on(
        self, supervise: Supervise
    ) -> None:
        crashing = [sys.executable, "-c", "raise SystemExit(3)"]
        two = supervise(engines=2, commands=[TINY, crashing])
        two.wait_for("instance_given_up", "chat-1")
        two.wait_for("instance_ready", "chat-0")
        status, body = two.get("/health")
        assert (status, body["status"]) == (200, "degraded")
        assert body["instances"]["chat-1"]["phase"] == "given_up"


class TestHang:
    def test_a_stopped_process_is_killed_and_started_again(self, supervise: Supervise) -> None:
        one = supervise()
        one.wait_until_ready()
        pid = one.pid()
        os.kill(pid, signal.SIGSTOP)
        assert one.wait_for("instance_failed")["reason"] == "no progress for 4 s"
        one.wait_for("instance_ready", count=2)
        assert one.pid() != pid

    def test_one_whose_health_is_well_while_nothing_moves_is_found(self, supervise: Supervise) -> None:
        one = supervise(env=failing("hang-after=1"))
        one.wait_for("instance_ready")
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(one.complete)
            assert one.wait_for("instance_failed")["reason"] == "no progress for 4 s"
            with pytest.raises(httpx.TransportError):
                asked.result()
        one.wait_for("instance_ready", count=2)

    def test_a_busy_one_whose_health_is_late_is_left_alone(self, supervise: Supervise) -> None:
        one = supervise(env=failing("slow-health=1.5"))
        one.wait_until_ready()
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(one.complete, max_tokens=1200) for _ in range(2)]  # 6 s of work
            assert {one.result().status_code for one in asked} == {200}
        assert one.said("instance_failed") == []


class TestStop:
    def test_it_lets_the_answers_end(self, supervise: Supervise) -> None:
        one = supervise()
        one.wait_until_ready()
        with one.begun(400) as answer:  # 2 s
            one.stop()
            one.wait_for("instance_leaves")
            assert answer.tokens() == 400
        assert one.end() == 0
        assert [said["unanswered"] for said in one.said("instance_drained")] == [0]

    def test_a_drain_has_its_limit(self, supervise: Supervise) -> None:
        one = supervise(env=SLOW, limits={"drain": 1})
        one.wait_until_ready()
        with one.begun(ENDLESS) as answer:
            one.stop()
            assert one.end() == 0
            assert answer.tokens() is None
        assert one.said("instance_drained")[0]["unanswered"] == 1

    def test_it_is_unready_at_once_and_a_second_signal_ends_the_drain(self, supervise: Supervise) -> None:
        one = supervise(env=SLOW, limits={"drain": 600})
        one.wait_until_ready()
        with one.begun(ENDLESS) as answer:
            one.stop()
            one.wait_for("instance_leaves")
            assert one.get("/ready")[0] == 503
            assert one.get("/live")[0] == 200
            one.stop()
            assert one.end() == 0
            assert answer.tokens() is None

    def test_a_third_signal_kills(self, supervise: Supervise) -> None:
        one = supervise(env=failing("ignore-term"), limits={"term": 600})
        one.wait_until_ready()
        one.stop()
        one.wait_for("stopping")
        one.stop()
        one.wait_for("stop_hurried")
        one.stop()
        assert one.end() == 0
        assert one.said("instance_killed")[0]["reason"] == "a stop was asked for three times"

    def test_one_that_ignores_sigterm_is_killed(self, supervise: Supervise) -> None:
        one = supervise(env=failing("ignore-term"), limits={"term": 0.5})
        one.wait_until_ready()
        one.stop()
        assert one.end() == 0
        assert len(one.said("instance_killed")) == 1

    def test_while_it_loads(self, supervise: Supervise) -> None:
        one = supervise(env=failing("never-ready"))
        one.wait_for("instance_started")
        one.stop()
        assert one.end() == 0

    def test_while_it_waits_for_a_restart(self, supervise: Supervise) -> None:
        one = supervise(commands=[TINY], limits={"backoff": 600, "backoff_most": 600})
        one.wait_until_ready()
        os.kill(one.pid(), signal.SIGKILL)
        one.wait_until_phase("waiting")
        one.stop()
        assert one.end() == 0

    def test_nothing_is_left_of_a_tree_that_hides(self, supervise: Supervise) -> None:
        hiding = " & ".join(f"{FAMILY} {kind}" for kind in ("daemon", "stubborn", "session"))
        engine = " ".join(TINY)
        one = supervise(commands=[["sh", "-c", f'{hiding} & exec {engine} "$@"', "sh"]])
        one.wait_until_ready()
        wait_until(lambda: len(marked(one)) >= 6, SECONDS, "all of them run")
        one.stop()
        assert one.end() == 0
        assert marked(one) == []

    def test_a_thousand_orphans_that_have_ended_are_reaped(self, supervise: Supervise) -> None:
        engine = " ".join(TINY)
        storm = f"{FAMILY} zombies & "
        one = supervise(commands=[["sh", "-c", f'{storm} exec {engine} "$@"', "sh"]])
        one.wait_until_ready()
        wait_until(lambda: reaped(one) >= 1000, SECONDS, "all are reaped")
        assert zombies(one.process.pid) == 0

    def test_after_a_sigkill_the_next_ends_what_was_left(self, supervise: Supervise) -> None:
        one = supervise(engines=2, commands=[TINY] * 2)
        one.wait_until_ready()
        left = {one.pid("chat-0"), one.pid("chat-1")}
        one.process.kill()
        one.process.wait()
        assert left <= set(marked(one))
        one.start()
        one.wait_for("instance_ready", "chat-1", count=2)
        one.wait_for("instance_ready", "chat-0", count=2)
        assert not left & set(marked(one))
        assert {pid for said in one.said("leftovers_killed") for pid in said["pids"]} >= left


class TestOutput:
    NOISE = "import sys\nwhile True: sys.stdout.write('a line of text that says nothing\\n' * 1000)"

    def test_a_reader_that_does_not_read_stops_nobody(self, supervise: Supervise) -> None:
        here, there = os.pipe()
        try:
            noisy = supervise(engines=2, commands=[TINY, [sys.executable, "-c", self.NOISE]], stdout=there)
            wait_until(lambda: noisy.get("/ready/chat-0")[0] == 200, SECONDS, "chat-0 is ready")
            assert noisy.complete().status_code == 200
            noisy.stop()
            assert noisy.end() == 0
        finally:
            os.close(here)
            os.close(there)

    def test_a_flood_of_lines_is_cut_and_counted(self, supervise: Supervise) -> None:
        noisy = supervise(engines=2, commands=[TINY, [sys.executable, "-c", self.NOISE]], log_rate=100)
        noisy.wait_for("instance_ready", "chat-0")
        assert noisy.wait_for("lines_dropped", "chat-1", count=2)["dropped"] > 1000
        assert noisy.complete().status_code == 200

    def test_a_full_disk_stops_nobody(self, supervise: Supervise) -> None:
        with Path("/dev/full").open("wb") as full:
            one = supervise(commands=[TINY], stdout=full.fileno())
            one.wait_until_ready()
            one.stop()
            assert one.end() == 0


def reaped(one: Supervised) -> float:
    with httpx.Client(trust_env=False) as client:
        page = client.get(f"{one.admin}/metrics").text
    name = "vllmjobs_supervisor_zombies_reaped_total "
    return next(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


def zombies(parent: int) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        found += state == "Z" and int(ppid) == parent
    return found
