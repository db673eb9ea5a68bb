"""The pure half of the device plugin: devices, their health, and the block of its config."""

import pytest

from vllmjobs_sandbox.gpus.plugin.config import ConfigError, GpuModel, read_config
from vllmjobs_sandbox.gpus.plugin.devices import HealthFileError, device_ids, read_health
from vllmjobs_sandbox.gpus.plugin.launcher import plugin_config, plugin_executable

H100 = GpuModel("NVIDIA H100 80GB HBM3", memory_mib=81559, count=2, power_w=700, cores_clock_mhz=1980)
A10 = GpuModel("NVIDIA A10", memory_mib=23028)
NODE = {"node": "box-1", "gpu": [vars(H100), vars(A10)]}


def test_ids_stay_when_a_node_grows_and_never_meet_another_nodes() -> None:
    four = GpuModel(H100.model, memory_mib=81559, count=4)
    assert device_ids("box-1", [four])[:2] == device_ids("box-1", [H100])
    assert device_ids("box-1", [H100, H100]) == device_ids("box-1", [four])
    everywhere = device_ids("box-1", [four, A10]) + device_ids("box-2", [four, A10])
    assert len(set(everywhere)) == 10


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"GPU-1": 1}', '{"GPU-1": ["absent"]}', "[" * 100_000])
def test_a_malformed_health_file_is_told_from_a_good_one(text: str) -> None:
    with pytest.raises(HealthFileError):
        read_health(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "the config is []"),
        ({}, "node is missing"),
        ({"node": " "}, "node is ' ', but must be text that is not empty"),
        ({**NODE, "gpu": ["H100"]}, "gpu is ['H100'], but must be a list of blocks"),
        ({**NODE, "gpu": [{"model": "H100"}]}, "gpu[0].memory_mib is missing"),
        (
            {**NODE, "gpu": [vars(H100), {**vars(A10), "count": 1.5}]},
            "gpu[1].count is 1.5, but must be a whole",
        ),
        ({**NODE, "gpu": [{**vars(A10), "count": -1}]}, "from 0 to 1024"),
        ({**NODE, "gpu": [{**vars(A10), "count": True}]}, "gpu[0].count is True"),
        ({**NODE, "gpu": [{**vars(A10), "memory_mib": 0}]}, "gpu[0].memory_mib is 0"),
        ({**NODE, "gpu": [{**vars(A10), "count": 1000}] * 2}, "adds up to 2000 GPUs"),
        (
            {**NODE, "gpu": [vars(A10), {**vars(A10), "memory_mib": 1}]},
            "memory_mib of 'NVIDIA A10' is 23028 in one",
        ),
        ({**NODE, "health_file": "health.json"}, "must be an absolute path"),
    ],
)
def test_a_bad_value_is_refused_in_words(values: object, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(values)
    assert words in str(refused.value)


def test_the_launcher_stands_on_its_own() -> None:
    assert plugin_executable("/opt/my venv/bin/python", "/src") == (
        "#!/bin/sh\ntrap '' INT\nPYTHONPATH=/src exec '/opt/my venv/bin/python' -P"
        " -m vllmjobs_sandbox.gpus.plugin\n"
    )
    with pytest.raises(ValueError, match="tests is not an absolute path"):
        plugin_executable("/usr/bin/python3", "tests")


def test_the_block_for_the_agent() -> None:
    assert plugin_config([A10], node="box-1", health_file="/tmp/health.json") == (
        'plugin "simgpu" {\n'
        "  config {\n"
        '    node           = "box-1"\n'
        '    driver_version = "570.124.06"\n'
        '    health_file    = "/tmp/health.json"\n'
        "    gpu {\n"
        '      model           = "NVIDIA A10"\n'
        "      memory_mib      = 23028\n"
        "      count           = 1\n"
        "      power_w         = 0\n"
        "      cores_clock_mhz = 0\n"
        "    }\n"
        "  }\n"
        "}\n"
    )
