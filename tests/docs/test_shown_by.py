"""Where a table of the docs names the test that shows a row, there is one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"^\|.*\| `([\w/]+\.py)::(\w+)` \|$", re.MULTILINE)
TABLES = {"one-box.md": "## Compared with balanced-vllm-docker", "security.md": "## What is promised"}
ROWS = [(page, *row) for page in TABLES for row in NAMED.findall((ROOT / "docs" / page).read_text())]


@pytest.mark.parametrize(("page", "heading"), TABLES.items())
def test_every_row_names_a_test(page: str, heading: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    table = text[text.index(heading) :].partition("\n## What listens where")[0]
    rows = re.findall(r"^\|(?! balanced| promise|---)", table, re.MULTILINE)
    assert len([row for row in ROWS if row[0] == page]) == len(rows) > 20


@pytest.mark.parametrize(("page", "file", "test"), ROWS)
def test_the_test_of_a_row_is_there(page: str, file: str, test: str) -> None:
    assert re.search(rf"^ *def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), page
