"""The sandbox itself: it has what was asked for, and leaves nothing."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.gpus.plugin.devices import Health
from vllmjobs_sandbox.story import story
from vllmjobs_sandbox.story.story import Story

START, STOP = 60.0, 60.0


@pytest.fixture
def parent() -> Iterator[Path]:
    """A folder with a short name: Nomad puts sockets far below it."""
    with tempfile.TemporaryDirectory(prefix="s") as name:
        yield Path(name)


class Script:
    """A running `scripts/sandbox`, in a process group of its own as a terminal would have it."""

    def __init__(self, parent: Path, *options: str) -> None:
        self.output = parent / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [CHECKOUT / "scripts" / "sandbox", "--dir", parent, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_for(self, text: str) -> str:
        """Wait until it has printed that; return the rest of the line."""

        def printed() -> str | None:
            assert self.process.poll() is None or text in self.read(), self.read()
            found = re.search(rf"{text}(.*)\n", self.read())
            return found and (found[1].strip() or text)

        return wait_until(printed, START, f"it prints {text!r}", evidence=self.read)

    def read(self) -> str:
        return self.output.read_text()

    def end(self, number: signal.Signals) -> int:
        """Send a signal to all of the group, as Ctrl-C does; return the exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(STOP)


@contextmanager
def script(parent: Path, *options: str) -> Iterator[Script]:
    started = Script(parent, *options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGTERM)


def traces(folder: Path) -> list[str]:
    """Find what mentions a folder: processes by their command, folder or environment, and mounts."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            said = command + (process / "environ").read_bytes() + bytes((process / "cwd").readlink())
            if f"{folder}/".encode() in said:
                found.append(f"{process.name} {command!r}")
    return found + [line for line in Path("/proc/mounts").read_text().splitlines() if f" {folder}/" in line]


def test_each_node_has_the_gpus_that_were_asked_for(sandbox: Sandbox) -> None:
    for name in ("gpu-1", "gpu-2"):
        (group,) = sandbox.node(name)["NodeResources"]["Devices"]
        assert (group["Vendor"], group["Type"], group["Name"]) == ("nvidia", "gpu", "NVIDIA H100 80GB HBM3")
        memory = group["Attributes"]["memory"]
        assert (memory["Int"], memory["Unit"]) == (81559, "MiB")
        assert [gpu["Healthy"] for gpu in group["Instances"]] == [True] * 4
    assert not set(sandbox.gpus("gpu-1")) & set(sandbox.gpus("gpu-2"))


def test_nomad_sees_a_gpu_fail_and_come_back(sandbox: Sandbox) -> None:
    gpu, *others = sandbox.gpus("gpu-2")
    sandbox.set_gpu_health("gpu-2", gpu, Health.UNHEALTHY)
    try:
        wait_until(lambda: not sandbox.gpus("gpu-2")[gpu], 30, "Nomad sees it fail")
        assert all(sandbox.gpus("gpu-2")[other] for other in others)
        assert all(sandbox.gpus("gpu-1").values())
    finally:
        sandbox.set_gpu_health("gpu-2", gpu, Health.HEALTHY)
    wait_until(lambda: sandbox.gpus("gpu-2")[gpu], 30, "Nomad sees it well again")


def test_a_node_that_is_silent_on_a_busy_machine_is_not_lost(sandbox: Sandbox) -> None:
    """Nomad's own 20 s are too few: what ran there would be stopped, with exit code 0, when it is back."""
    server = sandbox.nomad.agent.get_agent()["config"]["Server"]
    assert server["HeartbeatGrace"] >= 300e9  # nanoseconds


@pytest.mark.parametrize(
    ("when", "number", "exit_code"),
    [("folder ", signal.SIGINT, 130), ("nomad ", signal.SIGTERM, 143)],
    ids=["Ctrl-C before the agents are up", "SIGTERM before the nodes are up"],
)
def test_a_stop_during_the_start_leaves_no_process_no_mount_and_no_folder(
    parent: Path, when: str, number: signal.Signals, exit_code: int
) -> None:
    with script(parent, "--keep", "--clients", "1") as started:
        folder = Path(started.wait_for("folder "))
        started.wait_for(when)
        assert traces(folder) or when == "folder "
        assert started.end(number) == exit_code, started.read()
    assert traces(folder) == []
    assert not folder.exists()


def test_two_sandboxes_run_side_by_side_and_what_a_killed_one_has_left_is_removed_by_the_next(
    sandbox: Sandbox, parent: Path
) -> None:
    """The first is killed while a job of its own runs; Ctrl-C stops the second."""
    before = {job["ID"] for job in sandbox.nomad.jobs.get_jobs()}
    with script(parent, "--keep", "--clients", "1") as killed:
        folder = Path(killed.wait_for("folder "))
        killed.wait_for("Ctrl-C stops it")
        shell(folder, "vllmjobs render dev --set models.chat.replicas=1 | nomad job run -")
        assert "vllm-dev-chat" in shell(folder, "consul catalog services")
        assert "vllm-dev-chat" not in sandbox.consul.catalog.services()[1]
        assert [trace for trace in traces(folder) if "vllmjobs_sandbox.engine" in trace]
        killed.end(signal.SIGKILL)
    left = traces(folder)
    assert any("vllmjobs_sandbox.engine" in line for line in left)
    assert any("nginx" in line for line in left)
    assert any("tmpfs" in line for line in left)
    with script(parent, "--keep", "--clients", "1") as after:
        assert after.wait_for("removed what an earlier sandbox left in ") == str(folder)
        after.wait_for("Ctrl-C stops it")
        assert not set(traces(folder)) & set(left)
        assert after.end(signal.SIGINT) == 0, after.read()
    assert traces(folder) == []
    assert not folder.exists()
    assert {job["ID"] for job in sandbox.nomad.jobs.get_jobs()} == before
    assert [node["Status"] for node in sandbox.nomad.nodes.get_nodes()] == ["ready", "ready"]
    assert not sandbox.ended()


def shell(folder: Path, command: str) -> str:
    """What a command prints in a shell that has sourced the sandbox's `env`."""
    words = ["bash", "-o", "pipefail", "-c", f". {folder}/env; {command}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_a_failed_start_shows_the_log_and_keeps_it(parent: Path) -> None:
    tools = parent / "tools"
    tools.mkdir()
    for name in ("nomad", "fabio", "consul"):
        (tools / name).write_text("#!/bin/sh\necho out of order; exit 3\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "vllmjobs_sandbox", "--dir", str(parent)]
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT / "tests")}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ended with exit code 3" in ended.stderr
    assert "out of order" in ended.stderr
    (log,) = re.findall(r"the end of (.*):", ended.stderr)
    assert Path(log).exists()


@pytest.fixture(scope="module")
def told(sandbox: Sandbox) -> Iterator[Story]:
    """The story, whose job is the same for those who tell it."""
    yield Story(sandbox)
    sandbox.purge(story.JOB)


def test_a_step_of_the_story_that_fails_ends_it_with_evidence(
    told: Story, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "CHANGED", "vllmjobs render dev --set models.chat.replicas=1")
    with pytest.raises(SandboxError, match="not released as a canary") as failure:
        told.tell()
    assert "on gpu-1: running" in str(failure.value)
    assert "5. " not in capsys.readouterr().out


def test_the_story_is_told_to_its_end(told: Story, capsys: pytest.CaptureFixture[str]) -> None:
    told.tell()
    said = capsys.readouterr().out
    assert "$ vllmjobs render dev | nomad job run -detach -" in said
    assert "max_model_len=2048: 50 of 50" in said
    assert "\n7. Ask the same through nginx\n" in said
