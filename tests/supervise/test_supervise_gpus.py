"""The supervisor over GPUs that break: NVML is a real shared library, nvml_live.c."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from vllmjobs.supervisor.core.model import GAVE_UP, GPU_FATAL
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import Supervise, Supervised
from vllmjobs_sandbox.gpus.live import GIB, Live, uuid

TINY = [sys.executable, "-IS", str(Path(__file__).with_name("programs") / "tiny.py")]
WITHIN = 60.0  # seconds; a look comes every five


class OnGpus(Live):
    """A supervisor on GPUs, to which things can happen."""

    supervised: Supervised

    def uses(self, gib: int) -> None:
        """Let so much of the first GPU be in use, and wait until a look has shown it."""
        self.happens(f"GPU0_USED={gib * GIB}")
        self.xid(uuid(0), 43)  # which is only logged, and followed by a look at once
        used(self.supervised, gib)


Start = Callable[..., OnGpus]


@pytest.fixture
def on_gpus(supervise: Supervise, library: Path, tmp_path: Path) -> Iterator[Start]:
    """Start engines, with so many GPUs each: `on_gpus(2)`, `on_gpus(each=[1, 2])`.

    Answers are those of the first GPU.
    """

    made: list[OnGpus] = []

    def start(
        engines: int = 1,
        each: Sequence[int] = (),
        limits: dict[str, float] | None = None,
        told: Mapping[str, object] | None = None,
        **answers: object,
    ) -> OnGpus:
        each = each or [1] * engines
        found = OnGpus(library, tmp_path / "live", [uuid(number) for number in range(sum(each))])
        made.append(found)
        found.env |= {f"GPU0_{key}": str(answer) for key, answer in answers.items()}
        names = iter(found.uuids)
        gpus = [[next(names) for _ in range(count)] for count in each]
        found.supervised = supervise(
            engines=len(each),
            commands=[TINY] * len(each),
            env=found.env,
            gpus=gpus,
            limits=limits,
            **(told or {}),
        )
        return found

    yield start
    for one in made:
        one.close()


def test_what_it_runs_on_is_said_and_shown(on_gpus: Start) -> None:
    one = on_gpus().supervised
    assert one.wait_for("gpu_detected")["gpus"] == ["NVIDIA H100 80GB HBM3"]
    one.wait_until_ready()
    body = one.get("/health")[1]
    assert body["gpu_available"] is True
    assert body["memory_usage"]["gpus"] == [{"gpu": uuid(0), "used_bytes": 0, "total_bytes": 80 * GIB}]


def test_a_fatal_error_of_the_only_gpu_ends_all_with_exit_code_70(on_gpus: Start) -> None:
    found = on_gpus()
    one = found.supervised
    one.wait_until_ready()
    found.xid(uuid(0), 79)
    condemned = one.wait_for("gpu_condemned")
    assert condemned["gpu"] == uuid(0)
    assert condemned["reason"].startswith("XID 79 ")
    assert one.end() == GPU_FATAL
    assert "this is not a Nomad task" in one.said("node_not_fenced")[0]["reason"]


def test_the_engine_on_the_other_gpu_serves_on(on_gpus: Start) -> None:
    found = on_gpus(2)
    two = found.supervised
    for name in ("chat-0", "chat-1"):
        two.wait_for("instance_ready", name)
    other = two.pid("chat-1")
    found.xid(uuid(0), 48)
    two.wait_until_phase("given_up", "chat-0")
    assert two.pid("chat-1") == other
    assert two.complete(1).status_code == 200
    status, body = two.get("/health")
    assert (status, body["status"]) == (200, "degraded")


def test_a_gpu_that_is_lost_is_fatal(on_gpus: Start) -> None:
    found = on_gpus()
    found.supervised.wait_until_ready()
    found.happens("GPU0=!15\nxid 0 43 4294967295")  # which is followed by a look at once
    assert found.supervised.end() == GPU_FATAL


def test_other_errors_are_only_said(on_gpus: Start) -> None:
    found = on_gpus()
    one = found.supervised
    one.wait_until_ready()
    for code, event in ((43, "gpu_log"), (31, "gpu_watch"), (74, "gpu_degrade")):
        found.xid(uuid(0), code)
        assert one.wait_for(event)["reason"].startswith(f"XID {code} ")
    assert one.get("/ready")[0] == 200
    assert one.said("gpu_condemned") == []


def test_a_faulty_link_is_fatal_to_an_engine_on_several_gpus_alone(on_gpus: Start) -> None:
    found = on_gpus(each=[1, 2])
    two = found.supervised
    for name in ("chat-0", "chat-1"):
        two.wait_for("instance_ready", name)
    found.xid(uuid(0), 74)
    assert two.wait_for("gpu_degrade")["gpu"] == uuid(0)
    found.xid(uuid(2), 74)
    assert two.wait_for("gpu_condemned")["gpu"] == uuid(2)
    two.wait_until_phase("given_up", "chat-1")
    assert two.complete(0).status_code == 200


def test_where_the_driver_says_what_it_needs_an_error_alone_condemns_nothing(on_gpus: Start) -> None:
    found = on_gpus()
    one = found.supervised
    one.wait_until_ready()
    found.happens("GPU0_RECOVERY=0")
    found.happens("GPU0_CLOCKS=8")
    found.xid(uuid(0), 43)  # which is logged, and followed by a look, of which the slowdown is
    one.wait_for("gpu_log", count=2)
    found.xid(uuid(0), 48)
    assert one.wait_for("gpu_degrade")["reason"].endswith(", but the driver asks for no recovery")
    assert one.get("/ready")[0] == 200
    found.happens("GPU0_RECOVERY=1")
    found.xid(uuid(0), 43)
    assert one.wait_for("gpu_condemned")["reason"] == "the driver asks to reset the GPU"
    assert one.end() == GPU_FATAL


def used(one: Supervised, gib: int) -> None:
    """Wait until a look has shown that so much of the first GPU is in use."""

    def shown() -> bool:
        gpus = one.get("/health")[1]["memory_usage"]["gpus"]
        return [gpu["used_bytes"] for gpu in gpus][:1] == [gib * GIB]

    wait_until(shown, WITHIN, f"{gib} GiB are in use", evidence=one.evidence)


def test_one_is_started_again_only_when_its_memory_is_free(on_gpus: Start) -> None:
    found = on_gpus()
    one = found.supervised
    one.wait_until_ready()
    found.uses(70)
    os.kill(one.pid(), signal.SIGKILL)
    one.wait_for("instance_failed")
    found.uses(69)
    assert one.instance()["phase"] == "clearing"
    found.uses(0)
    one.wait_for("instance_ready", count=2)


def test_memory_that_is_never_free_gives_it_up(on_gpus: Start) -> None:
    found = on_gpus(limits={"vram": 2})
    one = found.supervised
    one.wait_until_ready()
    found.uses(70)
    os.kill(one.pid(), signal.SIGKILL)
    assert one.end() == GAVE_UP
    assert one.said("gpu_memory_not_freed")[0]["gpus"] == [uuid(0)]


def test_another_engine_on_a_gpu_waits_for_the_memory_of_the_one_before(
    on_gpus: Start, tmp_path: Path
) -> None:
    found = on_gpus(2, told={"admin_path": str(tmp_path / "admin.sock")}, limits={"vram": 5})
    one = found.supervised
    for name in ("chat-0", "chat-1"):
        one.wait_for("instance_ready", name)
    found.uses(70)
    config = json.loads(one._config.read_text())
    config["engines"][0]["name"] = "chat-2"
    one._config.write_text(json.dumps(config))
    for path in ("/reload", "/reload/chat-0", "/reload/chat-2"):
        assert one.ask(path)[0] in (200, 202)
    one.wait_for("gpu_memory_not_freed", "chat-0")
    found.uses(69)
    assert one.instance("chat-2")["phase"] == "clearing"
    found.uses(0)
    one.wait_for("instance_ready", "chat-2")


@pytest.fixture
def killed(on_gpus: Start) -> OnGpus:
    """A supervisor that was killed, and started again while what it left holds 70 GiB."""
    found = on_gpus(USED=70 * GIB, limits={"gone": 1})
    one = found.supervised
    one.wait_until_ready()
    one.process.kill()
    one.process.wait()
    one.start()
    one.wait_for("leftovers_killed")
    used(one, 70)
    assert one.instance()["phase"] == "clearing"
    return found


def test_the_gpu_of_what_was_left_has_to_be_empty_before_the_next_start(killed: OnGpus) -> None:
    killed.uses(0)
    killed.supervised.wait_for("instance_ready", count=2)


def test_a_stop_while_leftovers_are_cleared_starts_nothing(killed: OnGpus) -> None:
    one = killed.supervised
    one.stop()
    assert one.end() == 0
    assert len(one.said("instance_started")) == 1


def test_nvml_that_hangs_is_asked_anew_and_fatal_after_half_a_minute(on_gpus: Start, tmp_path: Path) -> None:
    """And until then stops nobody; what hangs is ended."""
    hung = tmp_path / "hung"
    found = on_gpus(CLOCKS=f"hang:{hung}")
    one = found.supervised
    one.wait_until_ready()
    one.wait_for("gpu_detected")
    hung.touch()
    assert one.wait_for("gpu_watch")["reason"] == "NVML does not answer (1 of 3 times in a row)"
    assert one.complete().status_code == 200
    hung.unlink()
    wait_until(lambda: one.get("/health")[1]["gpu_available"], WITHIN, "it answers", evidence=one.evidence)
    found.xid(uuid(0), 43)
    one.wait_for("gpu_log")
    before = len(one.said("gpu_watch"))  # it may have hung once more before it was let go
    hung.touch()
    assert one.wait_for("gpu_condemned")["reason"] == "NVML does not answer (3 of 3 times in a row)"
    assert one.end() == GPU_FATAL
    assert [said["reason"][22:28] for said in one.said("gpu_watch")[before:]] == ["1 of 3", "2 of 3"]
    assert one.said("node_not_fenced")[0]["gpu"] == uuid(0)
