"""An engine of several processes, as vLLM is: what becomes of it when one of them dies or stops."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import ENGINE, SECONDS, Supervise, Supervised, marked
from vllmjobs_sandbox.traffic.requests import ENDLESS

ENV = {
    "VLLMJOBS_STANDIN_WORKERS": "1",
    "VLLMJOBS_STANDIN_LOAD_SECONDS": "0",
    "VLLMJOBS_STANDIN_DEATH_SECONDS": "2",
    "VLLMJOBS_STANDIN_TOKENS_PER_SECOND": "10",
}
WORDS = {"EngineCore": b"\0EngineCore\0", "Worker": b"\0Worker\0", "API server": b"\0serve\0"}


def processes(one: Supervised) -> dict[str, int]:
    """Its pids by what they are."""
    found: dict[str, int] = {}
    for pid in marked(one):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        found |= {what: pid for what, word in WORDS.items() if word in command}
    return found


def is_there(pid: int) -> bool:
    """Whether it runs, or at least holds what it has: a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def health(one: Supervised) -> int:
    with httpx.Client(trust_env=False, timeout=SECONDS) as client:
        return client.get(f"http://127.0.0.1:{one.ports[0]}/health").status_code


@pytest.mark.parametrize("victim", ["EngineCore", "Worker"])
def test_the_death_of_its_core_or_a_worker_is_an_end_with_exit_code_0(
    supervise: Supervise, victim: str
) -> None:
    """And a failure: vLLM's API server leaves so (vllm-project/vllm#48966)."""
    one = supervise(env=ENV)
    one.wait_until_ready()
    before = processes(one)
    assert set(before) == set(WORDS)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(one.complete, max_tokens=ENDLESS)
        wait_until(lambda: one.instance()["unanswered"], SECONDS, "it is asked", evidence=one.evidence)
        os.kill(before[victim], signal.SIGKILL)
        assert asked.result().status_code == 500
    assert health(one) == 503
    failed = one.wait_for("instance_failed")
    assert (failed["status"], failed["was_ready"]) == (0, True)
    one.wait_for("instance_ready", count=2)
    assert one.complete().status_code == 200
    assert not set(before.values()) & set(marked(one))


def test_a_core_that_outlives_its_api_server_is_gone_before_the_next_start(
    supervise: Supervise, tmp_path: Path
) -> None:
    """It would hold the memory of its GPU (vllm-project/vllm#55510)."""
    look = f"ls /proc >{tmp_path}/there; mv {tmp_path}/there {tmp_path}/there-$$; exec {' '.join(ENGINE)}"
    one = supervise(env=ENV, commands=[["sh", "-c", f'{look} "$@"', "sh"]])
    one.wait_until_ready()
    before = processes(one)
    os.kill(before["API server"], signal.SIGKILL)
    assert one.wait_for("instance_failed")["status"] == -signal.SIGKILL
    one.wait_for("instance_ready", count=2)
    there = set((tmp_path / f"there-{one.pid()}").read_text().split())
    assert not there & {str(pid) for pid in before.values()}


def test_a_core_and_its_worker_outlive_an_api_server_that_nobody_supervises(supervise: Supervise) -> None:
    """What the test above stands on."""
    one = supervise(env=ENV, limits={"backoff": 600, "backoff_most": 600})
    one.wait_until_ready()
    before = processes(one)
    os.kill(one.process.pid, signal.SIGSTOP)
    os.kill(before["API server"], signal.SIGKILL)
    wait_until(lambda: not is_there(before["API server"]), SECONDS, "it is dead")
    assert is_there(before["EngineCore"])
    assert is_there(before["Worker"])
    os.kill(one.process.pid, signal.SIGCONT)
    one.wait_until_phase("waiting")
    assert not marked(one)


@pytest.mark.parametrize("victim", ["EngineCore", "Worker"])
def test_one_that_stops_is_found_by_progress_while_health_is_well(supervise: Supervise, victim: str) -> None:
    one = supervise(env=ENV)
    one.wait_until_ready()
    before = processes(one)
    os.kill(before[victim], signal.SIGSTOP)
    assert health(one) == 200  # while it has nothing to do, which is no hang
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(one.complete)
        assert one.wait_for("instance_failed")["reason"] == "no progress for 4 s"
        with pytest.raises(httpx.TransportError):
            asked.result()
    one.wait_for("instance_ready", count=2)
    assert not set(before.values()) & set(marked(one))
