"""Each rule has a page, and what the page calls bad breaks that rule and no other; what it calls good, none.

A ```yaml or ```json block whose first line (`# NAME`, `// NAME`) names a file is that file; a ```sh block is
run in the project's folder, after the files of its half (`## Bad` or `## Good`) were written.
"""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllmjobs.check.check import NAMES, SEVERITIES
from vllmjobs.cli import main

PAGES = Path(__file__).parents[2] / "docs/rules"
BLOCK = re.compile(r"^```(yaml|json|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IDS = sorted(NAMES)
# True of every example that names no image, and said once on the page of its own.
PLAIN = "VJ338"


def findings(half: str, project: Path) -> set[str]:
    """The rules that the examples of one half of a page break."""
    (project / "envs").mkdir(parents=True)
    against: list[str] = []
    for kind, block in BLOCK.findall(half):
        if kind == "sh":
            subprocess.run(["bash", "-ec", block], cwd=project, check=True, capture_output=True)
            against = ["--against", "HEAD"] if "git commit" in block else []
        elif named := re.match(r"(?:#|//) (\S+\.(?:yaml|json))\n", block):
            (project / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (project / named[1]).write_text(block[named.end() :] if kind == "json" else block)
    done = CliRunner().invoke(main, ["check", "--project", str(project), "--format", "json", *against])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return set(re.findall(r'"rule": "(VJ\d+)"', done.stdout))


@pytest.mark.parametrize("rule", IDS)
def test_the_examples_of_a_rule_are_what_they_say(rule: str, tmp_path: Path) -> None:
    page = (PAGES / f"{rule}.md").read_text()
    _, bad, good = re.split(r"^## (?:Bad|Good)\n", page, flags=re.MULTILINE)
    assert findings(bad, tmp_path / "bad") - ({PLAIN} - {rule}) == {rule}
    assert findings(good, tmp_path / "good") - ({PLAIN} - {rule}) == set()


@pytest.mark.parametrize("rule", IDS)
def test_explain_prints_the_page_of_a_rule(rule: str) -> None:
    done = CliRunner().invoke(main, ["explain", rule.lower()])
    assert done.stdout.splitlines()[0] == f"# {rule} {NAMES[rule]} ({SEVERITIES[rule]})"


def test_there_is_no_page_without_a_rule() -> None:
    assert sorted(path.stem for path in PAGES.glob("VJ*.md")) == IDS


def test_the_list_of_rules_is_whole() -> None:
    listed = re.findall(
        r"^\| \[(VJ\d+)\]\(\1\.md\) (\S+) \| (\w+) \|", (PAGES / "README.md").read_text(), re.M
    )
    assert sorted(listed) == [(rule, NAMES[rule], SEVERITIES[rule]) for rule in IDS]
