"""Every command of a runbook, run under the very fault that its page is for.

A page names its fault: `<!-- fault: error-rate -->`. Words in capitals are what the reader fills in. What
only looks is asked again until it shows what the page shows, as a person does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmjobs_sandbox.cluster import ports
from vllmjobs_sandbox.cluster.process import TimedOutError, wait_until
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.story.faults import FAULTS
from vllmjobs_sandbox.story.night import SOON, Night
from vllmjobs_sandbox.story.pages import BLOCK, commands, is_shown, run

pytestmark = pytest.mark.first
FAULT = re.compile(r"^<!-- fault: (\S+) -->$", re.MULTILINE)
ORDER = [*FAULTS, None]  # neighbours share a job
LOOKS = re.compile(
    r"curl|df|consul (members|kv get)|nomad (\w+ ){1,2}(status|read)|vllmjobs (status|logs|history|plan|gpus)"
)


SLOW = re.compile(r"\b(vllmjobs|nomad)\b")  # half a second of a core each time


def fault_of(page: Path) -> str | None:
    """Return the one fault that a page names."""
    found = FAULT.findall(page.read_text())
    return found[0] if len(found) == 1 else None


PAGES = sorted(
    (CHECKOUT / "docs/runbooks").glob("*.md"), key=lambda page: (ORDER.index(fault_of(page)), page)
)


@pytest.fixture(scope="module")
def night(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    block = ports.take_block()
    night = Night(sandbox, tmp_path_factory.mktemp("night"), block.take(), block.take())
    yield night
    night.end()
    block.release()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_runbook_does_under_its_fault_what_the_page_shows(
    page: Path, night: Night, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = page.read_text()
    fault = fault_of(page)
    assert fault, f"{page.name} names no fault, or several"
    with FAULTS[fault](night, tmp_path):
        consoles = [block for kind, block in BLOCK.findall(text) if kind == "console"]
        for command, shown in (pair for block in consoles for pair in commands(block)):
            if request.config.getoption("--rewrite") and "..." not in shown:
                text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{typed(night, command)}", 1)
                page.write_text(text)
                continue
            assert_shown(night, page.name, command, shown)


def assert_shown(night: Night, page: str, command: str, shown: str) -> None:
    """Run a command; where it only looks, again until it prints what is shown.

    A command that takes a while looks again when the cluster has changed, and every few seconds.
    """
    printed = ""
    seen: object = None

    def is_so() -> bool:
        nonlocal printed, seen
        now = (night.state(), time.monotonic() // 3) if SLOW.search(command) else object()
        if now == seen:
            return False
        printed, seen = typed(night, command), now
        return is_shown(shown, printed)

    try:
        wait_until(is_so, SOON if LOOKS.match(command) else 0, "it is shown")
    except TimedOutError:
        pytest.fail(f"{page}: $ {command}\nshows:\n{shown}\nprints:\n{printed}")


def typed(night: Night, command: str) -> str:
    """Run a command with the words in capitals filled in."""
    if unit := re.match(r"systemctl start (\S+)$", command):
        night.units[unit[1]]()
        return ""
    filled = re.sub(r"\b[A-Z]{2,}\b", lambda word: night.words.get(word[0], word[0]), command)
    return run(filled, night.folder, night.env)
