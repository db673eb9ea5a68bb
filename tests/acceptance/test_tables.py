"""The tables and the reader against vLLM's own code, which scripts/vllm-tables runs without torch."""

import json
import random
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.vllm.arguments.command_line import Reading, read
from vllmjobs.vllm.arguments.tables import Flag, Table, Type, table
from vllmjobs.vllm.releases import NEWEST, VERSIONS

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "generator/vllmjobs/vllm/arguments/tables"
Words = list[str]


def script(*arguments: str, stdin: str = "") -> str:
    command = [str(ROOT / "scripts/vllm-tables"), *arguments]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_the_newest_table_is_what_vllm_says() -> None:
    committed = zlib.decompress((TABLES / f"{NEWEST}.json.gz").read_bytes(), wbits=31)
    assert json.loads(committed) == json.loads(script("--print", NEWEST))


EXAMPLES = {
    "chat_template": "{{ messages }}",
    "show_hidden_metrics_for_version": "0.30",
}
# Flags by which single options are refused that vLLM refuses too, but only once it has the model.
LATER = {
    "data-parallel-rank",
    "decode-context-parallel-size",
    "quantization",
    "speculative-config.model",
    "speculative-config.num_speculative_tokens",
    "speculative-config.tensor_parallel_size",
}
# What pydantic's types do not show: a fusion that vLLM turns off itself where it cannot be had.
TURNED_OFF = {"fuse_mla_dual_rms_norm"}
# What depends on the node, its GPUs, its environment variables or its files.
NEEDS_MORE = r"import Ray|appears path-like|OpenTelemetry|module name|number of available GPUs"
ELSEWHERE = {"grpc_port", "enable_mamba_cache_stochastic_rounding"}


# Whole command lines -----------------------------------------------------------------------------------


def valid(table_: Table, flag: Flag, choose: random.Random) -> Iterator[Words]:
    """Ways to give a flag that vLLM takes."""
    name = f"--{flag.name}"
    if flag.read == "switch":
        yield from ([spelling] for spelling in flag.names)
        return
    for value in values_of(table_, flag, choose):
        if flag.nargs.isdigit():
            yield [name, *[value] * int(flag.nargs)]
        else:
            yield [f"{name}={value}"]
            yield [name.replace("-", "_").replace("__", "--", 1), value]
    if flag.nargs == "?":
        yield [name]
    if flag.value and flag.value.kind == "object":
        for key, text in dotted(table_, flag.value, choose):
            yield [f"{name}.{key}={text}"]
            yield [f"{flag.names[-1]}.{key}", text]


def values_of(table_: Table, flag: Flag, choose: random.Random) -> list[str]:
    if flag.choices:
        return [str(choice) for choice in flag.choices]
    if flag.dest in EXAMPLES:
        return [EXAMPLES[flag.dest]]
    if flag.value:
        kind = flag.value
        if flag.nargs in ("+", "*") and kind.kind in ("list", "union"):
            kind = next((item for item in (kind.of or (kind,)) if item.kind != "list"), kind)
        found = [sample for sample in samples(table_, kind, choose) if not isinstance(sample, bool)]
        return [sample if isinstance(sample, str) else json.dumps(sample) for sample in found]
    plain = {
        "str": ["text", "with space", "a=b", "3"],
        "int": ["7", "+7", "1_0"],
        "float": ["0.5", "2", "1e-3"],
        "bool": ["true", "x"],
        "size": ["7", "8k", "1.5k", "8K", "2m"],
        "size-or-auto": ["4096", "4k", "auto", "-1"],
        "json": ['{"a": 1}', "{}"],
        "json-or-str": ["text", '{"a": {"b": [1, null]}}'],
        "none-or-str": ["none"],
        "folded": ["auto"],
        "comma-list": ["0,1"],
        "lora": ["name=/path", '{"name": "n", "path": "p"}'],
    }
    return plain[flag.read]


def samples(table_: Table, kind: Type, choose: random.Random) -> list[Any]:
    """Values that a type takes, few of each."""
    if kind.kind == "choice":
        return [choice for choice in kind.choices if choice is not None]
    if kind.kind in ("int", "float"):
        least = kind.ge if kind.ge is not None else (kind.gt if kind.gt is not None else 0) + 0.5
        most = kind.le if kind.le is not None else (kind.lt if kind.lt is not None else least + 9) - 0.25
        found = {least, most, (least + most) / 2}
        if kind.kind == "int":
            found = {int(number) + (number > int(number)) for number in found}
        return sorted(number for number in found if least <= number <= most or kind.kind == "int")
    if kind.kind == "tuple":
        return [[samples(table_, of, choose)[0] for of in kind.of]]
    if kind.kind == "list":
        return [[item] * (kind.min_length or 1) for of in kind.of for item in samples(table_, of, choose)[:2]]
    if kind.kind == "map":
        return [{"k": item} for item in samples(table_, kind.of[0], choose)[:2]]
    if kind.kind == "union":
        return [item for of in kind.of for item in samples(table_, of, choose)[:2]]
    if kind.kind == "object":
        keys = table_.objects[kind.object].keys
        needed = {key: samples(table_, of, choose)[0] for key, of in keys.items() if of.required}
        return [
            needed | {key: value} for key, of in keys.items() for value in samples(table_, of, choose)[:1]
        ]
    plain: dict[str, list[Any]] = {
        "bool": [True, False],
        "str": ["text"],
        "null": [None],
        "any": [],
        "opaque": [],
    }
    return plain[kind.kind]


def dotted(table_: Table, kind: Type, choose: random.Random) -> Iterator[tuple[str, str]]:
    keys = table_.objects[kind.object].keys
    if any(of.required for of in keys.values()):
        return
    for key, of in keys.items():
        for value in samples(table_, of, choose)[:2]:
            yield key, value if isinstance(value, str) else json.dumps(value)


def invalid(table_: Table, flag: Flag, choose: random.Random) -> Iterator[Words]:
    """Ways to get a flag wrong; some of them turn out to be right."""
    name = f"--{flag.name}"
    yield [name[:-1]]
    yield [f"{name}x=1"]
    yield [f"{name}.key=1"]
    if flag.read == "switch":
        yield [f"{name}=true"]
        yield [name, "true"]
        return
    yield [name]
    yield [name, "--port=80"]
    for word in (
        "",
        "None",
        "nonsense",
        "-1",
        "0",
        "1.5",
        "1e99",
        "{",
        "{}",
        "[]",
        '{"nonsense": 1}',
        "1.5K",
        "true",
    ):
        yield [f"{name}={word}"]
    if flag.value and flag.value.kind == "object":
        for key in table_.objects[flag.value.object].keys:
            for word in (
                "nonsense",
                "-1",
                "null",
                "[]",
                "{}",
                "1.5",
                '"3"',
                "1e99",
                "3.0",
                "true",
                '"yes"',
                '"1.0"',
            ):
                yield [f"{name}.{key}={word}"]
            yield [f"{name}.{key[:-1]}=1"]


def together(table_: Table, singles: list[Words], choose: random.Random) -> Iterator[Words]:
    """Several options at once."""
    for _ in range(300):
        yield [word for words in choose.sample(singles, 6) for word in words]
    for flag in table_.flags:
        if flag.value and flag.value.kind == "object":
            keys = table_.objects[flag.value.object].keys
            known = {key: found for key, of in keys.items() if (found := samples(table_, of, choose))}
            for _ in range(20):
                chosen = choose.sample(sorted(known), min(3, len(known)))
                yield [f"--{flag.name}={json.dumps({key: choose.choice(known[key]) for key in chosen})}"]


def command_lines(table_: Table, *, full: bool = True) -> tuple[list[Words], list[Words]]:
    """Command lines that vLLM takes, and others; of each flag a few, unless in full."""
    choose = random.Random(table_.version)
    flags = [flag for flag in table_.flags if flag.dest not in {"config", "model", *ELSEWHERE}]
    right = [list(valid(table_, flag, choose)) for flag in flags]
    wrong = [list(invalid(table_, flag, choose)) for flag in flags]
    several = list(together(table_, [words for lines in right for words in lines], choose))
    if not full:
        right = [choose.sample(lines, min(1, len(lines))) for lines in right]
        wrong = [choose.sample(lines, 2) for lines in wrong]
        several = choose.sample(several, 100)
    return (
        [["m", *words] for lines in right for words in lines],
        [["m", *words] for lines in [*wrong, several] for words in lines],
    )


def answers(version: str, lines: list[Words]) -> list[dict[str, Any]]:
    printed = script("--read", version, stdin="".join(json.dumps(line) + "\n" for line in lines))
    return [json.loads(line) for line in printed.splitlines()]


def same(ours: Any, theirs: Any) -> bool:
    """Whether a value is what vLLM made of it; of an object, the keys that were given."""
    if ours is None or ours == "AUTO":
        return True  # to be filled in, some of it at once
    if isinstance(theirs, dict) and "enum" in theirs:
        name, value = theirs["enum"]
        return bool(ours == value or str(ours).upper() == name)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(key in TURNED_OFF or same(value, theirs.get(key)) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if theirs == {"count": ours}:
        return True  # of limit-mm-per-prompt
    if isinstance(ours, str) and not isinstance(theirs, str):
        return theirs == [ours] or isinstance(theirs, dict)  # a list of one; what the name stands for
    return bool(ours == theirs)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_command_line_is_read_as_vllm_reads_it(version: str, long: bool) -> None:
    known = table(version).table
    right, wrong = command_lines(known, full=long)
    lines = right + wrong
    assert len(lines) > (5000 if long else 500)
    theirs = answers(version, lines)
    ours = [read(known, line) for line in lines]
    otherwise = [
        f"{' '.join(line)}: {problem}"
        for line, our, their in zip(lines, ours, theirs, strict=True)
        if (problem := difference(our, their))
    ]
    assert not otherwise
    too_strict = [
        f"{' '.join(line)}: {our.mistakes}"
        for line, our, their in zip(right, ours, theirs, strict=False)
        if "values" in their and any(mistake.flag not in LATER for mistake in our.mistakes)
    ]
    assert not too_strict


def difference(ours: Reading, theirs: dict[str, Any]) -> str:
    if ours.mistakes:
        return ""
    if "refused" in theirs and re.search(NEEDS_MORE, theirs["refused"]):
        return ""
    if "refused" in theirs:
        return f"vLLM refuses: {theirs['refused']}"
    unlike = {
        dest: (value, theirs["values"][dest])
        for dest, value in ours.values.items()
        if not same(value, theirs["values"][dest])
    }
    return f"read otherwise: {unlike}" if unlike else ""
