"""Time and memory of `vllmjobs check`, side by side with its peers, in one run; and the estimator's error.

    .venv/bin/python benchmarks/check.py [--runs N] [--vllm PROGRAM]

`vllm serve --help` is the least that the real package needs to look at its own arguments. Where no vLLM is
installed it is left out, and said so.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from timing import ROOT, VLLMJOBS, in_turn, show

sys.path.insert(0, str(ROOT / "tests"))
from unit.vllm.memory import truth

MANY = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--vllm", default=shutil.which("vllm"), help="the real vllm program")
    asked = parser.parse_args()

    print("## A cold start\n")
    commands = {
        f"vllmjobs {name} prod": [*VLLMJOBS, name, "--project", str(ROOT), "prod"]
        for name in ("check", "render")
    }
    if asked.vllm:
        commands["vllm serve --help"] = [asked.vllm, "serve", "--help"]
    else:
        print("(no vllm on PATH: `vllm serve --help` is left out; --vllm names one)\n")
    show(in_turn(commands, asked.runs), "vllmjobs check prod")

    print("## Environments in one call\n")
    with tempfile.TemporaryDirectory() as temporary:
        one, many = Path(temporary, "one"), Path(temporary, "many")
        for project, count in ((one, 1), (many, MANY)):
            shutil.copytree(
                ROOT / "envs",
                project / "envs",
                ignore=shutil.ignore_patterns("dev*", "stag*", "prod*", "every*"),
            )
            for index in range(count):
                shutil.copy(ROOT / "envs/prod.yaml", project / f"envs/prod{index}.yaml")
        show(
            in_turn(
                {
                    "1 environment": [*VLLMJOBS, "check", "--project", str(one)],
                    f"{MANY} environments": [*VLLMJOBS, "check", "--project", str(many)],
                },
                max(3, asked.runs // 3),
            ),
            "1 environment",
        )

    print("## The estimator's error, over tests/unit/vllm/memory/truth.yaml\n")
    print("| figure | published | median error | largest error | known misses, not counted |")
    print("|---|---:|---:|---:|---:|")
    figures = [figure for index in range(len(truth.table())) for figure in truth.figures(index)]
    for name in truth.ALLOWED:
        counted = [abs(figure.off) for figure in figures if figure.name == name and not figure.miss]
        misses = sum(figure.name == name and bool(figure.miss) for figure in figures)
        if counted:
            middle, most = statistics.median(counted), max(counted)
            print(f"| {name} | {len(counted)} | {middle:.1%} | {most:.1%} | {misses} |")
    fits = [
        (row.fits, truth.estimated(index).fits)
        for index, row in enumerate(truth.table())
        if row.fits is not None
    ]
    print(f"\nfits or not: {sum(said == found for said, found in fits)} of {len(fits)} right")


if __name__ == "__main__":
    main()
