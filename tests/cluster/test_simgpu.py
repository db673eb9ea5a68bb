"""The device plugin, spoken to as Nomad speaks to it: a process of its own, a handshake line, then gRPC."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import msgspec
import pytest

import vllmjobs_sandbox
from vllmjobs_sandbox.gpus.plugin.__main__ import COOKIE, COOKIE_VALUE
from vllmjobs_sandbox.gpus.plugin.config import GpuModel
from vllmjobs_sandbox.gpus.plugin.devices import device_ids
from vllmjobs_sandbox.gpus.plugin.launcher import plugin_executable
from vllmjobs_sandbox.gpus.plugin.messages import METHODS, message

SOURCES = str(Path(vllmjobs_sandbox.__file__).parents[1])
DEADLINE = 20.0
H100 = GpuModel("NVIDIA H100 80GB HBM3", memory_mib=81559, count=2, power_w=700, cores_clock_mhz=1980)
A10 = GpuModel("NVIDIA A10", memory_mib=23028)
NODE = {"node": "box-1", "gpu": [vars(H100), vars(A10)]}
H100_IDS = device_ids("box-1", [H100])


class Plugin:
    """A running plugin, and the calls on it."""

    def __init__(self, executable: Path, *wrapped_in: str) -> None:
        self.process = subprocess.Popen(
            [*wrapped_in, str(executable)],
            env={COOKIE: COOKIE_VALUE},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.handshake = next_line(self.process.stdout)
        socket = self.handshake.split("|")[3].removeprefix("@")
        self.channel = grpc.insecure_channel(f"unix-abstract:{socket}")

    def call(self, name: str, **fields: object) -> Any:
        method = METHODS[name]
        kind: Callable[..., Any] = self.channel.unary_stream if method.streams else self.channel.unary_unary
        made = kind(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return made(message(method.request.DESCRIPTOR.name, **fields), timeout=DEADLINE)

    def configure(self, values: object) -> None:
        self.call("SetConfig", msgpack_config=msgspec.msgpack.encode(values), plugin_api_version="v0.1.0")

    def logged(self) -> dict[str, str]:
        line: dict[str, str] = json.loads(next_line(self.process.stderr))
        return line


def next_line(stream: IO[str] | None) -> str:
    """Read a line within the deadline; nothing may be buffered, so one line at a time is written."""
    assert stream is not None
    assert select.select([stream], [], [], DEADLINE)[0], "no line came"
    return stream.readline().strip()


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin dir") / "simgpu"
    file.write_text(plugin_executable(sys.executable, SOURCES))
    file.chmod(0o755)
    return file


@contextmanager
def running(executable: Path, *wrapped_in: str) -> Iterator[Plugin]:
    plugin = Plugin(executable, *wrapped_in)
    try:
        yield plugin
    finally:
        plugin.channel.close()
        plugin.process.kill()
        plugin.process.communicate(timeout=DEADLINE)


@pytest.fixture(scope="module")
def plugin(executable: Path) -> Iterator[Plugin]:
    with running(executable) as plugin:
        yield plugin


def replace(file: Path, text: str) -> None:
    """Write in one step: the plugin may look at any moment, and would warn of half a file."""
    half = file.with_suffix(".half")
    half.write_text(text)
    half.rename(file)


def presented(fingerprint: Any) -> dict[str, dict[str, bool]]:
    return {
        group.device_name: {device.ID: device.healthy for device in group.devices}
        for group in fingerprint.device_group
    }


# What Nomad asks before it uses a plugin


def test_the_handshake_names_a_socket_of_its_own_each_time(plugin: Plugin, executable: Path) -> None:
    with running(executable) as another:
        assert re.fullmatch(r"1\|2\|unix\|@simgpu-\d+-\w+\|grpc", another.handshake)
        assert another.handshake != plugin.handshake


def test_it_is_healthy_and_a_device_plugin(plugin: Plugin) -> None:
    assert plugin.call("Check", service="plugin").status == 1
    info = plugin.call("PluginInfo")
    assert (info.type, list(info.plugin_api_versions), info.name) == (3, ["v0.1.0"], "simgpu")


def test_the_schema_takes_gpu_blocks_and_fills_in_defaults(plugin: Plugin) -> None:
    keys = plugin.call("ConfigSchema").spec.object.attributes
    assert keys["node"].Attr.required
    assert keys["driver_version"].default.default.literal.value == '"570.124.06"'
    assert keys["gpu"].block_list.name == "gpu"
    gpu = keys["gpu"].block_list.nested.object.attributes
    assert gpu["memory_mib"].Attr.required
    assert gpu["count"].default.primary.Attr.type == "number"
    assert gpu["count"].default.default.literal.value == "1"


# Devices


def test_gpus_look_as_the_nvidia_plugin_shows_them(plugin: Plugin) -> None:
    plugin.configure(NODE)
    h100, a10 = next(plugin.call("Fingerprint")).device_group
    assert (h100.vendor, h100.device_type, h100.device_name) == ("nvidia", "gpu", "NVIDIA H100 80GB HBM3")
    shown = {name: (value.int_val or value.string_val, value.unit) for name, value in h100.attributes.items()}
    assert shown == {
        "memory": (81559, "MiB"),
        "power": (700, "W"),
        "cores_clock": (1980, "MHz"),
        "driver_version": ("570.124.06", ""),
    }
    assert sorted(a10.attributes) == ["driver_version", "memory"]
    assert [device.ID for device in h100.devices] == H100_IDS
    assert all(re.fullmatch(r"GPU-\w{8}-\w{4}-\w{4}-\w{4}-\w{12}", id) for id in H100_IDS)


def test_gpus_of_one_model_are_one_group_and_an_empty_group_is_left_out(plugin: Plugin) -> None:
    none = {**vars(A10), "count": 0}
    plugin.configure({"node": "box-1", "gpu": [{**vars(H100), "count": 1}, none, {**vars(H100), "count": 1}]})
    assert presented(next(plugin.call("Fingerprint"))) == {H100.model: dict.fromkeys(H100_IDS, True)}


def test_health_follows_the_file_while_it_runs(executable: Path, tmp_path: Path) -> None:
    file = tmp_path / "health.json"
    first, second = H100_IDS
    with running(executable) as plugin:
        plugin.configure({**NODE, "gpu": [vars(H100)], "health_file": str(file)})
        fingerprints = plugin.call("Fingerprint")
        assert presented(next(fingerprints)) == {H100.model: {first: True, second: True}}

        replace(file, json.dumps({first: "unhealthy"}))
        assert presented(next(fingerprints)) == {H100.model: {first: False, second: True}}

        replace(file, '{"GPU-1": "on fire"}')
        ignored = plugin.logged()
        assert ignored["@level"] == "warn"
        assert ignored["@message"].endswith(
            "GPU-1 is 'on fire', but must be one of healthy, unhealthy, absent"
        )

        replace(file, json.dumps({first: "unhealthy", second: "absent", "GPU-1": "absent"}))
        # The malformed file in between sent nothing: this is the next one.
        assert presented(next(fingerprints)) == {H100.model: {first: False}}
        assert plugin.logged()["@message"].endswith("names devices that this node does not have: GPU-1")
        with pytest.raises(grpc.RpcError, match=f"unknown device IDs: {second}"):
            plugin.call("Reserve", device_ids=[second])

        file.unlink()
        assert presented(next(fingerprints)) == {H100.model: {first: True, second: True}}


# Reservations and numbers


def test_a_task_gets_its_devices_in_its_environment(plugin: Plugin) -> None:
    plugin.configure(NODE)
    assert dict(plugin.call("Reserve", device_ids=H100_IDS).container_res.envs) == {
        "NVIDIA_VISIBLE_DEVICES": ",".join(H100_IDS)
    }
    assert not plugin.call("Reserve").container_res.envs


def test_an_unknown_device_is_refused(plugin: Plugin) -> None:
    plugin.configure(NODE)
    with pytest.raises(grpc.RpcError) as refused:
        plugin.call("Reserve", device_ids=["GPU-1", H100_IDS[0], "GPU-2"])
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == "unknown device IDs: GPU-1,GPU-2"


def test_numbers_come_again_and_again(plugin: Plugin) -> None:
    plugin.configure(NODE)
    stream = plugin.call("Stats", collection_interval={"nanos": 1_000_000})
    first, second = next(stream), next(stream)
    memory = first.groups[0].instance_stats[H100_IDS[0]].summary
    assert (memory.int_numerator_val.value, memory.int_denominator_val.value, memory.unit) == (
        0,
        81559,
        "MiB",
    )
    assert memory.HasField("int_numerator_val")
    times = [
        answer.groups[0].instance_stats[H100_IDS[0]].timestamp.ToNanoseconds() for answer in (first, second)
    ]
    assert times[0] < times[1]


# What is refused


@pytest.mark.parametrize(("sent", "words"), [(b"\x81", "simgpu: "), (b"\x80", "simgpu: node is missing")])
def test_a_refusal_reaches_nomad_and_changes_nothing(plugin: Plugin, sent: bytes, words: str) -> None:
    plugin.configure(NODE)
    with pytest.raises(grpc.RpcError) as refused:
        plugin.call("SetConfig", msgpack_config=sent)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(refused.value.details())
    assert presented(next(plugin.call("Fingerprint")))[H100.model] == dict.fromkeys(H100_IDS, True)


def test_without_nomad_it_says_what_it_is(executable: Path) -> None:
    alone = subprocess.run(
        [executable], env={}, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (alone.returncode, alone.stdout) == (1, "")
    assert alone.stderr.startswith("simgpu is a Nomad device plugin")


# How it ends


def test_it_ignores_ctrl_c_and_leaves_when_nomad_says_so(executable: Path) -> None:
    with running(executable) as plugin:
        plugin.configure(NODE)
        given_up, kept, numbers = (plugin.call(name) for name in ("Fingerprint", "Fingerprint", "Stats"))
        for stream in (given_up, kept, numbers):
            next(stream)
        given_up.cancel()
        os.killpg(plugin.process.pid, signal.SIGINT)
        assert plugin.call("Check").status == 1
        plugin.call("Shutdown")
        assert plugin.process.wait(DEADLINE) == 0
        assert plugin.process.communicate()[1] == ""


def test_it_leaves_when_its_parent_has_gone(executable: Path) -> None:
    with running(executable, "sh", "-c", '"$0" & wait') as plugin:
        assert plugin.call("Check").status == 1
        plugin.process.kill()
        # The plugin holds the pipes too, so they end only when both are gone.
        _, errors = plugin.process.communicate(timeout=DEADLINE)
        assert errors == ""


def test_it_leaves_when_nobody_waits_for_its_handshake(executable: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    unread = subprocess.run(
        [executable],
        env={COOKIE: COOKIE_VALUE},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    os.close(writer)
    assert unread.returncode == 1
    assert json.loads(unread.stderr)["error"] == "BrokenPipeError(32, 'Broken pipe')"
