"""Reasons why there is no room, from answers of scheduler and nodes; `tests/cluster` asks real ones."""

from typing import Any

import pytest

from vllmjobs.changes.model import Amount, Holder, Reason, Remedy, Setting, Unplaced, Updates
from vllmjobs.changes.room.fleet import Node, in_cluster
from vllmjobs.changes.room.placement import FailedPlacement
from vllmjobs.changes.room.sentences import reasons, ways_out
from vllmjobs.changes.room.unplaced import unplaced
from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.text.json import Json

H100 = "NVIDIA H100 80GB HBM3"
CONSUL = "${attr.consul.version} semver >= 1.8.0"


def job(**more: Any) -> Json:
    return {"ID": "vllm-prod", "Type": "service", "NodePool": "default", "Datacenters": ["dc1"], **more}


def group(count: int = 2, gpus: int = 1, device: str = "nvidia/gpu", **more: Any) -> Json:
    devices = [{"Name": device, "Count": gpus, "Constraints": more.pop("device_constraints", None)}]
    resources = {"CPU": 500, "MemoryMB": 256, "Devices": devices if gpus else None}
    return {
        "Name": "chat",
        "Count": count,
        "EphemeralDisk": {"SizeMB": 100},
        "Tasks": [{"Name": "vllm", "Driver": "docker", "Resources": resources}],
        **more,
    }


def node(name: str, gpus: int = 4, unhealthy: int = 0, **more: Any) -> Json:
    instances = [{"ID": f"{name}-{number}", "Healthy": number >= unhealthy} for number in range(gpus)]
    devices = [{"Type": "gpu", "Name": H100, "Attributes": MEMORY, "Instances": instances}]
    return {
        "ID": f"{name}-11111111",
        "Name": name,
        "Datacenter": "dc1",
        "NodePool": "default",
        "NodeClass": "",
        "Status": "ready",
        "Drain": False,
        "SchedulingEligibility": "eligible",
        "Drivers": {"docker": {"Healthy": True}, "exec": {"Healthy": True}, "java": {"Healthy": False}},
        "NodeResources": {
            "Cpu": {"CpuShares": 32000},
            "Memory": {"MemoryMB": 65536},
            "Disk": {"DiskMB": 90000},
            "Devices": devices if gpus else None,
        },
        "ReservedResources": {"Memory": {"MemoryMB": 536}},
        **more,
    }


MEMORY = {"memory": {"Int": 81559, "Unit": "MiB"}}


def allocation(name: str, on: str, gpus: list[int], memory: int = 100, **more: Any) -> Json:
    held = [{"Type": "gpu", "DeviceIDs": [f"{on}-{number}" for number in gpus]}]
    task = {"Devices": held, "Memory": {"MemoryMB": memory}}
    return {
        "ID": f"{name}-{on}",
        "Name": f"{name}.chat[0]",
        "JobID": name,
        "TaskGroup": "chat",
        "Namespace": "default",
        "NodeID": f"{on}-11111111",
        "ClientStatus": "running",
        "AllocatedResources": {"Tasks": {"vllm": task}, "Shared": {"Ports": more.get("ports")}},
    }


def metric(
    filtered: dict[str, int] | None = None,
    exhausted: dict[str, int] | None = None,
    more: int = 0,
    **said: Any,
) -> Json:
    evaluated = sum((filtered or {}).values()) + sum((exhausted or {}).values())
    return {
        "NodesEvaluated": evaluated,
        "ConstraintFiltered": filtered,
        "DimensionExhausted": exhausted,
        "CoalescedFailures": more,
        **said,
    }


class Explained:
    """Allocations that cannot be placed, as values and in words."""

    def __init__(self, unplaced: Unplaced) -> None:
        self.values = unplaced
        self.why, self.way_out = reasons(unplaced), ways_out(unplaced)


def explain(
    failed: Json,
    nodes: list[Node] | None,
    updates: Updates | None = None,
    spec: Json | None = None,
    of: Json | None = None,
    name: str = "vllm",
    count_before: int | None = None,
) -> Explained:
    placement = FailedPlacement(
        name,
        of or job(),
        spec or group(count=1),
        updates or Updates(place=1),
        {"chat": failed},
        count_before,
        nodes,
    )
    return Explained(unplaced(placement))


NO_DEVICES = "devices: no devices match request"


def test_the_example_of_the_issue() -> None:
    nodes = [node(f"gpu-{number}", gpus=4) for number in range(1, 5)]
    held = [
        allocation("trainer", "gpu-1", [0, 1, 2, 3]),
        allocation("trainer", "gpu-2", [0, 1, 2, 3]),
        allocation("batch", "gpu-3", [0, 1, 2, 3]),
        allocation("notebook", "gpu-4", [0]),
    ]
    found = explain(
        metric(exhausted={NO_DEVICES: 4}, more=1),
        in_cluster(nodes, held),
        Updates(canary=2),
        group(gpus=4, count=4),
    )
    assert (found.values.wanted, found.values.failed, found.values.canaries) == (2, 2, True)
    assert found.why == (
        "4 nodes have nvidia/gpu, 3 GPUs are free, each canary needs 4 on one node",
        "trainer (8), batch (4) and notebook (1) hold the others",
    )
    assert found.way_out == ("free 4 GPUs on gpu-1 and 1 GPU on gpu-4",)
    assert found.values.reasons == (
        Reason(
            kind="gpus",
            nodes=4,
            resource="nvidia/gpu",
            needed=4,
            free=3,
            most_free=3,
            largest=4,
            holders=(
                Holder(job="trainer", count=8),
                Holder(job="batch", count=4),
                Holder(job="notebook", count=1),
            ),
        ),
    )
    freed = (Amount(name="gpu-1", count=4), Amount(name="gpu-4", count=1))
    assert found.values.remedies == (Remedy(kind="free-gpus", gpus=freed),)


def test_at_most_three_holders_are_named() -> None:
    held = [allocation(name, "gpu-1", [number]) for number, name in enumerate("abcd")]
    found = explain(metric(exhausted={NO_DEVICES: 1}), in_cluster([node("gpu-1")], held), Updates(place=1))
    assert found.why[1] == "a (1), b (1), c (1) and others (1) hold the others"
    assert [holder.job for holder in found.values.reasons[0].holders] == ["a", "b", "c", "d"]
    assert found.way_out == ("free 1 GPU on gpu-1",)


def test_an_allocation_that_has_ended_holds_nothing() -> None:
    held = [allocation("trainer", "gpu-1", [0, 1, 2, 3]) | {"ClientStatus": "complete"}]
    found = explain(metric(exhausted={NO_DEVICES: 1}), in_cluster([node("gpu-1")], held))
    assert found.why == ("1 node has nvidia/gpu, 4 GPUs are free, each instance needs 1",)


def test_without_leave_to_see_allocations_nobody_is_named() -> None:
    found = explain(metric(exhausted={NO_DEVICES: 1}), in_cluster([node("gpu-1")], None))
    assert found.why == (
        "1 node has nvidia/gpu, each instance needs 1; a token with the ACL capability "
        "namespace:read-job would show who holds them",
    )
    assert found.way_out == ()


def test_gpus_in_another_node_pool() -> None:
    nodes = in_cluster([node("cpu-1", gpus=0), node("gpu-1", NodePool="gpu")], [])
    found = explain(metric({"missing devices": 1}), nodes)
    assert found.why == (
        "no node that it may run on has nvidia/gpu",
        "gpu-1 in node pool gpu, datacenter dc1 has 4",
    )
    assert found.way_out == ("run it in node pool gpu, datacenter dc1",)
    assert found.values.remedies == (Remedy(kind="move", node_pool="gpu", datacenter="dc1"),)


def test_no_gpus_anywhere() -> None:
    found = explain(metric({"missing devices": 1}), in_cluster([node("cpu-1", gpus=0)], []))
    assert found.why == ("no node that it may run on has nvidia/gpu",)
    assert found.way_out == ("check that the device plugin runs on the nodes: vllmjobs gpus --nomad",)


def test_a_constraint_on_the_gpus_that_none_meets() -> None:
    rule = {"LTarget": "${device.model}", "Operand": "regexp", "RTarget": "A100"}
    found = explain(
        metric({"missing devices": 1}),
        in_cluster([node("gpu-1")], []),
        spec=group(1, device_constraints=[rule]),
    )
    assert found.why == ("no GPU is nvidia/gpu with model regexp A100",)
    assert found.way_out == ("change gpus.constraints",)


def test_nodes_that_a_constraint_rules_out_are_not_looked_at() -> None:
    rule = {"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": "gpu-1"}
    held = [allocation("trainer", "gpu-1", [0, 1, 2, 3])]
    found = explain(
        metric({"${node.unique.name} = gpu-1": 1}, {NO_DEVICES: 1}),
        in_cluster([node("gpu-1"), node("gpu-2")], held),
        Updates(place=1),
        group(1, Constraints=[rule]),
    )
    assert found.why == (
        "1 node has nvidia/gpu, no GPU is free, each instance needs 1",
        "trainer (4) holds the others",
        "1 node does not meet ${node.unique.name} = gpu-1",
    )
    assert found.way_out == ("free 1 GPU on gpu-1", "change that constraint in placement.constraints")


def test_gpus_are_not_to_be_freed_where_it_is_not_known_which_nodes_are_meant() -> None:
    rule = {"LTarget": "${meta.rack}", "Operand": "=", "RTarget": "7"}
    held = [allocation("trainer", "gpu-1", [0, 1, 2, 3])]
    found = explain(
        metric({"${meta.rack} = 7": 1}, {NO_DEVICES: 1}),
        in_cluster([node("gpu-1"), node("gpu-2")], held),
        Updates(place=1),
        group(1, Constraints=[rule]),
    )
    assert found.way_out == ("change that constraint in placement.constraints",)


def test_a_draining_node_with_free_gpus() -> None:
    nodes = in_cluster(
        [node("gpu-1"), node("gpu-2", Drain=True, SchedulingEligibility="ineligible")],
        [allocation("trainer", "gpu-1", [0, 1, 2, 3])],
    )
    found = explain(metric(exhausted={NO_DEVICES: 1}), nodes, Updates(place=1))
    assert found.why[-1] == "gpu-2, where 4 GPUs are free, is draining"
    assert found.way_out == (
        "make gpu-2 eligible again: nomad node eligibility -enable gpu-2-11",
        "free 1 GPU on gpu-1",
    )
    assert found.values.reasons[-1] == Reason(kind="node-state", node="gpu-2", text="draining", free=4)
    assert found.values.remedies[0].command == "nomad node eligibility -enable gpu-2-11"


def test_a_node_with_gpus_that_is_down() -> None:
    nodes = in_cluster([node("cpu-1", gpus=0), node("gpu-1", Status="down")], [])
    found = explain(metric({"missing devices": 1}), nodes)
    assert found.why == (
        "1 node has nvidia/gpu, no GPU is free, each instance needs 1",
        "none of them is known to be healthy",
        "gpu-1 is down",
    )
    assert found.way_out == ()


def test_all_gpus_are_unhealthy() -> None:
    found = explain(metric({"missing devices": 1}), in_cluster([node("gpu-1", gpus=2, unhealthy=2)], []))
    assert found.why == (
        "1 node has nvidia/gpu, no GPU is free, each instance needs 1",
        "none of them is known to be healthy",
        "2 GPUs on gpu-1 are unhealthy (reported unhealthy by its device plugin)",
    )
    assert found.way_out == ("mend the unhealthy GPUs on gpu-1",)
    assert found.values.reasons[-1].counts == (
        Amount(name="reported unhealthy by its device plugin", count=2),
    )
    assert found.values.remedies == (Remedy(kind="mend-gpus", gpus=(Amount(name="gpu-1", count=2),)),)


@pytest.mark.parametrize("value", ["7", "7 Gi", "(?<!x)["])
def test_a_constraint_that_cannot_be_judged_hides_no_gpu(value: str) -> None:
    rules = [
        {"LTarget": "${device.attr.memory}", "Operand": ">=", "RTarget": value},
        {"LTarget": "${device.model}", "Operand": "regexp", "RTarget": "(?<!x)["},
    ]
    nodes = in_cluster([node("gpu-1")], [])
    found = explain(metric({"missing devices": 1}), nodes, spec=group(1, device_constraints=rules))
    assert found.why[0].startswith("1 node has nvidia/gpu with memory >= ")


def test_all_nodes_are_down() -> None:
    found = explain(metric(), in_cluster([node("gpu-1", Status="down")], []))
    assert (found.why, found.way_out) == (("gpu-1 is down",), ())


@pytest.mark.parametrize(
    ("text", "kind", "why", "way_out"),
    [
        (CONSUL, "consul", f"1 node runs no Consul agent of 1.8 or newer ({CONSUL})", True),
        ("${attr.vault.version} semver >= 0.6.1", "vault", "1 node reaches no Vault (", True),
        (
            "${attr.os.signals} set_contains SIGTERM",
            "signals",
            "1 node cannot send the signals that the job names (",
            False,
        ),
        ("missing compatible host volumes", "host-volume", "1 node lacks its host volume", True),
        ("missing network", "network-mode", "1 node lacks the network mode that it asks for", False),
        ("missing drivers", "driver", "1 node has no healthy driver docker, they have exec", True),
        (
            "distinct_property: ${meta.rack}=7 used by 1 allocs",
            "distinct-property",
            "1 node would break distinct_property: ",
            True,
        ),
        (
            "CSI volume models is unschedulable or is read-only",
            "unusable",
            "1 node cannot be used: CSI volume ",
            False,
        ),
        (
            "computed class ineligible",
            "ruled-out",
            "1 node is ruled out by a constraint, a driver or a device",
            False,
        ),
    ],
)
def test_every_other_reason_to_rule_out_a_node(text: str, kind: str, why: str, way_out: bool) -> None:
    found = explain(metric({text: 1}), in_cluster([node("gpu-1")], []))
    assert [(reason.kind, reason.nodes) for reason in found.values.reasons] == [(kind, 1)]
    assert found.why[0].startswith(why)
    assert len(found.why) == 1
    assert bool(found.way_out) == way_out


def test_nodes_of_a_class_that_was_ruled_out_count_with_the_reason() -> None:
    found = explain(metric({CONSUL: 1, "computed class ineligible": 3}), in_cluster([node("gpu-1")], []))
    assert found.why == (f"4 nodes run no Consul agent of 1.8 or newer ({CONSUL})",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cores", "1 node has too few cores free"),
        (
            "network: no addresses available for internal network",
            "1 node has no room: network: no addresses ",
        ),
        ("network: reserved port collision http=8000", "port 8000 (http) is taken on 1 node, by web"),
        (
            "disk",
            "1 node has too little disk free, each instance needs 100 MiB, and no node has more than ",
        ),
        (
            "memory",
            "1 node has too little memory free, each instance needs 256 MiB, and no node has more ",
        ),
    ],
)
def test_every_other_way_in_which_a_node_is_full(text: str, why: str) -> None:
    web = allocation("web", "gpu-1", [], ports=[{"Label": "http", "Value": 8000}])
    found = explain(metric(exhausted={text: 1}), in_cluster([node("gpu-1")], [web]))
    assert found.why[0].startswith(why)
    assert len(found.why) == 1


def test_a_quota() -> None:
    found = explain(metric(QuotaExhausted=["memory exhausted (100 needed > 50 limit)"], NodesEvaluated=1), [])
    assert found.why == ("the namespace's quota is used up: memory exhausted (100 needed > 50 limit)",)
    assert found.way_out == ("raise the quota",)


def test_one_node_that_lacks_a_device_is_told_in_the_singular() -> None:
    fpga = group(1, gpus=0)
    fpga["Tasks"][0]["Resources"]["Devices"] = [{"Name": "fpga", "Count": 1}]
    nodes = in_cluster([node("gpu-1")], [])
    assert explain(metric({"missing devices": 1}), nodes, spec=fpga).why == (
        "1 node lacks a device that it asks for",
    )
    assert explain(metric({"missing devices": 1}), None, spec=group(gpus=3)).why[0] == (
        "1 node lacks 3 of nvidia/gpu"
    )


def test_less_memory_is_no_way_out_where_gpus_run_short_too() -> None:
    spec = group(count=3, gpus=4)
    spec["Tasks"][0]["Resources"]["MemoryMB"] = 70000
    nodes = in_cluster([node("gpu-1"), node("gpu-2")], [])
    found = explain(metric(exhausted={"memory": 2}, more=2), nodes, Updates(place=3), spec)
    assert found.way_out == ("lower resources.memory",)
    spec["Count"] = 2
    found = explain(metric(exhausted={"memory": 2}, more=1), nodes, Updates(place=2), spec)
    assert found.way_out == ("lower resources.memory to 65000 MiB",)
    (reason,) = found.values.reasons
    assert (reason.resource, reason.needed, reason.unit) == ("memory", 70000, "MiB")
    assert found.values.remedies[0].settings == (Setting(key="resources.memory", value="65000 MiB"),)


def test_the_balancer_has_keys_of_its_own() -> None:
    spec = group(count=3, gpus=0)
    nodes = in_cluster([node("gpu-1")], [])
    for failed, way_out in (
        (metric({"missing drivers": 1}), "set balancer.driver: exec"),
        (metric(exhausted={"memory": 1}), "lower balancer.memory"),
        (
            metric(exhausted={"network: reserved port collision http=80": 1}),
            "set balancer.port to a free one",
        ),
    ):
        found = explain(failed, nodes, Updates(place=3), spec, name="nginx")
        assert found.way_out == (way_out, "set balancer.count: 2")


def test_an_instance_less_is_no_way_out_where_one_more_was_wanted() -> None:
    failed = metric(exhausted={NO_DEVICES: 1})
    nodes = in_cluster([node("gpu-1")], [])
    assert explain(failed, nodes, Updates(place=1), group(2), count_before=1).way_out == ()
    assert explain(failed, nodes, Updates(place=2), group(2), count_before=0).way_out == ("set replicas: 1",)
    assert explain(failed, nodes, Updates(place=1), group(2), count_before=2).way_out == ("set replicas: 1",)


# A node that a supervisor has fenced, and jobs that heed it

HEEDS = {"LTarget": "${meta.vllmjobs_gpu_fenced}", "RTarget": "", "Operand": "is_not_set"}
NOT_MET = "${meta.vllmjobs_gpu_fenced} is_not_set "
BROKEN = "GPU-7 XID 79 (GPU has fallen off the bus) 2026-11-28T03:00:00Z"
LIFTED = (
    "mend the GPU of gpu-2, and then lift the fence (docs/runbooks/gpu-fenced.md): "
    "nomad node meta apply -node-id gpu-2-11 -unset vllmjobs_gpu_fenced"
)


def one_is_fenced(held: list[int]) -> list[Node]:
    nodes = [node("gpu-1"), node("gpu-2", Meta={FENCE_META: BROKEN})]
    return in_cluster(nodes, [allocation("vllm-prod", "gpu-1", held)] if held else [])


@pytest.mark.parametrize("filtered", [NOT_MET, "computed class ineligible"])
def test_the_gpus_of_a_fenced_node_are_not_free_and_the_fence_is_named(filtered: str) -> None:
    failed = metric({filtered: 1}, {NO_DEVICES: 1})
    found = explain(failed, one_is_fenced([0, 1, 2, 3]), spec=group(count=5, Constraints=[HEEDS]))
    assert found.why == (
        "2 nodes have nvidia/gpu, no GPU is free, each instance needs 1",
        "this job (4) holds the others",
        f"gpu-2 is fenced: {BROKEN}",
    )
    assert found.way_out == (LIFTED, "set replicas: 4")


def test_it_is_named_too_where_it_is_no_gpu_that_is_missing() -> None:
    spec = group(count=5, Constraints=[HEEDS])
    for text in (NOT_MET, "computed class ineligible"):
        found = explain(metric({text: 1}, {"memory": 1}), one_is_fenced([]), spec=spec)
        assert found.why[0] == f"gpu-2 is fenced: {BROKEN}"
        assert found.why[1].startswith("1 node has too little memory free")
        assert len(found.why) == 2
    found = explain(metric({NOT_MET: 1}), one_is_fenced([])[1:], spec=spec)
    assert (found.why, found.way_out[0]) == ((f"gpu-2 is fenced: {BROKEN}",), LIFTED)


def test_a_job_that_does_not_heed_the_fence_has_the_gpus_of_its_node() -> None:
    found = explain(metric(exhausted={NO_DEVICES: 2}), one_is_fenced([0, 1, 2, 3]))
    assert found.why[0] == "2 nodes have nvidia/gpu, 4 GPUs are free, each instance needs 1"
    assert not any("fenced" in reason for reason in found.why)


def test_without_leave_to_see_nodes_a_fence_is_told_in_words() -> None:
    found = explain(metric({NOT_MET: 2}), None, spec=group(Constraints=[HEEDS]))
    assert found.why[0] == "2 nodes are fenced, since a GPU is broken"
    assert found.way_out[0] == "see docs/runbooks/gpu-fenced.md"
