"""What balanced-vllm-docker does, right or wrong, and `vllmjobs up`: the rows of docs/one-box.md."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.machine import SECONDS, Machine
from vllmjobs_sandbox.gpus.live import Live
from vllmjobs_sandbox.traffic.requests import http


@pytest.fixture
def two_gpus(machine: Machine, library: Path) -> Machine:
    """A machine whose driver shows two H100."""
    machine.env |= Live(library, machine.folder / "live", ["GPU-0", "GPU-1"]).env
    return machine


class TestAnEnvFile:
    def test_is_run_as_it_is_and_its_token_reaches_the_servers(self, machine: Machine) -> None:
        machine.up_env_file()
        assert machine.complete(model="opt").status_code == 200
        assert machine.environ("opt-0", "vllm-box")["HF_TOKEN"].startswith("hf_abcdef")
        written = [file.read_bytes() for file in (machine.folder / "state").rglob("*") if file.is_file()]
        assert not any(b"hf_abcdef" in text for text in written)
        assert "vllm-box is stopped" in machine.done("down")

    def test_of_every_gpu_gives_each_a_server_of_its_own(self, two_gpus: Machine) -> None:
        said = two_gpus.up_env_file()
        for number in range(2):
            name, port = f"opt-{number}", two_gpus.base + number
            assert f"{name}: opt on GPU {number}, port {port}" in said
            assert two_gpus.environ(name, "vllm-box")["CUDA_VISIBLE_DEVICES"] == f"GPU-{number}"
            assert f"--port={port}" in two_gpus.command_line(name, "vllm-box")
            assert two_gpus.complete(f"/v1/{name}/completions", "opt").status_code == 200

    def test_of_tensor_parallel_gives_one_server_all_of_them(self, two_gpus: Machine) -> None:
        two_gpus.up_env_file("tensor_parallel")
        assert two_gpus.environ("opt-0", "vllm-box")["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
        assert "--tensor-parallel-size=2" in two_gpus.command_line("opt-0", "vllm-box")
        assert two_gpus.complete(model="opt").status_code == 200

    def test_of_more_gpus_than_there_are_starts_nothing(self, two_gpus: Machine) -> None:
        two_gpus.write(".env", "VLLM_MODEL=a/b\nVLLM_GPU_COUNT=3\n")
        ended = two_gpus.run("up", "--env-file", ".env", "-d")
        assert ended.returncode == 1
        assert "models.b asks for 3 GPUs; this machine has 2, less those of other models (0: NVIDIA H100" in (
            ended.stderr
        )
        assert not (two_gpus.folder / "state").exists()

    def test_keeps_its_models_where_it_says(self, machine: Machine) -> None:
        machine.up_env_file(more="MODEL_CACHE_PATH=./models\n")
        assert machine.environ("opt-0", "vllm-box")["HF_HOME"] == str(machine.folder / "models")

    def test_that_asks_for_too_much_is_told_what_is_done_instead(self, machine: Machine) -> None:
        said = machine.up_env_file(more="VLLM_GPU_MEMORY_UTILIZATION=0.98\nVLLM_MAX_MODEL_LEN=4096\n")
        assert "VLLM_GPU_MEMORY_UTILIZATION 0.98 is lowered to 0.95; 0.1 to 0.95 is valid" in said
        assert "VLLM_MAX_MODEL_LEN 4096 is lowered to 2048, the longest context that" in said
        assert "Nomad" not in said


def test_an_instances_config_is_run_as_it_is(machine: Machine) -> None:
    machine.write("instances.config", "chat:1:a/small:auto:2048:1\ncode:2:a/small:auto:1024:1\n")
    engine = 'defaults.entrypoint=["stand-in-engine","serve"]'
    port, admin = f"balancer.port={machine.port}", f"balancer.admin_port={machine.admin}"
    base = f"defaults.ports.base={machine.base}"
    machine.done(
        "up", "--env-file", "instances.config", "-d",
        *(word for one in (engine, port, admin, base) for word in ("--set", one)),
    )  # fmt: skip
    for name in ("chat", "code"):
        assert machine.complete(f"/{name}/v1/completions", model=name).status_code == 200


class TestNginx:
    def test_sends_a_request_to_who_has_the_least_to_do(self, one: Machine) -> None:
        with ThreadPoolExecutor() as pool:
            long = pool.submit(one.complete, "/v1/chat-0/completions", max_tokens=2000)
            one.wait_until_busy(1)
            busy = pool.submit(one.complete, max_tokens=1500)  # whoever it goes to
            one.wait_until_busy(2)
            for _ in range(6):
                assert one.complete().status_code == 200
            assert (long.result().status_code, busy.result().status_code) == (200, 200)
        shown = one.run("logs", "one", "nginx", "-n", "500").stdout
        asked = re.findall(r"request=POST /v1/completions .*? upstream=(\S+)", shown)
        # As nginx counts, chat-0 has none: what came by its own route did not come through the upstream.
        assert len(asked) == 7 and len(set(asked)) == 2
        assert len(set(asked[:6])) == 1

    def test_passes_each_token_as_it_comes_over_a_connection_that_is_kept(self, one: Machine) -> None:
        asked = {"model": "chat", "prompt": "Why?", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        url = f"http://127.0.0.1:{one.port}/v1/completions"
        with http() as client, client.stream("POST", url, json=asked, timeout=SECONDS) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            one.wait_until_busy(1)  # it has not come to its end
            assert [line for line in lines if line][-1] == "data: [DONE]"
        configured = (one.folder / "state/vllmjobs/vllm-one/nginx/upstreams.conf").read_text()
        assert "least_conn;" in configured and "keepalive 32;" in configured

    def test_says_503_while_the_model_loads_and_then_200(self, machine: Machine) -> None:
        machine.env["VLLMJOBS_STANDIN_LOAD_SECONDS"] = "4"
        machine.environment()
        machine.start("up", "one")
        seen: list[int] = []

        def is_ready() -> bool:
            seen.append(machine.ask("/health").status_code)
            answer = machine.complete()
            assert answer.status_code in (200, 503)
            if answer.status_code == 503:
                assert answer.json()["error"]["message"].startswith("No instance of this model is ready.")
            return answer.status_code == 200

        wait_until(is_ready, SECONDS, "the model is loaded", ignoring=(httpx.ConnectError,))
        assert seen[0] == 503
        assert machine.ask("/health").json() == {"chat": {"stable": 2, "canary": 0, "canary_weight": 0}}
