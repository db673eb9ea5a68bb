"""What an engine of benchmarks/soak.py does in its next life: a stand-in, and what is around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from timing import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from vllmjobs_sandbox.engine.supervised import ENGINE

FAMILY = ROOT / "tests/supervise/programs/family.py"
CODES = (0, 1, 137)
HIDE, STORM, DEAF = "children that hide", "log storm", "SIGTERM ignored"
LOADING = {f"exit {code} while loading": code for code in CODES}
READY = {f"exit {code} once ready": code for code in CODES}
MODES = {
    "engine dies, exit 0": "exit-0-after=5",
    "load without end": "never-ready",
    "hang, /health well": "hang-after=5",
    "/health frozen": "slow-health=600",
    DEAF: "ignore-term",
}
"""Modes of the stand-in."""
BESIDE = {
    HIDE: " & ".join(
        f"{sys.executable} {FAMILY} {kind}"
        for kind in ("daemon", "stubborn", "session", "nameless", "zombies")
    ),
    STORM: "yes 'a line of text that says nothing' | head -n 300000",
}
"""A shell's line before it."""
SERVING = {HIDE, STORM, DEAF, *READY}
"""Kinds in which it serves, until something else is done to it."""


def live(place: Path, port: list[str]) -> None:
    """What the supervisor starts: it becomes what its next life is to be, which it writes down."""
    told = Path(f"{place}.next")
    kind = told.read_text() if told.exists() else ""
    told.unlink(missing_ok=True)
    Path(f"{place}.life").write_text(f"{os.getpid()} {kind}")
    if (code := LOADING.get(kind)) is not None:
        sys.exit(code)
    if mode := MODES.get(kind):
        os.environ["VLLMJOBS_STANDIN_FAILURE"] = mode
    os.environ["VLLMJOBS_STANDIN_DEATH_SECONDS"] = "0"
    if line := BESIDE.get(kind):
        subprocess.Popen(["sh", "-c", f"{line} & wait"])
    if kind in READY:
        _until_told([*ENGINE, *port], READY[kind])
    os.execv(ENGINE[0], [*ENGINE, *port])


def _until_told(command: list[str], code: int) -> None:
    """On SIGUSR1 it ends, and what really serves lives on: an API server that leaves its EngineCore."""
    child = subprocess.Popen(command)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(code))
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    os._exit(child.wait())
