"""Whatever a string holds, Nomad's own parser gives it back as it was written in the environment."""

import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllmjobs.environment.load import load_file
from vllmjobs.environment.model import Environment
from vllmjobs.environment.schema import json_schema
from vllmjobs.project.templates import templates
from vllmjobs.render.job import render

EVERY_KEY = Path(__file__).parent / "every_key.yaml"
HERE = "HOSTILE"
TEMPLATES = templates(Path("nowhere"))
ELSEWHERE = {
    "extends",  # used up by the loader
    "models.*.config",  # read by `check` and `size`, and in no job
    "maintenance.time_zone",  # read by `deploy`, as the next
    "models.*.rollout.analysis.prometheus.instance_label",
    "images.gptoss",  # written where a model asks for it
    "models.*.gpus.constraints.attribute",  # held to the names of attributes by a rule
    "models.*.gpus.affinities.attribute",
    "prefetch.python",  # stands where that of cache_backup does
    "monitoring.prometheus.command",  # stands where the image does, with raw_exec
}
JOBS = {
    "vllm": [],
    "fabio": [],
    "nginx": ["balancer.kind=nginx", "balancer.driver=raw_exec"],  # between them, all that balancers have
    "prometheus": [],
    "cache-backup": [],  # of the same template as the others of the caches
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of plain data, by its path without model names, keys of maps and list indexes."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


def free_text(schema: dict[str, Any], described: dict[str, Any], path: str = "") -> Iterator[str]:
    """The path of every string of an environment that may hold anything."""
    if "$ref" in described:
        described = schema["$defs"][described["$ref"].rpartition("/")[2]]
    for key, item in described.get("properties", {}).items():
        yield from free_text(schema, item, f"{path}.{key}".lstrip("."))
    for kind in described.get("anyOf", described.get("allOf", [])):
        yield from free_text(schema, kind, path)
    if isinstance(values := described.get("additionalProperties"), dict):
        yield from free_text(schema, values, f"{path}.*")
    if isinstance(items := described.get("items"), dict):
        yield from free_text(schema, items, path)
    if described.get("type") == "string" and not {"pattern", "enum"} & described.keys():
        yield path


def replaced(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {replaced(key, text): replaced(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, text) for item in value]
    return value.replace(HERE, text) if isinstance(value, str) else value


def parsed_by_nomad(hcl: str) -> Any:
    nomad = shutil.which("nomad")
    assert nomad, "nomad is not on PATH; run scripts/test cases"
    done = subprocess.run(
        [nomad, "job", "run", "-output", "-"], input=hcl.encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


TROUBLE = [
    *('"', "\\", "$", "${", "%{", "}", "$${", "%%{", "<<EOF", "EOF", "//", "#", "/*", "*/", "=", "{{", "}}"),
    *("[[", "]]", "[%", "%]", "[#", "\n", "\r", "\t", "\u2028", "\x7f", "\x1b", " ", "é", "漢", "🦜", "a"),
    *("${x}", "${NOMAD_PORT_http}", "${node.class}", "${attr.cpu.arch}", '${env["HOME"]}', '${upper("a")}'),
]
ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
hostile = (
    (ANYTHING | st.lists(st.sampled_from(TROUBLE), min_size=1).map("".join))
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(bool)
)


@given(hostile)
@example('"\\${%{\n' * (64 * 1024 // 8))
@example("${")
@example("$")
@example("$${NOMAD_PORT_http}")
@example("%%{if true}")
def test_hostile_strings_come_back_from_nomads_parser_as_they_were(text: str) -> None:
    sample = msgspec.to_builtins(load(EVERY_KEY))
    found: set[Any] = set()
    for job, given_by_set in JOBS.items():
        environment = load(EVERY_KEY, given_by_set)
        hostile_one = msgspec.convert(replaced(msgspec.to_builtins(environment), text), Environment)
        found |= {value for _, value in leaves(parsed_by_nomad(render(hostile_one, job, TEMPLATES)))}
    found |= {value.partition("=")[2] for value in found if isinstance(value, str) and value.startswith("-")}
    found |= {json.dumps(value) for value in found if isinstance(value, str)}
    for path, value in leaves(sample):
        if isinstance(value, str) and HERE in value and path not in ELSEWHERE:
            expected = value.replace(HERE, text)
            if ".gpus." in path and "." not in path.partition(".gpus.")[2]:  # joined to one name
                assert any(expected in name for name in found if isinstance(name, str)), path
            else:
                assert expected in found, path


def load(path: Path, settings: Sequence[str] = ()) -> Environment:
    """As it stands: no rule says anything of these values."""
    environment = load_file(path, settings).environment
    assert environment is not None
    return environment


def generic(path: str) -> str:
    """A leaf's path as the schema has it: `*` for a model's name, an argument, a variable."""
    return re.sub(r"(?<=^models\.)[^.]+|(?<=\.args\.)[^.]+$|(?<=\.env\.)[^.]+$", "*", path)


@pytest.mark.parametrize(
    "path", sorted({p for p in free_text(json_schema(), json_schema()) if "defaults" not in p})
)
def test_every_string_that_may_hold_anything_is_tried(path: str) -> None:
    sample = msgspec.to_builtins(load(EVERY_KEY))
    tried = {generic(path) for path, value in leaves(sample) if isinstance(value, str) and HERE in value}
    assert path in tried | ELSEWHERE
