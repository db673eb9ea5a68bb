"""Allocations that the real scheduler cannot place, in words to act on; and the way out, which is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vllmjobs.changes import compare
from vllmjobs.changes.jobs import jobspec
from vllmjobs.changes.model import JobChange, Unplaced
from vllmjobs.changes.planned import planned
from vllmjobs.changes.room.fleet import Node, in_cluster
from vllmjobs.changes.room.sentences import reasons, ways_out
from vllmjobs_sandbox.cluster.jobs import holder
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.gpus.plugin.devices import Health

SEEN = 30.0  # seconds until Nomad sees a change of a node
RUN = "nomad job run -check-index 1 job.nomad.hcl"
Holds = Callable[..., str]


@pytest.fixture
def holds(sandbox: Sandbox) -> Iterator[Holds]:
    """Run another job that holds GPUs of nodes, or whatever else is said: `holds("big", {"gpu-1": 3})`."""
    names: list[str] = []

    def hold(name: str, gpus: dict[str, int], more: str = "", priority: int = 50, memory: int = 32) -> str:
        names.append(name)
        groups = "".join(
            holder(f"on-{node}", number, node=node, memory=memory, more=more) for node, number in gpus.items()
        )
        sandbox.run(f'job "{name}" {{\n  priority = {priority}\n{groups}}}\n')
        wait_until(
            lambda: [one["ClientStatus"] for one in sandbox.allocations(name)] == ["running"] * len(gpus),
            SEEN,
            f"{name} runs",
            evidence=lambda: sandbox.evidence(name),
        )
        return name

    yield hold
    sandbox.purge(*names)


def nodes(sandbox: Sandbox) -> list[Node]:
    found = sandbox.nomad.nodes.get_nodes(resources=True)
    return in_cluster(
        found, sandbox.nomad.allocations.get_allocations(namespace="*", resources=True, task_states=False)
    )


def plan(sandbox: Sandbox, hcl: str, name: str = "vllm", may_see_nodes: bool = True) -> JobChange:
    """Plan a job, and say what the plan says."""
    api = sandbox.nomad
    job = api.jobs.request("parse", json={"JobHCL": hcl, "Canonicalize": True}, method="post").json()
    registered = {one["ID"] for one in api.jobs.get_jobs()}
    is_new = job["ID"] not in registered
    return planned(
        name,
        job,
        None if is_new else api.job.get_job(job["ID"]),
        api.job.plan_job(job["ID"], {"Job": job}, diff=True),
        None if is_new else api.job.get_deployment(job["ID"]),
        RUN,
        nodes(sandbox) if may_see_nodes else None,
    )


def unplaced(job: JobChange) -> Unplaced:
    (found,) = [group.unplaced for group in job.groups if group.unplaced]
    assert job.is_unplaceable
    assert job.has_changed
    return found


def sentence(job: JobChange) -> str:
    found = unplaced(job)
    what = "canaries" if found.canaries else "instances"
    said = f"{found.failed} of {found.wanted} {what}: {', '.join(reasons(found))}"
    return f"{said}; {', or '.join(ways_out(found))}" if found.remedies else said


SECOND = "{model: facebook/opt-125m, route: {path: /second/v1/}, drain: {longest_stream: 10s}}"
ON_FOUR: dict[str, Any] = {"strategy": "tensor_parallel", "gpus.count": 4}


ASLEEP = {
    "entrypoint": "[sh, -c, exec sleep 600]"
}  # instances that hold what they ask for, and serve nothing


def started(chat: Release) -> None:
    """Run a release, and wait until all of its instances run, whether they are healthy or not."""
    chat.sandbox.run(chat.render())
    wait_until(
        lambda: {one["ClientStatus"] for one in chat.allocations()} == {"running"},
        SEEN,
        "it runs",
        evidence=lambda: chat.sandbox.evidence(chat.job),
    )


# GPUs


def test_gpus_that_another_job_holds(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    chat = release(replicas=2, **ASLEEP)
    started(chat)
    holds("trainer", {"gpu-1": 3, "gpu-2": 3})
    held = plan(sandbox, chat.render(max_model_len=512))
    assert sentence(held) == (
        "1 of 1 canaries: 2 nodes have nvidia/gpu with memory >= 7 GiB, no GPU is free, each canary needs 1, "
        "trainer (6) and this job (2) hold the others; "
        "free 1 GPU on gpu-1 or gpu-2, "
        "or set rollout.strategy: rolling, which stops an old instance before it starts a new one"
    )
    (group,) = held.groups
    assert (group.actions, group.canaries, group.count_after, group.gpus_after) == (("destructive",), 1, 2, 1)


def test_without_leave_to_see_nodes_only_the_schedulers_numbers_are_told(
    sandbox: Sandbox, release: NewRelease, holds: Holds
) -> None:
    chat = release(replicas=2)
    holds("trainer", {"gpu-1": 4, "gpu-2": 4})
    assert sentence(plan(sandbox, chat.render(), may_see_nodes=False)) == (
        "2 of 2 instances: 2 nodes have too few free for nvidia/gpu with memory >= 7 GiB, "
        "a token with the ACL capability node:read would show more"
    )


def test_free_gpus_on_two_nodes_are_not_enough_for_one_that_needs_four(
    sandbox: Sandbox, release: NewRelease, holds: Holds
) -> None:
    chat = release(replicas=1, load_time="16s", **ASLEEP)
    started(chat)
    (old,) = chat.allocations()
    other = {"gpu-1": "gpu-2", "gpu-2": "gpu-1"}[old["NodeName"]]
    holds("trainer", {other: 1})
    assert sentence(plan(sandbox, chat.render(**ON_FOUR))) == (
        "1 of 1 canaries: 2 nodes have nvidia/gpu with memory >= 7 GiB, 6 GPUs are free, 3 at most on one "
        "node, each canary needs 4 on one node, this job (1) and trainer (1) hold the others; "
        f"free 1 GPU on {other}, "
        "or set rollout.strategy: rolling, which stops an old instance before it starts a new one"
    )
    assert not plan(sandbox, chat.render(**ON_FOUR, **{"rollout.strategy": "rolling"})).is_unplaceable
    sandbox.purge("trainer")
    assert not plan(sandbox, chat.render(**ON_FOUR)).is_unplaceable


def test_one_of_two_canaries_fits(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    spread = {"placement.spread": '[{attribute: "${node.unique.name}"}]'}
    chat = release(replicas=2, strategy="tensor_parallel", **{"rollout.canaries": 2}, **spread, **ASLEEP)
    started(chat)
    holds("trainer", {"gpu-1": 1})
    on_three = {"gpus.count": 3}
    assert sentence(plan(sandbox, chat.render(**on_three))) == (
        "1 of 2 canaries: 2 nodes have nvidia/gpu with memory >= 7 GiB, 5 GPUs are free, each canary needs 3 "
        "on one node, this job (2) and trainer (1) hold the others; free 1 GPU on gpu-1, "
        "or set rollout.strategy: rolling, which stops an old instance before it starts a new one, "
        "or set rollout.canaries: 1, with rollout.strategy: canary"
    )
    for way_out in ({"rollout.canaries": 1}, {"rollout.strategy": "rolling"}):
        assert not plan(sandbox, chat.render(**on_three, **way_out)).is_unplaceable
    sandbox.purge("trainer")
    assert not plan(sandbox, chat.render(**on_three)).is_unplaceable


def test_a_rolling_update_is_no_way_out_where_the_last_instance_has_no_room(
    sandbox: Sandbox, release: NewRelease
) -> None:
    chat = release(replicas=3, strategy="tensor_parallel", **ASLEEP)
    started(chat)
    on_four = {"gpus.count": 4}
    assert sentence(plan(sandbox, chat.render(**on_four))) == (
        "1 of 1 canaries: 2 nodes have nvidia/gpu with memory >= 7 GiB, 5 GPUs are free, 3 at most on one "
        "node, each canary needs 4 on one node, this job (3) holds the others"
    )


def test_a_gpu_with_more_memory_than_there_is(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    assert sentence(plan(sandbox, chat.render(**{"gpus.memory": "80 GiB"}))) == (
        "2 of 2 instances: no GPU has enough memory: nvidia/gpu with memory >= 80 GiB is asked for, and the "
        "largest has 79.6 GiB; set gpus.memory: 79 GiB, or less"
    )
    assert not plan(sandbox, chat.render(**{"gpus.memory": "79 GiB"})).is_unplaceable


def test_a_model_that_is_not_there(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    assert sentence(plan(sandbox, chat.render(**{"gpus.model": "NVIDIA A100"}))) == (
        "2 of 2 instances: no GPU is NVIDIA A100: there are NVIDIA H100 80GB HBM3 (8); "
        "set gpus.model: NVIDIA H100 80GB HBM3, or leave it out"
    )
    assert not plan(sandbox, chat.render(**{"gpus.model": "NVIDIA H100 80GB HBM3"})).is_unplaceable


def test_more_gpus_than_any_node_has(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=1, **ON_FOUR | {"gpus.count": 6})
    assert sentence(plan(sandbox, chat.render())) == (
        "1 of 1 instances: 2 nodes have nvidia/gpu with memory >= 7 GiB, 8 GPUs are free, 4 at most on one "
        "node, each instance needs 6 on one node, no node has more than 4; lower gpus.count to 4 or less"
    )
    assert not plan(sandbox, chat.render(**{"gpus.count": 4})).is_unplaceable


def test_more_instances_than_gpus(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=9)
    assert sentence(plan(sandbox, chat.render())) == (
        "1 of 9 instances: 2 nodes have nvidia/gpu with memory >= 7 GiB, 8 GPUs are free, "
        "each instance needs 1; set replicas: 8"
    )
    assert not plan(sandbox, chat.render(replicas=8)).is_unplaceable


def test_a_node_that_takes_nothing_now(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    chat = release(replicas=1)
    holds("trainer", {"gpu-1": 4})
    node = sandbox.node("gpu-2")["ID"]
    with ineligible(sandbox, "gpu-2"):
        assert sentence(plan(sandbox, chat.render())) == (
            "1 of 1 instances: 2 nodes have nvidia/gpu with memory >= 7 GiB, no GPU is free, each instance "
            "needs 1, trainer (4) holds the others, gpu-2, where 4 GPUs are free, is ineligible; "
            f"make gpu-2 eligible again: nomad node eligibility -enable {node[:8]}, or free 1 GPU on gpu-1"
        )
    assert not plan(sandbox, chat.render()).is_unplaceable


def test_no_node_takes_anything_now(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=1)
    one, two = (sandbox.node(name)["ID"][:8] for name in ("gpu-1", "gpu-2"))
    with ineligible(sandbox, "gpu-1"), ineligible(sandbox, "gpu-2"):
        assert sentence(plan(sandbox, chat.render())) == (
            "1 of 1 instances: gpu-1 is ineligible, gpu-2 is ineligible; "
            f"make gpu-1 eligible again: nomad node eligibility -enable {one}, "
            f"or make gpu-2 eligible again: nomad node eligibility -enable {two}"
        )


@contextmanager
def ineligible(sandbox: Sandbox, name: str) -> Iterator[None]:
    node = sandbox.node(name)["ID"]
    sandbox.nomad.node.eligible_node(node, eligible=False)
    try:
        yield
    finally:
        sandbox.nomad.node.eligible_node(node, eligible=True)


def test_an_unhealthy_gpu(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    chat = release(replicas=1, **ON_FOUR)
    holds("trainer", {"gpu-1": 1})
    gpu = min(sandbox.gpus("gpu-2"))
    sandbox.set_gpu_health("gpu-2", gpu, Health.UNHEALTHY)
    try:
        wait_until(lambda: not sandbox.gpus("gpu-2")[gpu], SEEN, "Nomad sees it fail")
        assert sentence(plan(sandbox, chat.render())) == (
            "1 of 1 instances: 2 nodes have nvidia/gpu with memory >= 7 GiB, 6 GPUs are free, 3 at most on "
            "one node, each instance needs 4 on one node, trainer (1) holds the others, 1 GPU on gpu-2 is "
            "unhealthy (the health file says so); mend the unhealthy GPU on gpu-2, or free 1 GPU on gpu-1"
        )
    finally:
        sandbox.set_gpu_health("gpu-2", gpu, Health.HEALTHY)
        wait_until(lambda: sandbox.gpus("gpu-2")[gpu], SEEN, "Nomad sees it well again")
    assert not plan(sandbox, chat.render()).is_unplaceable


# Nodes


def test_a_datacenter_without_nodes(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    chat.settings["nomad.datacenters"] = "[dc9]"
    assert sentence(plan(sandbox, chat.render())) == (
        "2 of 2 instances: no node is in datacenter dc9, there is dc1 (2 nodes); set nomad.datacenters: [dc1]"
    )
    chat.settings["nomad.datacenters"] = "[dc1]"
    assert not plan(sandbox, chat.render()).is_unplaceable


def test_a_node_pool_without_nodes(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    chat.settings["nomad.node_pool"] = "empty"
    sandbox.nomad_cli("node", "pool", "apply", "-", input='node_pool "empty" {}')
    try:
        assert sentence(plan(sandbox, chat.render())) == (
            "2 of 2 instances: no node is in node pool empty, there is default (2 nodes); "
            "set nomad.node_pool: default"
        )
        assert sentence(plan(sandbox, chat.render(), may_see_nodes=False)) == (
            "2 of 2 instances: no node takes allocations in node pool empty, datacenter dc1, "
            "a token with the ACL capability node:read would show more"
        )
    finally:
        sandbox.nomad_cli("node", "pool", "delete", "empty")


WINDOWS = '[{attribute: "${attr.kernel.name}", value: windows}]'


def test_a_constraint_that_no_node_meets(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    assert sentence(plan(sandbox, chat.render(**{"placement.constraints": WINDOWS}))) == (
        "2 of 2 instances: 2 nodes do not meet ${attr.kernel.name} = windows; "
        "change that constraint in placement.constraints"
    )
    chat.settings["nomad.constraints"] = WINDOWS
    assert sentence(plan(sandbox, chat.render())) == (
        "2 of 2 instances: 2 nodes do not meet ${attr.kernel.name} = windows; "
        "change that constraint in nomad.constraints"
    )


def test_one_instance_on_each_host(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=3, **{"placement.constraints": '[{operator: distinct_hosts, value: "true"}]'})
    assert sentence(plan(sandbox, chat.render())) == (
        "1 of 3 instances: 2 nodes run an instance already, and distinct_hosts allows one per node; "
        "set replicas: 2"
    )
    assert not plan(sandbox, chat.render(replicas=2)).is_unplaceable


def test_a_driver_that_no_node_has(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    assert sentence(plan(sandbox, chat.render(driver="docker"))) == (
        "2 of 2 instances: 2 nodes have no healthy driver docker, they have raw_exec; set driver: raw_exec"
    )


@pytest.mark.parametrize(
    ("key", "asked", "said", "way_out"),
    [
        ("memory", "100000 MiB", "100000 MiB, and no node has more than 65536 MiB", "65024 MiB"),
        ("memory", "40000 MiB", "40000 MiB, and no node has more than 65536 MiB", "32768 MiB"),
        ("cpu", "50000", "50000 MHz, and no node has more than 32000 MHz", "31600 MHz"),
    ],
)
def test_nodes_that_are_too_small(
    sandbox: Sandbox, release: NewRelease, key: str, asked: str, said: str, way_out: str
) -> None:
    replicas = 3 if asked == "40000 MiB" else 2
    chat = release(replicas=replicas)
    found = plan(sandbox, chat.render(**{f"resources.{key}": asked}))
    fewer = ", or set replicas: 2" if replicas == 3 else ""
    assert sentence(found) == (
        f"{1 if fewer else 2} of {replicas} instances: 2 nodes have too little {key} free, each instance "
        f"needs {said} free; lower resources.{key} to {way_out}{fewer}"
    )
    lower = way_out if key == "memory" else way_out.removesuffix(" MHz")
    assert not plan(sandbox, chat.render(**{f"resources.{key}": lower})).is_unplaceable


def test_memory_that_another_job_holds(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    chat = release(replicas=1)
    holds("cache", {"gpu-1": 0, "gpu-2": 0}, memory=60000)
    found = plan(sandbox, chat.render(**{"resources.memory": "8 GiB"}))
    assert sentence(found) == (
        "1 of 1 instances: 2 nodes have too little memory free, each instance needs 8192 MiB, and no "
        "node has more than 5536 MiB free; lower resources.memory to 5536 MiB"
    )


PORT = """
    network {
      port "http" {
        static = 28999
      }
    }
"""


def test_a_port_that_another_job_has(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    """A node of the sandbox has two addresses, 127.0.0.1 and ::1, and so each port twice."""
    chat = release(replicas=3)
    holds("web", {"gpu-1": 0, "gpu-2": 0}, more=PORT)
    assert sentence(plan(sandbox, chat.render(**{"ports.static": 28999}))) == (
        "1 of 3 instances: port 28999 (http) is taken on 2 nodes, by web; "
        "set ports.static to a free port, or leave it out, or set replicas: 2"
    )
    for way_out in ({"ports.static": 28999, "replicas": 2}, {"ports.static": 28998}, {}):
        assert not plan(sandbox, chat.render(**way_out)).is_unplaceable


# What else a plan tells


def test_jobs_of_less_priority_are_preempted(sandbox: Sandbox, release: NewRelease, holds: Holds) -> None:
    chat = release(replicas=1, **ON_FOUR)
    chat.settings["nomad.priority"] = "80"
    holds("batch", {"gpu-1": 2, "gpu-2": 2}, priority=20)
    assert plan(sandbox, chat.render()).is_unplaceable
    with preemption(sandbox):
        found = plan(sandbox, chat.render())
    assert found.plan
    (group,) = found.groups
    (stopped,) = found.plan.preempted
    assert (stopped.job, stopped.namespace, stopped.count) == ("batch", "default", 1)
    assert stopped.group == f"on-{stopped.node}"
    assert group.updates
    assert (group.updates.place, group.updates.preemptions, group.unplaced) == (1, 1, None)


@contextmanager
def preemption(sandbox: Sandbox) -> Iterator[None]:
    """Let services preempt others, as they do not by default."""
    sandbox.nomad_cli("operator", "scheduler", "set-config", "-preempt-service-scheduler=true")
    try:
        yield
    finally:
        sandbox.nomad_cli("operator", "scheduler", "set-config", "-preempt-service-scheduler=false")


def test_a_job_that_waits_for_room_is_a_change(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=9, **ASLEEP)
    sandbox.run(chat.render())
    wait_until(lambda: len(chat.allocations()) == 8, SEEN, "eight of nine are placed")
    waiting = plan(sandbox, chat.render())
    assert (waiting.action, waiting.fields, waiting.groups[0].actions) == ("none", (), ())
    assert waiting.groups[0].updates
    assert waiting.groups[0].updates.place == 1
    assert sentence(waiting) == (
        "1 of 1 instances: 2 nodes have nvidia/gpu with memory >= 7 GiB, no GPU is free, each instance needs "
        "1, this job (8) holds the others; set replicas: 8"
    )
    assert not plan(sandbox, chat.render(replicas=8)).is_unplaceable


def test_a_new_job(sandbox: Sandbox, release: NewRelease) -> None:
    new = plan(sandbox, release(replicas=2).render())
    assert (new.action, new.fields, new.notes, new.is_unplaceable) == ("new", (), (), False)
    (group,) = new.groups
    assert (group.actions, group.count_before, group.count_after) == (("new",), None, 2)
    assert (group.gpus_before, group.gpus_after, group.fields) == (None, 1, ())
    assert new.plan
    assert (new.plan.modify_index, new.plan.run, new.plan.deployment) == (0, RUN, None)
    assert new.has_changed


def test_the_same_job_is_no_change(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=1)
    chat.run()
    same = plan(sandbox, chat.render())
    assert (same.action, same.groups[0].actions, same.has_changed) == ("none", (), False)
    assert same.plan
    assert same.plan.modify_index == sandbox.nomad.job.get_job(chat.job)["JobModifyIndex"]


def test_a_deployment_in_the_way(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2)
    chat.run()
    deployment = chat.run(max_model_len=512)
    other = plan(sandbox, chat.render(max_model_len=256)).plan
    assert other
    assert other.deployment
    assert (other.deployment.id, other.deployment.job_version) == (deployment["ID"], 1)
    assert other.deployment.status == "running"
    assert other.deployment.description == "Deployment is running but requires manual promotion"
    assert other.deployment.groups == ("chat: 1 of 1 canaries healthy, not promoted",)
    same = plan(sandbox, chat.render(max_model_len=512))
    assert same.action == "none"
    assert same.plan
    assert same.plan.deployment is None
    assert same.notes == (
        f"deployment {deployment['ID'][:8]} is running; running the job again does not change it "
        "(chat: 1 of 1 canaries healthy, not promoted)",
    )


def test_a_group_that_goes_and_one_that_shrinks(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=2, **ASLEEP)
    chat.settings["models.second"] = SECOND
    sandbox.run(chat.render())
    del chat.settings["models.second"]
    found = plan(sandbox, chat.render(replicas=1))
    assert found.action == "changed"
    shrinks, goes = found.groups
    assert (shrinks.name, shrinks.actions, shrinks.count_before, shrinks.count_after) == (
        "chat",
        ("scale-down",),
        2,
        1,
    )
    assert [(field.path, field.before, field.after) for field in shrinks.fields] == [(("count",), "2", "1")]
    assert (goes.name, goes.actions, goes.count_before, goes.count_after) == ("second", ("gone",), 1, None)
    assert (goes.gpus_before, goes.gpus_after, goes.fields) == (1, None, ())


def test_what_is_wrong_with_all_groups_is_told_of_each(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=1)
    chat.settings["models.second"] = SECOND
    chat.settings["nomad.constraints"] = WINDOWS
    for group in plan(sandbox, chat.render()).groups:
        assert group.unplaced
        assert reasons(group.unplaced) == ("2 nodes do not meet ${attr.kernel.name} = windows",)
        assert ways_out(group.unplaced) == ("change that constraint in nomad.constraints",)


def test_a_stopped_job_is_started_again(sandbox: Sandbox, release: NewRelease) -> None:
    chat = release(replicas=1, **ASLEEP)
    started(chat)
    sandbox.nomad_cli("job", "stop", "-detach", chat.job)
    found = plan(sandbox, chat.render())
    assert (found.action, found.notes) == ("changed", ("the job is stopped; running it starts it again",))
    (group,) = found.groups
    assert (group.actions, group.count_before, group.count_after) == (("scale-up",), 0, 1)
    assert found.has_changed


CHANGES = [
    "health.interval=2s",
    "health.restart_after=6",
    "drain.kill_timeout=40s",
    "drain.longest_stream=9s",
    "rollout.max_parallel=2",
    "rollout.weight=0.2",
    "rollout.strategy=rolling",
    "rollout.auto_revert=false",
    "route.path=/chat/v1/",
    'placement.constraints=[{attribute: "${attr.kernel.name}", value: linux}]',
    'placement.affinities=[{attribute: "${node.datacenter}", value: dc1}]',
    'placement.spread=[{attribute: "${node.unique.name}"}]',
    "logs.max_files=2",
    "max_model_len=512",
    "args={enable-prefix-caching: true, max-num-seqs: 4}",
    "served_name=other",
    "env.GREETING=hello",
    "secrets={HF_TOKEN: nomad/jobs#other}",
    "resources.cpu=400",
    "resources.memory_max=1 GiB",
    "resources.disk=120 MiB",
    "gpus.memory=8 GiB",
    "gpus.model=NVIDIA H100 80GB HBM3",
    "ports.static=28999",
    "replicas=1",
    "vllm=0.33.0",
]


PLANNED = ("dev", "--set", "job=plan-and-diff", "--set", f"models.chat.entrypoint={ASLEEP['entrypoint']}")


@pytest.fixture(scope="module")
def running(sandbox: Sandbox) -> Iterator[str]:
    """The HCL of a job that runs."""
    sandbox.run(sandbox.render(*PLANNED))
    yield sandbox.render(*PLANNED)
    sandbox.purge("plan-and-diff")


@pytest.mark.parametrize("change", CHANGES)
def test_the_plan_tells_what_the_diff_of_the_files_tells(sandbox: Sandbox, running: str, change: str) -> None:
    new = sandbox.render(*PLANNED, "--set", f"models.chat.{change}")
    found = plan(sandbox, new)
    (told,) = compare.compare("vllm", jobspec.read(running, "old"), jobspec.read(new, "new"))
    assert (found.action, set(found.fields)) == (told.action, set(told.fields))
    for ours, theirs in zip(found.groups, told.groups, strict=True):
        assert set(ours.fields) == set(theirs.fields)
        assert (ours.actions, ours.canaries) == (theirs.actions, theirs.canaries)
        assert (ours.count_before, ours.count_after) == (theirs.count_before, theirs.count_after)


# Balancers; fabio runs on every node that fits


@pytest.mark.parametrize(("env", "balancer"), [("dev", "fabio"), ("dev-nginx", "nginx")])
@pytest.mark.parametrize("change", ["", "balancer.memory=300 MiB", "balancer.cpu=150"])
def test_the_plan_of_a_balancer_tells_what_the_diff_tells(
    sandbox: Sandbox, env: str, balancer: str, change: str
) -> None:
    job = (env, "--job", balancer)
    old, new = sandbox.render(*job), sandbox.render(*job, *(["--set", change] if change else []))
    found = plan(sandbox, new, balancer)
    (told,) = compare.compare(balancer, jobspec.read(old, "old"), jobspec.read(new, "new"))
    assert (found.action, found.has_changed) == (told.action, bool(change))
    (ours,), (theirs,) = found.groups, told.groups
    assert (set(ours.fields), ours.actions) == (set(theirs.fields), theirs.actions)
    assert (ours.updates and ours.updates.place, ours.unplaced) == (0, None)


def test_a_balancer_that_has_no_room(sandbox: Sandbox) -> None:
    large = sandbox.render("dev", "--job", "fabio", "--set", "job=large", "--set", "balancer.memory=90 GiB")
    assert sentence(plan(sandbox, large, "fabio")) == (
        "1 of 1 instances: 1 node has too little memory free, each instance needs 92160 MiB; "
        "lower balancer.memory"
    )
