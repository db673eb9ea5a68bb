"""The configuration that is supervised, and the reload of the file it was read from."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace

from vllmjobs.supervisor.children import Children
from vllmjobs.supervisor.core.engines import Engine, differences, rounds, settled
from vllmjobs.supervisor.core.model import OVER, Added, Handle, Log, LogEvent, RemoveAsked, State, Tick
from vllmjobs.supervisor.front import Front
from vllmjobs.supervisor.gpu.monitor import GpuMonitor
from vllmjobs.supervisor.settings import Settings, SettingsError, read_file


class Configuration:
    """The settings in force, and the engines that are to take another's place."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Begin with all engines of `settings`; `environ` is what a reload lays the secrets over."""
        self.settings = settings
        self.spec = settings.spec
        self.awaited: dict[str, Engine | None] = {}  # what engines become when they are over; None for no one
        self._wanted = {engine.name: engine for engine in settings.engines}  # as the file last had it
        self._environ = dict(environ)

    def read_again(self, secrets: str) -> tuple[dict[str, list[str]], list[list[str]]]:
        """Take all of the file but its engines, which are reloaded one by one; a balancer is taken at once.

        Returns the differences of the engines, and the rounds in which they are to be reloaded. `secrets` are
        variables as JSON, or nothing. Raises `SettingsError`; then nothing has changed.
        """
        assert self.settings.path
        try:
            environ = self._environ | json.loads(secrets or "{}")
        except (ValueError, TypeError) as error:
            raise SettingsError(str(error)) from error
        settings = read_file(self.settings.path, environ)
        self._environ, self._wanted = environ, {engine.name: engine for engine in settings.engines}
        self.awaited = {name: self._wanted.get(name) for name in self.awaited}
        engines = tuple(
            self._wanted.get(engine.name, engine) if engine.is_front else engine
            for engine in self.settings.engines
        )
        self._take(replace(settings, engines=engines))
        return differences(engines, settings.engines), rounds(engines, settings.engines)

    def wanted(self, name: str) -> Engine | None:
        """Return the engine of that name in the file as it was last read."""
        return self._wanted.get(name)

    def same_again(self, name: str) -> Engine | None:
        """Return what a child becomes by a restart: what it is, or is to become already."""
        engines = {engine.name: engine for engine in self.settings.engines}
        return self.awaited.get(name) or engines.get(name)

    def settle(self, over: Collection[str]) -> tuple[str, ...] | None:
        """Let go of engines that are over and no longer wanted; take those that waited for their place.

        Returns the names of those that begin; None when nothing has changed.
        """
        engines, coming = settled(self.settings.engines, self.awaited, over)
        if not coming and len(engines) == len(self.settings.engines):
            return None
        names = {engine.name for engine in engines}
        self.awaited = {
            name: engine
            for name, engine in self.awaited.items()
            if name not in coming and (engine or name in names)
        }
        self._take(replace(self.settings, engines=engines))
        return coming

    def _take(self, settings: Settings) -> None:
        self.settings, self.spec = settings, settings.spec


class Reload:
    """The requests to reload the configuration, and to restart or reload one child."""

    def __init__(
        self,
        configuration: Configuration,
        children: Children,
        gpus: GpuMonitor,
        front: Front,
        handle: Handle,
        log: Log,
    ) -> None:
        self._configuration, self._children, self._gpus, self._front = configuration, children, gpus, front
        self._handle, self._log = handle, log

    def read_again(self, secrets: str) -> list[list[str]]:
        """Read the configuration again; return the rounds of its reload. Raises `SettingsError`."""
        changes, in_rounds = self._configuration.read_again(secrets)
        for engine in self._configuration.settings.engines:
            self._children.running[engine.name].engine = engine
        self._front.configuration_changed()
        self._log(LogEvent("configuration_read", fields=changes))
        self._handle(Tick())
        return in_rounds

    def become(self, name: str, engine: Engine | None) -> None:
        """End a child; once it is over another begins, or none."""
        self._configuration.awaited[name] = engine
        self._handle(RemoveAsked(name))

    def settle(self, state: State) -> None:
        """Let go of engines that are over and no longer wanted; begin with those that wait for a place."""
        if state.is_stopping:
            return
        over = {name for name, child in state.children.items() if child.phase in OVER}
        if (begun := self._configuration.settle(over)) is not None:
            self._children.take(self._configuration.settings, begun)
            self._gpus.watch(self._configuration.spec.children)
            self._handle(Added(begun))
