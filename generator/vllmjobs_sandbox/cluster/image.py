"""images/vllm without a registry: its base is made of this machine's Python and the stand-in engine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from vllmjobs.vllm.releases import NEWEST
from vllmjobs_sandbox.cluster.docker import PASSWD, PATH, Docker
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import start, stop
from vllmjobs_sandbox.cluster.programs import CHECKOUT, ROOM, SOURCES
from vllmjobs_sandbox.traffic.requests import http

BASE = f"vllmjobs-test/vllm:{NEWEST}"  # as if it were that release of vLLM's own image
VENV = "/opt/vllm"
NEEDED = ("pip", "httptools", "prometheus_client", "starlette", "uvicorn")  # pip builds, they serve
SECONDS = 30.0
LEFT_OUT = ("__pycache__", "site-packages", "dist-packages", "test", "idlelib", "ensurepip", "lib2to3")
VLLM = f'#!/bin/sh\nexec {VENV}/bin/python3 -m vllmjobs_sandbox.engine "$@"\n'
# What scripts/build reads, and what it must not.
CONTEXT = (".dockerignore", ".gitignore", "generator", "images", "pyproject.toml", "scripts")


def import_base(docker: Docker) -> str:
    """Make an image with `vllm` and `python3` on PATH, and return its name."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in sorted(_contents().items()):
            _add(tar, path, content)
    env = f"ENV PATH={VENV}/bin:/usr/local/bin:/usr/bin:/bin"
    docker.cli("import", "--change", env, "-", BASE, input=archive.getvalue())
    return BASE


@contextmanager
def registry(docker: Docker, folder: Path) -> Iterator[str]:
    """Run Debian's registry on loopback, which takes and gives images; yields its address."""
    program = shutil.which("docker-registry", path=PATH)
    if not program:
        raise SandboxError("not on PATH: docker-registry; run scripts/engine, which installs it")
    address = f"127.0.0.1:{docker.ports.take()}"
    config = folder / "registry.json"
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
                "http": {"addr": address},
            }
        )
    )
    process = start(
        "docker-registry", [program, "serve", config], folder / "registry.log", {"PATH": PATH, "HOME": "/"}
    )
    try:
        process.wait_until(lambda: _answers(address), SECONDS, "the registry answers")
        yield address
    finally:
        stop([process])


def checkout_copy(folder: Path) -> Path:
    """Copy what an image is built from into a repository of its own, with this environment's programs."""
    for name in CONTEXT:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    git: list[str | Path] = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *words], check=True)
    venv = folder / ".venv"
    venv.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    # scripts/install makes it anew when this does not fit.
    wanted = b"".join((folder / name).read_bytes() for name in ("pyproject.toml", "scripts/constraints.txt"))
    (venv / "installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")
    return folder


def builder(folder: Path) -> str:
    """Make a folder whose `docker` is the first that has BuildKit; return a PATH that begins with it."""
    for place in PATH.split(":"):
        docker = Path(place) / "docker"
        if docker.is_file() and _can_build(docker):
            folder.mkdir()
            (folder / "docker").symlink_to(docker)
            return f"{folder}:{PATH}"
    raise SandboxError("no docker on PATH can build with BuildKit; run scripts/engine, or install its buildx")


def network(folder: Path, note: str = "") -> list[str]:
    """Return options of `docker build` by which pip reaches what it reaches here; the note is secret too."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    options = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", told, re.MULTILINE))
    certificates = options.pop("cert", None) or ssl.get_default_verify_paths().cafile
    lines = [f"{key} = {options[key]}" for key in ("index-url", "extra-index-url", "proxy") if key in options]
    secrets = []
    if certificates:
        lines.append("cert = /run/secrets/ca.pem")
        secrets = ["--secret", f"id=ca.pem,src={certificates}"]
    config = folder / "pip.conf"
    config.write_text("\n".join(["[global]", *lines, f"# {note}", ""]))
    return ["--network=host", "--secret", f"id=pip.conf,src={config}", *secrets]


def _answers(address: str) -> bool:
    try:
        with http() as client:
            return client.get(f"http://{address}/v2/").status_code == 200
    except httpx.TransportError:
        return False


def _can_build(docker: Path) -> bool:
    env = {"DOCKER_BUILDKIT": "1", "PATH": PATH, "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run([docker, "build", "--help"], env=env, check=False, capture_output=True)
    return done.returncode == 0


def _contents() -> dict[str, Path | str]:
    """Return what is in the base, by its path: a file of this machine, or a text, which may be a script."""
    interpreter = Path(os.path.realpath(sys.executable))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = f"{VENV}/lib/{version}/site-packages"
    contents: dict[str, Path | str] = {
        "/etc/passwd": f"root:x:0:0:root:/:/bin/sh\n{PASSWD}",
        "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
        "/tmp/": "",
        "/usr/local/bin/": "",
        f"{VENV}/bin/vllm": VLLM,
        f"{VENV}/pyvenv.cfg": f"home = {interpreter.parent}\ninclude-system-site-packages = false\n",
        f"{VENV}/bin/python3": f"-> {interpreter}",
        str(interpreter): interpreter,
        "/bin/busybox": Path(shutil.which("busybox", path=PATH) or ""),
    }
    listed = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout
    contents |= {f"/bin/{applet}": "-> busybox" for applet in listed.split() if applet != "busybox"}
    contents |= {str(path): path for path in _library(Path(sysconfig.get_path("stdlib")))}
    contents |= {f"{packages}/{name}": path for name, path in _files(NEEDED)}
    for path in (ROOM / "__init__.py", *(ROOM / "engine").glob("*.py")):
        contents[f"{packages}/{path.relative_to(SOURCES)}"] = path
    programs = [path for path in contents.values() if isinstance(path, Path)]
    return contents | {path: Path(path) for path in _shared(programs)}


def _library(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in LEFT_OUT or path.name.startswith("config-") or path.suffix == ".a":
            continue
        if path.is_dir():
            yield from _library(path)
        else:
            yield path


def _files(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Return the files of packages of this environment, and of all that these require."""
    todo, seen = list(names), set[str]()
    while todo:
        if (name := todo.pop()) in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # what a marker or an extra asks for
        requirements = [Requirement(one) for one in found.requires or []]
        todo += [one.name for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
        for file in found.files or []:
            if not str(file).startswith("..") and "__pycache__" not in file.parts:
                yield str(file), Path(str(file.locate()))


def _shared(programs: Iterable[Path]) -> set[str]:
    """Return the shared libraries that these are linked with, as ldd(1) finds them."""
    binaries = [path for path in programs if path.suffix == ".so" or os.access(path, os.X_OK)]
    linked = subprocess.run(["ldd", *binaries], check=False, capture_output=True, text=True).stdout
    return set(re.findall(r"^\s(?:\S+ => )?(/\S+) \(0x", linked, re.MULTILINE))


def _add(tar: tarfile.TarFile, path: str, content: Path | str) -> None:
    info = tarfile.TarInfo(path[1:])
    if path.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if path == "/tmp/" else 0o755
        tar.addfile(info)
        return
    if isinstance(content, str) and content.startswith("-> "):
        info.type, info.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
        tar.addfile(info)
        return
    if isinstance(content, str):
        data, info.mode = content.encode(), 0o755 if content.startswith("#!") else 0o644
    else:
        data = content.read_bytes()
        info.mode = 0o755 if content.stat().st_mode & stat.S_IXUSR else 0o644
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
