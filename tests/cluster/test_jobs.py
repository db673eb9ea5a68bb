"""Every job that is shipped, and every golden case, as the real Nomad sees it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases.test_cases import NOTE
from vllmjobs_sandbox.cluster.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
GOLDEN = sorted(
    path
    for path in (ROOT / "tests/cases/render").glob("*.txt")
    if "=== 0\n" in path.read_text() and "max_client_disconnect" not in path.read_text()
)
POOLS = ("gpu", "edge", "tools")
BALANCERS = {"vllm": "fabio", "fabio": "fabio", "nginx": "nginx"}


@pytest.fixture(scope="module")
def cluster(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox, with the node pools and namespace that the environments and cases name."""
    sandbox.nomad.namespace.create_namespace({"Name": "ml"})
    for command, text in (
        *(("node pool apply -", f'node_pool "{pool}" {{}}') for pool in POOLS),
        ("operator scheduler set-config -memory-oversubscription=true", ""),
    ):
        done = sandbox.nomad_cli(*command.split(), input=text)
        assert done.returncode == 0, done.stderr
    yield sandbox
    sandbox.nomad.namespace.delete_namespace("ml")
    for pool in POOLS:
        sandbox.nomad_cli("node", "pool", "delete", pool)


def shipped(cluster: Sandbox, environment: str, job: str) -> str:
    return cluster.render(
        *("--project", str(ROOT), environment, "--job", job),
        *("--set", f"job=shipped-{environment}", "--set", f"balancer.kind={BALANCERS[job]}"),
        *("--set", "balancer.port=2001", "--set", "balancer.admin_port=2002"),  # never placed: no docker here
    )


def problems(cluster: Sandbox, hcl: str) -> list[str]:
    """What Nomad has against a job: its errors, then its warnings."""
    job = cluster.nomad.jobs.parse(hcl)
    job["Region"] = None  # the sandbox has one region
    answer: dict[str, Any] = cluster.nomad.validate.validate_job({"Job": job}).json()
    return [*(answer["ValidationErrors"] or []), *filter(None, [answer["Warnings"]])]


@pytest.mark.parametrize("job", BALANCERS)
@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_a_shipped_job_is_valid_and_running_it_again_is_no_change(
    cluster: Sandbox, environment: str, job: str
) -> None:
    hcl = shipped(cluster, environment, job)
    assert problems(cluster, hcl) == []
    assert cluster.plan(hcl)["Diff"]["Type"] == "Added"
    cluster.run(hcl)
    try:
        assert cluster.plan(shipped(cluster, environment, job))["Diff"]["Type"] == "None"
    finally:
        cluster.purge(cluster.nomad.jobs.parse(hcl)["ID"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_case_is_a_job_that_nomad_takes(cluster: Sandbox, path: Path) -> None:
    hcl = NOTE.sub("", path.read_text().partition("=== 0\n")[2])
    found = problems(cluster, hcl)
    assert [problem for problem in found if "Vault" not in problem] == []  # the sandbox has none


def test_a_wrong_value_that_is_refused_here_is_one_that_nomad_refuses_too(cluster: Sandbox) -> None:
    """The rules that say "Nomad refuses it" are Nomad's own."""
    hcl = shipped(cluster, "dev", "vllm")
    for line, wrong in {
        'healthy_deadline  = "6m"': 'healthy_deadline  = "1s"',
        'progress_deadline = "8m"': 'progress_deadline = "6m"',
        'kill_timeout   = "30s"': 'kill_timeout   = "10m"',
        'interval = "5s"': 'interval = "500ms"',
        "auto_promote      = false": "auto_promote      = true\n canary = 0",
        "size = 1024": "size = 30",  # what stdout may fill,
    }.items():
        assert line in hcl
        assert problems(cluster, hcl.replace(line, wrong, 1).replace("canary            = 1", "")), wrong
