"""Where a table of the docs names the test that shows a row, there is one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"^\|.*\| `([\w/]+\.py)::(\w+)` \|$", re.MULTILINE)
ROWS = NAMED.findall((ROOT / "docs/one-box.md").read_text())


def test_every_row_beside_balanced_vllm_docker_names_a_test() -> None:
    page = (ROOT / "docs/one-box.md").read_text()
    rows = re.findall(
        r"^\|(?! balanced|---)", page[page.index("## Compared with balanced-vllm-docker") :], re.MULTILINE
    )
    assert len(ROWS) == len(rows) > 20


@pytest.mark.parametrize("file, test", ROWS)
def test_the_test_of_a_row_is_there(file: str, test: str) -> None:
    assert re.search(rf"^ *def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)
