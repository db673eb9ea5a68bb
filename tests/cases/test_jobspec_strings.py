"""Whatever a heredoc holds, `diff` reads it as Nomad's own parser does."""

import re
from typing import Any
from unicodedata import category

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cases.test_hostile_values import hostile, parsed_by_nomad
from vllmjobs.changes.jobs.jobspec import read

COMBINING = ("Mn", "Mc", "Me", "Cf", "Lm", "Sk")


EXAMPLES = ["$${x}", "%%{if true}", "$${", "%%{{", "%\r{", "\x1f", "\u2003x", "  one\n\n two\n"]


@settings(max_examples=settings().max_examples // 4)  # each is a process, and holds many strings
@given(st.lists(hostile, min_size=1, max_size=20))
@example(EXAMPLES)
def test_a_heredoc_is_read_as_nomad_reads_it(texts: list[str]) -> None:
    """Heredocs that a user's own template may hold, two for each text, each in a task of its own."""
    heredocs = [heredoc(opening, text) for text in texts for opening in ("<<-END", "<<END")]
    hcl = 'job "j" {\ngroup "g" {\n'
    for number, data in enumerate(heredocs):
        hcl += f'task "{number}" {{\ntemplate {{\ndata = {data}\n}}\n}}\n'
    hcl += "}\n}\n"
    nomads = parsed_by_nomad(hcl)["Job"]["TaskGroups"][0]["Tasks"]
    tasks: Any = read(hcl, "job").tree["group"]
    ours = [task["template"]["default"]["data"] for task in tasks["g"]["task"].values()]
    assert ours == [task["Templates"][0]["EmbeddedTmpl"] for task in nomads]
    assert len(ours) == len(heredocs)


def heredoc(opening: str, text: str) -> str:
    """Return a text as a heredoc, without what Nomad itself refuses.

    HCL counts the indentation in grapheme clusters: it cuts what combines with a blank, and we do not.
    """
    alone = "".join(letter for letter in text if category(letter) not in COMBINING and letter != "\r")
    lines = re.sub(r"[$%]+\{", "", alone).split("\n")
    body = "\n".join(f"    {line}" for line in lines)
    return f"{opening}\n{body}\n    END"
