"""The two texts that put the plugin into a Nomad agent: a file in `plugin_dir` and a `plugin` block."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from vllmjobs_sandbox.gpus.plugin.config import DRIVER_VERSION, GpuModel


def plugin_executable(python: str, sources: str) -> str:
    """Write the file `simgpu` for `plugin_dir` (mode 755): it starts the plugin with that interpreter.

    Both paths have to be absolute, since Nomad's working folder is anybody's guess.
    """
    for path in (python, sources):
        if not Path(path).is_absolute():
            raise ValueError(f"{path} is not an absolute path")
    # exec keeps Nomad the parent, whose end the plugin watches for. -P: no module from Nomad's folder.
    # INT is ignored from here on, so that Ctrl-C cannot meet a Python that is still importing.
    return f"""\
#!/bin/sh
trap '' INT
PYTHONPATH={shlex.quote(sources)} exec {shlex.quote(python)} -P -m vllmjobs_sandbox.gpus.plugin
"""


def plugin_config(
    gpus: Iterable[GpuModel], node: str, health_file: str = "", driver_version: str = DRIVER_VERSION
) -> str:
    """Write the `plugin "simgpu"` block of an agent's configuration; `node` must differ between agents."""
    keys = {"node": node, "driver_version": driver_version, "health_file": health_file}
    lines = [f"    {key:<14} = {json.dumps(value)}" for key, value in keys.items()]
    for gpu in gpus:
        lines += [
            "    gpu {",
            *(f"      {key:<15} = {json.dumps(value)}" for key, value in vars(gpu).items()),
            "    }",
        ]
    return "\n".join(['plugin "simgpu" {', "  config {", *lines, "  }", "}", ""])
