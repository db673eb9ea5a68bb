"""docs/ci/install.sh, with a package index and a download server on loopback."""

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

import vllmjobs
from vllmjobs_sandbox.fakes.forge import CI
from vllmjobs_sandbox.fakes.listening import listening

VERSION = "9.9.9"
LINES = [line for line in (CI / "requirements.in").read_text().splitlines() if not line.startswith("#")]
REQUIREMENTS = dict(line.split("==") for line in LINES)


def wheel(folder: Path, name: str, version: str) -> str:
    """Write a package with nothing in it; return its hash."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    file = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{name} = {module}:main\n")
        packed.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[Path]:
    """Serve two zips, with programs that say that they are Nomad, and their sums."""
    folder = tmp_path / "releases" / VERSION
    folder.mkdir(parents=True)
    sums = []
    for machine in ("amd64", "arm64"):
        name = f"nomad_{VERSION}_linux_{machine}.zip"
        with zipfile.ZipFile(folder / name, "w") as packed:
            packed.writestr("nomad", f"#!/bin/sh\necho Nomad v{VERSION}\n")
            packed.writestr("LICENSE.txt", "")
        sums.append(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")
    (folder / f"nomad_{VERSION}_SHA256SUMS").write_text("".join(sums))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "releases"))
    with listening(handler) as address:
        (tmp_path / "address").write_text(address)
        yield folder


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    """Write packages, and a repository whose ci/requirements.txt has their hashes; return that file."""
    wheels, work = tmp_path / "wheels", tmp_path / "work"
    wheels.mkdir()
    shutil.copytree(CI, work / "ci")
    lines = [
        f"{name}=={version} --hash=sha256:{wheel(wheels, name, version)}\n"
        for name, version in REQUIREMENTS.items()
    ]
    (work / "ci/requirements.txt").write_text("".join(lines))
    return work / "ci/requirements.txt"


def install(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    wheels, work = tmp_path / "wheels", tmp_path / "work"
    return subprocess.run(
        [work / "ci/install.sh"],
        cwd=work,
        env={
            "PATH": os.environ["PATH"],
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "NOMAD_RELEASES": (tmp_path / "address").read_text(),
            "NOMAD_VERSION": VERSION,
            "no_proxy": "*",
        }
        | env,
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_steps_that_follow_find_vllmjobs_and_nomad(
    tmp_path: Path, releases: Path, requirements: Path
) -> None:
    path, env = tmp_path / "path", tmp_path / "env"
    certificates = {"NOMAD_CACERT_PEM": "Nomad's", "CONSUL_CACERT_PEM": "Consul's"}
    done = install(tmp_path, GITHUB_PATH=str(path), GITHUB_ENV=str(env), **certificates)
    assert done.returncode == 0, done.stderr
    folder = Path(path.read_text().strip())
    assert {"vllmjobs", "detect-secrets", "nomad"} <= {file.name for file in folder.iterdir()}
    assert subprocess.check_output([folder / "nomad"], text=True) == f"Nomad v{VERSION}\n"
    files = dict(line.split("=") for line in env.read_text().splitlines())
    said = {name: Path(file).read_text() for name, file in files.items()}
    assert said == {"NOMAD_CACERT": "Nomad's\n", "CONSUL_CACERT": "Consul's\n"}


def test_what_a_commit_has_put_where_the_tools_go_is_not_run(
    tmp_path: Path, releases: Path, requirements: Path
) -> None:
    """`.tools/bin` comes first on PATH, and Python looks for modules where it is started."""
    path, tools = tmp_path / "path", tmp_path / "work/.tools"
    (tools / "bin").mkdir(parents=True)
    (tools / "bin/curl").write_text("#!/bin/sh\nexit 1\n")
    (tools / "zipfile.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "work/json.py").write_text("raise SystemExit('imported')\n")
    done = install(tmp_path, GITHUB_PATH=str(path))
    assert done.returncode == 0, done.stderr
    assert not (tools / "bin/curl").exists()
    assert not (tools / "zipfile.py").exists()


def test_a_zip_that_is_not_the_one_of_the_sums_is_not_installed(
    tmp_path: Path, releases: Path, requirements: Path
) -> None:
    for file in releases.glob("*.zip"):
        with file.open("ab") as changed:
            changed.write(b"\0")
    assert "nomad.sha256" not in (done := install(tmp_path)).stdout
    assert done.returncode == 1
    assert "computed checksum did NOT match" in done.stderr
    assert not (tmp_path / "work/.tools/bin/nomad").exists()


def test_a_pinned_sum_is_held_to(tmp_path: Path, releases: Path, requirements: Path) -> None:
    assert install(tmp_path, NOMAD_SHA256="0" * 64).returncode == 1


def test_a_package_that_is_not_the_one_of_the_hash_is_not_installed(
    tmp_path: Path, releases: Path, requirements: Path
) -> None:
    file = next((tmp_path / "wheels").glob("vllmjobs-*.whl"))
    with zipfile.ZipFile(file, "a") as changed:
        changed.writestr("evil.py", "")
    done = install(tmp_path)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "work/.tools/bin/vllmjobs").exists()


def test_a_package_without_a_hash_is_not_installed(
    tmp_path: Path, releases: Path, requirements: Path
) -> None:
    requirements.write_text("".join(f"{line}\n" for line in LINES))
    done = install(tmp_path)
    assert done.returncode == 1
    assert "Hashes are required in --require-hashes mode" in done.stderr
    requirements.unlink()
    done = install(tmp_path)
    assert done.returncode == 1
    assert "pip-compile --generate-hashes --output-file ci/requirements.txt" in done.stderr


def test_the_version_that_ci_installs_is_this_one() -> None:
    assert REQUIREMENTS["vllmjobs"] == vllmjobs.__version__
