"""`vllmjobs gpus`: what NVML and Nomad say, as cards; and cards as a table and as JSON.

NVML is a real shared library here, in a process that loads it: vllmjobs_sandbox/gpus/nvml/nvml.c.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.gpus.cards import (
    Card,
    CardHolder,
    as_json,
    health_of,
    in_cluster,
    mig_profile,
    table,
)
from vllmjobs.supervisor.core.gpu_events import FENCE_META, GpuReading
from vllmjobs.terminal.printing import readable
from vllmjobs_sandbox.gpus.nvml import build

MIB = 2**20
GPU = "GPU-1"
H100 = "NVIDIA H100 80GB HBM3"
LOOK = """
from vllmjobs.gpus import nvml
from vllmjobs.gpus.cards import as_json
try:
    cards, reason = nvml.cards()
except nvml.NvmlError as error:
    raise SystemExit(f"error: {error}")
print(as_json(cards), end="")
print(reason, end="", file=__import__("sys").stderr)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


def ask(library: Path | None, **said: object) -> subprocess.CompletedProcess[str]:
    """Look at the GPUs in a process of its own."""
    path = {"LD_LIBRARY_PATH": str(library)} if library else {}
    answers = {name: str(value) for name, value in said.items()}
    return subprocess.run(
        [sys.executable, "-c", LOOK],
        env=path | answers,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def seen(library: Path, **said: object) -> list[dict[str, Any]]:
    done = ask(library, **said)
    assert done.returncode == 0, done.stderr
    cards: list[dict[str, Any]] = json.loads(done.stdout)
    return cards


def h100(number: int, **more: object) -> dict[str, object]:
    said = {
        "NAME": H100,
        "UUID": f"GPU-{number}0000000-1111-2222-3333-444444444444",
        "MEMORY": 81559 * MIB,
        "RESERVED": 551 * MIB,
        "USED": 0,
        "CAPABILITY": "9.0",
        "TEMPERATURE": 34,
        "POWER": 71250,
        "UTILIZATION": 0,
        "MIG": 0,
        "REMAPPED": "0,0,0,0",
        "UNCORRECTED": 0,
        "RECOVERY": 0,
        "COMPUTE": "",
        "GRAPHICS": "",
        "MPS": "",
        **more,
    }
    return {f"GPU{number}_{key}": value for key, value in said.items()}


# What NVML says


def test_a_gpu_is_shown_with_all_that_nvml_knows(library: Path) -> None:
    own = f"{os.getpid()}:{70000 * MIB}"
    busy = h100(0, USED=70100 * MIB, UTILIZATION=97, POWER=612300, COMPUTE=own, GRAPHICS=own)
    first, second = seen(library, NVML_GPUS=2, **busy, **h100(1))
    assert first == {
        "node": None,
        "node_status": None,
        "node_eligible": None,
        "node_fenced": None,
        "index": 0,
        "uuid": "GPU-00000000-1111-2222-3333-444444444444",
        "model": H100,
        "memory_mib": 81559,
        "memory_used_mib": 70100,
        "compute_capability": "9.0",
        "driver_version": "570.124.06",
        "temperature_c": 34,
        "power_w": 612.3,
        "utilization_percent": 97,
        "mig": "off",
        "parent": None,
        "health": "ok",
        "health_reason": "",
        "holders": [
            {
                "name": Path("/proc/self/comm").read_text().strip(),
                "pid": os.getpid(),
                "memory_mib": 70000,
                "allocation": None,
                "namespace": None,
            }
        ],
    }
    assert (second["index"], second["memory_used_mib"], second["holders"]) == (1, 0, [])


def test_mig_instances_follow_their_gpu_as_cards_of_their_own(library: Path) -> None:
    mig = {
        "GPU0_MIG_PLACES": 7,
        "GPU0_MIG2_UUID": "MIG-aaaaaaaa-1111-2222-3333-444444444444",
        "GPU0_MIG2_NAME": f"{H100} MIG 1g.10gb",
        "GPU0_MIG2_MEMORY": 9984 * MIB,
        "GPU0_MIG2_USED": 5000 * MIB,
        "GPU0_MIG2_COMPUTE": f"{os.getpid()}:{4900 * MIB}",
        "GPU0_MIG5_UUID": "MIG-bbbbbbbb-1111-2222-3333-444444444444",
        "GPU0_MIG5_NAME": f"{H100} MIG 3g.40gb",
    }
    gpu, small, large, whole = seen(
        library,
        NVML_GPUS=2,
        **h100(0, MIG=1, UNCORRECTED=1, UTILIZATION="!3", COMPUTE=f"{os.getpid()}:1"),
        **mig,
        **h100(1),
    )
    assert [card["mig"] for card in (gpu, small, large, whole)] == ["on", "1g.10gb", "3g.40gb", "off"]
    assert [card["index"] for card in (gpu, small, large, whole)] == [0, 0, 0, 1]
    assert small["parent"] == large["parent"] == gpu["uuid"]
    assert (small["memory_mib"], small["memory_used_mib"]) == (9984, 5000)
    assert [holder["pid"] for holder in small["holders"]] == [os.getpid()]
    assert gpu["holders"] == []  # not told twice
    assert small["health"] == "degraded"  # as well as the GPU that it is a part of


def test_a_lost_gpu_is_shown_beside_the_others(library: Path) -> None:
    lost, well = seen(library, NVML_GPUS=2, **h100(0), GPU0="!15", **h100(1))
    assert (lost["index"], lost["health"], lost["health_reason"]) == (0, "failed", "GPU is lost")
    assert (lost["uuid"], lost["memory_mib"], lost["holders"]) == (None, None, None)
    assert (well["index"], well["health"]) == (1, "ok")


@pytest.mark.parametrize(
    ("code", "health", "reason"),
    [
        (15, "failed", "GPU is lost"),
        (16, "failed", "GPU requires restart"),
        (4, "unknown", "Insufficient Permissions"),
        (999, "unknown", "Unknown Error"),  # for all GPUs at once: lost access to /dev/nvidia*
    ],
)
def test_a_gpu_that_cannot_be_opened_says_why(library: Path, code: int, health: str, reason: str) -> None:
    (card,) = seen(library, NVML_GPUS=1, GPU0_HANDLE=f"!{code}")
    assert (card["health"], card["health_reason"]) == (health, reason)


def test_a_gpu_that_is_lost_while_it_is_asked_keeps_what_it_has_said(library: Path) -> None:
    (card,) = seen(library, NVML_GPUS=1, **h100(0, TEMPERATURE="!15", RECOVERY=2))
    assert (card["model"], card["temperature_c"]) == (H100, None)
    assert (card["health"], card["health_reason"]) == (
        "failed",
        "GPU is lost; the driver asks to reboot the node",
    )


def test_what_a_gpu_does_not_support_is_unknown_and_no_fault(library: Path) -> None:
    (card,) = seen(library, NVML_GPUS=1, GPU0_NAME="NVIDIA GB10")
    assert {key for key, value in card.items() if value is not None} == {
        "index", "model", "driver_version", "health", "health_reason",
    }  # fmt: skip
    assert (card["health"], card["health_reason"]) == ("ok", "")


def test_what_the_permissions_do_not_give_is_unknown(library: Path) -> None:
    (card,) = seen(library, NVML_GPUS=1, **h100(0, COMPUTE="!4", GRAPHICS="!4", MPS="!4", UNCORRECTED="!4"))
    assert (card["holders"], card["health"], card["memory_mib"]) == (None, "ok", 81559)


def test_a_process_that_has_ended_or_hides_its_memory_is_a_holder_all_the_same(library: Path) -> None:
    (card,) = seen(library, NVML_GPUS=1, **h100(0, COMPUTE="4194305"))  # above the highest pid of Linux
    assert [(holder["name"], holder["memory_mib"]) for holder in card["holders"]] == [("?", None)]


def test_an_older_driver_is_asked_by_its_older_calls(tmp_path: Path) -> None:
    (card,) = seen(build(tmp_path / "old", "-DOLD"), NVML_GPUS=1, **h100(0, USED=1000 * MIB))
    assert (card["temperature_c"], card["memory_mib"]) == (34, 81559)
    assert card["memory_used_mib"] == 1551  # with the driver's own
    assert card["holders"] is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"NVML_INIT": 9},
            "no NVIDIA driver here (libnvidia-ml.so.1 is there, but its kernel module is not loaded)",
        ),
        ({"NVML_GPUS": 0}, "the NVIDIA driver is loaded, but finds no GPU"),
    ],
)
def test_no_gpu_is_an_empty_list_and_a_reason(library: Path, said: dict[str, int], reason: str) -> None:
    done = ask(library, **said)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", reason)


def test_a_library_that_is_none_is_no_driver(tmp_path: Path) -> None:
    """On a machine with a driver, too: this one is found first."""
    (tmp_path / "libnvidia-ml.so.1").write_text("")
    done = ask(tmp_path)
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert done.stderr == "no NVIDIA driver here (libnvidia-ml.so.1 not found)"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"NVML_INIT": 18}, "was updated, but its old kernel module is still loaded; reboot this machine"),
        ({"NVML_INIT": 4}, "the NVIDIA driver cannot be asked: Insufficient Permissions"),
        ({"NVML_GPUS": "!999"}, "the NVIDIA driver cannot be asked: Unknown Error"),
    ],
)
def test_a_driver_that_does_not_work_is_an_error(library: Path, said: dict[str, object], error: str) -> None:
    done = ask(library, **said)
    assert (done.returncode, done.stdout) == (1, "")
    assert error in done.stderr
    assert "Traceback" not in done.stderr


# How well a GPU is


@pytest.mark.parametrize(
    ("reading", "health", "reason"),
    [
        (GpuReading(GPU), "ok", ""),
        (
            GpuReading(GPU, recovery_action=0, remap_pending=False, remap_failed=False, uncorrected_ecc=0),
            "ok",
            "",
        ),
        (GpuReading(GPU, recovery_action=1), "failed", "the driver asks to reset the GPU"),
        (GpuReading(GPU, recovery_action=99), "failed", "the driver asks to take recovery action 99"),
        (GpuReading(GPU, remap_failed=True), "failed", "a memory row could not be remapped"),
        (
            GpuReading(GPU, remap_pending=True),
            "degraded",
            "a memory row will be remapped at the next GPU reset",
        ),
        (GpuReading(GPU, uncorrected_ecc=1), "degraded", "1 uncorrected ECC error since the driver loaded"),
        (
            GpuReading(GPU, recovery_action=4, remap_pending=True, remap_failed=False, uncorrected_ecc=12),
            "failed",
            "the driver asks to drain it and reset it; a memory row will be remapped at the next GPU reset; "
            "12 uncorrected ECC errors since the driver loaded",
        ),
    ],
)
def test_health_and_every_reason_for_it(reading: GpuReading, health: str, reason: str) -> None:
    assert health_of(reading) == (health, reason)


def test_a_mig_profile_is_read_from_the_name() -> None:
    assert mig_profile(f"{H100} MIG 1g.10gb+me") == "1g.10gb+me"
    assert mig_profile(H100) is None
    assert mig_profile(None) is None


# What Nomad says


def node(name: str = "gpu-1", **more: Any) -> dict[str, Any]:
    gpus = {
        "Vendor": "nvidia",
        "Type": "gpu",
        "Name": H100,
        "Instances": [
            {"ID": "GPU-2", "Healthy": True, "HealthDescription": ""},
            {"ID": "GPU-1", "Healthy": False, "HealthDescription": "fell off the bus"},
        ],
        "Attributes": {
            "memory": {"Int": 81559, "Unit": "MiB"},
            "driver_version": {"String": "570.124.06", "Unit": ""},
        },
    }
    return {
        "ID": f"id of {name}",
        "Name": name,
        "Status": "ready",
        "SchedulingEligibility": "eligible",
        "NodeResources": {"Devices": [gpus]},
        **more,
    }


def allocation(status: str, *devices: str, **more: Any) -> dict[str, Any]:
    held = {"Vendor": "nvidia", "Type": "gpu", "Name": H100, "DeviceIDs": list(devices)}
    return {
        "ID": "0b1c2d3e-1111-2222-3333-444444444444",
        "Name": "vllm.prod.chat[12]",
        "JobID": "vllm.prod",
        "TaskGroup": "chat",
        "Namespace": "ml",
        "NodeID": "id of gpu-1",
        "ClientStatus": status,
        "AllocatedResources": {"Tasks": {"vllm": {"Devices": [held]}, "init": {"Devices": None}}},
        **more,
    }


def test_a_gpu_of_the_cluster_has_its_node_and_its_holder() -> None:
    broken, well = in_cluster([node()], [allocation("running", "GPU-2")])
    assert well == Card(
        node="gpu-1",
        node_status="ready",
        node_eligible=True,
        uuid="GPU-2",
        model=H100,
        memory_mib=81559,
        driver_version="570.124.06",
        holders=(
            CardHolder(
                "vllm.prod/chat[12]", allocation="0b1c2d3e-1111-2222-3333-444444444444", namespace="ml"
            ),
        ),
    )
    assert (broken.uuid, broken.health, broken.health_reason) == ("GPU-1", "failed", "fell off the bus")
    assert broken.holders == ()


@pytest.mark.parametrize(
    ("status", "holds"),
    [
        ("pending", True),
        ("running", True),
        ("unknown", True),
        ("complete", False),
        ("failed", False),
        ("lost", False),
    ],
)
def test_an_allocation_holds_its_gpus_until_it_has_ended(status: str, holds: bool) -> None:
    cards = in_cluster([node()], [allocation(status, "GPU-1", "GPU-2")])
    assert [bool(card.holders) for card in cards] == [holds, holds]


def test_without_leave_to_read_allocations_the_holders_are_unknown_and_not_nobody() -> None:
    cards = in_cluster([node()], None)
    assert [card.holders for card in cards] == [None, None]
    assert {line.rpartition("  ")[2] for line in table(cards).splitlines()} == {"HELD BY", "?"}


def test_the_same_id_on_another_node_is_another_gpu() -> None:
    cards = in_cluster([node("gpu-2"), node("gpu-1")], [allocation("running", "GPU-2")])
    assert [(card.node, card.uuid) for card in cards if card.holders] == [("gpu-1", "GPU-2")]
    assert [card.node for card in cards] == ["gpu-1", "gpu-1", "gpu-2", "gpu-2"]


def test_the_gpus_of_a_node_that_is_down_are_of_unknown_health() -> None:
    cards = in_cluster([node(Status="down", SchedulingEligibility="ineligible")], [])
    assert {(card.health, card.health_reason) for card in cards} == {("unknown", "the node is down")}


def test_what_is_no_gpu_or_is_not_told_is_left_out() -> None:
    other = {"Vendor": "xilinx", "Type": "fpga", "Name": "u50", "Instances": [{"ID": "1", "Healthy": True}]}
    bare = {"Type": "gpu", "Name": f"{H100} MIG 1g.10gb", "Instances": [{"ID": "MIG-1", "Healthy": False}]}
    (card,) = in_cluster(
        [
            node(NodeResources={"Devices": [{**other, "Attributes": None}, {**bare, "Attributes": None}]}),
            node("without", NodeResources={"Devices": None}),
            node("starting", NodeResources=None),
        ],
        [allocation("pending", AllocatedResources=None)],
    )
    assert (card.mig, card.memory_mib, card.driver_version) == ("1g.10gb", None, None)
    assert card.health_reason == "reported unhealthy by its device plugin"


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ({"Int": 80, "Unit": "GiB"}, 81920),
        ({"Float": 79.5, "Unit": "GiB"}, 81408),
        ({"Int": 0, "Unit": "MiB"}, 0),
        ({"Int": 81559, "Unit": ""}, None),
        ({"String": "much"}, None),
    ],
)
def test_memory_is_counted_in_mib_whatever_a_plugin_counts(memory: dict[str, Any], mib: int | None) -> None:
    group = {
        "Type": "gpu",
        "Name": "X",
        "Instances": [{"ID": "1", "Healthy": True}],
        "Attributes": {"memory": memory},
    }
    assert in_cluster([node(NodeResources={"Devices": [group]})], [])[0].memory_mib == mib


# For people and for programs


def test_the_table_of_a_machine() -> None:
    cards = [
        Card(
            index=0,
            uuid="GPU-9f3a2b1c-1111-2222-3333-444444444444",
            model=H100,
            memory_mib=81559,
            memory_used_mib=70100,
            utilization_percent=97,
            temperature_c=64,
            power_w=612.3,
            mig="off",
            holders=(
                CardHolder("VLLM::EngineCor", pid=4242, memory_mib=70000),
                CardHolder("python3", pid=77),
            ),
        ),
        Card(index=1, health="failed", health_reason="GPU is lost"),
    ]
    assert table(cards) == (
        "GPU  UUID          MODEL                  MIG  MEMORY MiB   UTIL %  TEMP C  POWER W  HEALTH"
        "               HELD BY\n"
        "0    GPU-9f3a2b1c  NVIDIA H100 80GB HBM3  off  70100/81559  97      64      612      ok"
        "                   VLLM::EngineCor (pid 4242, 70000 MiB), python3 (pid 77)\n"
        "1    -             -                      -    -            -       -       -        failed: GPU"
        " is lost  ?\n"
    )


def test_the_table_of_a_cluster() -> None:
    nodes = [
        node("a"),
        node("b", SchedulingEligibility="ineligible"),
        node("c", Status="down", SchedulingEligibility="ineligible"),
    ]
    nodes.append(node("d", Meta={FENCE_META: "GPU-1 XID 79 (GPU has fallen off the bus)", "rack": "7"}))
    lines = table(in_cluster(nodes, [allocation("running", "GPU-2", NodeID="id of a")])).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "NODE", "a", "a", "b (ineligible)", "b (ineligible)", "c (down)", "c (down)",
        "d (fenced)", "d (fenced)",
    ]  # fmt: skip
    assert lines[2].endswith(f"{H100}  81559       ok                         vllm.prod/chat[12] (0b1c2d3e)")


def test_no_cards_are_no_lines() -> None:
    assert table([]) == ""
    assert as_json([]) == "[]\n"


def test_a_name_cannot_command_the_terminal() -> None:
    shown = table([Card(index=0, model=H100, holders=(CardHolder("\x1b]0;owned\x07\n", pid=1),))])
    assert r"\x1b]0;owned\x07  (pid 1)" in readable(shown)
    assert readable(shown).isascii()
    assert readable(shown).replace("\n", "").isprintable()
