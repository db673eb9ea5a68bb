"""Lines without end, to a reader that has stopped: what says them is never made to wait."""

import os
import sys
from pathlib import Path

import httpx

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import SECONDS, Supervise, Supervised

TINY = [sys.executable, "-IS", str(Path(__file__).with_name("programs") / "tiny.py")]
LINES = 150_000  # 15 MB: four times what is kept for a reader, and more than all pipes on the way hold
LINE = "INFO 11-24 02:50:43 [loggers.py:259] generation throughput: 1843.2 tokens/s, running: 64 reqs"
FLOOD = f"yes '{LINE}' | head -n {LINES} && touch SAID && exec \"$@\""


def test_an_engine_gets_rid_of_all_its_lines_while_nobody_reads(supervise: Supervise, tmp_path: Path) -> None:
    read, write = os.pipe()
    said = tmp_path / "said"
    flood = FLOOD.replace("SAID", str(said))
    one = supervise(commands=[["sh", "-c", flood, "sh", *TINY]], stdout=write, log_rate=0)
    wait_until(said.exists, 5 * SECONDS, "it has said all of it", evidence=one.evidence)
    one.wait_until_ready()
    assert one.complete().status_code == 200
    assert LINES / 2 < dropped(one) < LINES
    os.close(read)
    os.close(write)


def dropped(one: Supervised) -> float:
    with httpx.Client(trust_env=False) as client:
        page = client.get(f"{one.admin}/metrics").text
    name = 'vllmjobs_supervisor_log_lines_dropped_total{instance="",stream="output"} '
    return next(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))
