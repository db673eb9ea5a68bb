"""The layout of a sandbox: the ports of its agents and balancers, and what its folder has at the start."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vllmjobs_sandbox.cluster import consul as consul_config
from vllmjobs_sandbox.cluster import nomad as nomad_config
from vllmjobs_sandbox.cluster import ports
from vllmjobs_sandbox.cluster.programs import SOURCES, settings
from vllmjobs_sandbox.gpus.plugin.launcher import plugin_executable

BALANCERS = ("fabio", "nginx")  # they run as nobody, who cannot reach into anybody's ~/.cache
OURS = ("NOMAD_", "CONSUL_", "VAULT_", "VLLMJOBS_")  # variables that would name another cluster


@dataclass(frozen=True)
class Layout:
    """The folder, agents by name, and the ports of the balancers."""

    folder: Path
    consul: dict[str, consul_config.ConsulAgent]
    nomad: dict[str, nomad_config.NomadAgent]
    fabio: int
    fabio_admin: int
    nginx: int
    nginx_admin: int

    @classmethod
    def take(cls, folder: Path, block: ports.Block, servers: Sequence[str], nodes: Sequence[str]) -> Layout:
        """Take ports of a block: for Consul's server, for Nomad's, and for both agents of each node."""
        take = block.take
        fabio, fabio_admin, nginx, nginx_admin = take(), take(), take(), take()
        return cls(
            folder,
            {name: consul_config.ConsulAgent(name, take(), take(), take()) for name in ("server", *nodes)},
            {name: nomad_config.NomadAgent(name, take(), take(), take()) for name in (*servers, *nodes)},
            fabio,
            fabio_admin,
            nginx,
            nginx_admin,
        )

    @property
    def path(self) -> str:
        """Return PATH, with the programs of the sandbox first."""
        return f"{self.folder}/bin:{os.environ.get('PATH', os.defpath)}"

    @property
    def settings(self) -> Path:
        """Return the file that the environments of a sandbox extend."""
        return self.folder / "sandbox.yaml"

    def health_file(self, node: str) -> Path:
        """Return the file that the simulated GPUs of a node read their health from."""
        return self.folder / f"{node}.health.json"

    def write(self, nodes: Sequence[str], programs: Mapping[str, Path]) -> None:
        """Make the folder: programs by name, the device plugin, a project with the environments."""
        for name in ("bin", "envs", "plugins", "tmp"):
            (self.folder / name).mkdir(parents=True)
        # Open to nobody, too, as whom the balancers run: Nomad would make its own folder 700.
        for name in (".", "bin", *nodes):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).chmod(0o755)
        for name, program in programs.items():
            _provide(program, self.folder / "bin" / name)
        plugin = self.folder / "plugins" / "simgpu"
        plugin.write_text(plugin_executable(sys.executable, str(SOURCES)))
        plugin.chmod(0o755)
        self.settings.write_text(settings())
        self._write_environment("dev", port=self.fabio, admin_port=self.fabio_admin)
        self._write_environment("dev-nginx", kind="nginx", port=self.nginx, admin_port=self.nginx_admin)

    def write_env(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Write a file to source, with these variables; return the environment that it makes."""
        exports = [f"export {key}={value}" for key, value in variables.items()]
        exports.append(f'export PATH={self.folder}/bin:"$PATH"')
        (self.folder / "env").write_text("\n".join(exports) + "\n")
        own = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        return {**own, **variables, "PATH": self.path}

    def _write_environment(self, name: str, **balancer: object) -> None:
        told = {
            "extends": str(self.settings),
            "job": "vllm-dev",
            "balancer": {"consul": self.consul["server"].address, **balancer},
        }
        (self.folder / "envs" / f"{name}.yaml").write_text(yaml.safe_dump(told, sort_keys=False))


def _provide(program: Path, path: Path) -> None:
    if path.name in BALANCERS:
        shutil.copy(program.resolve(), path)
        path.chmod(0o755)
    else:
        path.symlink_to(program)
