"""scripts/tools takes a release whose sum is pinned, and builds only what it cannot reach."""

import hashlib
import io
import os
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from vllmjobs_sandbox.fakes.listening import listening

SCRIPTS = Path(__file__).parents[2] / "scripts"
SAYS = "#!/bin/sh\necho '{}'\n"
GO = """#!/bin/sh
if [ "$1" = version ]; then echo "go version go1.99.0 linux/amd64"; exit; fi
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho "Nomad v1.11.3, built"\\n' >"$2"
chmod +x "$2"
"""


@cache
def archive() -> bytes:
    """A release of nomad, which says so: one file, since a zip holds the time at which it was made."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("nomad", SAYS.format("Nomad v1.11.3, released"))
        zipped.writestr("LICENSE.txt", "")
    return file.getvalue()


class Here:
    """A checkout with scripts/tools alone, consul and fabio on PATH, and a `go` that builds at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        shutil.copy(SCRIPTS / "tools", folder / "scripts")
        shutil.copytree(SCRIPTS / "tools.d", folder / "scripts/tools.d")
        programs = {"consul": SAYS.format("Consul v1.19.2"), "fabio": SAYS.format("1.5.15"), "go": GO}
        (folder / "bin").mkdir()
        for name, text in programs.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def pin(self, url: str, sum: str) -> None:
        """Name releases of nomad for both kinds of machines."""
        lines = [f"nomad 1.11.3 linux/{kind} {url}/nomad.zip {sum}\n" for kind in ("amd64", "arm64")]
        (self.folder / "scripts/tools.d/releases.txt").write_text("".join(lines))

    def tools(self) -> subprocess.CompletedProcess[str]:
        """Run scripts/tools, which takes a few seconds at most."""
        return subprocess.run(
            [self.folder / "scripts/tools"],
            env={
                "PATH": f"{self.folder}/bin:/usr/bin:/bin",
                "VLLMJOBS_CACHE": f"{self.folder}/cache",
                "no_proxy": "*",
                "HOME": os.environ["HOME"],
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def nomad(self) -> str:
        """Return what the nomad of the printed folder says."""
        done = self.tools()
        assert done.returncode == 0, done.stderr
        said = subprocess.run([f"{done.stdout.strip()}/nomad"], capture_output=True, text=True, check=True)
        return said.stdout.strip()


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


@contextmanager
def serving(asked: list[str], status: int = 200) -> Iterator[str]:
    """Serve the release to HEAD and GET."""

    class Releases(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(archive())))
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.path)
            self.do_HEAD()
            self.wfile.write(archive())

        def log_message(self, *_: object) -> None:
            pass

    with listening(Releases) as address:
        yield address


def test_a_release_with_the_pinned_sum_is_taken_and_fetched_once(here: Here) -> None:
    asked: list[str] = []
    with serving(asked) as address:
        here.pin(address, hashlib.sha256(archive()).hexdigest())
        first = here.tools()
        assert "Business Source License" in first.stderr
        assert here.nomad() == "Nomad v1.11.3, released"
    assert asked == ["/nomad.zip"]


def test_a_release_with_another_sum_is_refused_and_never_run(here: Here) -> None:
    with serving([]) as address:
        here.pin(address, "0" * 64)
        refused = here.tools()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"has the SHA-256 sum {hashlib.sha256(archive()).hexdigest()}" in refused.stderr
    assert f"but scripts/tools.d/releases.txt says {'0' * 64}" in refused.stderr
    assert not list(here.folder.rglob("nomad.zip"))


@pytest.mark.parametrize("how", ["nobody listens", "nobody answers", "it is not there"])
def test_what_cannot_be_fetched_is_built(here: Here, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, serving([], status=404) as missing:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        if how == "nobody listens":
            mute.close()
        here.pin(missing if how == "it is not there" else address, "0" * 64)
        assert here.nomad() == "Nomad v1.11.3, built"


def test_each_pinned_release_is_of_the_version_that_is_built_elsewhere() -> None:
    lines = (SCRIPTS / "tools.d/releases.txt").read_text().splitlines()
    pins = [line.split() for line in lines if not line.startswith("#")]
    assert pins
    for program, version, _, url, sum in pins:
        assert f" v{version}" in (SCRIPTS / "tools.d" / program / "go.mod").read_text()
        assert version in url
        assert len(bytes.fromhex(sum)) == 32
