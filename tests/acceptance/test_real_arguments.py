"""Command lines before the parser of `vllm serve` itself: what `check` lets through, vLLM takes."""

import json
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from acceptance.test_tables import command_lines, difference
from cases.test_cases import CASES, NOTE, run, split
from vllmjobs.changes.jobs.jobspec import read as read_job
from vllmjobs.vllm.arguments.command_line import read
from vllmjobs.vllm.arguments.tables import table
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.engine import real

VERSION = "0.32.0"
TABLE = table(VERSION).table
Words = list[str]
Parse = Callable[[Words], dict[str, Any]]
READER = """
import json, sys
from vllm_tables import real
for line in sys.stdin:
    print("read", json.dumps(real.read(json.loads(line))), flush=True)
"""


@pytest.fixture(scope="module")
def parsed() -> Iterator[Parse]:
    """What vLLM makes of a command line: one process for all of them, since its import takes 10 s."""
    reader = subprocess.Popen(
        [real.folder() / "bin/python", "-c", READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**real.environ(), "PYTHONPATH": str(CHECKOUT / "scripts"), "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert reader.stdin
    assert reader.stdout

    def parsed(words: Words) -> dict[str, Any]:
        assert reader.stdin
        assert reader.stdout
        print(json.dumps(words), file=reader.stdin, flush=True)
        answer = next(line for line in reader.stdout if line.startswith("read "))
        return dict(json.loads(answer.removeprefix("read ")))

    with reader:
        yield parsed
        reader.stdin.close()


def rendered() -> dict[str, Words]:
    """The command lines of all jobs of envs/ and of the golden cases, as Nomad would hand them on."""
    jobs = {path.stem: split(path.read_text())[2] for path in CASES if path.parent.name == "render"}
    for environment in ("dev", "staging", "prod"):
        jobs[environment] = run(["render", environment], {}, CHECKOUT)
    found: dict[str, Words] = {}
    for name, result in jobs.items():
        if not result.startswith("=== 0\n"):
            continue
        for words in served(read_job(NOTE.sub("", result.removeprefix("=== 0\n")), name).tree):
            line = [re.sub(r"\$\{NOMAD_PORT_\w+\}", "8000", word) for word in words]
            found[f"{name} {len(found)}"] = [word.replace("${NOMAD_IP_http}", "127.0.0.1") for word in line]
    return found


def served(tree: Any) -> Iterator[Words]:
    """Whatever follows `vllm serve` in a job."""
    if isinstance(tree, list) and any(str(word).startswith("--served-model-name") for word in tree):
        yield tree[tree.index("serve") + 1 :] if "serve" in tree else tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from served(item)


def test_vllm_takes_the_command_line_of_every_rendered_job(parsed: Parse) -> None:
    lines = rendered()
    assert len(lines) > 25
    refused = {
        name: answer["refused"]
        for name, words in lines.items()
        if not read(TABLE, words).mistakes and "refused" in (answer := parsed(words))
    }
    assert not refused


def test_vllm_takes_what_check_takes_and_check_refuses_what_vllm_refuses(parsed: Parse, long: bool) -> None:
    choose, count = random.Random(VERSION), 500 if long else 100
    right, wrong = (choose.sample(lines, count) for lines in command_lines(TABLE))
    ours, answers = [read(TABLE, line) for line in right + wrong], list(map(parsed, right + wrong))
    assert sum(not our.mistakes for our in ours[:count]) > 0.8 * count
    assert sum("refused" in answer for answer in answers[count:]) > 0.4 * count
    otherwise = [
        f"{' '.join(line)}: {problem}"
        for line, our, answer in zip(right + wrong, ours, answers, strict=True)
        if (problem := difference(our, answer))
    ]
    assert not otherwise
