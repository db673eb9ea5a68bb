"""The programs that a sandbox runs, and where they are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from vllmjobs_sandbox.cluster import nginx
from vllmjobs_sandbox.cluster.errors import SandboxError

ROOM = Path(__file__).parents[1]
SOURCES = ROOM.parent
CHECKOUT = SOURCES.parent
BUILT = ("nomad", "consul", "fabio")


def programs() -> dict[str, Path]:
    """Return each by its name, as the jobs call it."""
    found = {name: Path(path) for name in BUILT if (path := shutil.which(name))}
    if len(found) < len(BUILT):
        folder = _tools()
        found = {name: folder / name for name in BUILT}
    return found | {
        "nginx": nginx.at_hand()[0],
        **{name: Path(sys.executable).parent / name for name in ("vllmjobs", "vllmjobs-supervise")},
        "stand-in-engine": ROOM / "engine" / "bin" / "stand-in-engine",
    }


def _tools() -> Path:
    """Ask `scripts/tools`, which builds what is missing."""
    ended = subprocess.run([CHECKOUT / "scripts" / "tools"], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SandboxError("scripts/tools could not provide nomad, consul and fabio; it says why above")
    return Path(ended.stdout.strip())


def packaged(name: str) -> Path:
    """Return one of those that `scripts/packaged` finds, or fetches where there is none."""
    command = [str(CHECKOUT / "scripts" / "packaged"), name]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SandboxError(f"scripts/packaged could not provide {name}; it says why above")
    return Path(ended.stdout.strip())
