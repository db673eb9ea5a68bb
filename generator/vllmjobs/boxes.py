"""The boxes of this machine: a folder each, and the supervisor behind its socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllmjobs.box.servers import LOOPBACK, BoxError
from vllmjobs.box.supervised import NGINX, SOCKET, Json

TIMEOUT = 10.0  # seconds for an answer
LOOK_S = 0.2  # between two looks
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

    def post(self, path: str) -> tuple[int, Json] | None:
        """The same for what changes something."""
        return self._ask("POST", path)

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

    def write(self, configuration: Json, nginx_conf: str, names: list[str]) -> None:
        """Write what the supervisor and nginx read, and make the folders of the servers."""
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
                errors = [line for line in said if re.search(r'"level": ?"ERROR"', line)] or said
                why = f"{self.job} ended with exit code {code}; the end of {self.log}:"
                raise BoxError("\n".join([why, *errors[-LAST_LINES:]]))
            found = self.instances() if (self.folder / SOCKET).exists() else None
            if found:
                yield found
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
        if self.post("/stop") is None:
            return False
        while self.get("/live") is not None:
            time.sleep(LOOK_S)
        return True

    def restart(self, name: str) -> None:
        """Restart one server, and wait until it is ready again; raises `BoxError` when it does not get so."""
        before = (self.instances() or {}).get(name)
        answer = self.post(f"/restart/{name}")
        if answer is None or before is None:
            raise BoxError(f"{self.job} is not up on this machine, or has no server {name}")
        status, body = answer
        if status != 202:
            raise BoxError(f"{name} is {body.get('phase')}, and not ready: it cannot be restarted now")
        while True:
            one = (self.instances() or {}).get(name, {"phase": "ended", "why": "the supervisor ended"})
            if one["phase"] in ("given_up", "ended"):
                raise BoxError(f"{name} did not come back: {one['why']}; see {self.log}")
            if one["ready"] and one["restarts"] > before["restarts"]:
                return
            time.sleep(LOOK_S)

    @property
    def _configuration(self) -> Path:
        return self.folder / "supervise.json"

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-m", "vllmjobs.supervisor", "--config", str(self._configuration)]

    def _ask(self, method: str, path: str) -> tuple[int, Json] | None:
        connection = _Unix(self.folder / SOCKET)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body: Any = json.loads(answer.read())
        except (FileNotFoundError, ConnectionError, http.client.RemoteDisconnected):
            return None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise BoxError(f"{self.folder / SOCKET} does not answer: {error}") from error
        finally:
            connection.close()
        return answer.status, body


def _is_well(port: int) -> bool:
    """Whether nginx has a server for every model."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
