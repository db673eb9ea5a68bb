"""A Docker of the tests' own, which shares nothing with one that is on the machine, and an image for it.

The image holds static programs of this machine and a script that plays the engine: no registry is needed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vllmjobs_sandbox.cluster import leftovers, nginx, ports
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import Process, start, stop
from vllmjobs_sandbox.cluster.programs import programs

IMAGE = "vllmjobs-test/engine:1"  # and of the balancers
ENGINE = "/bin/engine"
APPLETS = ("cat", "df", "httpd", "sh", "touch")
# A shell as process 1 can be told to end; httpd there would be deaf to SIGTERM, as any process 1 without a
# handler is.
SCRIPT = """\
#!/bin/sh
for word; do
  case $word in
    --host=*) host=${word#*=} ;;
    --port=*) port=${word#*=} ;;
  esac
done
trap 'kill $!; exit 0' TERM
httpd -f -p "$host:$port" -h /www &
wait
"""
# Without an entry, a user that is given by number alone is of the group 0.
PASSWD = "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
READY = 30.0
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
NEEDED = ("dockerd", "containerd", "runc", "docker-proxy", "docker", "busybox")


class Docker:
    """A context: dockerd is up when it is entered, and gone with all that it made when it is left.

    Its bridge has a name and addresses of its own, and no firewall rule is written: ports are published by
    docker-proxy. In its folder, a killed one is found and removed by the next sandbox.
    """

    def __enter__(self) -> Docker:
        if missing := [name for name in NEEDED if not shutil.which(name, path=PATH)]:
            raise SandboxError(f"not on PATH: {', '.join(missing)}; run scripts/engine, which installs them")
        self.ports = ports.take_block()
        self.folder = leftovers.folder_of(Path(tempfile.gettempdir()), self.ports)
        self._bridge = f"vllmjobs{self.ports.first}"
        self._processes: list[Process] = []
        self.host = f"unix://{self.folder}/docker.sock"
        self._env = {"HOME": str(self.folder), "PATH": PATH, leftovers.MARK: str(self.folder)}
        try:
            leftovers.remove(self.folder)
            self._start()
            self._import_image()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def cli(self, *args: str, input: bytes | None = None) -> str:
        """Run the `docker` command; what it printed."""
        return self._run(["docker", *args], input)

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what Docker knows of a container."""
        found: dict[str, Any] = json.loads(self.cli("inspect", container))[0]
        return found

    def _start(self) -> None:
        self._remove_bridge()
        number = (self.ports.first - ports.FIRST) // ports.SIZE
        self._run(["busybox", "brctl", "addbr", self._bridge])
        # 198.18.0.0/15 is kept for benchmarks: no machine is reached there.
        self._run(["busybox", "ip", "address", "add", f"198.18.{number}.1/24", "dev", self._bridge])
        self._run(["busybox", "ip", "link", "set", self._bridge, "up"])
        config = self.folder / "daemon.json"
        settings = {
            "hosts": [self.host],
            "group": str(os.getegid()),
            "data-root": f"{self.folder}/data",
            "exec-root": f"{self.folder}/exec",
            "pidfile": f"{self.folder}/dockerd.pid",
            "bridge": self._bridge,
            "iptables": False,
            "ip6tables": False,
            "ip-masq": False,
            "ip-forward": False,
            "runtimes": {"nvidia": {"path": shutil.which("runc", path=PATH)}},
        }
        self.folder.mkdir()
        config.write_text(json.dumps(settings, indent=2))
        log = self.folder / "dockerd.log"
        daemon = start("dockerd", ["dockerd", "--config-file", config], log, self._env)
        self._processes.append(daemon)
        daemon.wait_until(lambda: self.cli("version"), READY, "Docker answers", ignoring=(SandboxError,))

    def _stop(self) -> None:
        """Stop the containers first: a dockerd that cannot end them in time leaves them running."""
        with suppress(SandboxError):
            self.cli("rm", "--force", "--volumes", *self.cli("ps", "--all", "--quiet").split())
        stop(self._processes)
        leftovers.remove(self.folder)
        self._remove_bridge()
        self.ports.release()

    def _remove_bridge(self) -> None:
        if Path(f"/sys/class/net/{self._bridge}").exists():
            self._run(["busybox", "ip", "link", "set", self._bridge, "down"])
            self._run(["busybox", "brctl", "delbr", self._bridge])

    def _import_image(self) -> None:
        busybox = Path(shutil.which("busybox", path=PATH) or "")
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            _add(tar, "bin/busybox", busybox.read_bytes(), 0o755)
            _add(tar, "bin/fabio", programs()["fabio"].read_bytes(), 0o755)
            # Not the nginx on PATH, which needs the libraries of this machine.
            _add(tar, "bin/nginx", nginx.of_wheel().read_bytes(), 0o755)
            _add(tar, ENGINE[1:], SCRIPT.encode(), 0o755)
            _add(tar, "etc/passwd", PASSWD.encode(), 0o644)
            for path in ("health", "v1/models"):
                _add(tar, f"www/{path}", b"", 0o644)
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        fabio = 'ENTRYPOINT ["/bin/fabio"]'  # as in Fabio's own image
        self.cli("import", "--change", fabio, "-", IMAGE, input=archive.getvalue())

    def _run(self, command: list[str], input: bytes | None = None) -> str:
        env = self._env | {"DOCKER_HOST": self.host}
        ended = subprocess.run(
            [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
            input=input,
            env=env,
            check=False,
            capture_output=True,
        )
        if ended.returncode:
            said = ended.stderr.decode(errors="replace").strip()
            raise SandboxError(f"exit code {ended.returncode} from: {' '.join(command)}\n{said}")
        return ended.stdout.decode()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))
