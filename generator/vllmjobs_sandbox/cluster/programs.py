"""The programs that a sandbox runs, and where they are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vllmjobs.project.shipped import shipped
from vllmjobs_sandbox.cluster import nginx
from vllmjobs_sandbox.cluster.errors import SandboxError

ROOM = Path(__file__).parents[1]
SOURCES = ROOM.parent
CHECKOUT = SOURCES.parent
BUILT = ("nomad", "consul", "fabio")


def settings() -> str:
    """Return sandbox.yaml, which extends the `dev` environment that vllmjobs ships."""
    text = (ROOM / "sandbox.yaml").read_text()
    return text.replace("../../envs/dev.yaml", str(shipped("envs") / "dev.yaml"))


def programs() -> dict[str, Path]:
    """Return each program by its name, as the jobs call it."""
    found = {name: Path(path) for name in BUILT if (path := shutil.which(name))}
    if len(found) < len(BUILT):
        folder = _printed_by("tools", BUILT)
        found = {name: folder / name for name in BUILT}
    return found | {
        "nginx": nginx.at_hand()[0],
        **{name: Path(sys.executable).parent / name for name in ("vllmjobs", "vllmjobs-supervise")},
        "stand-in-engine": ROOM / "engine" / "bin" / "stand-in-engine",
    }


def packaged(name: str) -> Path:
    """Return a program that `scripts/packaged` finds, or fetches where there is none."""
    return _printed_by("packaged", [name], name)


def _printed_by(script: str, names: Sequence[str], *words: str) -> Path:
    """Run a script of the checkout that provides programs; return the path that it prints."""
    command = CHECKOUT / "scripts" / script
    if not command.exists():
        missing = ", ".join(name for name in names if not shutil.which(name))
        raise SandboxError(f"not on PATH: {missing}; install it, or run from a checkout")
    ended = subprocess.run([command, *words], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SandboxError(f"scripts/{script} could not provide {', '.join(names)}; it says why above")
    return Path(ended.stdout.strip())
