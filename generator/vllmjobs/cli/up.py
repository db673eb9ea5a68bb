"""`up`, `reload`, `restart`, `down`: a whole environment on this machine, without Nomad."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from vllmjobs.cli.common import PROJECT, SETTINGS

if TYPE_CHECKING:
    from vllmjobs.box.machine import Box
    from vllmjobs.box.servers import Place
    from vllmjobs.environment.model import Environment
    from vllmjobs.importing.one_box import OfTheBox

UNNAMED = "box"  # what is made of an .env file
ENV_FILE = click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="An .env or instances.config of balanced-vllm-docker, as it is, in place of envs/ENV.yaml.",
)
STATE = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of its files and logs; $XDG_STATE_HOME/vllmjobs/JOB, or under ~/.local/state.",
)
ENV = click.argument("env", default=UNNAMED)


@click.command()
@ENV
@ENV_FILE
@click.option("--detach", "-d", is_flag=True, help="Leave it in the background once all of it is ready.")
@STATE
@SETTINGS
@PROJECT
def up(
    env: str,
    env_file: Path | None,
    detach: bool,
    state: Path | None,
    settings: tuple[str, ...],
    project: Path,
) -> None:
    """Run ENV on this machine: servers and nginx.

    Each server of ENV gets GPUs of its own, which NVML tells, and a port from ports.base upwards; nginx
    stands in front with the routes of the cluster, and /v1/NAME-N/ for each server. vllmjobs-supervise keeps
    them up, and stops all of it on Ctrl-C: what is being answered first. Secrets are taken from variables of
    this shell, or from the .env file.
    """
    from vllmjobs.box.servers import BoxError, missing  # noqa: PLC0415

    asked = _read(env, env_file, settings, project)
    box = _box(asked.environment, state)
    if box.get("/live"):
        raise BoxError(
            f"{box.job} is up already; vllmjobs down {env} stops it, vllmjobs reload {env} changes it"
        )
    _write(box, asked, project, {})
    environ = {**os.environ, **asked.secrets}
    for variable in missing(asked.environment, environ):
        click.echo(f"warning: {variable} is not set, and a server is to have it", err=True)
    if detach:
        _wait(box, environ, asked.environment.balancer.admin_port)
        click.echo(f"{box.job} is ready; its log is {box.log}", err=True)
    else:
        box.run(environ)


@click.command()
@ENV
@ENV_FILE
@STATE
@SETTINGS
@PROJECT
def reload(
    env: str, env_file: Path | None, state: Path | None, settings: tuple[str, ...], project: Path
) -> None:
    """Apply what changed in ENV on this machine.

    Routes at once, in nginx. Servers that differ one after the other, each when it has answered what it was
    asked and once the one before is ready: no request is dropped where a model has two. New ones are started
    then, and those that are gone stopped last. Servers that do not differ are left alone, with their GPUs and
    ports. It ends at the first that does not get ready: the others run on as they were. Give it the --set and
    --env-file that are to be, as for `up`.
    """
    from vllmjobs.box.servers import BoxError  # noqa: PLC0415
    from vllmjobs.box.supervised import places  # noqa: PLC0415

    asked = _read(env, env_file, settings, project)
    box = _box(asked.environment, state)
    if not box.get("/live"):
        raise BoxError(f"{box.job} is not up on this machine; vllmjobs up {env} starts it")
    _write(box, asked, project, places(box.written) if box.written else {})
    rounds = box.reload(asked.secrets)
    for names in rounds:
        for name, serves in box.reload_round(names):
            click.echo(f"{name} is {'ready' if serves else 'stopped'}", err=True)
    box.wait_for_nginx(asked.environment.balancer.admin_port)
    click.echo(f"{box.job} is reloaded" if rounds else f"{box.job}: no server differs", err=True)


@click.command()
@ENV
@STATE
@PROJECT
def down(env: str, state: Path | None, project: Path) -> None:
    """Stop ENV on this machine.

    What is being answered is waited for, as drain.longest_stream says.
    """
    box = find_box(env, state, project)
    if box.stop():
        click.echo(f"{box.job} is stopped", err=True)
    else:
        click.echo(f"{box.job} is not up on this machine", err=True)


@click.command()
@ENV
@click.argument("name", required=False)
@STATE
@PROJECT
def restart(env: str, name: str | None, state: Path | None, project: Path) -> None:
    """Restart servers of ENV on this machine.

    NAME is a server (chat-0) or a model (chat); all of ENV without it. One after the other, each when it has
    answered what it was asked and once the one before is ready again: no request is dropped where there are
    two.
    """
    from vllmjobs.box.supervised import NGINX  # noqa: PLC0415

    box = find_box(env, state, project)
    there = [one for one in box.instances() or () if one != NGINX]
    if not there:
        raise click.ClickException(f"{box.job} is not up on this machine")
    chosen = [one for one in there if name in (None, one, one.rpartition("-")[0])]
    if not chosen:
        raise click.ClickException(f"{box.job} has no server {name}; it has {', '.join(there)}")
    for one in chosen:
        box.restart(one)
        click.echo(f"{one} is ready again", err=True)


def _wait(box: Box, environ: dict[str, str], admin_port: int) -> None:
    """Start it in the background, and say who is ready as they are."""
    said: set[str] = set()
    for instances in box.start(environ, admin_port):
        for name in sorted(name for name, one in instances.items() if one["ready"] and name not in said):
            said.add(name)
            click.echo(f"{name} is ready", err=True)


class _Asked(NamedTuple):
    """What is to run here."""

    environment: Environment
    takes_all: bool
    secrets: dict[str, str]
    """What is known of them."""
    hf_home: str
    gpus: str | None
    """CUDA_VISIBLE_DEVICES."""


def _write(box: Box, asked: _Asked, project: Path, before: Mapping[str, Place]) -> None:
    """Write what the supervisor and nginx of the box are to read, and say which server runs where."""
    from vllmjobs.box import supervised  # noqa: PLC0415 (Jinja takes 30 ms)
    from vllmjobs.box.machine import counts_connections  # noqa: PLC0415
    from vllmjobs.box.servers import BoxError, Machine, servers, visible  # noqa: PLC0415
    from vllmjobs.gpus.nvml import cards  # noqa: PLC0415
    from vllmjobs.project.templates import templates  # noqa: PLC0415
    from vllmjobs.render.job import nginx_conf  # noqa: PLC0415

    environment = asked.environment
    program = environment.balancer.command or supervised.NGINX
    nginx = shutil.which(program)
    if nginx is None:
        raise BoxError(
            f"{program} is not on PATH; install it (Debian: nginx-light), or name balancer.command"
        )
    found, why = cards()
    machine = Machine(visible(found, asked.gpus), str(box.folder), asked.hf_home, asked.takes_all)
    own = servers(environment, machine, before)
    conf = supervised.nginx_conf(
        environment,
        nginx_conf(
            environment, templates(project), supervised.instances(own), metrics=counts_connections(nginx)
        ),
    )
    box.write(
        supervised.configuration(environment, own, str(box.folder), nginx), conf, [one.name for one in own]
    )
    if why:
        click.echo(f"{why}; the servers are given no GPU", err=True)
    indexes = {card.uuid: card.index for card in found}
    for one in own:
        gpus = ", ".join(f"GPU {indexes[uuid]}" for uuid in one.place.gpus) or "no GPU"
        click.echo(f"{one.name}: {one.served_name} on {gpus}, port {one.place.port}", err=True)


def _read(env: str, env_file: Path | None, settings: tuple[str, ...], project: Path) -> _Asked:
    from vllmjobs.box.servers import secrets_of  # noqa: PLC0415
    from vllmjobs.importing.one_box import OfTheBox  # noqa: PLC0415
    from vllmjobs.project.environments import find, load  # noqa: PLC0415

    cache = (
        os.environ.get("HF_HOME")
        or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/huggingface"
    )
    if env_file:
        environment, said = _of_env_file(env_file, env, settings)
        cache = str(env_file.absolute().parent / (said.cache or cache))
    else:
        environment = load(find(project, env), settings, project)
        secrets = {name: os.environ[name] for name in secrets_of(environment) & os.environ.keys()}
        said = OfTheBox(False, secrets, None, None)
    gpus = said.gpus or os.environ.get("CUDA_VISIBLE_DEVICES")
    return _Asked(environment, said.takes_all, said.secrets, cache, gpus)


def _box(environment: Environment, state: Path | None) -> Box:
    from vllmjobs.box.machine import Box  # noqa: PLC0415

    assert environment.job
    return Box(environment.job, state)


def find_box(env: str, state: Path | None, project: Path) -> Box:
    """That of an environment's job, or of an .env file's, of which there is no environment."""
    from vllmjobs.box.machine import Box  # noqa: PLC0415
    from vllmjobs.environment.load import load  # noqa: PLC0415
    from vllmjobs.project.environments import find  # noqa: PLC0415

    path = find(project, env)
    found = load(path).environment if path.is_file() else None
    return Box(found.job if found and found.job else f"vllm-{env}", state)


def _of_env_file(file: Path, env: str, settings: tuple[str, ...]) -> tuple[Environment, OfTheBox]:
    from vllmjobs.environment.load import load  # noqa: PLC0415
    from vllmjobs.environment.problems import InvalidEnvironmentError  # noqa: PLC0415
    from vllmjobs.importing.imported import imported  # noqa: PLC0415
    from vllmjobs.importing.one_box import of_the_box, without_caches  # noqa: PLC0415

    text = file.read_bytes().decode(errors="surrogateescape")
    written = imported(text, str(file), env, None)
    loaded = load(Path(f"{env}.yaml"), settings, lambda _: written.text.encode())
    if loaded.environment is None or loaded.problems:
        raise InvalidEnvironmentError(loaded.problems)
    for note in written.notes:
        if not note.is_of_a_fleet:
            click.echo(note, err=True)
    return without_caches(loaded.environment), of_the_box(text, str(file))
