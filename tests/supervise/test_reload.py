"""`vllmjobs reload`: a changed environment on one box, server by server.

The tests live through the life of one box in their order.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.machine import SECONDS, Machine
from vllmjobs_sandbox.traffic.load import Load

SECRET = ("    drain:", "    secrets: {{HF_TOKEN: nomad/jobs#hf_token}}\n    drain:")
SHORT = ("a/small", "a/small\n    max_model_len: 1024")
ALONE = ("replicas: 2", "replicas: 1")
BEFORE = """\
models:
  before:
    model: b/small
    image: vllm/vllm-openai:v0.33.0
    entrypoint: [stand-in-engine, serve]
    ports: {{base: {base}}}
    route: {{path: /before/v1/, strip: /before}}
"""


@pytest.fixture(scope="module")
def said(lasting: Machine) -> str:
    """Two servers that have a secret."""
    lasting.env["HF_TOKEN"] = "hf_first"
    return lasting.up(SECRET)


def test_a_reload_changes_servers_one_after_the_other_and_no_request_fails(
    one: Machine, tmp_path: Path
) -> None:
    one.environment(SECRET, SHORT)
    with Load(f"http://127.0.0.1:{one.port}", tmp_path, workers=10, per_second=30) as load:
        load.wait_for(30, SECONDS)
        said = one.done("reload", "one").splitlines()
        load.wait_for(30, SECONDS)
    assert said[-3:] == ["chat-0 is ready", "chat-1 is ready", "vllm-one is reloaded"]
    assert (load.seen().failures, load.seen().truncated) == ([], [])
    for name in ("chat-0", "chat-1"):
        assert "--max-model-len=1024" in one.command_line(name)


def test_a_reload_ends_at_the_first_server_that_does_not_get_ready(one: Machine) -> None:
    pid = one.pid("chat-1")
    one.environment(SECRET, SHORT, ("[stand-in-engine, serve]", "[no-such-engine]"))
    ended = one.run("reload", "one")
    assert ended.returncode == 1
    assert "chat-0 did not come back: exit code 127; see " in ended.stderr
    assert one.pid("chat-1") == pid
    assert one.complete().status_code == 200
    one.environment(SECRET, SHORT)
    assert one.done("reload", "one").endswith("chat-0 is ready\nvllm-one is reloaded\n")
    assert one.pid("chat-1") == pid


def test_a_reload_leaves_servers_that_do_not_differ_alone(one: Machine) -> None:
    pids = [one.pid(name) for name in ("chat-0", "chat-1")]
    assert one.done("reload", "one").endswith("vllm-one: no server has changed\n")
    one.environment(SECRET, SHORT, ("models:\n", BEFORE))
    said = one.done("reload", "one")
    assert f"before-0: before on no GPU, port {one.base + 2}" in said
    assert said.endswith("before-0 is ready\nvllm-one is reloaded\n")
    assert one.complete("/before/v1/completions", "before").status_code == 200
    assert [one.pid(name) for name in ("chat-0", "chat-1")] == pids
    one.environment(SECRET, SHORT, ALONE)
    assert one.done("reload", "one").endswith(
        "chat-1 is stopped\nbefore-0 is stopped\nvllm-one is reloaded\n"
    )
    assert one.complete("/before/v1/completions", "before").status_code == 404
    assert one.pid("chat-0") == pids[0]


def test_a_reload_of_routes_restarts_nothing(one: Machine) -> None:
    pid = one.pid("chat-0")
    talk = ("    replicas: 2\n", "    replicas: 1\n    route: {{path: /talk/v1/, strip: /talk}}\n")
    one.environment(SECRET, SHORT, talk)
    one.done("reload", "one")
    wait_until(
        lambda: one.complete("/talk/v1/completions").status_code == 200, SECONDS, "it has the new route"
    )
    assert one.pid("chat-0") == pid


def test_a_reload_that_nginx_refuses_changes_nothing(one: Machine) -> None:
    folder = one.folder / "state" / "vllmjobs" / "vllm-one"
    before = (folder / "nginx" / "nginx.conf").read_text()
    refused = one.write("jobs/nginx.conf.ctmpl.j2", "daemon off;\nworker_procesess 2;\n")
    ended = one.run("reload", "one")
    refused.unlink()
    assert ended.returncode == 1
    assert 'unknown directive "worker_procesess" in nginx.conf:2' in ended.stderr
    assert (folder / "nginx" / "nginx.conf").read_text() == before
    assert one.complete("/talk/v1/completions").status_code == 200


def test_a_reload_brings_secrets_that_changed_and_writes_none(one: Machine) -> None:
    assert one.environ("chat-0")["HF_TOKEN"] == "hf_first"
    second = "hf_second" + "x" * 100_000  # a key that is a file, such as a service account's
    one.env["HF_TOKEN"] = second
    assert one.done("reload", "one").endswith("chat-0 is ready\nvllm-one is reloaded\n")
    assert one.environ("chat-0")["HF_TOKEN"] == second
    written = [file.read_bytes() for file in (one.folder / "state").rglob("*") if file.is_file()]
    assert not any(b"hf_second" in text for text in written)


def test_what_is_not_up_is_not_reloaded(machine: Machine) -> None:
    machine.environment()
    ended = machine.run("reload", "one")
    assert ended.returncode == 1
    assert ended.stderr == "vllm-one is not up on this machine; vllmjobs up one starts it\n"
