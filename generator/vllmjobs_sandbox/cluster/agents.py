"""The agents of a sandbox as processes, each by its name: consul-server, nomad-server, nomad-gpu-1 …"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vllmjobs_sandbox.cluster import consul, nomad
from vllmjobs_sandbox.cluster.process import Ignored, Process, start, stop

T = TypeVar("T")
READY = 60.0  # seconds for each agent
# As the only ones of a machine of their own: who kills the first process ends all, as a power cut does.
MACHINE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Agents:
    """Starts agents of Consul and Nomad in one folder, each with its configuration and its log.

    `more` is laid over the configurations of all agents of one program.
    """

    def __init__(
        self,
        folder: Path,
        programs: Mapping[str, Path],
        env: Mapping[str, str],
        more: Mapping[str, dict[str, Any]],
    ) -> None:
        self._folder = folder
        self._more = more
        self._programs = programs
        self._env = env
        self.running: dict[str, Process] = {}
        self._killed: dict[str, Process] = {}
        self._machines: set[str] = set()

    def start_consul(self, agent: consul.ConsulAgent, join: consul.ConsulAgent | None = None) -> str:
        """Start an agent of Consul; return its name."""
        name = f"consul-{agent.name}"
        config = self._folder / f"{name}.json"
        config.write_text(consul.config(agent, str(self._folder / name), join))
        words = ["-config-file", config, *self._laid_over("consul", "-config-file")]
        return self._start(name, [self._programs["consul"], "agent", *words])

    def start_nomad(self, agent: nomad.NomadAgent, text: str, machine: bool = False) -> str:
        """Start an agent of Nomad; return its name. As a machine, it takes its tasks with it when killed."""
        name = f"nomad-{agent.name}"
        config = self._folder / f"{name}.hcl"
        config.write_text(text)
        words = ["-config", config, *self._laid_over("nomad", "-config")]
        command: list[str | Path] = [self._programs["nomad"], "agent", *words]
        if machine:
            self._machines.add(name)
        return self._start(name, [*MACHINE, "--", *command] if machine else command)

    def kill(self, name: str) -> None:
        """End an agent at once. Its tasks run on, unless it is a machine."""
        self._killed[name] = self.running.pop(name)
        self._killed[name].kill()

    def start_again(self, name: str) -> None:
        """Start what was killed, with the data that it left."""
        self.running[name] = self._killed.pop(name).again()

    def wait_until(
        self, name: str, condition: Callable[[], T | None], what: str, ignoring: Ignored = ()
    ) -> T:
        """Wait for a condition that this agent brings about."""
        return self.running[name].wait_until(condition, READY, what, ignoring=ignoring)

    def ended(self) -> list[Process]:
        """List those that have ended by themselves."""
        return [agent for agent in self.running.values() if agent.exit_code is not None]

    def stop(self, names: Collection[str] | None = None) -> None:
        """Stop these, or all that run."""
        stopping = [self.running.pop(name) for name in list(self.running if names is None else names)]
        for process in stopping:
            if process.name in self._machines:
                process.kill()  # unshare is deaf to SIGTERM
        stop(process for process in stopping if process.name not in self._machines)

    def _laid_over(self, program: str, option: str) -> list[str | Path]:
        if program not in self._more:
            return []
        file = self._folder / f"{program}-more.json"
        file.write_text(json.dumps(self._more[program]))
        return [option, file]

    def _start(self, name: str, command: list[str | Path]) -> str:
        self.running[name] = start(name, command, self._folder / f"{name}.log", self._env)
        return name
