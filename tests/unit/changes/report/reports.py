"""Reports to write: one as people meet them, and many as nobody would wish them."""

from typing import Any, get_args

from hypothesis import strategies as st

from vllmjobs.changes.model import (
    Amount,
    Deployment,
    EnvironmentChange,
    Field,
    Finding,
    GroupChange,
    Holder,
    JobChange,
    JobPlan,
    Preempted,
    Reason,
    ReasonKind,
    Remedy,
    RemedyKind,
    Report,
    Setting,
    Unplaced,
    Updates,
)

IMAGE = Field(
    path=("task", "vllm", "config", "image"),
    before="vllm/vllm-openai:v0.32.0",
    after="vllm/vllm-openai:v0.33.0",
    replaces=True,
)
NGINX = "events {}\nhttp {\n  upstream chat {\n    keepalive %d;\n  }\n  server {\n    listen 80;\n  }\n}\n"


def group(name: str = "chat", *actions: Any, count: int = 4, gpus: int = 1, **given: Any) -> GroupChange:
    """A group of four instances, one GPU each."""
    counts = {"count_before": count, "count_after": count, "gpus_before": gpus, "gpus_after": gpus}
    return GroupChange(name=name, actions=actions, **(counts | given))


def job(*groups: GroupChange, action: Any = "changed", **given: Any) -> JobChange:
    """The job vllm-prod."""
    names = {"job": "vllm", "id": "vllm-prod", "namespace": "default", "region": "global"}
    return JobChange(action=action, groups=groups, **(names | given))


def report(*jobs: JobChange, command: Any = "diff", against: str = "main", findings: Any = ()) -> Report:
    """A report on prod."""
    prod = EnvironmentChange(name="prod", against=against, jobs=jobs, findings=findings)
    return Report(command=command, environments=(prod,))


CHAT = group(
    "chat",
    "destructive",
    canaries=2,
    fields=(
        IMAGE,
        Field(path=("task", "vllm", "env", "HF_TOKEN"), before="a", after="b", hidden=True),
        Field(path=("task", "vllm", "config", "args"), before="--max-num-seqs=32", after=None, replaces=True),
        Field(path=("task", "vllm", "config", "args"), before=None, after="--max-num-seqs=64", replaces=True),
        Field(
            path=("task", "nginx", "template", "local/nginx.conf", "data"),
            before=NGINX % 32,
            after=NGINX % 64,
        ),
    ),
    updates=Updates(canary=2, ignore=4),
    unplaced=Unplaced(
        wanted=2,
        failed=2,
        canaries=True,
        reasons=(
            Reason(
                kind="gpus",
                nodes=4,
                resource="nvidia/gpu",
                needed=1,
                free=1,
                most_free=1,
                largest=4,
                holders=(Holder(job="train", count=15),),
            ),
        ),
        remedies=(
            Remedy(kind="free-gpus-on-any", gpus=(Amount(name="gpu-3", count=1),)),
            Remedy(kind="set", settings=(Setting(key="rollout.canaries", value="1"),)),
        ),
    ),
)
LARGE = group(
    "large",
    "scale-up",
    count_after=6,
    gpus=4,
    fields=(Field(path=("count",), before="4", after="6"),),
    updates=Updates(place=2, ignore=4),
)
PLAN = JobPlan(
    modify_index=12,
    run="vllmjobs render prod | nomad job run -check-index 12 -",
    warnings=("kill_timeout is above max_kill_timeout",),
    deployment=Deployment(
        id="1a2b3c4d-5e6f-7081-9203-a4b5c6d7e8f9",
        job_version=7,
        status="running",
        description="requires manual promotion",
        groups=("chat: 1 of 1 canaries healthy, not promoted",),
    ),
    preempted=(Preempted(job="train", group="workers", namespace="batch", node="gpu-3", count=2),),
)
FINDING = Finding(
    file="envs/prod.yaml",
    line=7,
    column=7,
    rule="VJ324",
    severity="warning",
    path="models.chat.gpus.memory",
    message="80 GiB leaves out NVIDIA H100 PCIe",
)
PLANNED = report(
    job(CHAT, LARGE, group("embed"), notes=("The balancer follows on its own.",), plan=PLAN),
    job(action="none", job="fabio", id="fabio-prod"),
    command="plan",
    against="http://nomad.example.com:4646",
    findings=(FINDING,),
)

HOSTILE = (
    "", " ", "`", "``````", "a`|`b", "a|b", "a\\|b", "\\", "</details>", "<details>", "<b onclick=x>y</b>",
    "-->", "<!--", "<!-- vllmjobs diff -->", "<!-- vllmjobs plan prod -->", "\n```\n# heading\n",
    "\n\n</details>\n",
    "@octocat", "#1", "!1", "GH-1", "$a$", "[x](javascript:alert(1))", "![x](http://example.com/x.png)",
    "# heading", "- item", "1. item", "> quotation", "---", "    code", "\t", "\r\n", "\x1b[31mred\x1b[0m",
    "\x00", "\u202egnp.exe", "\u200b", "\u2028", "\x85", "\ufeff", "\xe9", "e\u0301", "\u3164", "&lt;",
    "&#64;octocat", "~~x~~", "/close", "*x*", "_x_", "__x__", "http://example.com/<b>", "www.example.com",
    "a" * 300, "|" * 300, "`" * 300,
)  # fmt: skip
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=20),
    st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join),
    st.lists(st.sampled_from(HOSTILE), max_size=40).map("\n".join),
)
counts = st.integers(0, 50_000)
fields = st.builds(
    Field,
    path=st.lists(texts, max_size=4).map(tuple),
    before=st.none() | texts,
    after=st.none() | texts,
    replaces=st.booleans(),
    hidden=st.booleans(),
)
amounts = st.lists(st.builds(Amount, name=texts, count=counts), max_size=4).map(tuple)
reasons = st.builds(
    Reason,
    kind=st.sampled_from(get_args(ReasonKind)),
    nodes=st.none() | counts,
    node=st.none() | texts,
    resource=st.none() | texts,
    unit=st.none() | texts,
    needed=st.none() | counts,
    free=st.none() | counts,
    most_free=st.none() | counts,
    largest=st.none() | counts,
    port=st.none() | counts,
    node_pool=st.none() | texts,
    datacenters=st.lists(texts, max_size=3).map(tuple),
    holders=st.lists(st.builds(Holder, job=texts, count=counts, own=st.booleans()), max_size=5).map(tuple),
    counts=amounts,
    text=st.none() | texts,
)
remedies = st.builds(
    Remedy,
    kind=st.sampled_from(get_args(RemedyKind)),
    settings=st.lists(st.builds(Setting, key=texts, value=st.none() | texts), max_size=2).map(tuple),
    node=st.none() | texts,
    node_pool=st.none() | texts,
    datacenter=st.none() | texts,
    gpus=amounts,
    command=st.none() | texts,
)
sentences = st.lists(texts, max_size=3).map(tuple)
groups = st.builds(
    GroupChange,
    name=texts,
    actions=st.lists(
        st.sampled_from(["new", "gone", "destructive", "in-place", "scale-up", "scale-down"]),
        max_size=2,
        unique=True,
    ).map(tuple),
    count_before=st.none() | counts,
    count_after=st.none() | counts,
    gpus_before=st.none() | st.integers(0, 16),
    gpus_after=st.none() | st.integers(0, 16),
    canaries=counts,
    fields=st.lists(fields, max_size=3).map(tuple),
    updates=st.none() | st.builds(Updates, place=counts, canary=counts, ignore=counts),
    unplaced=st.none()
    | st.builds(
        Unplaced,
        wanted=counts,
        failed=counts,
        canaries=st.booleans(),
        reasons=st.lists(reasons, max_size=2).map(tuple),
        remedies=st.lists(remedies, max_size=2).map(tuple),
    ),
)
plans = st.builds(
    JobPlan,
    modify_index=counts,
    run=texts,
    warnings=sentences,
    deployment=st.none()
    | st.builds(Deployment, id=texts, job_version=counts, status=texts, description=texts, groups=sentences),
    preempted=st.lists(
        st.builds(Preempted, job=texts, group=texts, namespace=texts, node=texts, count=counts), max_size=2
    ).map(tuple),
)
jobs = st.builds(
    JobChange,
    job=texts,
    id=texts,
    namespace=texts,
    region=texts,
    action=st.sampled_from(["none", "new", "gone", "changed"]),
    fields=st.lists(fields, max_size=3).map(tuple),
    groups=st.lists(groups, max_size=3).map(tuple),
    notes=sentences,
    plan=st.none() | plans,
)
findings = st.builds(
    Finding,
    file=texts,
    line=counts,
    column=counts,
    rule=texts,
    severity=st.sampled_from(["error", "warning", "note"]),
    path=texts,
    message=texts,
)
environments = st.builds(
    EnvironmentChange,
    name=texts,
    against=texts,
    jobs=st.lists(jobs, max_size=2).map(tuple),
    findings=st.lists(findings, max_size=3).map(tuple),
)
reports = st.builds(
    Report,
    command=st.sampled_from(["diff", "plan"]),
    environments=st.lists(environments, max_size=2).map(tuple),
)
