"""GPUs that are made up, and break when they are told to: nvml_live.c."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

GIB = 2**30


def library(folder: Path) -> Path:
    """Build it; return the folder, for LD_LIBRARY_PATH."""
    source = Path(__file__).with_name("nvml_live.c")
    flags = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")
    subprocess.run(["gcc", *flags, "-o", folder / "libnvidia-ml.so.1", source], check=True)
    return folder


def uuid(number: int) -> str:
    """Return the UUID of a simulated GPU."""
    return f"GPU-{number}0000000-1111-2222-3333-444444444444"


def gpu(number: int, **more: object) -> dict[str, str]:
    """Return the values that a healthy GPU shows, and how much of it is in use."""
    said = {
        "NAME": "NVIDIA H100 80GB HBM3",
        "UUID": uuid(number),
        "MEMORY": 80 * GIB,
        "USED": 0,
        "EVENTS": 8,
        "CLOCKS": 0,
        "RECOVERY": "!3",  # as a driver that does not know of it: then XIDs decide
        "REMAPPED": "0,0,0,0",
        "COMPUTE": "",
        **more,
    }
    return {f"GPU{number}_{key}": str(value) for key, value in said.items()}


class Live:
    """The way to the GPUs of a process with `env`."""

    def __init__(self, library: Path, path: Path, uuids: list[str]) -> None:
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)  # which waits for nobody, and keeps what nobody has read
        self.uuids = uuids
        self.env = {
            "LD_LIBRARY_PATH": str(library),
            "NVML_LIVE": str(path),
            "NVML_GPUS": str(len(uuids)),
        }
        for number, name in enumerate(uuids):
            self.env |= gpu(number, UUID=name)

    def happens(self, line: str) -> None:
        """Let NVML say an event or change an answer."""
        os.write(self._pipe, f"{line}\n".encode())

    def close(self) -> None:
        """Say no more."""
        os.close(self._pipe)

    def xid(self, name: str, code: int) -> None:
        """Let the driver report an error of a GPU."""
        self.happens(f"xid {self.uuids.index(name)} {code} 4294967295")
