"""The boxes of this machine: a folder each, and the supervisor behind its socket."""

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
from vllmjobs.box.supervised import LOG, NGINX, SOCKET, UPSTREAMS
from vllmjobs.files import rotated
from vllmjobs.files.private import PrivateFolder
from vllmjobs.supervisor.core.engines import PoolText, ServerLine, upstreams_text
from vllmjobs.text.json import Json

TIMEOUT = 10.0  # seconds for an answer
POLL_S = 0.2  # between two requests
OLD_WORKERS_S = 0.2  # for 100 ms after a reload nginx's old workers take requests, too (ngx_process_cycle.c)
LONGEST_SOCKET = 107  # bytes, of sockaddr_un
LONGEST_ANSWER = 8 << 20  # bytes
LONGEST_LOG = 1 << 20  # bytes of it that are read
CONFIGURATION = "supervise.json"
LAST_LINES = 10  # of the log's errors, when it ends before it is ready


class _Unix(http.client.HTTPConnection):
    """An HTTP connection to a unix socket."""

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
        """Take the folder `state`, or one under XDG_STATE_HOME, which is ~/.local/state."""
        home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME', '')}/.local/state"
        self.job = job
        folder = (state or Path(home) / "vllmjobs" / job).absolute()
        self._files = PrivateFolder(folder, "give --state a folder of yours")
        self.folder = folder.parent.resolve() / folder.name
        self.log = self.folder / LOG

    def get(self, path: str) -> tuple[int, Json] | None:
        """Ask the supervisor; None where none runs. Raises `BoxError` for one that hangs."""
        return self._ask("GET", path)

    def instances(self) -> dict[str, Json] | None:
        """Return each server and nginx as /health shows it; None where no supervisor runs."""
        answer = self.get("/health")
        return None if answer is None else dict(answer[1].get("instances", {}))

    def health(self) -> Json:
        """Return the answer of /health; raises `BoxError` where no supervisor runs."""
        answer = self.get("/health")
        if answer is None:
            raise BoxError(f"{self.job} is not up on this machine")
        return answer[1]

    @property
    def written(self) -> Json | None:
        """Return the configuration that the supervisor read, or is to read; None where none was written."""
        try:
            configuration: Json = json.loads(self._files.read(CONFIGURATION))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BoxError(f"{self.folder / CONFIGURATION} cannot be read: {error}") from error
        return configuration

    def write(self, configuration: Json, nginx_conf: str, names: list[str]) -> None:
        """Write what the supervisor and nginx read, and make the folders of the servers.

        Raises `BoxError`, with nothing written, when nginx refuses it, and `FolderError` for a folder that
        is not this user's alone.
        """
        if self._is_too_long:
            raise BoxError(f"{self.folder / SOCKET} is too long for a socket; give --state a shorter folder")
        self._files.make()
        self._try_nginx(configuration, nginx_conf)
        for name in (*names, NGINX):
            self._files.folder(name).make()
        self._files.folder(NGINX).write("nginx.conf", nginx_conf)
        self._files.write(CONFIGURATION, json.dumps(configuration, indent=2) + "\n")

    def run(self, environ: Mapping[str, str]) -> None:
        """Become the supervisor, which ends with this process."""
        os.execve(sys.executable, self._command, dict(environ))

    def start(self, environ: Mapping[str, str], admin_port: int, down: str) -> Iterator[Json]:
        """Start the supervisor in the background; yield its instances again and again until all are ready.

        They are ready when nginx tells so on its admin port, too: it reads its file a moment later. Raises
        `BoxError` with the end of the log when the supervisor ends before. `down` is
        the command that stops it.
        """
        with os.fdopen(self._files.append(LOG), "ab") as log:
            since = log.seek(0, os.SEEK_END)
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
                lines = self.log.read_bytes()[since:].decode(errors="replace").splitlines()
                errors = [line for line in lines if re.search(r'"level": ?"(ERROR|CRITICAL)"', line)] or lines
                reason = f"{self.job} ended with exit code {code}; the end of {self.log}:"
                raise BoxError(reason, *errors[-LAST_LINES:])
            health = self.get("/health") if (self.folder / SOCKET).exists() else None
            if health and (servers := health[1].get("instances")):
                yield servers
                lost = [
                    f"{name} was given up: {server['why']}"
                    for name, server in servers.items()
                    if _is_lost(server)
                ]
                if lost and health[1]["status"] != "failed":  # else it ends by itself
                    way_out = f"see {self.log}; the others keep running: {down} stops them"
                    raise BoxError(*lost, way_out)
                if all(server["ready"] for server in servers.values()) and _is_well(admin_port):
                    return
            time.sleep(POLL_S)

    def log_lines(self, follow: bool) -> Iterator[str | None]:
        """Yield the lines of the log's last MiB; None at the end, again and again with `follow`."""
        try:
            for line in rotated.lines(self.log, LONGEST_LOG):
                yield line
                if line is None:
                    if not follow:
                        return
                    time.sleep(POLL_S)
        except FileNotFoundError as error:
            missing = f"there is no {self.log}: without --detach, `up` prints the log where it runs"
            raise BoxError(missing) from error

    def stop(self) -> bool:
        """Ask the supervisor to stop, and wait until it has; return whether there was one."""
        if self._ask("POST", "/stop") is None:
            return False
        while self.get("/live") is not None:
            time.sleep(POLL_S)
        return True

    def restart(self, name: str) -> None:
        """Restart one server, and wait until it is ready again; raises `BoxError` when it is given up."""
        for _ in self._change("/restart/", [name]):
            pass

    def reload(self, secrets: Mapping[str, str]) -> list[list[str]]:
        """Let the supervisor and nginx read what was written; return which servers differ, in rounds.

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
            time.sleep(POLL_S)

    def _change(self, path: str, names: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """Ask for a change of these servers; yield each name once it runs anew, or is gone."""
        before = {name: one["pid"] for name, one in (self.instances() or {}).items()}
        for name in names:
            self._do(f"{path}{name}")
        left = list(names)
        while left:
            servers = self.instances()
            if servers is None:
                raise BoxError(f"{self.job} ended while {', '.join(left)} was changed; see {self.log}")
            for name in list(left):
                server = servers.get(name)
                if server and _is_lost(server):
                    raise BoxError(f"{name} did not come back: {server['why']}; see {self.log}")
                if server is None or (server["ready"] and server["pid"] != before.get(name)):
                    left.remove(name)
                    yield name, server is not None
            time.sleep(POLL_S if left else 0)

    def _do(self, path: str, body: str = "") -> Json:
        """Send the supervisor a request; raises `BoxError` where it refuses, or none runs."""
        answer = self._ask("POST", path, body)
        if answer is None:
            raise BoxError(f"{self.job} is not up on this machine")
        status, content = answer
        if status >= http.client.BAD_REQUEST:
            raise BoxError(f"{self.job} refuses: {content.get('error')}")
        return content

    def _try_nginx(self, configuration: Json, nginx_conf: str) -> None:
        lines = [ServerLine(**one["line"]) for one in configuration["engines"] if "line" in one]
        upstreams = upstreams_text((PoolText(**one) for one in configuration["upstreams"]), lines)
        program = next(one["command"][0] for one in configuration["engines"] if one.get("is_front"))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            (Path(folder) / "nginx.conf").write_text(nginx_conf)
            (Path(folder) / UPSTREAMS).write_text(upstreams)
            command = [program, "-t", "-q", "-e", "stderr", "-p", f"{folder}/", "-c", "nginx.conf"]
            tried = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
        if tried.returncode:
            reason = tried.stderr.replace(f"{folder}/", "").strip()
            raise BoxError(f"{program} refuses its configuration:", *reason.splitlines())

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-m", "vllmjobs.supervisor", "--config", str(self.folder / CONFIGURATION)]

    @property
    def _is_too_long(self) -> bool:
        return len(os.fsencode(self.folder / SOCKET)) > LONGEST_SOCKET

    def _ask(self, method: str, path: str, body: str = "") -> tuple[int, Json] | None:
        if self._is_too_long:
            return None
        connection = _Unix(self.folder / SOCKET)
        try:
            connection.request(method, path, body or None)
            answer = connection.getresponse()
            text = answer.read(LONGEST_ANSWER + 1)
            content: Any = json.loads(text)
            if not isinstance(content, dict) or len(text) > LONGEST_ANSWER:
                raise ValueError("it is no JSON object of a supervisor's")
        except (FileNotFoundError, ConnectionError, http.client.RemoteDisconnected):
            return None
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise BoxError(f"{self.folder / SOCKET} does not answer: {error}") from error
        finally:
            connection.close()
        return answer.status, content


def counts_connections(nginx: str) -> bool:
    """Tell whether nginx has ngx_http_stub_status_module, without which it ends on $connections_active."""
    version = subprocess.run([nginx, "-V"], check=False, capture_output=True, text=True, timeout=TIMEOUT)
    return "--with-http_stub_status_module" in version.stderr


def _is_lost(server: Json) -> bool:
    """Tell whether a server does not run, and is not going to."""
    return server["phase"] in ("given_up", "ended") and not server["awaited"]


def _is_well(port: int) -> bool:
    """Tell whether nginx has a server for every model, and no old worker takes requests any more."""
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
