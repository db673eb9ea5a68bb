"""Run the plugin, as Nomad does: `python -m vllmjobs_sandbox.gpus.plugin`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from vllmjobs_sandbox.gpus.plugin.logs import log_to_stderr
from vllmjobs_sandbox.gpus.plugin.server import serve

# What Nomad sets for every plugin that it starts (nomad: plugins/base/plugin.go, Handshake).
COOKIE = "NOMAD_PLUGIN_MAGIC_COOKIE"
COOKIE_VALUE = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255"


def main() -> int:
    """Serve one Nomad agent; 1 when somebody else started it, or Nomad was gone before it could answer."""
    # Ctrl-C in Nomad's terminal reaches the whole process group, but ending the plugin is Nomad's to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get(COOKIE) != COOKIE_VALUE:
        print(
            "simgpu is a Nomad device plugin, and Nomad has to start it: put it into the agent's plugin_dir.",
            file=sys.stderr,
        )
        return 1
    log_to_stderr()
    try:
        asyncio.run(serve(os.getppid()))
    except Exception:
        logging.exception("simgpu cannot run")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
