"""What balanced-vllm-docker does, right or wrong, and `vllmjobs up`: the rows of docs/one-box.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.machine import SECONDS, Machine
from vllmjobs_sandbox.gpus.live import Live


@pytest.fixture
def two_gpus(machine: Machine, library: Path) -> Machine:
    """A machine whose driver shows two H100."""
    machine.env |= Live(library, machine.folder / "live", ["GPU-0", "GPU-1"]).env
    return machine


@pytest.fixture(scope="module")
def said(lasting: Machine) -> str:
    """What `up` prints of a file that names a folder for its models, and asks for too much."""
    asked = "VLLM_GPU_MEMORY_UTILIZATION=0.98\nVLLM_MAX_MODEL_LEN=4096\nMODEL_CACHE_PATH=./models\n"
    return lasting.up_env_file(more=asked)


class TestAnEnvFile:
    def test_is_run_as_it_is_and_its_token_reaches_the_servers(self, lasting: Machine, said: str) -> None:
        assert "vllm-box is ready" in said
        assert lasting.complete(model="opt").status_code == 200
        assert lasting.environ("opt-0", "vllm-box")["HF_TOKEN"].startswith("hf_abcdef")
        written = [file.read_bytes() for file in (lasting.folder / "state").rglob("*") if file.is_file()]
        assert not any(b"hf_abcdef" in text for text in written)

    @pytest.mark.usefixtures("said")
    def test_keeps_its_models_where_it_says(self, lasting: Machine) -> None:
        assert lasting.environ("opt-0", "vllm-box")["HF_HOME"] == str(lasting.folder / "models")

    def test_that_asks_for_too_much_is_told_what_is_done_instead(self, said: str) -> None:
        assert "VLLM_GPU_MEMORY_UTILIZATION 0.98 is lowered to 0.95; 0.1 to 0.95 is valid" in said
        assert "VLLM_MAX_MODEL_LEN 4096 is lowered to 2048, the longest context that" in said
        assert "Nomad" not in said

    @pytest.mark.usefixtures("said")
    def test_is_stopped_by_down_without_a_name(self, lasting: Machine) -> None:
        assert "vllm-box is stopped" in lasting.done("down")

    def test_of_every_gpu_gives_each_a_server_of_its_own(self, two_gpus: Machine) -> None:
        said = two_gpus.up_env_file()
        for number in range(2):
            name, port = f"opt-{number}", two_gpus.base + number
            assert f"{name}: opt on GPU {number}, port {port}" in said
            assert two_gpus.environ(name, "vllm-box")["CUDA_VISIBLE_DEVICES"] == str(number)
            assert f"--port={port}" in two_gpus.command_line(name, "vllm-box")
            assert two_gpus.complete(f"/v1/{name}/completions", "opt").status_code == 200

    def test_of_tensor_parallel_gives_one_server_all_of_them(self, two_gpus: Machine) -> None:
        two_gpus.up_env_file("tensor_parallel")
        assert two_gpus.environ("opt-0", "vllm-box")["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert "--tensor-parallel-size=2" in two_gpus.command_line("opt-0", "vllm-box")
        assert two_gpus.complete(model="opt").status_code == 200

    def test_with_an_api_key_gets_ready_and_asks_for_the_key(self, machine: Machine) -> None:
        """The probes send the key: without it vLLM answers 401 for ever."""
        machine.up_env_file(more="VLLM_API_KEY=sesame\n")
        assert machine.environ("opt-0", "vllm-box")["VLLM_API_KEY"] == "sesame"
        assert machine.complete(model="opt").status_code == 401
        assert machine.complete(model="opt", key="sesame").status_code == 200
        written = [file.read_bytes() for file in (machine.folder / "state").rglob("*") if file.is_file()]
        assert not any(b"sesame" in text for text in written)

    def test_of_more_gpus_than_there_are_starts_nothing(self, two_gpus: Machine) -> None:
        two_gpus.write(".env", "VLLM_MODEL=a/b\nVLLM_GPU_COUNT=3\n")
        ended = two_gpus.run("up", "--env-file", ".env", "-d")
        assert ended.returncode == 1
        why = "models.b asks for 3 GPUs; this machine has 2 free, and other models may have some of them (0: "
        assert why in ended.stderr
        assert not (two_gpus.folder / "state").exists()


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


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Two servers that answer with their first token at once, and take 100 s for each after it."""
    machine = Machine(tmp_path_factory.mktemp("m"))
    machine.env["VLLMJOBS_STANDIN_TOKENS_PER_SECOND"] = "0.01"
    machine.up()
    yield machine
    machine.end()


class TestNginx:
    def test_sends_a_request_to_who_has_the_least_to_do(self, slow: Machine) -> None:
        with slow.begun(9, "/v1/chat-0/completions"), slow.begun(9):  # whoever that goes to
            for _ in range(6):
                assert slow.complete(max_tokens=1).status_code == 200
        asked = wait_until(lambda: upstreams(slow, 7), SECONDS, "nginx has logged what was given up, too")
        # As nginx counts, chat-0 has none: what came by its own route did not come through the upstream.
        assert sorted(Counter(asked).values()) == [1, 6]

    def test_passes_each_token_as_it_comes_over_a_connection_that_is_kept(self, slow: Machine) -> None:
        with slow.begun(2):
            pass  # the first is here, and the second is far away
        configured = (slow.folder / "state/vllmjobs/vllm-one/nginx/upstreams.conf").read_text()
        assert "least_conn;" in configured and "keepalive 32;" in configured


def test_a_request_that_kills_its_server_costs_one(machine: Machine) -> None:
    machine.env["VLLMJOBS_STANDIN_FAILURE"] = "dies-of=poison"
    machine.up()
    answer = machine.complete(prompt="a poison word")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, 502)

    def restarts() -> int:
        return sum(int(one["restarts"]) for one in machine.instances().values())

    wait_until(restarts, SECONDS, "the server is started again")
    assert machine.complete().status_code == 200
    assert restarts() == 1


def upstreams(one: Machine, least: int) -> list[str]:
    """The servers of the completions that nginx has logged, if there are so many."""
    shown = one.run("logs", "one", "nginx", "-n", "500").stdout
    found = re.findall(r"request=POST /v1/completions .*? upstream=(\S+)", shown)
    return found if len(found) >= least else []
