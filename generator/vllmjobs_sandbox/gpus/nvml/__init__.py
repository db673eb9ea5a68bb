"""An NVML whose GPUs are made up: a real libnvidia-ml.so.1, compiled here, for a process to load."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")


def build(folder: Path, *options: str) -> Path:
    """Compile nvml.c into a folder for LD_LIBRARY_PATH; the file says what its environment may hold."""
    assert shutil.which("gcc"), "gcc is not on PATH; scripts/engine installs it on Debian"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    flags = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *options)
    subprocess.run(["gcc", *flags, "-o", library, SOURCE], check=True)
    return folder
