"""`python fork.py SITE-PACKAGES`: lets VLLM_WORKER_MULTIPROC_METHOD=fork hold on the CPU.

vLLM reads that variable everywhere, but its CPU platform sets it to `spawn`, whatever it was. A forked engine
core has what its parent has loaded: a start takes 26 seconds of a core, and not 41.

Of a CPU with AMX, a process has to ask for the tiles first (Linux, Documentation/arch/x86/xstate.rst), and
its children inherit what it got: else the forked engine core ends at its first request, with an illegal
instruction.
"""

import sys
from pathlib import Path

SETS = 'os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"'
KEEPS = 'os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn"); torch.cpu._init_amx()'


def main(packages: Path) -> None:
    """Change the one line of vLLM's CPU platform; `SystemExit` where it is not there once."""
    platform = packages / "vllm/platforms/cpu.py"
    source = platform.read_text()
    if source.count(SETS) != 1:
        raise SystemExit(f"{platform}: expected this line once: {SETS}")
    platform.write_text(source.replace(SETS, KEEPS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
