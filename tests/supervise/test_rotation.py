"""The log of a box, which the supervisor rotates while people read it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from vllmjobs.files.rotated import lines
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import SECONDS, Supervise

TALKS = "import time\nfor n in range(100_000):\n  print(f'{n:060}', flush=True); time.sleep(0.002)"
MOST, KEPT = 20_000, 2


@pytest.mark.parametrize("is_ours", [True, False], ids=["its own file", "a file that somebody redirected to"])
def test_a_log_has_a_size_and_a_count(supervise: Supervise, tmp_path: Path, is_ours: bool) -> None:
    log = tmp_path / "log.jsonl"
    told = {"path": str(log if is_ours else tmp_path / "other"), "most": MOST, "kept": KEPT}
    with log.open("ab") as file:
        one = supervise(stdout=file.fileno(), log=told, commands=[["python3", "-c", TALKS]])
    written: list[str] = []
    if not is_ours:
        wait_until(lambda: log.stat().st_size > 3 * MOST, SECONDS, "it has written")
        assert not list(tmp_path.glob("*.1"))
        return
    wait_until(log.exists, SECONDS, "it has begun")
    follow = lines(log, 1 << 20)

    def read_on() -> bool:
        while (line := next(follow)) is not None:
            written.append(line)
        return (tmp_path / f"log.jsonl.{KEPT}").exists() and len(written) > 1000

    wait_until(read_on, SECONDS, "it was rotated twice")
    said = [json.loads(line)["message"] for line in written if "stream" in line]
    assert said == [f"{number:060}" for number in range(len(said))]
    files = sorted(tmp_path.glob("log.jsonl*"))
    assert [file.name for file in files] == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files[:2]} == {0o600}
    one.stop()
    assert one.end() == 0
