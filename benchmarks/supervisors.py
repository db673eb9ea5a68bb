"""The supervisors that benchmarks/supervise.py compares: where they come from, and how each is told."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PYPI = ("supervisor==4.3.0", "circus==0.19.0")
DEBIAN = ("s6", "libs6-2.11", "libskarnet2.13", "libexecline2.9", "runit", "tini")
CACHE = Path(os.environ.get("VLLMJOBS_CACHE") or Path.home() / ".cache" / "vllmjobs") / "supervisors"
UNPACKED = CACHE / "debian" / "usr"

Commands = Mapping[str, Sequence[str]]
"""Of the children, by name."""


class Told(NamedTuple):
    """What is run, and where what the children say arrives: a file, a folder of them, or stdout."""

    command: list[str]
    log: Path | None = None
    env: Mapping[str, str] = {}


class Supervisor(NamedTuple):
    """One of those that are compared."""

    name: str
    tell: Callable[[Path, Commands, bool], Told]
    """Writes what it wants to read, into a folder; the last argument asks for its way to keep a log."""
    stop: signal.Signals = signal.SIGTERM
    restarts: bool = True
    admin: int | None = None
    """Of its port with /ready."""


def install() -> None:
    """Fetch the others into the cache; nothing of the machine is changed."""
    python = CACHE / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "setuptools<80", *PYPI], check=True)
    if not (UNPACKED / "bin" / "s6-svscan").exists():
        UNPACKED.parent.mkdir(parents=True, exist_ok=True)
        download = ["apt-get", "download", "-q", *DEBIAN]
        if subprocess.run(download, cwd=CACHE, check=False).returncode:
            subprocess.run(["apt-get", "update", "-q"], check=True)
            subprocess.run(download, cwd=CACHE, check=True)
        for package in CACHE.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, UNPACKED.parent], check=True)


def environment() -> dict[str, str]:
    """With what was fetched on its paths."""
    libraries = ":".join(map(str, (UNPACKED / "lib").glob("*-linux-gnu")))
    return {**os.environ, "PATH": f"{UNPACKED}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries}


def ours(log_rate: int = 0, gpu: str = "", library: Path | None = None) -> Supervisor:
    """Ours, with restarts without a pause; perhaps with a GPU to watch, of the NVML in a folder."""

    def tell(folder: Path, commands: Commands, _: bool) -> Told:
        config = {
            "identity": f"benchmark-{folder}",
            "admin_host": "127.0.0.1",
            "admin_port": ADMIN,
            "min_alive": len(commands),
            "log_rate": log_rate,
            "limits": {"backoff": 0, "restarts": 10**6, "restarts_never_ready": 10**6},
            "engines": [
                {
                    "name": name,
                    "command": list(command),
                    "port": int(command[2]) if command[1] == "serve" else ADMIN + 1,
                    "served_name": "chat",
                    "gpus": [gpu] if gpu and not number else [],
                }
                for number, (name, command) in enumerate(commands.items())
            ],
        }
        (folder / "config.json").write_text(json.dumps(config))
        env = {"LD_LIBRARY_PATH": str(library), "NVML_GPUS": "1"} if library else {}
        command = [sys.executable, "-m", "vllmjobs.supervisor", "--config", str(folder / "config.json")]
        return Told(command, env=env)

    return Supervisor("vllmjobs-supervise", tell, admin=ADMIN)


ADMIN = 9871


def _supervisord(folder: Path, commands: Commands, logs: bool) -> Told:
    log = str(folder / "log") if logs else "NONE"
    parts = [
        f"[supervisord]\nnodaemon=true\nuser=root\nlogfile={folder}/supervisord.log\npidfile={folder}/pid\n"
    ]
    parts += [
        f"[program:{name}]\ncommand={shlex.join(command)}\nautorestart=true\nstartsecs=0\nredirect_stderr=true\n"
        f"stdout_logfile={log}\nstdout_logfile_maxbytes=0\n"
        for name, command in commands.items()
    ]
    parts.append(f"[group:all]\nprograms={','.join(commands)}\n")  # else it stops one after the other
    (folder / "supervisord.conf").write_text("\n".join(parts))
    program = str(CACHE / "venv/bin/supervisord")
    return Told([program, "-c", str(folder / "supervisord.conf")], folder / "log" if logs else None)


def _circus(folder: Path, commands: Commands, logs: bool) -> Told:
    log = f"stdout_stream.class=FileStream\nstdout_stream.filename={folder}/log\n" if logs else ""
    sockets = "".join(f"{name}=ipc://{folder}/{name}\n" for name in ("endpoint", "pubsub_endpoint"))
    parts = [f"[circus]\n{sockets}"]
    parts += [
        f"[watcher:{name}]\ncmd={shlex.join(command)}\ncopy_env=True\n{log}"
        for name, command in commands.items()
    ]
    (folder / "circus.ini").write_text("\n".join(parts))
    program = str(CACHE / "venv/bin/circusd")
    return Told([program, str(folder / "circus.ini")], folder / "log" if logs else None)


def _services(folder: Path, commands: Commands, logger: Sequence[str]) -> Path:
    """Write folders with `run`, as s6 and runit want them."""
    for name, command in commands.items():
        runs = {f"services/{name}/run": command}
        if logger:
            (folder / "log").mkdir(exist_ok=True)
            runs[f"services/{name}/log/run"] = [*logger, str(folder / "log")]
        for path, words in runs.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
            (folder / path).chmod(0o755)
    return folder / "services"


def _s6(folder: Path, commands: Commands, logs: bool) -> Told:
    logger = ["s6-log", "t", "n20", "s200000000"] if logs else []
    services = _services(folder, commands, logger)
    # It starts /usr/bin/s6-supervise, wherever it is itself.
    mount = f'mount -t overlay -o "lowerdir={UNPACKED}/bin:/usr/bin" overlay /usr/bin && exec s6-svscan "$0"'
    command = ["unshare", "--mount", "sh", "-c", mount, str(services)]
    return Told(command, folder / "log" if logs else None)


def _runit(folder: Path, commands: Commands, logs: bool) -> Told:
    services = _services(folder, commands, ["svlogd", "-tt"] if logs else [])
    if logs:
        (folder / "log" / "config").write_text("s0\nn0\n")
    return Told(["runsvdir", str(services)], folder / "log" if logs else None)


def _tini(_: Path, commands: Commands, __: bool) -> Told:
    if len(commands) == 1:
        return Told(["tini", "-s", "--", *next(iter(commands.values()))])
    all = " & ".join(shlex.join(command) for command in commands.values())
    return Told(["tini", "-s", "-g", "--", "sh", "-c", f"{all} & wait"])


OTHERS = (
    Supervisor("supervisord 4.3", _supervisord),
    Supervisor("circus 0.19", _circus),
    Supervisor("s6 2.11", _s6),
    Supervisor("runit 2.1", _runit, signal.SIGHUP),  # on SIGTERM, runsvdir leaves all of it running
    Supervisor("tini 0.19", _tini, restarts=False),
)
