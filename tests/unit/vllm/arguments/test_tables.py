"""Which table stands for a version, and what the tables hold."""

import pytest

from vllmjobs.vllm.arguments.tables import history, table
from vllmjobs.vllm.releases import NEWEST, VERSIONS, precedes


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ("0.33.0", "0.33.0"),
        ("v0.33.0", "0.33.0"),
        ("0.24", "0.24.0"),
        ("0.33.0+cu129", "0.33.0"),
    ],
)
def test_a_listed_version_has_its_own_table(asked: str, used: str) -> None:
    found = table(asked)
    assert found.table.version == used
    assert found.exact
    assert found.note == ""


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ("0.33.0.post1", "0.33.0"),
        ("0.33.1.dev12+gabc", "0.33.0"),
        ("0.33.0rc1", "0.32.0"),
        ("0.33.0.dev7", "0.32.0"),
        ("0.25.1", "0.24.0"),
        ("1.0", NEWEST),
        ("nightly", NEWEST),
    ],
)
def test_an_unlisted_version_uses_the_nearest_older_table(asked: str, used: str) -> None:
    found = table(asked)
    assert found.table.version == used
    assert not found.exact
    assert found.note == f"vllmjobs has no table for vLLM {asked}, and checks it as {used}"


def test_a_version_older_than_all_uses_the_oldest_table_and_says_so() -> None:
    assert table("0.9.1").note == (
        "vllmjobs has no table for vLLM 0.9.1, and checks it as 0.11.2, the oldest known"
    )


@pytest.mark.parametrize(
    ("flag", "known_to"),
    [
        ("max-num-seqs", ["0.11.2", "0.17.1", "0.24.0", "0.32.0", "0.33.0"]),
        ("swap-space", ["0.11.2", "0.17.1"]),
        ("task", ["0.11.2"]),
        ("guided_decoding_backend", ["0.11.2"]),
        ("disable-log-requests", ["0.11.2", "0.33.0"]),
        ("watchdog-config", ["0.33.0"]),
        ("no-such-flag", []),
    ],
)
def test_the_history_of_a_flag_up_to_0_33(flag: str, known_to: list[str]) -> None:
    assert [release for release in history(flag) if not precedes("0.33.0", release)] == known_to


@pytest.mark.parametrize(
    ("version", "actions"),
    [("0.11.2", 201), ("0.17.1", 223), ("0.24.0", 267), ("0.32.0", 317), ("0.33.0", 321)],
)
def test_a_table_has_every_action_of_the_parser(version: str, actions: int) -> None:
    assert len(table(version).table.flags) + len(["model_tag"]) == actions


def test_a_table_has_the_values_that_vllm_checks_later() -> None:
    known = table("0.33.0").table
    sizes = {
        dest: len(value.choices)
        for dest in ("quantization", "load_format", "kv_cache_dtype", "tool_call_parser", "reasoning_parser")
        if (value := known.by_dest[dest].value)
    }
    assert sizes == {
        "quantization": 30,
        "load_format": 15,
        "kv_cache_dtype": 22,
        "tool_call_parser": 58,
        "reasoning_parser": 42,
    }


def test_a_table_has_the_bounds_and_the_keys_of_configuration_classes() -> None:
    known = table("0.33.0").table
    utilization = known.by_dest["gpu_memory_utilization"].value
    assert utilization
    assert (utilization.gt, utilization.le) == (0, 1)
    assert known.objects["SpeculativeConfig"].keys["num_speculative_tokens"].gt == 0
    assert "target_model_config" not in known.objects["SpeculativeConfig"].keys


def test_every_object_that_a_type_names_is_there() -> None:
    for version in VERSIONS:
        known = table(version).table
        waiting = [flag.value for flag in known.flags if flag.value]
        waiting += [kind for item in known.objects.values() for kind in item.keys.values()]
        while waiting:
            kind = waiting.pop()
            waiting += kind.of
            assert kind.object in {"", *known.objects}
