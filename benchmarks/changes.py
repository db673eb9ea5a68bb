"""Time and memory of `vllmjobs diff` and `plan`, side by side with their peers, in one run.

    PATH=$(scripts/tools):$PATH .venv/bin/python benchmarks/changes.py [--runs N]

`plan` is held to `nomad job plan` of the same job on the same cluster, the sandbox of the tests. Nobody else
compares jobs without a server; `diff` stands beside `git diff` of what was rendered, and `check`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from render import environment_of
from timing import ROOT, VLLMJOBS, in_turn, show

sys.path.insert(0, str(ROOT / "tests"))
from vllmjobs_sandbox.cluster.sandbox import Sandbox

MANY = 100
GROUPS = 200
FINE = (0, 1, 2, 3)  # `nomad job plan` ends with 1 where there are changes, ours with 2 or 3


def git(folder: Path, *arguments: str) -> None:
    """Run git, as somebody."""
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.com"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def repository(folder: Path, environments: int) -> Path:
    """So many copies of prod in a commit, and each of them changed since then."""
    (folder / "envs").mkdir(parents=True)
    shutil.copy(ROOT / "envs/base.yaml", folder / "envs")
    prod = (ROOT / "envs/prod.yaml").read_text()
    for text, job in ((prod, True), (prod.replace("replicas: 4", "replicas: 5"), False)):
        for index in range(environments):
            (folder / f"envs/prod{index}.yaml").write_text(text)
        if job:
            git(folder, "init", "-q")
            git(folder, "add", "-A")
            git(folder, "commit", "-qm", "one")
    return folder


def diffs(folder: Path, runs: int) -> None:
    """`diff` of one environment, of many, and of one job with many groups."""
    one, many = repository(folder / "one", 1), repository(folder / "many", MANY)
    wide = folder / "wide"
    (wide / "envs").mkdir(parents=True)
    environment_of(GROUPS, wide / "envs")
    git(wide, "init", "-q")
    git(wide, "add", "-A")
    git(wide, "commit", "-qm", "one")
    name = f"m{GROUPS}"
    rendered = [folder / "before.hcl", folder / "after.hcl"]
    change = ["--set", "defaults.max_model_len=1024"]
    for path, setting in zip(rendered, ([], change), strict=True):
        done = subprocess.run(
            [*VLLMJOBS, "render", "--project", str(wide), name, *setting], check=True, capture_output=True
        )
        path.write_bytes(done.stdout)
    print("## diff, without a server\n")
    show(
        in_turn(
            {
                "diff, 1 environment": [*VLLMJOBS, "diff", "--project", str(one)],
                f"diff, {MANY} environments": [*VLLMJOBS, "diff", "--project", str(many)],
                f"check, {MANY} environments": [*VLLMJOBS, "check", "--project", str(many)],
                f"diff, {GROUPS} groups, each changed": [
                    *VLLMJOBS, "diff", "--project", str(wide), name, *change,
                ],
                f"render, {GROUPS} groups": [*VLLMJOBS, "render", "--project", str(wide), name],
                f"git diff of the {GROUPS} groups as text": [
                    "git", "diff", "--no-index", *map(str, rendered),
                ],
            },
            runs,
            FINE,
        ),
        "diff, 1 environment",
    )  # fmt: skip


def plans(folder: Path, runs: int) -> None:
    """`plan` of the sandbox's job, with a change, and of a job with many groups."""
    with Sandbox(balancers=False) as sandbox:
        os.environ.update(sandbox.env)
        sandbox.run(sandbox.render("dev"))
        sandbox.wait_until_healthy("vllm-dev")
        change = ["--set", "models.chat.max_model_len=1024"]
        hcl = folder / "dev.nomad.hcl"
        hcl.write_text(sandbox.render("dev", *change))
        wide = environment_of(GROUPS, folder)
        wide_hcl = folder / "wide.nomad.hcl"
        wide_hcl.write_bytes(
            subprocess.run([*VLLMJOBS, "render", str(wide)], check=True, capture_output=True).stdout
        )
        nomad = [shutil.which("nomad") or sys.exit("nomad is not on PATH"), "job", "plan"]
        print("## plan, cold\n")
        peer = "nomad job plan, 1 group"
        show(
            in_turn(
                {
                    peer: [*nomad, str(hcl)],
                    "render | nomad job plan -, 1 group": [
                        "sh", "-c", f"{VLLMJOBS[0]} render dev {' '.join(change)} | {nomad[0]} job plan -",
                    ],
                    "vllmjobs plan, 1 group": [*VLLMJOBS, "plan", "dev", "--job", "vllm", *change],
                    f"nomad job plan, {GROUPS} groups": [*nomad, str(wide_hcl)],
                    f"vllmjobs plan, {GROUPS} groups": [*VLLMJOBS, "plan", str(wide), "--job", "vllm"],
                },
                runs,
                FINE,
            ),
            peer,
        )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        diffs(Path(temporary), runs)
        plans(Path(temporary), runs)


if __name__ == "__main__":
    main()
