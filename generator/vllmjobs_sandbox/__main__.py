"""The console script `vllmjobs-sandbox`, which is `python -m vllmjobs_sandbox` too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or name the extra that has to be installed first."""
    try:
        from vllmjobs_sandbox.command import sandbox  # noqa: PLC0415 (it needs what may be missing)

        sandbox()
    except ModuleNotFoundError as missing:
        sys.exit(f"vllmjobs-sandbox: {missing.name} is not installed; run: pip install 'vllmjobs[sandbox]'")


if __name__ == "__main__":
    main()
