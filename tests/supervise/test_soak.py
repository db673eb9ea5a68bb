"""benchmarks/soak.py, for seconds instead of minutes: that it still runs, and nothing breaks."""

import re
import subprocess
import sys

from vllmjobs_sandbox.cluster.programs import CHECKOUT

SECONDS = 240.0


def test_faults_at_random_under_load_break_nothing() -> None:
    command = [sys.executable, str(CHECKOUT / "benchmarks/soak.py"), "--seconds", "4", "--engines", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    requests = re.search(r"^requests: .*'answered': (\d+)", said, re.MULTILINE)
    assert requests and int(requests[1]) > 0, said
    # One of the engine, and one with a supervisor of its own.
    assert len(re.findall(r"^\| [^|]+ \| \d+ \|", said, re.MULTILINE)) >= 2, said
