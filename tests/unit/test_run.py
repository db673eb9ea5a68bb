"""The test run itself: a test has a limit, and a run in the background of a shell is as good as any."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
CHILD = """
import signal, subprocess

def test_a_child_hears_every_signal():
    status = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout
    ignored = int(status.split()[1], 16)
    assert not [each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if ignored >> each - 1 & 1]
"""
HANGS = """
import threading

def test_hangs():
    threading.Event().wait()

def test_runs_after_it():
    pass
"""


def test_a_hang_is_ended_and_children_hear_signals_that_the_run_ignores(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").symlink_to(TESTS / "conftest.py")
    (tmp_path / "test_child.py").write_text(CHILD)
    (tmp_path / "test_hang.py").write_text(HANGS)
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "2", str(tmp_path)]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT TERM HUP; exec "$@"', "sh", *pytest],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "threading.Event().wait()" in done.stdout, "the stack of the hang"
    assert "1 failed, 2 passed" in done.stdout, done.stdout
