"""Real vLLM under `vllmjobs up`: served and stopped behind nginx."""

import json
import subprocess
from collections.abc import Iterator

import openai
import pytest

from unit.vllm.memory import truth
from vllmjobs_sandbox.engine import real
from vllmjobs_sandbox.engine.machine import Machine
from vllmjobs_sandbox.engine.real import model

pytestmark = pytest.mark.timeout(1800)
START = 500.0  # seconds; beside other tests, a start of vLLM was seen to take 200
ENVIRONMENT = """\
nomad: {{max_kill_timeout: 5m}}
balancer: {{kind: nginx, port: {port}, admin_port: {admin}}}
models:
  chat:
    model: {model}
    driver: raw_exec
    vllm: 0.32.0
    entrypoint: [{vllm}, serve]
    max_model_len: 4096
    args: {{enforce-eager: true, dtype: bfloat16}}
    env: {env}
    ports: {{base: {base}}}
    load_time: 5m
    drain: {{longest_stream: 2m}}
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """`up` with the tiny model; the tests of this module live through its life in their order."""
    machine = Machine(tmp_path_factory.mktemp("box"))
    machine.env = {**machine.env, **real.environ(), "PATH": machine.env["PATH"]}
    machine.env.pop("PYTHONDONTWRITEBYTECODE", None)
    tiny = model.make(machine.folder / "tiny")
    values = {"model": str(tiny), "vllm": str(real.folder() / "bin/vllm"), "env": json.dumps(real.VARIABLES)}
    machine.write("envs/one.yaml", ENVIRONMENT, **values)
    vllmjobs(machine, "up", "one", "--detach")
    yield machine
    machine.end()


def vllmjobs(machine: Machine, *words: str, given: str = "") -> str:
    ended = subprocess.run(
        ["vllmjobs", *words], cwd=machine.folder, env=machine.env, check=False, timeout=START, input=given,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture
def client(box: Machine) -> openai.OpenAI:
    return real.client(f"http://127.0.0.1:{box.port}")


def test_chats_and_completions_are_answered_plain_and_streamed(client: openai.OpenAI) -> None:
    assert real.answered_tokens(client, 5) == [5, 5, 5, 5]


def test_size_says_what_vllm_said_of_its_kv_cache(box: Machine) -> None:
    log = vllmjobs(box, "logs", "one", "chat", "--tail", "1000")
    (found,) = json.loads(vllmjobs(box, "size", "one", "--log", "-", "--json", given=log))["models"]
    said, tokens = found["said"], found["said"]["figures"]["kv_tokens"]
    assert said["device"] == "CPU"
    a_token = 2 * model.LAYERS * model.HIDDEN * 2  # bytes: keys and values of all heads, in bfloat16
    assert tokens["said"] == 2**30 / a_token
    assert abs(tokens["off"]) <= truth.ALLOWED["kv_tokens"]
    assert said["figures"]["concurrency"]["said"] == tokens["said"] / 4096
    assert f"{tokens['said']:,}" in vllmjobs(box, "size", "one", "--log", "-", given=log)


def test_a_stop_lets_a_long_stream_end_whole(box: Machine, client: openai.OpenAI) -> None:
    stream = real.stream(client, real.LONG)
    next(stream)
    stopping = subprocess.Popen(["vllmjobs", "down", "one"], cwd=box.folder, env=box.env)
    *_, last = stream
    assert last.usage
    assert last.usage.completion_tokens == real.LONG
    assert stopping.wait(START) == 0
