"""Time and memory of `vllmjobs render`, side by side with its peers, in one run.

    .venv/bin/python benchmarks/render.py [--runs N]

Each figure is a whole process, cold, as a person waits for it. The commands take turns, so that a busy
moment of the machine meets all of them; figures are medians, ratios are medians of the ratio pair by pair.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import ROOT, VLLMJOBS, goal, in_turn, ratio, show

SIZES = (1, 10, 100, 1000)


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
        click, imports = "python -c 'import click'", "python -c 'import click, jinja2, yaml'"
        starts = in_turn(
            {
                click: [sys.executable, "-c", "import click"],
                "vllmjobs --help": [*VLLMJOBS, "--help"],
                imports: [sys.executable, "-c", "import click, jinja2, yaml"],
                "vllmjobs render prod": [*render, "prod"],
                "nomad job run -output (the same job)": [
                    nomad, "job", "run", "-output", str(folder / "prod.nomad.hcl"),
                ],
            },
            runs,
        )  # fmt: skip
        show(starts, imports)
        _goal("vllmjobs --help", 1.4, click, ratio(starts, "vllmjobs --help", click))
        _goal("vllmjobs render prod", 1.5, imports, ratio(starts, "vllmjobs render prod", imports))

        print("\n## Models in one environment\n")
        names = {size: f"{size} models" if size > 1 else "1 model" for size in SIZES}
        models = in_turn(
            {name: [*VLLMJOBS, "render", str(environment_of(size, folder))] for size, name in names.items()},
            max(3, runs // 3),
        )
        show(models, names[1])
        _goal(names[1000], 6, names[1], ratio(models, names[1000], names[1]))


def _goal(command: str, most: float, against: str, measured: float) -> None:
    goal(f"{command} at most {most:g} × {against}", measured <= most, f"{measured:.2f}")


if __name__ == "__main__":
    main()
