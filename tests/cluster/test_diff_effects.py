"""`vllmjobs diff` says what Nomad's scheduler would do, with no Nomad at hand.

Each job of `effects/` runs, each change of it is planned by the real scheduler, and both answers are laid
side by side: the scheduler's numbers (`DesiredTGUpdates`), and what its diff calls changed. Nomad's words
sometimes mean less than they say, and are held to what they mean:

- As soon as anything of a job differs, a priority or one group, Nomad calls all its groups updated in place:
  it stamps their allocations with the job's new version, and nothing else happens to them.
- Of the allocations that are replaced with no canary, it counts those that it replaces at once
  (`max_parallel`).
- In a system job it counts under `Place` every node that fits, also where nothing changes.
- Its diff leaves out the spreads of a job as a whole. It calls a group edited, and names nothing, where there
  is `scaling`, always, and where tasks stand in another order.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllmjobs.changes.model import GroupChange, JobChange
from vllmjobs.check.release import canaries_try_a_change
from vllmjobs.check.rule import in_models
from vllmjobs.check.subject import Before, Facts, Whole
from vllmjobs.cli import main
from vllmjobs.environment.load import load_file
from vllmjobs.environment.model import Environment
from vllmjobs.project.differences import differences
from vllmjobs.project.templates import rendered, templates
from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox

FOLDER = Path(__file__).parent / "effects"
JOBS = {path.name.partition(".")[0]: path.read_text() for path in sorted(FOLDER.glob("*.hcl"))}
UPDATES = ("Place", "Canary", "DestructiveUpdate", "InPlaceUpdate", "Stop")
NOTHING = dict.fromkeys(UPDATES, 0)
NODES = 2
# `chat` has two instances and a canary, `small` has one and no canary.
OWN = (
    "job=effects-environment",
    "models.small={model: facebook/opt-125m, rollout: {strategy: rolling}, drain: {longest_stream: 10s}}",
    "models.small.route={path: /small/v1/, strip: /small}",
)

KEYS = [
    "models.chat.health.interval=2s",
    "models.chat.health.timeout=2s",
    "models.chat.health.path=/healthy",
    "models.chat.health.restart_after=6",
    "models.chat.health.restart_after=0",
    "models.chat.health.grace=2m",
    "models.chat.drain.shutdown_delay=4s",
    "models.chat.drain.kill_timeout=40s",
    "models.chat.drain.longest_stream=9s",
    "models.chat.rollout.strategy=blue_green",
    "models.chat.rollout.strategy=rolling",
    "models.chat.rollout.canaries=2",
    "models.chat.rollout.max_parallel=2",
    "models.chat.rollout.weight=0.2",
    "models.chat.rollout.auto_promote=true",
    "models.chat.rollout.auto_revert=false",
    "models.chat.rollout.min_healthy_time=2s",
    "models.chat.rollout.healthy_deadline=40s",
    "models.chat.rollout.progress_deadline=2m",
    "models.chat.route.path=/chat/v1/",
    "models.chat.route.host=chat.example.com",
    "models.chat.route.strip=/v1",
    'models.chat.placement.constraints=[{attribute: "${attr.kernel.name}", value: linux}]',
    'models.chat.placement.affinities=[{attribute: "${node.datacenter}", value: dc1}]',
    'models.chat.placement.spread=[{attribute: "${node.unique.name}"}]',
    "models.chat.logs.max_files=2",
    "models.chat.logs.max_size=11 MiB",
    "models.chat.logs.driver=fluentd",
    "models.chat.pull_time=6s",
    "models.chat.load_time=16s",
    "models.chat.model=facebook/opt-350m",
    "models.chat.max_model_len=512",
    "models.chat.gpu_memory_utilization=0.6",
    "models.chat.served_name=other",
    "models.chat.args={max-num-seqs: 8}",
    "models.chat.entrypoint=[stand-in-engine, serve, --no-color]",
    "models.chat.env.GREETING=hello",
    'models.chat.env.VLLMJOBS_STANDIN_LOAD_SECONDS="0.6"',
    "models.chat.env.VLLMJOBS_STANDIN_LOAD_SECONDS=null",
    "models.chat.secrets.VLLM_API_KEY=nomad/jobs#hf_token",
    "models.chat.secrets.HF_TOKEN=null",
    "models.chat.user=nobody",
    "models.chat.resources.cpu=400",
    "models.chat.resources.cores=1",
    "models.chat.resources.memory=300 MiB",
    "models.chat.resources.memory_max=400 MiB",
    "models.chat.resources.shm=2 GiB",
    "models.chat.resources.disk=120 MiB",
    "models.chat.gpus.count=2",
    "models.chat.gpus.memory=8 GiB",
    "models.chat.gpus.model=NVIDIA H100 80GB HBM3",
    'models.chat.gpus.constraints=[{attribute: "${device.attr.power}", operator: is_set}]',
    'models.chat.gpus.affinities=[{attribute: "${device.attr.power}", operator: ">", value: 500 W}]',
    "models.chat.ports.static=28999",
    "models.chat.ports.base=8001",
    "models.chat.ports.host=127.0.0.1",
    "models.chat.cache={bind: /srv/models}",
    "models.chat.container.pids=100",
    "models.chat.image=elsewhere/vllm:1",
    "models.chat.install=gptoss",
    "models.chat.vllm=0.32.0",
    "models.chat.replicas=3",
    "models.chat.replicas=1",
    "models.chat.replicas=0",
    "models.small.replicas=2",
    "models.small.max_model_len=512",
    "models.small=null",
    "models.third={model: facebook/opt-125m}",
    "debug=false",
    "nomad.priority=60",
    "nomad.datacenters=[dc1, dc2]",
    "nomad.datacenters=[dc9]",
    'nomad.datacenters=["*"]',
    'nomad.constraints=[{attribute: "${attr.kernel.name}", value: linux}]',
    'nomad.affinities=[{attribute: "${node.datacenter}", value: dc1}]',
    "nomad.region=global",
    "nomad.namespace=default",
    "nomad.node_pool=default",
    "nomad.max_kill_timeout=3m",
    "balancer.kind=none",
]
BALANCERS = [
    ("fabio", "balancer.cpu=300"),
    ("fabio", "balancer.memory=300 MiB"),
    ("fabio", "balancer.consul=127.0.0.1:1"),
    ("fabio", "models.chat.max_model_len=512"),
    ("nginx", "balancer.count=2"),
    ("nginx", "balancer.cpu=300"),
    ("nginx", "models.chat.route.path=/chat/v1/"),
    ("nginx", "models.chat.max_model_len=512"),
]


def edits(kind: str) -> list[tuple[str, str, str]]:
    """A job, some words of it, and what is written in their stead: NAME.changes.txt and NAME.same.txt."""
    found = []
    for path in sorted(FOLDER.glob(f"*.{kind}.txt")):
        for case in path.read_text().removesuffix("\n").split("\n\n"):
            old, _, new = f"{case}\n".partition("\n=>\n")
            found.append((path.name.partition(".")[0], old, new.removesuffix("\n")))
    return found


def edited(hcl: str, old: str, new: str) -> str:
    assert hcl.count(old) == 1, f"{old} is there {hcl.count(old)} times"
    return hcl.replace(old, new)


def environment(sandbox: Sandbox, *settings: str, name: str = "dev") -> Environment:
    found = load_file(Path(sandbox.env["VLLMJOBS_PROJECT"]) / f"envs/{name}.yaml", settings).environment
    assert found is not None
    return found


def job_of(sandbox: Sandbox, *settings: str, name: str = "dev", job: str = "vllm") -> str:
    return rendered(environment(sandbox, *settings, name=name), templates(sandbox.folder))[job]


@pytest.fixture(scope="module")
def running(sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """One job of each kind, as HCL by its name, all running."""
    jobs = {name: hcl.replace("http://consul", sandbox.consul_address) for name, hcl in JOBS.items()}
    jobs["environment"] = job_of(sandbox, *OWN)
    for hcl in jobs.values():
        sandbox.run(hcl)
    for name in jobs:
        wait_until(
            lambda name=name: runs(sandbox, f"effects-{name}"),  # type: ignore[misc]
            60,
            f"effects-{name} runs",
            evidence=lambda name=name: sandbox.evidence(f"effects-{name}"),  # type: ignore[misc]
        )
    yield jobs
    sandbox.purge(*(f"effects-{name}" for name in jobs))


def runs(sandbox: Sandbox, job: str) -> bool:
    found = sandbox.allocations(job)
    is_done = sandbox.deployment(job).get("Status", "successful") == "successful"
    return is_done and bool(found) and all(each["ClientStatus"] == "running" for each in found)


def agree(plan: Json, before: str, after: str, nodes: int = NODES) -> JobChange:
    """Hold what `diff` says to a plan; returns what it says."""
    (said,) = differences({"vllm": before}, {"vllm": after})
    edited = {group["Name"] for group in plan["Diff"]["TaskGroups"] or () if is_edited(group)}
    kept = [group for group in said.groups if not {"new", "gone"} & {*group.actions}]
    assert {group.name for group in kept if group.fields} == edited

    is_same = plan["Diff"]["Type"] == "None" or not (edited or of_job(plan["Diff"]))
    assert (said.action == "none") == is_same
    updates = plan["Annotations"]["DesiredTGUpdates"]
    assert updates.keys() <= {group.name for group in said.groups}
    is_system = bool(re.search('type += "system"', before))
    for group in said.groups:
        scheduled = {word: count for word, count in updates.get(group.name, {}).items() if word in UPDATES}
        if scheduled.get("DestructiveUpdate") and not group.canaries:
            scheduled["DestructiveUpdate"] = 1
        is_stamped = said.action != "none" or plan["Diff"]["Type"] != "None"
        expected = of_system(group, said, nodes) if is_system else of_others(group, is_stamped)
        assert NOTHING | scheduled == NOTHING | expected, group
    return said


def is_edited(group: Json) -> bool:
    """Less the number that Nomad gives to each scaling policy, and compares."""
    objects = [each for each in group["Objects"] or () if each["Type"] != "None"]
    tasks = [each for each in group["Tasks"] or () if each["Type"] != "None"]
    is_numbered = [(each["Name"], each["Fields"], each["Objects"]) for each in objects] == [
        ("Scaling", None, None)
    ]
    return group["Type"] == "Edited" and not (is_numbered and not group["Fields"] and not tasks)


def of_job(diff: Json) -> bool:
    """Whether anything differs but the groups that both jobs have."""
    comes_or_goes = {group["Type"] for group in diff["TaskGroups"] or ()} & {"Added", "Deleted"}
    return bool(comes_or_goes or diff["Fields"] or diff["Objects"])


def of_others(group: GroupChange, is_stamped: bool) -> dict[str, int]:
    was, now = group.count_before or 0, group.count_after or 0
    counts = {"Place": max(0, now - was), "Stop": max(0, was - now)}
    if group.canaries:
        return {**counts, "Canary": group.canaries}
    if "destructive" in group.actions:
        return {**counts, "DestructiveUpdate": 1}
    return {**counts, "InPlaceUpdate": min(was, now)} if is_stamped else counts


def of_system(group: GroupChange, job: JobChange, nodes: int) -> dict[str, int]:
    if "gone" in group.actions:
        return {"Stop": nodes}
    if "new" in group.actions or job.action == "none":
        return {"Place": nodes}
    done = {"DestructiveUpdate": 1} if "destructive" in group.actions else {"InPlaceUpdate": nodes}
    return {"Place": nodes, **done}


@pytest.mark.parametrize("change", KEYS)
def test_a_key_of_the_environment(sandbox: Sandbox, running: dict[str, str], change: str) -> None:
    after = job_of(sandbox, *OWN, change)
    agree(sandbox.plan(after), running["environment"], after)


@pytest.mark.parametrize(("balancer", "change"), BALANCERS)
def test_a_key_of_the_environment_may_change_its_balancer(
    sandbox: Sandbox, balancer: str, change: str
) -> None:
    name = {"fabio": "dev", "nginx": "dev-nginx"}[balancer]
    before, after = (job_of(sandbox, *set_, name=name, job=balancer) for set_ in ((), (change,)))
    agree(sandbox.plan(after), before, after, nodes=1)


@pytest.mark.parametrize(("job", "old", "new"), edits("changes"))
def test_a_change_of_a_job(sandbox: Sandbox, running: dict[str, str], job: str, old: str, new: str) -> None:
    after = edited(running[job], old, new)
    assert agree(sandbox.plan(after), running[job], after).action == "changed"


@pytest.mark.parametrize(("job", "old", "new"), edits("same"))
def test_other_words_for_the_same_job(
    sandbox: Sandbox, running: dict[str, str], job: str, old: str, new: str
) -> None:
    after = edited(running[job], old, new)
    plan = sandbox.plan(after)
    assert plan["Diff"]["Type"] == "None"
    assert agree(plan, running[job], after).action == "none"


def block(hcl: str, start: str) -> str:
    """From there to its closing brace, as the jobs are formatted."""
    begin = hcl.index(start)
    line = hcl[begin:].partition("\n")[0]
    end = "}" if line.endswith("}") else "\n" + hcl[:begin].rpartition("\n")[2] + "}"
    return hcl[begin : hcl.index(end, begin)] + end


@pytest.mark.parametrize(
    ("first", "second", "is_replaced"),
    [
        ('template {\n        destination = "local/first', "template {\n        destination   =", True),
        ('identity {\n        name = "extra"', 'identity {\n        name = "other"', True),
        ('port "http"', 'port "admin"', True),
        ('task "main"', 'task "before"', False),
        ('group "web"', 'group "plain"', False),
        ("ephemeral_disk {", "restart {", False),
    ],
)
def test_of_some_blocks_the_order_counts(
    sandbox: Sandbox, running: dict[str, str], first: str, second: str, is_replaced: bool
) -> None:
    before = running["service"]
    one, other = block(before, first), block(before, second)
    after = before.replace(one, "here").replace(other, one).replace("here", other)
    updates = sandbox.plan(after)["Annotations"]["DesiredTGUpdates"].values()
    assert any(each["Canary"] or each["DestructiveUpdate"] for each in updates) == is_replaced
    (said,) = differences({"vllm": before}, {"vllm": after})
    assert [group.actions for group in said.groups if group.actions] == [("destructive",)] * is_replaced
    assert said.action == ("changed" if is_replaced else "none")


def test_a_spread_of_the_whole_job_is_a_change_that_nomads_own_diff_leaves_out(
    sandbox: Sandbox, running: dict[str, str]
) -> None:
    after = job_of(sandbox, *OWN, 'nomad.spread=[{attribute: "${node.unique.name}"}]')
    plan = sandbox.plan(after)
    assert plan["Diff"]["Type"] == "None"
    assert plan["Annotations"]["DesiredTGUpdates"]["chat"]["InPlaceUpdate"] == 2

    (said,) = differences({"vllm": running["environment"]}, {"vllm": after})
    assert [group.actions for group in said.groups] == [("in-place",)] * 2


def test_what_only_the_cluster_knows_is_said_in_a_note(sandbox: Sandbox, running: dict[str, str]) -> None:
    """Whether the nodes on which instances run meet a new constraint."""
    wanted = [
        f'models.chat.placement.constraints=[{{attribute: "${{attr.kernel.name}}", value: {name}}}]'
        for name in ("linux", "plan9")
    ]
    met, unmet = (job_of(sandbox, *OWN, change) for change in wanted)
    assert sandbox.plan(met)["Annotations"]["DesiredTGUpdates"]["chat"]["InPlaceUpdate"] == 2
    assert sandbox.plan(unmet)["Annotations"]["DesiredTGUpdates"]["chat"]["InPlaceUpdate"] == 0

    for after in (met, unmet):
        (said,) = differences({"vllm": running["environment"]}, {"vllm": after})
        assert [group.actions for group in said.groups] == [("in-place",), ()]
        (note,) = said.notes
        assert note.startswith("constraint may exclude nodes on which instances run")


def test_a_canary_of_a_system_job_is_a_share_of_the_nodes(sandbox: Sandbox, running: dict[str, str]) -> None:
    """How many that are, only the cluster knows; `canaries` is of services."""
    before = running["system"]
    after = edited(edited(before, "max_parallel = 1", "max_parallel = 1\ncanary = 50"), "hello", "hi")
    plan = sandbox.plan(after)
    assert plan["Annotations"]["DesiredTGUpdates"]["every"]["Canary"] == NODES / 2
    (said,) = differences({"vllm": before}, {"vllm": after})
    assert [(group.actions, group.canaries) for group in said.groups] == [(("destructive",), 0)]


def test_the_command_says_the_same(sandbox: Sandbox, running: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "running.hcl"
    other.write_text(running["environment"])
    settings = [*OWN, "models.chat.env.GREETING=hello"]
    done = CliRunner().invoke(
        main,
        ["diff", "dev", "--project", str(sandbox.folder), "--against", str(other), "--format", "json"]
        + [option for setting in settings for option in ("--set", setting)],
    )
    assert done.exit_code == 2, done.output
    (job,) = json.loads(done.stdout)["environments"][0]["jobs"]
    chat, small = job["groups"]
    assert (chat["name"], chat["actions"], chat["canaries"]) == ("chat", ["destructive"], 1)
    assert (small["name"], small["actions"]) == ("small", [])
    updates = sandbox.plan(job_of(sandbox, *settings))["Annotations"]["DesiredTGUpdates"]
    assert (updates["chat"]["Canary"], updates["small"]["InPlaceUpdate"]) == (1, 1)


@pytest.mark.parametrize(
    ("change", "is_in_place"),
    [
        ("models.chat.health.interval=2s", True),
        ("models.chat.rollout.weight=0.2", True),
        ("models.chat.resources.cpu=400", False),
        ("models.chat.replicas=3", False),
        ("models.chat.vllm=0.32.0", False),
    ],
)
def test_a_rule_of_check_says_which_changes_no_canary_tries(
    sandbox: Sandbox, running: dict[str, str], change: str, is_in_place: bool
) -> None:
    before, after = environment(sandbox, *OWN), environment(sandbox, *OWN, change)
    hcl = job_of(sandbox, *OWN, change)
    said = agree(sandbox.plan(hcl), running["environment"], hcl)
    facts = Facts(before=Before(before, {group.name: group for group in said.groups}))
    found = list(in_models(Whole(after, facts), canaries_try_a_change))
    assert bool(found) == is_in_place
