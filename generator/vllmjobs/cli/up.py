"""`up`, `reload`, `restart`, `down`: a whole environment on this machine, without Nomad."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click

from vllmjobs.box import supervised
from vllmjobs.box.machine import Box, counts_connections
from vllmjobs.box.servers import BoxError, Machine, Place, missing, passed_over, secrets_of, servers, visible
from vllmjobs.cli.box import find_box
from vllmjobs.cli.common import PROJECT, SETTINGS, Selection, with_selection
from vllmjobs.environment.load import contents, load_file
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import InvalidEnvironmentError
from vllmjobs.gpus.nvml import cards
from vllmjobs.importing.imported import imported, of_the_box, without_caches
from vllmjobs.render.job import Templates, nginx_conf
from vllmjobs.terminal.printing import tell

UNNAMED = "box"  # what is made of an .env file
ENV_FILE = click.option(
    "--env-file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Use this .env or instances.config of balanced-vllm-docker, unchanged, instead of envs/ENV.yaml.",
)  # fmt: skip
STATE = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False),
    help="Folder for files and logs. The default is vllmjobs/JOB in $XDG_STATE_HOME or ~/.local/state.",
)  # fmt: skip
ENV = click.argument("env", default=UNNAMED)


@click.command()
@ENV
@ENV_FILE
@click.option("--detach", "-d", is_flag=True,
              help="Wait until all servers are ready, then leave them in the background.")  # fmt: skip
@STATE
@SETTINGS
@PROJECT
@with_selection
def up(selection: Selection, env_file: Path | None, detach: bool, state: Path | None) -> None:
    """Run ENV on this machine: servers and nginx.

    Each server of ENV gets GPUs of its own, found with NVML, and a port from ports.base upwards. nginx stands
    in front with the routes of the cluster, and with /v1/NAME-N/ for each server. vllmjobs-supervise keeps
    all of them running. On Ctrl-C it lets the requests under way finish, then stops everything. Secrets come
    from variables of this shell, or from the .env file.
    """
    asked = _read(selection, env_file)
    box = Box(asked.environment.job or "", state)
    stop = _down(selection, box, state)
    if box.get("/live"):
        change = selection.command("reload", *_typed(env_file, state))
        raise BoxError(f"{box.job} is up already; {stop} stops it, {change} changes it")
    _write(box, asked, selection.templates, {})
    environ = {**os.environ, **asked.secrets}
    for variable in missing(asked.environment, environ):
        tell(f"warning: {variable} is not set, but a server needs it")
    if detach:
        printed: set[str] = set()
        for instances in box.start(environ, asked.environment.balancer.admin_port, stop):
            for name in sorted(name for name, one in instances.items() if one["ready"]):
                if name not in printed:
                    printed.add(name)
                    tell(f"{name} is ready")
        tell(f"{box.job} is ready; its log is {box.log}")
    else:
        box.run(environ)


@click.command()
@ENV
@ENV_FILE
@STATE
@SETTINGS
@PROJECT
@with_selection
def reload(selection: Selection, env_file: Path | None, state: Path | None) -> None:
    """Apply what changed in ENV on this machine.

    Routes change at once, in nginx. Servers that differ are replaced one after the other: each first finishes
    its requests, and the next waits until the one before is ready. No request is dropped where a model has
    two servers. Then new servers start, and at last those that are gone from ENV stop. Servers that do not
    differ keep running, with their GPUs and ports. The reload ends at the first server that does not become
    ready; the others run on as they were. Give it the same --set and --env-file as `up`, with the new values.
    """
    asked = _read(selection, env_file)
    box = Box(asked.environment.job or "", state)
    if not box.get("/live"):
        start = selection.command("up", *_typed(env_file, state))
        raise BoxError(f"{box.job} is not up on this machine; {start} starts it")
    _write(box, asked, selection.templates, supervised.places(box.written) if box.written else {})
    rounds = box.reload(asked.secrets)
    for names in rounds:
        for name, serves in box.reload_round(names):
            tell(f"{name} is {'ready' if serves else 'stopped'}")
    box.wait_for_nginx(asked.environment.balancer.admin_port)
    tell(f"{box.job} is reloaded" if rounds else f"{box.job}: no server has changed")


@click.command()
@ENV
@STATE
@PROJECT
@with_selection
def down(selection: Selection, state: Path | None) -> None:
    """Stop ENV on this machine.

    Requests under way may finish first, for as long as drain.longest_stream says.
    """
    box = find_box(selection, state)
    tell(f"{box.job} {'is stopped' if box.stop() else 'is not up on this machine'}")


@click.command()
@ENV
@click.argument("name", required=False)
@STATE
@PROJECT
@with_selection
def restart(selection: Selection, name: str | None, state: Path | None) -> None:
    """Restart servers of ENV on this machine.

    NAME is a server (chat-0) or a model (chat). Without NAME, all servers of ENV restart. They restart one
    after the other: each first finishes its requests, and the next waits until the one before is ready. No
    request is dropped where a model has two servers.
    """
    box = find_box(selection, state)
    there = [one for one in box.instances() or () if one != supervised.NGINX]
    if not there:
        raise click.ClickException(f"{box.job} is not up on this machine")
    chosen = [one for one in there if name in (None, one, one.rpartition("-")[0])]
    if not chosen:
        raise click.ClickException(f"{box.job} has no server {name}; it has {', '.join(there)}")
    for one in chosen:
        box.restart(one)
        tell(f"{one} is ready again")


def _typed(env_file: Path | None, state: Path | None) -> list[str]:
    options = (("--env-file", env_file), ("--state", state))
    return [word for option, path in options if path is not None for word in (option, str(path))]


def _down(selection: Selection, box: Box, state: Path | None) -> str:
    """Return the command that stops a box.

    `down` has neither --set nor --env-file, so it is given the folder where these name another job.
    """
    plain = replace(selection, settings=())
    folder = box.folder if state is None and find_box(plain).folder != box.folder else state
    return plain.command("down", *_typed(None, folder))


class _Asked(NamedTuple):
    """An environment that is to run here, with what this shell or an .env file adds to it."""

    environment: Environment
    takes_all: bool  # a server takes every GPU
    secrets: dict[str, str]  # the secrets that are known, by variable
    hf_home: str  # the folder of the models' cache
    gpus: str | None  # CUDA_VISIBLE_DEVICES


def _write(box: Box, asked: _Asked, templates: Templates, before: Mapping[str, Place]) -> None:
    """Write what the supervisor and nginx of the box are to read, and print which server runs where."""

    environment = asked.environment
    name = environment.balancer.command or supervised.NGINX
    nginx = shutil.which(name)
    if nginx is None:
        raise BoxError(f"{name} is not on PATH; install it (Debian: nginx-light), or set balancer.command")
    found, why = cards()
    machine = Machine(visible(found, asked.gpus), str(box.folder), asked.hf_home, asked.takes_all)
    own = servers(environment, machine, before)
    conf = supervised.nginx_conf(
        environment,
        nginx_conf(environment, templates, supervised.instances(own), metrics=counts_connections(nginx)),
    )
    configuration = supervised.configuration(environment, own, str(box.folder), nginx)
    box.write(configuration, conf, [one.name for one in own])
    if why:
        tell(f"{why}; the servers get no GPU")
    for sentence in passed_over(environment, machine.cards, own):
        tell(sentence)
    indexes = {card.uuid: card.index for card in found}
    for one in own:
        gpus = ", ".join(f"GPU {indexes[uuid]}" for uuid in one.place.gpus) or "no GPU"
        tell(f"{one.name}: {one.served_name} on {gpus}, port {one.place.port}")


def _read(selection: Selection, env_file: Path | None) -> _Asked:
    """Return what is to run: the selected environment, or the .env file in its place; print its notes."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    if env_file is None:
        environment = selection.environment
        secrets = {name: os.environ[name] for name in secrets_of(environment) & os.environ.keys()}
        return _Asked(environment, False, secrets, cache, gpus)
    text = contents(env_file).decode(errors="surrogateescape")
    written = imported(text, str(env_file), selection.env, None)
    loaded = load_file(Path(f"{selection.env}.yaml"), selection.settings, lambda _: written.text.encode())
    if loaded.environment is None or loaded.problems:
        raise InvalidEnvironmentError(loaded.problems)
    for note in written.notes:
        if not note.is_of_a_fleet:
            tell(str(note))
    of_box = of_the_box(text, str(env_file))
    environment = without_caches(loaded.environment)
    cache = str(env_file.absolute().parent / (of_box.cache or cache))
    return _Asked(environment, of_box.takes_all, of_box.secrets, cache, of_box.gpus or gpus)
