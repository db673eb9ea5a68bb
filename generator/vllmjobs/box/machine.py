"""The boxes of this machine: a folder each, and the supervisor behind its socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllmjobs.box.servers import LOOPBACK, BoxError
from vllmjobs.box.supervised import NGINX, SOCKET, UPSTREAMS, Json
from vllmjobs.supervisor.core.upstreams import PoolText, ServerLine, upstreams_text

TIMEOUT = 10.0  # seconds for an answer
LOOK_S = 0.2  # between two looks
OLD_WORKERS_S = 0.2  # for 100 ms after a reload nginx's old workers take requests, too (ngx_process_cycle.c)
LONGEST_SOCKET = 107  # bytes, of sockaddr_un
LOG = "log.jsonl"
LONGEST_LOG = 1 << 20  # bytes of it that are read
LAST_LINES = 10  # of the log's errors, when it ends before it is ready


class _Unix(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("box", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


class Box:
    """One environment on this machine, up or not."""

    def __init__(self, job: str, state: Path | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """Its folder is `state`, or under XDG_STATE_HOME, which is ~/.local/state."""
        home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME', '')}/.local/state"
        self.job = job
        self.folder = (state or Path(home) / "vllmjobs" / job).resolve()
        self.log = self.folder / LOG

    def get(self, path: str) -> tuple[int, Json] | None:
        """What the supervisor answers, None where none runs; raises `BoxError` for one that hangs."""
        return self._ask("GET", path)

    def instances(self) -> dict[str, Json] | None:
        """Each of its servers and nginx, as /health shows it; None where none runs."""
        found = self.get("/health")
        return None if found is None else dict(found[1].get("instances", {}))

    def health(self) -> Json:
        """What its supervisor says of itself and of each; raises `BoxError` where none runs."""
        found = self.get("/health")
        if found is None:
            raise BoxError(f"{self.job} is not up on this machine")
        return found[1]

    @property
    def written(self) -> Json | None:
        """What its supervisor read last, or is to read; None where nothing was written."""
        try:
            found: Json = json.loads(self._configuration.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BoxError(f"{self._configuration} cannot be read: {error}") from error
        return found

    def write(self, configuration: Json, nginx_conf: str, names: list[str]) -> None:
        """Write what the supervisor and nginx read, and make the folders of the servers.

        Raises `BoxError`, with nothing written, when nginx refuses it.
        """
        if self._is_too_long:
            raise BoxError(f"{self.folder / SOCKET} is too long for a socket; give --state a shorter folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._try_nginx(configuration, nginx_conf)
        for name in (*names, NGINX):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / NGINX / "nginx.conf").write_text(nginx_conf)
        self._configuration.write_text(json.dumps(configuration, indent=2) + "\n")

    def run(self, environ: Mapping[str, str]) -> None:
        """Become its supervisor, which ends with this process."""
        os.execve(sys.executable, self._command, dict(environ))

    def start(self, environ: Mapping[str, str], admin_port: int) -> Iterator[Json]:
        """Start its supervisor in the background; yield its instances again and again until all are ready.

        That is when nginx says so on its admin port, too: what it is told, it reads a moment later. Raises
        `BoxError` with the end of its log when it ends before.
        """
        with self.log.open("ab") as log:
            since = log.tell()
            started = subprocess.Popen(
                self._command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            if (code := started.poll()) is not None:
                said = self.log.read_bytes()[since:].decode(errors="replace").splitlines()
                errors = [line for line in said if re.search(r'"level": ?"(ERROR|CRITICAL)"', line)] or said
                why = f"{self.job} ended with exit code {code}; the end of {self.log}:"
                raise BoxError("\n".join([why, *errors[-LAST_LINES:]]))
            health = self.get("/health") if (self.folder / SOCKET).exists() else None
            if health and (found := health[1].get("instances")):
                yield found
                lost = [f"{name} was given up: {one['why']}" for name, one in found.items() if _is_lost(one)]
                if lost and health[1]["status"] != "failed":  # else it ends by itself
                    raise BoxError(
                        "\n".join([*lost, f"see {self.log}; the others run on: vllmjobs down stops them"])
                    )
                if all(one["ready"] for one in found.values()) and _is_well(admin_port):
                    return
            time.sleep(LOOK_S)

    def log_lines(self, follow: bool) -> Iterator[str | None]:
        """The lines of its log, of its last MiB at most; None at its end, again and again with `follow`."""
        if not self.log.exists():
            raise BoxError(f"there is no {self.log}: without --detach, the log is where `up` runs")
        with self.log.open("rb") as file:
            if self.log.stat().st_size > LONGEST_LOG:
                file.seek(-LONGEST_LOG, os.SEEK_END)
                file.readline()
            while True:
                while (line := file.readline()).endswith(b"\n"):
                    yield line[:-1].decode(errors="replace")
                file.seek(-len(line), os.SEEK_CUR)  # what is not yet whole
                yield None
                if not follow:
                    return
                time.sleep(LOOK_S)

    def stop(self) -> bool:
        """Ask its supervisor to stop, and wait until it has; whether there was one."""
        if self._ask("POST", "/stop") is None:
            return False
        while self.get("/live") is not None:
            time.sleep(LOOK_S)
        return True

    def restart(self, name: str) -> None:
        """Restart one server, and wait until it is ready again; raises `BoxError` when it does not get so."""
        for _ in self._change("/restart/", [name]):
            pass

    def reload(self, secrets: Mapping[str, str]) -> list[list[str]]:
        """Let its supervisor and nginx read what was written; return which servers differ, in rounds.

        `secrets` are variables, which are not written. Raises `BoxError` where no supervisor runs.
        """
        return list(self._do("/reload", json.dumps(dict(secrets)))["rounds"])

    def reload_round(self, names: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """Let these servers become what was written; yield each with whether it serves, else it is gone.

        Raises `BoxError` when one does not get ready.
        """
        return self._change("/reload/", names)

    def wait_for_nginx(self, admin_port: int) -> None:
        """Wait until nginx knows of a server for every model."""
        while not _is_well(admin_port):
            if self.get("/live") is None:
                raise BoxError(f"{self.job} ended; see {self.log}")
            time.sleep(LOOK_S)

    def _change(self, path: str, names: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """Ask for it; yield each name once it runs anew, or is gone."""
        before = {name: one["pid"] for name, one in (self.instances() or {}).items()}
        for name in names:
            self._do(f"{path}{name}")
        left = list(names)
        while left:
            found = self.instances()
            if found is None:
                raise BoxError(f"{self.job} ended while {', '.join(left)} was changed; see {self.log}")
            for name in list(left):
                one = found.get(name)
                if one and _is_lost(one):
                    raise BoxError(f"{name} did not come back: {one['why']}; see {self.log}")
                if one is None or (one["ready"] and one["pid"] != before.get(name)):
                    left.remove(name)
                    yield name, one is not None
            time.sleep(LOOK_S if left else 0)

    def _do(self, path: str, body: str = "") -> Json:
        """Ask its supervisor for something; raises `BoxError` where it refuses, or none runs."""
        answer = self._ask("POST", path, body)
        if answer is None:
            raise BoxError(f"{self.job} is not up on this machine")
        status, said = answer
        if status >= http.client.BAD_REQUEST:
            raise BoxError(f"{self.job} refuses: {said.get('error')}")
        return said

    def _try_nginx(self, configuration: Json, nginx_conf: str) -> None:
        """Let nginx read it where nothing else does."""
        lines = [ServerLine(**one["line"]) for one in configuration["engines"] if "line" in one]
        upstreams = upstreams_text((PoolText(**one) for one in configuration["upstreams"]), lines)
        program = next(one["command"][0] for one in configuration["engines"] if one.get("is_front"))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            (Path(folder) / "nginx.conf").write_text(nginx_conf)
            (Path(folder) / UPSTREAMS).write_text(upstreams)
            command = [program, "-t", "-q", "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"]
            tried = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
        if tried.returncode:
            said = tried.stderr.replace(f"{folder}/", "").strip()
            raise BoxError(f"{program} refuses its configuration:\n{said}")

    @property
    def _configuration(self) -> Path:
        return self.folder / "supervise.json"

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-m", "vllmjobs.supervisor", "--config", str(self._configuration)]

    @property
    def _is_too_long(self) -> bool:
        """Whether no supervisor can listen there."""
        return len(os.fsencode(self.folder / SOCKET)) > LONGEST_SOCKET

    def _ask(self, method: str, path: str, body: str = "") -> tuple[int, Json] | None:
        if self._is_too_long:
            return None
        connection = _Unix(self.folder / SOCKET)
        try:
            connection.request(method, path, body or None)
            answer = connection.getresponse()
            said: Any = json.loads(answer.read())
        except (FileNotFoundError, ConnectionError, http.client.RemoteDisconnected):
            return None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise BoxError(f"{self.folder / SOCKET} does not answer: {error}") from error
        finally:
            connection.close()
        return answer.status, said


def counts_connections(nginx: str) -> bool:
    """Whether this nginx has ngx_http_stub_status_module, without which it ends on $connections_active."""
    said = subprocess.run([nginx, "-V"], check=False, capture_output=True, text=True, timeout=TIMEOUT)
    return "--with-http_stub_status_module" in said.stderr


def _is_lost(one: Json) -> bool:
    """Whether a server does not run, and is not going to."""
    return one["phase"] in ("given_up", "ended") and not one["awaited"]


def _is_well(port: int) -> bool:
    """Whether nginx has a server for every model, and no old worker takes requests any more."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/health")
        is_well = connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    time.sleep(OLD_WORKERS_S if is_well else 0)
    return is_well
