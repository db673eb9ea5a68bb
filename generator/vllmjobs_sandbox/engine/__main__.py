"""`python -m vllmjobs_sandbox.engine`: read what we were told, then serve.

Exit codes: 0 after a stop that was asked for, and after an engine death (vLLM's own habit:
vllm-project/vllm#48966); 1 when the load fails or the port is taken; 2 for a wrong flag or knob.
"""

import asyncio
import os
import sys

from vllmjobs_sandbox.engine import flags, knobs
from vllmjobs_sandbox.engine.server import serve


def main() -> int:
    """Run the stand-in engine; the exit code."""
    try:
        told = flags.parse(sys.argv[1:], os.environ)
        wanted = knobs.read(os.environ)
    except ValueError as error:
        print(f"stand-in-engine: {error}", file=sys.stderr)
        return 2
    return asyncio.run(serve(told, wanted))


if __name__ == "__main__":
    sys.exit(main())
