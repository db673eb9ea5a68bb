"""What the command line, the environment and a file tell the supervisor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllmjobs.supervisor.core.model import Child, SupervisionLimits
from vllmjobs.supervisor.settings import ADMIN_PORT, USAGE, SettingsError, read, seconds

SERVE = ["--", "vllm", "serve", "facebook/opt-125m"]


def test_the_command_is_what_comes_after_two_dashes() -> None:
    found = read(["--name", "chat", *SERVE, "--port", "8010", "--", "x"], {"PATH": "/bin"})
    (engine,) = found.engines
    assert engine.command == (*SERVE[1:], "--port", "8010", "--", "x")
    assert (engine.name, engine.host, engine.port, engine.env) == (
        "chat",
        "127.0.0.1",
        8010,
        {"PATH": "/bin"},
    )
    assert (found.admin_host, found.admin_port, found.limits, found.min_alive) == (
        "",
        ADMIN_PORT,
        SupervisionLimits(),
        1,
    )


def test_where_the_engine_answers_is_read_from_its_own_arguments() -> None:
    words = ["--host=0.0.0.0", "--port=9000", "--served-model-name", "a", "b", "--ssl-certfile", "c.pem"]
    (engine,) = read([*SERVE, *words], {"VLLM_API_KEY": "of the environment"}).engines
    assert (engine.host, engine.port, engine.served_name, engine.tls) == ("0.0.0.0", 9000, "a", True)
    assert engine.api_key == "of the environment"


@pytest.mark.parametrize(
    ("words", "variables", "key", "tls"),
    [
        ((), {"VLLM_API_KEY": "of the environment"}, "of the environment", False),
        (("--api-key", "a", "b"), {"VLLM_API_KEY": "other"}, "a", False),
        (("--api_key=a", "--ssl_certfile=c.pem"), {}, "a", True),
        (("--ssl-certfile", "c.pem"), {}, None, True),
    ],
)
def test_a_file_derives_what_a_command_line_derives(
    words: tuple[str, ...], variables: dict[str, str], key: str | None, tls: bool, tmp_path: Path
) -> None:
    command = ["vllm", "serve", "a/b", "--host=::1", "--port", "9000", "--served-model-name=chat", *words]
    file = tmp_path / "up.json"
    file.write_text(json.dumps({"identity": "a", "engines": [{"name": "vllm", "command": command}]}))
    (told,) = read(["--config", str(file)], variables).engines
    (typed,) = read(["--", *command], variables).engines
    assert told == typed
    assert (told.host, told.port, told.served_name) == ("::1", 9000, "chat")
    assert (told.api_key, told.tls) == (key, tls)


def test_what_a_file_says_goes_before_what_the_command_tells(tmp_path: Path) -> None:
    file = tmp_path / "up.json"
    engine = {"name": "a", "command": ["vllm", "serve", "m", "--port=1"], "port": 2, "api_key": "own"}
    front = {"name": "nginx", "command": ["nginx", "--api-key", "x"], "is_front": True}
    told = {"identity": "a", "engines": [engine, front], "secrets": ["VLLM_API_KEY"]}
    file.write_text(json.dumps(told))
    one, balancer = read(["--config", str(file)], {"VLLM_API_KEY": "k", "NOMAD_TOKEN": "t"}).engines
    assert (one.port, one.api_key, one.env) == (2, "own", {"VLLM_API_KEY": "k"})
    assert (balancer.api_key, balancer.env) == (None, {})


def test_under_nomad_it_has_the_groups_name_and_the_allocations_ports() -> None:
    found = read(SERVE, {
        "NOMAD_GROUP_NAME": "chat", "NOMAD_ALLOC_ID": "a1", "NOMAD_IP_admin": "10.0.0.1",
        "NOMAD_PORT_admin": "21007", "NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b",
    })  # fmt: skip
    assert found.spec.children == (Child("chat", ("GPU-a", "GPU-b")),)
    assert (found.identity, found.admin_host, found.admin_port) == ("a1/chat:21007", "10.0.0.1", 21007)


@pytest.mark.parametrize("visible", ["", "all", "none", "void"])
def test_without_named_gpus_it_knows_of_none(visible: str) -> None:
    (engine,) = read(SERVE, {"NVIDIA_VISIBLE_DEVICES": visible}).engines
    assert engine.gpus == ()


def test_cudas_own_variable_goes_before_dockers() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "all"}
    (engine,) = read(SERVE, environ).engines
    assert engine.gpus == ("1",)


def test_the_token_that_fences_nodes_is_not_given_to_the_engine() -> None:
    (engine,) = read(SERVE, {"NOMAD_TOKEN": "secret", "NOMAD_ALLOC_ID": "a1"}).engines
    assert engine.env == {"NOMAD_ALLOC_ID": "a1"}


def test_each_option_can_be_a_variable_and_the_option_wins() -> None:
    environ = {"VLLMJOBS_DRAIN_TIMEOUT": "40s", "VLLMJOBS_LEAVE": "2s", "VLLMJOBS_STANDIN_LOAD_SECONDS": "1"}
    limits = read(["--drain-timeout=1m30s", "--restarts", "0", *SERVE], environ).limits
    assert (limits.drain, limits.leave) == (90, 2)
    assert (limits.restarts, limits.restarts_never_ready) == (0, 0)


def test_every_option_is_in_the_help() -> None:
    from vllmjobs.supervisor import settings  # noqa: PLC0415

    for option in (*settings._TIMES, *settings._OTHERS, "--config"):
        assert f"  {option} " in USAGE


@pytest.mark.parametrize(
    "text, found", [("15s", 15), ("2m", 120), ("1m30s", 90), ("1.5h", 5400), ("250ms", 0.25)]
)
def test_times_are_written_as_nomad_writes_them(text: str, found: float) -> None:
    assert seconds(text, "--leave") == found


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "nothing to supervise: give the command after --, as in -- vllm serve MODEL"),
        (["vllm", "serve"], "no such option: vllm; the command comes after --"),
        (["--leave", "15", *SERVE], "--leave is '15': a time has a unit, as in 15s, 2m or 1m30s"),
        (["--name"], "--name needs a value"),
        (["--admin-port", "70000", *SERVE], "--admin-port is 70000: a port is 1 to 65535"),
        (["--restarts", "-1", *SERVE], "--restarts is '-1': it must be a whole number, 0 or more"),
        (["--config", "a.json", *SERVE], "--config holds all settings: give it alone"),
        (["--config", "nowhere.json"], "nowhere.json: No such file or directory"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(words, {})
    assert str(error.value) == said


def test_several_children_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "up.json"
    engines = [
        {"name": f"chat-{n}", "command": ["vllm"], "env": {"A": str(n)}, "port": 8000 + n, "gpus": [str(n)]}
        for n in range(2)
    ]  # fmt: skip
    told = {"identity": "prod", "engines": engines, "limits": {"drain": 5}, "admin_path": "/run/up.sock"}
    file.write_text(json.dumps(told))
    found = read(["--config", str(file)], {"PATH": "/bin", "A": "x"})
    assert found.spec.children == (Child("chat-0", ("0",)), Child("chat-1", ("1",)))
    assert [engine.env for engine in found.engines] == [
        {"PATH": "/bin", "A": "0"},
        {"PATH": "/bin", "A": "1"},
    ]
    assert (found.limits.drain, found.admin_path, found.identity) == (5, "/run/up.sock", "prod")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"engines": [{}]}', '{"engines": [], "identity": "a", "b": 1}']
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "up.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"up\.json"):
        read(["--config", str(file)], {})
