"""envs/every-key.yaml: every key of the schema, and an environment that renders."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from vllmjobs.cli import main
from vllmjobs.environment.schema import json_schema

ROOT = Path(__file__).parents[2]
FILE = ROOT / "envs/every-key.yaml"
SCHEMA = json_schema(whole=True)


def keys(described: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of the schema; lists and the names of models add nothing to it."""
    if "$ref" in described:
        name = described["$ref"].rpartition("/")[2]
        properties = dict(SCHEMA["$defs"][name]["properties"])
        if name == "Model":  # the keys of `defaults`, and its own
            shared = SCHEMA["$defs"]["ModelDefaults"]["properties"]
            properties = {key: value for key, value in properties.items() if key not in shared}
        for key, inner in properties.items():
            yield (*path, key)
            yield from keys(inner, (*path, key))
    for inner in (*described.get("anyOf", ()), described.get("items"), described.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from keys(inner, path)


def stands(value: Any, path: tuple[str, ...]) -> bool:
    """Tell whether a key stands in plain data."""
    if not path:
        return True
    if isinstance(value, list):
        return any(stands(item, path) for item in value)
    if path[0] == "models":
        return stands(value.get("models"), path[1:]) or stands(list(value["models"].values()), path[1:])
    return isinstance(value, dict) and path[0] in value and stands(value[path[0]], path[1:])


def test_every_key_of_the_schema_stands_there_or_is_commented_out_with_a_reason() -> None:
    text = FILE.read_text()
    values = yaml.safe_load(text)
    missing = [path for path in keys({"$ref": "#/$defs/Environment"}) if not stands(values, path)]
    apart = re.findall(r"^ *# ([a-z_]+): \S.* # \S", text, re.MULTILINE)
    assert [path[-1] for path in missing] == apart


@pytest.mark.parametrize("job", ["vllm", "nginx", "prometheus", "prefetch", "cache-backup", "cache-restore"])
def test_every_job_of_it_renders(job: str) -> None:
    done = CliRunner().invoke(main, ["render", "every-key", "--project", str(ROOT), "--job", job])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith('job "')


def test_check_finds_nothing_in_it() -> None:
    done = CliRunner().invoke(main, ["check", "every-key", "--project", str(ROOT), "--strict"])
    assert (done.exit_code, done.stdout) == (0, "")
