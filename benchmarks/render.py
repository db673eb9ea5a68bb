"""Time and memory of `vllmjobs render`, side by side with its peers, in one run.

    .venv/bin/python benchmarks/render.py [--runs N]

Each figure is a whole process, cold, as a person waits for it. The commands take turns, so that a busy
moment of the machine meets all of them; figures are medians, ratios are medians of the ratio pair by pair.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
VLLMJOBS = [str(Path(sys.executable).parent / "vllmjobs")]
SIZES = (1, 10, 100, 1000)


class Figure(NamedTuple):
    """One run of one command."""

    seconds: float
    peak_mib: float


def measure(command: Sequence[str]) -> Figure:
    """Run a command to its end; wall-clock seconds and the largest resident set in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}")
    return Figure(seconds, usage.ru_maxrss / 1024)


def in_turn(commands: dict[str, list[str]], runs: int) -> dict[str, list[Figure]]:
    """Every command `runs` times, A B C A B C, after one round that does not count."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(runs + 1)]
    return {name: [figures[name] for figures in rounds[1:]] for name in commands}


def environment_of(models: int, folder: Path) -> Path:
    """An environment of so many models, each as long as one of prod's."""
    path = folder / f"m{models}.yaml"
    blocks = [
        f"  model-{index}:\n"
        "    model: meta-llama/Llama-3.1-8B-Instruct\n"
        "    replicas: 2\n"
        "    gpus: {count: 1, memory: 70 GiB}\n"
        f"    route: {{path: /model-{index}/v1/, strip: /model-{index}}}\n"
        "    args: {enable-prefix-caching: true, max-num-seqs: 256}\n"
        "    env: {OMP_NUM_THREADS: 4}\n"
        f"    secrets: {{HF_TOKEN: nomad/jobs/m{models}#hf_token}}\n"
        "    cache: {bind: /srv/models}\n"
        "    rollout: {strategy: canary, weight: 0.05}\n"
        for index in range(models)
    ]
    path.write_text("models:\n" + "".join(blocks))
    return path


def show(figures: dict[str, list[Figure]], against: str) -> None:
    """A table of medians, with each command's time relative to one of them."""
    print(f"| command | median s | min–max s | peak MiB | × {against} |\n|---|---:|---:|---:|---:|")
    for name, runs in figures.items():
        times = [run.seconds for run in runs]
        ratio = statistics.median(
            mine.seconds / other.seconds for mine, other in zip(runs, figures[against], strict=True)
        )
        print(
            f"| {name} | {statistics.median(times):.3f} | {min(times):.3f}–{max(times):.3f} "
            f"| {max(run.peak_mib for run in runs):.0f} | {ratio:.2f} |"
        )
    print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    nomad = shutil.which("nomad") or sys.exit("nomad is not on PATH; PATH=$(scripts/tools):$PATH")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        render = [*VLLMJOBS, "render", "--project", str(ROOT)]
        rendered = subprocess.run([*render, "prod"], check=True, capture_output=True).stdout
        (folder / "prod.nomad.hcl").write_bytes(rendered)

        print("## A cold start\n")
        imports = "python -c 'import click, jinja2, yaml'"
        show(
            in_turn(
                {
                    imports: [sys.executable, "-c", "import click, jinja2, yaml"],
                    "vllmjobs render prod": [*render, "prod"],
                    "nomad job run -output (the same job)": [
                        nomad, "job", "run", "-output", str(folder / "prod.nomad.hcl"),
                    ],
                },
                runs,
            ),
            imports,
        )  # fmt: skip

        print("## Models in one environment\n")
        show(
            in_turn(
                {
                    f"{size} models" if size > 1 else "1 model": [
                        *VLLMJOBS, "render", str(environment_of(size, folder)),
                    ]
                    for size in SIZES
                },
                max(3, runs // 3),
            ),
            "1 model",
        )  # fmt: skip


if __name__ == "__main__":
    main()
