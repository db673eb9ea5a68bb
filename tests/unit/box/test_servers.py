"""An environment on one machine: which server gets which GPU and port, and what nginx is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllmjobs.box.overview import overview
from vllmjobs.box.servers import BoxError, Machine, Server, missing, passed_over, servers, visible
from vllmjobs.box.supervised import configuration, instances, nginx_conf, places
from vllmjobs.environment.load import load_file
from vllmjobs.environment.model import Environment
from vllmjobs.gpus.cards import Card, CardHolder
from vllmjobs.importing.imported import of_the_box
from vllmjobs.project.templates import templates
from vllmjobs.render import job
from vllmjobs.supervisor.settings import read_file

GIB = 1024
H100 = "NVIDIA H100 80GB HBM3"


def environment(models: dict[str, Any] | None = None, **keys: Any) -> Environment:
    chat = {"model": "a/small", "replicas": 2}
    text = yaml.safe_dump({"models": models or {"chat": chat}, **keys})
    loaded = load_file(Path("box.yaml"), (), lambda _: text.encode())
    assert loaded.environment, loaded.problems
    return loaded.environment


def h100s(count: int, **keys: Any) -> list[Card]:
    return [
        Card(index=one, uuid=f"GPU-{one}", model=H100, memory_mib=81_559, mig="off", **keys)
        for one in range(count)
    ]


def placed(environment: Environment, cards: list[Card], takes_all: bool = False) -> list[Server]:
    return servers(environment, Machine(cards, "/state", "/cache", takes_all))


def test_each_server_has_a_gpu_and_a_port_of_its_own() -> None:
    first, second = placed(environment(), h100s(2))
    assert (first.name, first.place.gpus, first.place.port) == ("chat-0", ("GPU-0",), 8000)
    assert (second.name, second.place.gpus, second.place.port) == ("chat-1", ("GPU-1",), 8001)
    assert first.command[:3] == ("vllm", "serve", "a/small")
    assert "--port=8000" in first.command
    assert "--host=127.0.0.1" in first.command
    assert first.env["CUDA_VISIBLE_DEVICES"] == "0"
    assert first.env["HOME"] == "/state/chat-0"
    assert first.env["VLLM_PORT"] != second.env["VLLM_PORT"]


def test_a_server_over_several_gpus_has_all_of_them() -> None:
    model = {"model": "a/large", "strategy": "tensor_parallel", "gpus": {"count": 4}}
    (one,) = placed(environment({"large": model}), h100s(8))
    assert one.place.gpus == ("GPU-0", "GPU-1", "GPU-2", "GPU-3")
    assert "--tensor-parallel-size=4" in one.command


def test_models_do_not_share_ports_or_gpus() -> None:
    models = {"chat": {"model": "a/small", "replicas": 2}, "code": {"model": "b/small"}}
    found = placed(environment(models), h100s(3))
    assert [(one.name, one.place.port, one.place.gpus) for one in found] == [
        ("chat-0", 8000, ("GPU-0",)),
        ("chat-1", 8001, ("GPU-1",)),
        ("code-0", 8002, ("GPU-2",)),
    ]


def test_more_gpus_than_there_are_is_an_error() -> None:
    with pytest.raises(BoxError) as error:
        placed(environment(), h100s(1))
    assert str(error.value) == (
        "models.chat asks for 2 GPUs; this machine has 1 free, and other models may have some of them "
        f"(0: {H100}, 81559 MiB, ok); free some, or lower replicas or gpus.count"
    )


def test_a_gpu_that_is_too_small_split_or_broken_is_left_alone() -> None:
    cards = [
        Card(index=0, uuid="GPU-small", model="NVIDIA L4", memory_mib=23_034),
        Card(index=1, uuid="GPU-split", model=H100, memory_mib=81_559, mig="on"),
        Card(index=2, uuid="GPU-broken", model=H100, memory_mib=81_559, health="failed"),
        *h100s(1),
    ]
    model = {"model": "a/small", "gpus": {"memory": "70 GiB"}}
    (one,) = placed(environment({"chat": model}), cards)
    assert one.place.gpus == ("GPU-0",)


@pytest.mark.parametrize(
    ("version", "words"), [(None, "1,3"), ("0.17.1", "1,3"), ("0.23.0", "1,3"), ("0.24.0", "GPU-1,GPU-3")]
)
def test_gpus_are_named_as_the_release_reads_them(version: str | None, words: str) -> None:
    """Before 0.24 vLLM made a number of each: vllm-project/vllm#20939."""
    model = {"model": "a/b", "strategy": "tensor_parallel", "gpus": {"count": 2}, "vllm": version}
    cards = h100s(4)
    taken = [replace(card, memory_used_mib=80_000) for card in cards]
    (one,) = placed(environment({"chat": model}), [taken[0], cards[1], taken[2], cards[3]])
    assert one.env["CUDA_VISIBLE_DEVICES"] == words


def test_parts_of_a_gpu_are_named_by_uuid() -> None:
    whole = replace(h100s(1)[0], mig="on")
    part = Card(
        index=0, uuid="MIG-a", model=f"{H100} MIG 1g.10gb", memory_mib=9_728, mig="1g.10gb", parent="GPU-0"
    )
    (one,) = placed(environment({"chat": {"model": "a/b"}}), [whole, part])
    assert one.env["CUDA_VISIBLE_DEVICES"] == "MIG-a"


BASH = CardHolder("bash", pid=15131, memory_mib=70_000)


def held(card: Card, used: int = 70_000, holders: tuple[CardHolder, ...] | None = (BASH,)) -> Card:
    return replace(card, memory_used_mib=used, holders=holders)


def test_a_gpu_whose_memory_somebody_else_holds_is_passed_over_and_they_are_named() -> None:
    first, second = h100s(2)
    wanted = environment({"chat": {"model": "a/b"}})
    (one,) = found = placed(wanted, [held(first), second])
    assert one.place.gpus == ("GPU-1",)
    assert passed_over(wanted, [held(first), second], found) == [
        "GPU 0 is passed over: bash (pid 15131, 70000 MiB) holds 70000 of its 81559 MiB"
    ]
    assert passed_over(wanted, [first, second], found) == []  # free, and not needed


@pytest.mark.parametrize(
    ("used", "share", "is_taken"), [(8_000, 0.9, True), (8_200, 0.9, False), (40_000, 0.5, True)]
)
def test_a_gpu_is_taken_if_it_has_the_share_that_vllm_takes(used: int, share: float, is_taken: bool) -> None:
    (card,) = h100s(1)
    wanted = environment({"chat": {"model": "a/b", "gpu_memory_utilization": share}})
    if is_taken:
        assert placed(wanted, [held(card, used)])[0].place.gpus == ("GPU-0",)
    else:
        with pytest.raises(BoxError, match=r"has 0 free.*0: NVIDIA H100 80GB HBM3, bash \(pid 15131"):
            placed(wanted, [held(card, used)])


def test_a_holder_that_cannot_be_seen_is_said_to_be_there() -> None:
    (card,) = h100s(1)
    with pytest.raises(BoxError, match="somebody who cannot be seen from here holds 70000 of its 81559 MiB"):
        placed(environment({"chat": {"model": "a/b"}}), [held(card, holders=None)])


def test_auto_takes_every_gpu_that_is_free() -> None:
    first, second, third = h100s(3)
    assert [
        one.place.gpus for one in placed(environment(), [first, held(second), third], takes_all=True)
    ] == [
        ("GPU-0",),
        ("GPU-2",),
    ]


def test_the_memory_of_our_own_servers_holds_nobody_up() -> None:
    """At a reload each GPU is full of the server that leaves it."""
    wanted = environment({"chat": {"model": "a/b", "replicas": 2}})
    cards = h100s(2)
    before = {one.name: one.place for one in placed(wanted, cards)}
    full = [held(card, 75_000) for card in cards]
    after = servers(wanted, Machine(full, "/state", "/cache"), before)
    assert {one.name: one.place for one in after} == before


def test_without_a_driver_they_run_without_gpus() -> None:
    found = placed(environment(), [])
    assert [one.place.gpus for one in found] == [(), ()]
    assert "CUDA_VISIBLE_DEVICES" not in found[0].env


@pytest.mark.parametrize("strategy, gpus", [("multi_instance", [1, 1, 1, 1]), ("tensor_parallel", [4])])
def test_auto_takes_every_gpu(strategy: str, gpus: list[int]) -> None:
    found = placed(
        environment({"chat": {"model": "a/small", "strategy": strategy}}), h100s(4), takes_all=True
    )
    assert [len(one.place.gpus) for one in found] == gpus


def test_servers_keep_their_gpus_and_ports_when_others_come_and_go() -> None:
    before = placed(
        environment({"chat": {"model": "a/small", "replicas": 2}, "code": {"model": "b/small"}}), h100s(4)
    )
    changed = environment({"chat": {"model": "a/small", "replicas": 3}, "code": {"model": "b/small"}})
    machine = Machine(h100s(4), "/state", "/cache")
    after = {one.name: one for one in servers(changed, machine, {one.name: one.place for one in before})}
    assert [after[one.name] for one in before] == before
    assert after["chat-2"].place == (8003, 20_300, ("GPU-3",))
    (code,) = servers(environment({"code": {"model": "b/small"}}), machine, {"code-0": after["code-0"].place})
    assert code.place.gpus == ("GPU-2",)


def test_who_keeps_a_gpu_gives_it_up_where_another_needs_it() -> None:
    cards = [*h100s(1), Card(index=1, uuid="GPU-small", model="NVIDIA L4", memory_mib=23_034, mig="off")]
    code = {"model": "b/small"}
    (before,) = placed(environment({"code": code}), cards)
    assert before.place.gpus == ("GPU-0",)
    large = {"model": "a/large", "gpus": {"memory": "70 GiB"}}
    both = environment({"code": code, "large": large})
    found = servers(both, Machine(cards, "/state", "/cache"), {"code-0": before.place})
    assert [one.place.gpus for one in found] == [("GPU-small",), ("GPU-0",)]


def test_what_was_written_tells_where_servers_run() -> None:
    box = environment(job="vllm-box")
    own = placed(box, h100s(2))
    told = configuration(box, own, "/state", "nginx")
    assert places(told) == {one.name: one.place for one in own}


@pytest.mark.parametrize(
    "host, address", [(None, "127.0.0.1:8000"), ("0.0.0.0", "127.0.0.1:8000"), ("10.0.0.5", "10.0.0.5:8000"),
                      ("::", "[::1]:8000"), ("fd00::5", "[fd00::5]:8000")]
)  # fmt: skip
def test_nginx_finds_a_server_where_it_listens(host: str | None, address: str) -> None:
    model = {"model": "a/small", **({"ports": {"host": host}} if host else {})}
    box = environment({"chat": model})
    own = placed(box, [])
    assert [one["address"] for one in instances(own)] == [address]
    engine, _ = configuration(box, own, "/state", "nginx")["engines"]
    assert engine["line"] == {"pool": "chat", "text": f"  server {address} max_fails=1 fail_timeout=5s;"}


def test_a_port_that_nginx_has_is_an_error() -> None:
    with pytest.raises(BoxError, match=r"balancer\.port is 8001, the port of the server chat-1"):
        placed(environment(balancer={"port": 8001}), [])


def test_models_are_kept_once_for_all_servers_unless_the_environment_says_where() -> None:
    assert [one.env["HF_HOME"] for one in placed(environment(), [])] == ["/cache", "/cache"]
    own = {"model": "a/small", "cache": {"bind": "/srv/models"}}
    assert placed(environment({"chat": own}), [])[0].env["HF_HOME"] == "/srv/models/huggingface"


@pytest.mark.parametrize(
    "listed, found",
    [(None, [0, 1, 2]), ("2,0", [0, 2]), ("GPU-1", [1]), ("", [])],
)
def test_only_gpus_that_cuda_may_see_are_taken(listed: str | None, found: list[int]) -> None:
    assert [card.index for card in visible(h100s(3), listed)] == found


def test_secrets_that_have_no_value_are_named() -> None:
    model = {"model": "a/small", "secrets": {"HF_TOKEN": "nomad/jobs#hf_token", "OTHER": "nomad/jobs#other"}}
    assert missing(environment({"chat": model}), {"HF_TOKEN": "x"}) == ["OTHER"]


@pytest.mark.parametrize(
    "text, takes_all", [("", True), ("VLLM_GPU_COUNT=auto", True), ("VLLM_GPU_COUNT=2", False)]
)
def test_an_env_file_says_whether_it_takes_every_gpu(text: str, takes_all: bool) -> None:
    found = of_the_box(f"{text}\r\nHF_TOKEN=hf_x\nVLLM_MODEL=a/b\n", ".env")
    assert (found.takes_all, found.secrets) == (takes_all, {"HF_TOKEN": "hf_x"})


def test_an_instances_config_names_every_server() -> None:
    assert of_the_box("chat:8000:a/small:auto:2048:1\n", "instances.config") == (False, {}, None, None)


def test_the_supervisor_reads_what_is_written_for_it(tmp_path: Path) -> None:
    box = environment(job="vllm-box", defaults={"drain": {"longest_stream": "40s"}})
    own = placed(box, h100s(2))
    file = tmp_path / "supervise.json"
    file.write_text(json.dumps(configuration(box, own, "/state", "/usr/sbin/nginx")))
    settings = read_file(str(file), {"PATH": "/bin"})
    assert [(child.name, child.gpus, child.is_front) for child in settings.spec.children] == [
        ("chat-0", ("GPU-0",), False),
        ("chat-1", ("GPU-1",), False),
        ("nginx", (), True),
    ]
    assert (settings.limits.drain, settings.limits.leave) == (40, 1)
    assert settings.engines[0].env["PATH"] == "/bin"


def test_nginx_gets_no_secret(tmp_path: Path) -> None:
    model = {"model": "a/small", "secrets": {"HF_TOKEN": "nomad/jobs/box#hf_token"}}
    box = environment({"chat": model}, job="box")
    file = tmp_path / "supervise.json"
    file.write_text(json.dumps(configuration(box, placed(box, []), "/state", "nginx")))
    server, nginx = read_file(str(file), {"HF_TOKEN": "hf_x", "PATH": "/bin"}).engines
    assert server.env["HF_TOKEN"] == "hf_x"
    assert "HF_TOKEN" not in nginx.env


def test_nginx_is_configured_as_on_the_cluster_with_a_route_to_each_server() -> None:
    box = environment(balancer={"port": 8080, "admin_port": 8081})
    own = placed(box, h100s(2))
    text = nginx_conf(box, job.nginx_conf(box, templates(Path()), instances(own), metrics=True))
    assert "listen 0.0.0.0:8080 default_server;" in text
    assert "listen 127.0.0.1:8081;" in text
    assert 'location "/v1/chat-1/" {' in text
    assert "upstream chat-1 {\n    server 127.0.0.1:8001;\n  }" in text
    assert "{{" not in text


def test_a_template_that_asks_nomad_is_an_error() -> None:
    with pytest.raises(BoxError, match=r"nginx\.conf, line 2: asks Nomad for a value"):
        nginx_conf(environment(), "daemon off;\n{{ key `a` }}\n")


def test_the_overview_shows_each_server_and_why_one_is_not_ready() -> None:
    def one(phase: str, **more: Any) -> dict[str, Any]:
        usual: dict[str, Any] = {
            "ready": phase == "ready",
            "pid": None,
            "gpus": [],
            "restarts": 0,
            "ready_seconds": None,
        }
        return {"phase": phase, "unanswered": None, "why": "", **usual, **more}

    health = {
        "status": "degraded",
        "uptime_seconds": 11_520.4,
        "progress": {"chat-1": "Loading safetensors checkpoint shards: 50%", "chat-0": "100%"},
        "instances": {
            "chat-0": one("ready", pid=41, gpus=["GPU-a"], ready_seconds=250.0, unanswered=3),
            "chat-1": one("starting", pid=42, gpus=["GPU-b"], restarts=1),
            "chat-2": one("given_up", why="GPU GPU-c: XID 79"),
        },
    }
    assert overview("vllm-prod", health) == (
        "vllm-prod on this machine: degraded, up for 3h12m\n"
        "  chat-0  ready for 4m10s  pid 41  3 requests  GPU-a\n"
        "  chat-1  starting         pid 42              GPU-b  1 restart\n"
        "  chat-2  given_up\n"
        "  chat-1: Loading safetensors checkpoint shards: 50%\n"
        "  chat-2: GPU GPU-c: XID 79\n"
    )
