"""`python -m image bill|audit IMAGE …`, with what `installed.py` printed on stdin; scripts/build runs it."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from image.audit import report, requirements, verdict
from image.packages import read


def main() -> int:
    """Print the bill of materials; or write a report, print its label, and say 1 where it does not pass."""
    parser = argparse.ArgumentParser(prog="python -m image")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("bill", "audit"):
        command = commands.add_parser(name)
        command.add_argument("image", metavar="NAME:TAG")
    command.add_argument("--report", type=Path, required=True)
    command.add_argument("--ignore", action="append", default=[], metavar="ID")
    command.add_argument("--allow-unscanned", action="store_true")
    options = parser.parse_args()
    packages = read(sys.stdin)
    if options.command == "bill":
        from image.bill import bill  # noqa: PLC0415 (half a second)

        print(bill(options.image, packages))
        return 0
    result = report(options.image, packages, *_pip_audit(requirements(packages)), options.ignore)
    options.report.write_text(json.dumps(result, indent=2) + "\n")
    passes, label, words = verdict(result, options.allow_unscanned)
    print(f"vulnerabilities: {words}", file=sys.stderr)
    print(label)
    return 0 if passes else 1


def _pip_audit(files: Iterable[str]) -> tuple[str, str]:
    """Return what pip-audit prints. Its exit code does not tell errors from vulnerabilities."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "--format=json"]
        command += ["--no-deps", "--disable-pip"]
        for number, text in enumerate(files):
            path = Path(folder) / f"{number}.txt"
            path.write_text(text)
            command += ["--requirement", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout, done.stderr


sys.exit(main())
