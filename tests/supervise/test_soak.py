"""benchmarks/soak.py: faults at random under load break nothing, for seconds, or with --long for minutes."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from vllmjobs_sandbox.cluster.programs import CHECKOUT

MORE = 240.0  # seconds, until all that was begun is over

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def test_faults_at_random_under_load_break_nothing(
    long: bool, record_property: Callable[[str, object], None]
) -> None:
    seconds, engines = (600, 4) if long else (4, 1)
    words = ["--seconds", str(seconds), "--engines", str(engines)]
    command = [sys.executable, str(CHECKOUT / "benchmarks/soak.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + MORE)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    requests = re.search(r"^requests: .*'answered': (\d+)", said, re.MULTILINE)
    assert requests and int(requests[1]) > 0, said
    # One of the engine, and one with a supervisor of its own.
    faults = re.findall(r"^\| [^|]+ \| \d+ \|.*", said, re.MULTILINE)
    assert len(faults) >= 2, said
    record_property("soak", "\n".join([requests[0], *faults]))
