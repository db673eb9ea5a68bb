"""Whatever a string holds, Nomad's own parser gives it back as it was written in the environment.

`diff` reads the same of it.
"""

import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllmjobs.changes.jobs.jobspec import read
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
    "vllm": (),
    "fabio": (),
    "nginx": ("balancer.kind=nginx", "balancer.driver=raw_exec"),  # between them, all that balancers have
    "prometheus": (),
    "cache-backup": (),  # of the same template as the others of the caches
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


def replaced(value: Any, text: Callable[[], str]) -> Any:
    """Return plain data with another text in the place of each HOSTILE."""
    if isinstance(value, dict):
        return {replaced(key, text): replaced(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, text) for item in value]
    return value.replace(HERE, text()) if isinstance(value, str) and HERE in value else value


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


@settings(max_examples=settings().max_examples // 4)  # each is five processes, and holds many strings
@given(st.lists(hostile, min_size=1, max_size=20))
@example(["${", "$", "$${NOMAD_PORT_http}", "%%{if true}", "\\u0041", '"\\${%{\n\t\r\u2028🦜<<EOF'])
def test_hostile_strings_come_back_from_nomads_parser_as_they_were(texts: list[str]) -> None:
    strings_come_back(texts)


def test_a_string_of_64_kib_comes_back_from_nomads_parser_as_it_was(long: bool) -> None:
    """The region of each job; in full each of its strings, over which Nomad takes minutes."""
    others = [] if long else ["short"] * 99
    strings_come_back(['"\\${%{\n' * (64 * 1024 // 8), *others])


def strings_come_back(texts: list[str]) -> None:
    """Write each of these texts into some of the strings that may hold anything, and read all jobs back."""
    found: set[Any] = set()
    for job, given_by_set in JOBS.items():
        hostile_one = msgspec.convert(with_texts(load(EVERY_KEY, given_by_set), texts), Environment)
        hcl = render(hostile_one, job, TEMPLATES)
        nomads = {value for _, value in leaves(parsed_by_nomad(hcl))}
        ours = {value for _, value in leaves(read(hcl, job).tree) if isinstance(value, str)}
        durations = {value for value in ours if re.fullmatch(r"(\d+[hms])+", value)}  # numbers to Nomad
        assert {value for value in ours - durations if any(text in value for text in texts)} <= nomads
        found |= nomads
    found |= {value.partition("=")[2] for value in found if isinstance(value, str) and value.startswith("-")}
    maps = [json.loads(value) for value in found if isinstance(value, str) and value.startswith('{"key":')]
    found |= {value for _, value in leaves(maps)}
    sample = load(EVERY_KEY)
    written = leaves(with_texts(sample, texts))
    for (path, value), (_, expected) in zip(leaves(msgspec.to_builtins(sample)), written, strict=True):
        if isinstance(value, str) and HERE in value and path not in ELSEWHERE:
            if ".gpus." in path and "." not in path.partition(".gpus.")[2]:  # joined to one name
                assert any(expected in name for name in found if isinstance(name, str)), path
            else:
                assert expected in found, path


def with_texts(environment: Environment, texts: list[str]) -> Any:
    return replaced(msgspec.to_builtins(environment), cycle(texts).__next__)


@cache
def load(path: Path, given_by_set: Sequence[str] = ()) -> Environment:
    """As it stands: no rule says anything of these values."""
    environment = load_file(path, given_by_set).environment
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
