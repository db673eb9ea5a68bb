"""Whatever a string of a job holds, `diff` reads it as Nomad's own parser does."""

import re
from typing import Any
from unicodedata import category

import msgspec
from hypothesis import example, given

from cases.test_hostile_values import (
    EVERY_KEY,
    JOBS,
    TEMPLATES,
    hostile,
    leaves,
    load,
    parsed_by_nomad,
    replaced,
)
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.environment.model import Environment
from vllmjobs.render.job import render

COMBINING = ("Mn", "Mc", "Me", "Cf", "Lm", "Sk")
WRITTEN = '"\\${%{\n\t\r\u2028🦜<<EOF'


def strings(tree: Any) -> set[str]:
    return {value for _, value in leaves(tree) if isinstance(value, str)}


@given(hostile)
@example(WRITTEN)
@example("$${x}")
@example("%%{if true}")
@example("${")
@example("\\u0041")
def test_a_rendered_string_is_read_as_nomad_reads_it(text: str) -> None:
    for job, given_by_set in JOBS.items():
        environment = msgspec.to_builtins(load(EVERY_KEY, given_by_set))
        hcl = render(msgspec.convert(replaced(environment, text), Environment), job, TEMPLATES)
        ours = strings(read(hcl, job).tree)
        durations = {value for value in ours if re.fullmatch(r"(\d+[hms])+", value)}  # numbers to Nomad
        assert {value for value in ours - durations if text in value} <= strings(parsed_by_nomad(hcl))


@given(hostile)
@example("$${x}")
@example("%%{if true}")
@example("$${")
@example("%%{{")
@example("%\r{")
@example("\x1f")
@example("\u2003x")
@example("  one\n\n two\n")
def test_a_heredoc_is_read_as_nomad_reads_it(text: str) -> None:
    """One that a user's own template may hold; Nomad itself refuses some.

    HCL counts the indentation in grapheme clusters: it cuts what combines with a blank, and we do not.
    """
    alone = "".join(letter for letter in text if category(letter) not in COMBINING and letter != "\r")
    lines = re.sub(r"[$%]+\{", "", alone).split("\n")
    body = "\n".join(f"    {line}" for line in lines)
    for opening in ("<<-END", "<<END"):
        data = f"data = {opening}\n{body}\n    END"
        blocks = ('job "j"', 'group "g"', 'task "t"', "template")
        hcl = "".join(f"{block} {{\n" for block in blocks) + data + "\n}" * len(blocks) + "\n"
        nomads = parsed_by_nomad(hcl)["Job"]["TaskGroups"][0]["Tasks"][0]["Templates"][0]["EmbeddedTmpl"]
        group: Any = read(hcl, "job").tree["group"]
        assert group["g"]["task"]["t"]["template"]["default"]["data"] == nomads
