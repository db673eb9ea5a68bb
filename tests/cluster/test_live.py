"""What deploy and status show on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from vllmjobs_sandbox.cluster.release import Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox

SECONDS = 60.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command on a terminal of its own, as a person sees it."""

    def __init__(self, release: Release, word: str, *others: str) -> None:
        here, there = pty.openpty()
        self._process = subprocess.Popen(
            [release.sandbox.folder / "bin" / "vllmjobs", word, *release.words(), *others],
            env=release.sandbox.env | {"TERM": "xterm", "COLUMNS": "160", "LINES": "50"},
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
        )
        os.close(there)
        self._here = here
        self.raw = ""

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw)

    def read_until(self, text: str) -> None:
        """Read on until it shows a text."""
        until = time.monotonic() + SECONDS
        while text not in self.text:
            assert time.monotonic() < until, f"{text!r} is not among\n{self.text}"
            assert self._read(), f"it ended without {text!r}:\n{self.text}"

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read the rest; the exit code."""
        while self._read():
            pass
        os.close(self._here)
        return self._process.wait(SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._here], [], [], 1)
        if not ready:
            return True
        try:
            piece = os.read(self._here, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += piece.decode(errors="replace")
        return bool(piece)


@pytest.fixture(scope="module")
def shown(sandbox: Sandbox) -> Iterator[Release]:
    """One instance, of which `test_deploy…` deploys a new version."""
    for new in releases(sandbox, "live"):
        shown = new(replicas=1, **{"rollout.analysis": "null"})
        shown.run()
        yield shown


def test_status_watches_until_ctrl_c(shown: Release) -> None:
    terminal = Terminal(shown, "status", "--watch", "--interval", "1")
    terminal.read_until("1/1 healthy")
    terminal.interrupt()
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_deploy_shows_a_table_below_the_lines_and_leaves_the_lines(shown: Release) -> None:
    shown.settings["models.chat.max_model_len"] = "2048"
    terminal = Terminal(shown, "deploy", "--job", "vllm")
    terminal.read_until("0/1 healthy")  # the table
    terminal.read_until("is deployed")
    assert terminal.end() == 0
    assert f"{shown.job}: version 1 is deployed" in terminal.text
    table, end = terminal.raw.rpartition("\x1b[?25h")[::2]
    assert table.endswith("\x1b[2K") or "\x1b[2K" in end, "the table is wiped, and the cursor is there again"
