"""Whole commands, timed in turn, cold, as a person waits for them; and what a process takes that runs on."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
VLLMJOBS = [str(Path(sys.executable).parent / "vllmjobs")]
# The first round, which does not count, writes the bytecode that an installed package has.
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Figure(NamedTuple):
    """One run of one command."""

    seconds: float
    peak_mib: float


def measure(command: Sequence[str], fine: Sequence[int] = (0,)) -> Figure:
    """Run a command to its end; wall-clock seconds and the largest resident set in MiB.

    Ends the benchmark at an exit code that is not `fine`.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRON)
    said = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in fine:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{said.decode()}")
    return Figure(seconds, usage.ru_maxrss / 1024)


def in_turn(commands: dict[str, list[str]], runs: int, fine: Sequence[int] = (0,)) -> dict[str, list[Figure]]:
    """Every command `runs` times, A B C A B C, after one round that does not count."""
    rounds = [{name: measure(command, fine) for name, command in commands.items()} for _ in range(runs + 1)]
    return {name: [figures[name] for figures in rounds[1:]] for name in commands}


def ratio(figures: dict[str, list[Figure]], name: str, against: str) -> float:
    """Return the median of a command's time relative to another's, pair by pair."""
    pairs = zip(figures[name], figures[against], strict=True)
    return statistics.median(mine.seconds / other.seconds for mine, other in pairs)


def show(figures: dict[str, list[Figure]], against: str) -> None:
    """Print a table of medians, with each command's time relative to one of them."""
    print(f"| command | median s | min–max s | peak MiB | × {against} |\n|---|---:|---:|---:|---:|")
    for name, runs in figures.items():
        times = [run.seconds for run in runs]
        print(
            f"| {name} | {statistics.median(times):.3f} | {min(times):.3f}–{max(times):.3f} "
            f"| {max(run.peak_mib for run in runs):.0f} | {ratio(figures, name, against):.2f} |"
        )
    print()


def goal(what: str, is_met: bool, measured: str) -> None:
    """Say whether one is met; a benchmark asserts nothing."""
    print(f"goal, {what}: {'met' if is_met else 'NOT met'} ({measured})")


def resident(pids: Sequence[int]) -> tuple[float, float]:
    """RSS and PSS in MiB, in all."""
    rolls = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]

    def of(key: str) -> float:
        return (
            sum(int(line.split()[1]) for roll in rolls for line in roll if line.startswith(f"{key}:")) / 1024
        )

    return of("Rss"), of("Pss")


def cpu(pid: int) -> float:
    """Seconds that a process has used, and its children that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def ranged(values: Sequence[float]) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
