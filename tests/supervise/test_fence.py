"""Fencing a node: a real Nomad's Task API, and a real socket that answers worse."""

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import vllmjobs
from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.supervisor.gpu.fence import add, fence
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import secured_server

DOCS = Path(__file__).parents[2] / "docs" / "supervisor.md"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

JOB = """
job "%(name)s" {
  datacenters = ["*"]
  type        = "batch"
  group "gpu" {
    constraint {
      attribute = "${node.unique.name}"
      value     = "gpu-2"
    }
    constraint {
      attribute = "${meta.vllmjobs_gpu_fenced}"
      operator  = "is_not_set"
    }
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "supervise" {
      driver = "raw_exec"
      identity {
        env = true
      }
      config {
        command = "%(python)s"
        args    = ["${NOMAD_TASK_DIR}/fence.py"]
      }
      env {
        PYTHONPATH = "%(package)s"
      }
      template {
        destination = "local/fence.py"
        data        = <<EOF
import asyncio, os
from vllmjobs.supervisor.gpu.fence import fence
for gpu in ("GPU-1", "GPU-2", "GPU-1"):
    why = asyncio.run(fence(gpu, "XID 79", os.environ))
    assert why is None, why
EOF
      }
    }
  }
}
"""


def hcl(name: str) -> str:
    package = Path(vllmjobs.__file__).parent.parent
    return JOB % {"name": name, "python": sys.executable, "package": package}


def test_a_task_fences_its_node_until_a_person_lifts_it(sandbox: Sandbox) -> None:
    node = sandbox.node("gpu-2")["ID"]
    try:
        sandbox.run(hcl("fences"))
        wait_until(
            lambda: sandbox.nomad.job.get_summary("fences")["Summary"]["gpu"]["Complete"] == 1,
            60,
            "the task has fenced its node",
            evidence=lambda: sandbox.evidence("fences"),
        )
        value = wait_until(
            lambda: sandbox.node("gpu-2")["Meta"].get(FENCE_META), 30, "Nomad's servers have heard of it"
        )
        assert [entry.rpartition(" ")[0] for entry in value.split("; ")] == ["GPU-1 XID 79", "GPU-2 XID 79"]
        refused = sandbox.plan(hcl("next"))["FailedTGAllocs"]["gpu"]
        assert refused["ConstraintFiltered"]["${meta.vllmjobs_gpu_fenced} is_not_set "] == 1
    finally:
        lifted = sandbox.nomad_cli("node", "meta", "apply", "-node-id", node, "-unset", FENCE_META)
        sandbox.purge("fences")
    assert lifted.returncode == 0, lifted.stderr
    wait_until(lambda: FENCE_META not in sandbox.node("gpu-2")["Meta"], 30, "the fence is lifted")
    assert not sandbox.plan(hcl("next"))["FailedTGAllocs"]


def test_with_acls_it_takes_the_policy_of_the_docs() -> None:
    (policy,) = re.findall(r"^echo '(node .*)' \| nomad acl policy apply", DOCS.read_text(), re.MULTILINE)
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        secured_server(Path(folder), is_client=True) as secured,
    ):
        applied = (
            "acl",
            "policy",
            "apply",
            "-namespace",
            "default",
            "-job",
            "allowed",
            "vllmjobs-fence",
            "-",
        )
        secured.nomad(*applied, text=policy)

        def ran(job: str) -> str:
            text = hcl(job).replace('"gpu-2"', '"secured"')
            secured.nomad("job", "run", "-detach", "-", text=text)

            def ended() -> str | None:
                (one,) = json.loads(secured.nomad("job", "allocs", "-json", job)) or [{"ClientStatus": ""}]
                is_over = one["ClientStatus"] in ("complete", "failed")
                return (
                    secured.nomad("alloc", "logs", "-stderr", one["ID"]) + one["ClientStatus"]
                    if is_over
                    else None
                )

            return wait_until(ended, 60, f"{job} has ended", ignoring=(ValueError,))

        assert "Permission denied" in (refused := ran("refused"))
        assert refused.endswith("failed")
        assert ran("allowed") == "complete"


def test_a_gpu_is_added_to_those_that_are_fenced_already() -> None:
    once = add("", "GPU-1", "XID 79 (GPU has fallen off the bus)", 1769860800.0)
    assert once == "GPU-1 XID 79 (GPU has fallen off the bus) 2026-01-31T12:00:00Z"
    both = add(once, "GPU-2", "a;\nb", 1769860860.0)
    assert both == f"{once}; GPU-2 a, b 2026-01-31T12:01:00Z"
    assert add(both, "GPU-1", "again", 1769861000.0) == both


async def against(folder: Path, answer: Answer) -> str | None:
    """Fence through a socket that answers so."""
    server = await asyncio.start_unix_server(answer, folder / "api.sock")
    async with server:
        return await fence("GPU-1", "lost", environ(folder))


def environ(folder: Path) -> dict[str, str]:
    return {"NOMAD_SECRETS_DIR": str(folder), "NOMAD_TOKEN": "a token"}


def answering(*said: bytes) -> tuple[Answer, list[bytes]]:
    """Answer one connection after another; keep what was asked."""
    asked: list[bytes] = []
    answers = iter(said)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
        asked.append(head + await reader.readexactly(length))
        writer.write(next(answers))
        await writer.drain()
        writer.close()

    return answer, asked


def test_it_asks_first_and_keeps_what_is_there(tmp_path: Path) -> None:
    ok = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
    there = b'{"Meta": {"vllmjobs_gpu_fenced": "GPU-0 lost 2026-01-31T12:00:00Z", "rack": "7"}}'
    answer, asked = answering(ok + there, ok + b"{}")
    assert asyncio.run(against(tmp_path, answer)) is None
    assert asked[0].startswith(b"GET /v1/client/metadata HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer a token\r\n" in asked[0]
    assert asked[1].startswith(b"POST /v1/client/metadata ")
    assert b'{"Meta": {"vllmjobs_gpu_fenced": "GPU-0 lost 2026-01-31T12:00:00Z; GPU-1 lost 20' in asked[1]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.0 403 Forbidden\r\n\r\nPermission denied", "refused it: 403 Permission denied"),
        (b"HTTP/1.0 500 Internal Server Error\r\n\r\n", "refused it: 500 Internal Server Error"),
        (b"", "refused it: the connection ended before the answer did"),
        (b"SSH-2.0\r\n\r\n", "refused it: the answer is not HTTP/1"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "refused it"),
        (b"HTTP/1.0 200 OK\r\n\r\nnot json", "refused it"),
    ],
)
def test_a_refusal_is_told(tmp_path: Path, answer: bytes, why: str) -> None:
    assert why in (asyncio.run(against(tmp_path, answering(answer)[0])) or "")


def test_an_agent_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    monkeypatch.setattr("vllmjobs.supervisor.gpu.fence.SECONDS", 0.1)
    assert asyncio.run(against(tmp_path, never)) == "Nomad's Task API did not answer in 0.1 s"


def test_without_a_socket_it_says_where_it_looked(tmp_path: Path) -> None:
    said = asyncio.run(fence("GPU-1", "lost", environ(tmp_path)))
    assert said == f"Nomad's Task API cannot be reached at {tmp_path}/api.sock: {os.strerror(2)}"


def test_outside_of_nomad_it_says_so(tmp_path: Path) -> None:
    assert "NOMAD_SECRETS_DIR is not set" in (asyncio.run(fence("GPU-1", "lost", {})) or "")
    no_token = {"NOMAD_SECRETS_DIR": str(tmp_path)}
    assert "identity { env = true }" in (asyncio.run(fence("GPU-1", "lost", no_token)) or "")
