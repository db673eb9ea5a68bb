"""The settings of `vllmjobs-supervise`: from its command line, its environment, or a file."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vllmjobs.supervisor.core.asking import started_for
from vllmjobs.supervisor.core.engines import PORT, Engine, PoolText, ServerLine
from vllmjobs.supervisor.core.model import Child, SupervisionLimits, SupervisorSpec
from vllmjobs.supervisor.log.rotation import RotatedLog
from vllmjobs.supervisor.tokens import OURS_ALONE

ADMIN_PORT = 8090
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

USAGE = """\
usage: vllmjobs-supervise [OPTIONS] -- COMMAND [ARGUMENT ...]
       vllmjobs-supervise --config FILE

Starts COMMAND, such as `vllm serve MODEL`, restarts it when it ends, and ends
with it when it is told to. Times are as Nomad writes them: 15s, 2m.

  --name NAME            its name in logs and metrics; NOMAD_GROUP_NAME, or vllm
  --admin-host HOST      where /live, /ready, /health and /metrics are; NOMAD_IP_admin,
                         or all addresses
  --admin-port PORT      NOMAD_PORT_admin, or 8090
  --load-timeout TIME    from a start to the first answer; 30m
  --hang-timeout TIME    without any progress, as in the longest prefill; 2m
  --drain-timeout TIME   for the answers on their way; 15s
  --leave TIME           for a balancer to notice, before the drain; 0s
  --term-timeout TIME    from SIGTERM to SIGKILL; 10s
  --restarts N           in ten minutes, before it gives up with exit code 1; 3
  --log-rate N           lines a second of each stream, 0 for all; 2000
  --config FILE          all of it for several children, as JSON
  --version, --help

Each option can be a variable too: VLLMJOBS_DRAIN_TIMEOUT=15s.
The first SIGTERM or SIGINT drains, the second ends the drain, the third kills.
Exit codes: 0 stopped as asked, 1 given up, 2 wrong usage, 70 a GPU is broken.
"""


class SettingsError(Exception):
    """A setting that is wrong, in one line."""


@dataclass(frozen=True)
class Settings:
    """All the settings of one supervisor."""

    engines: tuple[Engine, ...]
    identity: str  # the mark by which a next supervisor knows what this one has left
    admin_host: str = ""  # the address of the admin port; all addresses when empty
    admin_port: int = ADMIN_PORT
    admin_path: str | None = None  # a unix socket instead of the port, on which restarts can be asked for
    limits: SupervisionLimits = field(default_factory=SupervisionLimits)
    min_alive: int = 1
    log_rate: float = 2000.0  # the lines a second of each stream that are let through; 0 for all
    log: RotatedLog | None = None  # the file that stdout leads to, where the supervisor rotates it
    upstreams_path: str | None = None  # where the balancer in front reads who is ready, anew on SIGHUP
    upstreams: tuple[PoolText, ...] = ()  # the texts of that file
    secrets: tuple[str, ...] = ()  # the variables of the engines that a balancer in front does not get
    path: str | None = None  # the file that the settings were read from, and may be again

    @property
    def spec(self) -> SupervisorSpec:
        """Return the part that the decisions need."""
        children = tuple(Child(engine.name, engine.gpus, engine.is_front) for engine in self.engines)
        return SupervisorSpec(children, self.limits, self.min_alive, seed=os.getpid())


_TIMES = {
    "--load-timeout": "load", "--hang-timeout": "hang", "--drain-timeout": "drain", "--leave": "leave",
    "--term-timeout": "term",
}  # fmt: skip
_OTHERS = ("--name", "--admin-host", "--admin-port", "--restarts", "--log-rate")
_VARIABLES = {one: f"VLLMJOBS_{one[2:].replace('-', '_').upper()}" for one in (*_TIMES, *_OTHERS)}


def read(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the command line, or the file that it names; raises `SettingsError`."""
    options, command = _split(arguments)
    if file := options.pop("--config", None):
        if options or command:
            raise SettingsError("--config holds all settings: give it alone")
        return read_file(file, environ)
    given = {option: environ[name] for option, name in _VARIABLES.items() if name in environ}
    options = given | options
    if not command:
        raise SettingsError("nothing to supervise: give the command after --, as in -- vllm serve MODEL")
    times = [option for option in _TIMES if option in options]
    limits: dict[str, Any] = {_TIMES[option]: seconds(options[option], option) for option in times}
    if "--restarts" in options:
        limits["restarts"] = limits["restarts_never_ready"] = _whole(options["--restarts"], "--restarts")
    name = options.get("--name") or environ.get("NOMAD_GROUP_NAME") or "vllm"
    admin_port = options.get("--admin-port") or environ.get("NOMAD_PORT_admin") or str(ADMIN_PORT)
    place = environ.get("NOMAD_ALLOC_ID") or os.uname().nodename
    return Settings(
        engines=(engine(name, command, environ),),
        identity=f"{place}/{name}:{admin_port}",  # no other that lives has this port
        admin_host=options.get("--admin-host") or environ.get("NOMAD_IP_admin") or "",
        admin_port=_port(admin_port, "--admin-port"),
        limits=SupervisionLimits(**limits),
        log_rate=float(_whole(options.get("--log-rate", "2000"), "--log-rate")),
    )


def engine(name: str, command: Sequence[str], environ: Mapping[str, str]) -> Engine:
    """Take the address, the model and the key from the arguments of `vllm serve`, the GPUs from `environ`."""
    env = {name: value for name, value in environ.items() if name not in OURS_ALONE}
    return Engine(name, tuple(command), env, **derived(command, env), gpus=_gpus(env))


def derived(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of an `Engine` that a command and its variables tell. Raises `SettingsError`.

    Options are read as vLLM's parser reads them: `--api-key K`, `--api-key=K`, and with `_` for `-`.
    """

    def argument(flag: str) -> str | None:
        for number, word in enumerate(command):
            option, equals, value = word.partition("=")
            if option.replace("_", "-") == flag and (equals or number + 1 < len(command)):
                return value if equals else command[number + 1]
        return None

    return {
        "host": argument("--host") or "127.0.0.1",
        "port": _port(argument("--port") or str(PORT), "--port"),
        "served_name": argument("--served-model-name"),
        "model": started_for(command) or argument("--model"),
        "tls": argument("--ssl-certfile") is not None,
        "api_key": argument("--api-key") or env.get("VLLM_API_KEY"),
    }


def _gpus(env: Mapping[str, str]) -> tuple[str, ...]:
    visible = env.get("CUDA_VISIBLE_DEVICES") or env.get("NVIDIA_VISIBLE_DEVICES") or ""
    return () if visible in ("all", "none", "void") else tuple(filter(None, visible.split(",")))


def seconds(text: str, place: str) -> float:
    """Read a time such as 15s or 1m30s; raises `SettingsError`."""
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", text):
        raise SettingsError(f"{place} is {text!r}: a time has a unit, as in 15s, 2m or 1m30s")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", text))


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    words = list(arguments)
    command: tuple[str, ...] = ()
    if "--" in words:
        command = tuple(words[words.index("--") + 1 :])
        words = words[: words.index("--")]
    options: dict[str, str] = {}
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option not in (*_VARIABLES, "--config"):
            raise SettingsError(f"no such option: {option}; the command comes after --")
        if not equals:
            if not words:
                raise SettingsError(f"{option} needs a value")
            value = words.pop(0)
        options[option] = value
    return options, command


def read_file(path: str, environ: Mapping[str, str]) -> Settings:
    """Read what `vllmjobs up` writes: `Settings`, with `env` laid over `environ`. Raises `SettingsError`."""
    try:
        with open(path) as file:  # noqa: PTH123 (pathlib takes half a megabyte)
            content = json.load(file)
        secrets = tuple(content.get("secrets", ()))
        engines = tuple(_told(one, environ, secrets) for one in content.pop("engines"))
        unknown = content.keys() - {field.name for field in fields(Settings)}
        if unknown:
            raise SettingsError(f"{path}: unknown keys: {', '.join(sorted(unknown))}")
        limits = SupervisionLimits(**content.pop("limits", {}))
        pools = tuple(PoolText(**pool) for pool in content.pop("upstreams", ()))
        log = RotatedLog(**content["log"]) if content.get("log") else None
        content |= {"secrets": secrets, "path": path, "log": log}
        return Settings(engines=engines, limits=limits, upstreams=pools, **content)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(f"{path} is not a configuration of vllmjobs-supervise: {error}") from error


def _told(told: Mapping[str, Any], environ: Mapping[str, str], secrets: Collection[str]) -> Engine:
    """Return an engine of a file: what its command and variables tell, and what the file says over it.

    A balancer gets no secrets. Without `gpus` in the file, they are those of the engine's own `env`: what the
    supervisor itself sees belongs to all engines.
    """
    own, command = told.get("env", {}), tuple(told["command"])
    left_out = (*OURS_ALONE, *secrets) if told.get("is_front") else OURS_ALONE
    env = {**{name: value for name, value in environ.items() if name not in left_out}, **own}
    known = {} if told.get("is_front") else derived(command, env)
    line = ServerLine(**told["line"]) if "line" in told else None
    gpus = tuple(told.get("gpus", _gpus(own)))
    return Engine(**{**known, **told, "command": command, "env": env, "gpus": gpus, "line": line})


def _whole(text: str, place: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise SettingsError(f"{place} is {text!r}: it must be a whole number, 0 or more")
    return int(text)


def _port(text: str, place: str) -> int:
    if not 0 < _whole(text, place) < 65536:
        raise SettingsError(f"{place} is {text}: a port is 1 to 65535")
    return int(text)
