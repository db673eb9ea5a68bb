"""The supervisor's own token, and an engine of the same user that looks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllmjobs
from vllmjobs_sandbox.cluster.ports import take_block

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
TOKEN = "a-token-that-fences-nodes"
LOOK = r"""
echo "its own: ${NOMAD_TOKEN-none}"
tr "\0" "\n" 2>/dev/null </proc/$PPID/environ | grep "^NOMAD_TOKEN=[^-]"
for file in /proc/[0-9]*/environ; do
  { tr "\0" "\n" <$file | grep -q "^NOMAD_TOKEN=a-token"; } 2>/dev/null && echo "in $file"
done
{ head -c 1 /proc/$PPID/maps || head -c 1 /proc/$PPID/mem; } >/dev/null 2>&1 && echo "memory can be read"
echo looked
"""


@pytest.fixture
def package() -> Iterator[Path]:
    """The supervisor, where every user may read it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (to := Path(folder) / "vllmjobs").mkdir()
        shutil.copy(Path(vllmjobs.__file__), to)
        shutil.copytree(Path(vllmjobs.__file__).parent / "supervisor", to / "supervisor")
        yield Path(folder)


def python(user: tuple[str, ...]) -> str:
    """An interpreter that this user may run: ours may lie in a folder of root's."""
    works = "import sys; sys.exit(sys.version_info < (3, 11))"
    for one in (sys.executable, "/usr/bin/python3"):
        command = [*user, one, "-c", works]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return one
    pytest.skip("no Python 3.11 that another user may run")


@pytest.mark.parametrize(
    "user",
    [
        (),
        pytest.param(NOBODY, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can be others")),
    ],
    ids=["this user", "nobody"],
)
def test_an_engine_cannot_read_the_token_of_its_supervisor(package: Path, user: tuple[str, ...]) -> None:
    block = take_block()
    command = [
        *user, python(user), "-m", "vllmjobs.supervisor", "--restarts", "0", "--admin-host", "127.0.0.1",
        "--admin-port", str(block.take()), "--", "sh", "-c", LOOK,
    ]  # fmt: skip
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package), "NOMAD_TOKEN": TOKEN}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=60)
    block.release()
    assert ended.returncode == 1, ended.stderr
    assert "its own: none" in ended.stdout
    assert "looked" in ended.stdout
    assert TOKEN not in ended.stdout
    assert '"in /proc/' not in ended.stdout
    is_root = os.geteuid() == 0 and not user  # which may trace every process
    assert ("memory can be read" in ended.stdout) <= is_root
