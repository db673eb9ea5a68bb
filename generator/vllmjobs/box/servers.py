"""An environment and a machine's GPUs, to the servers that run on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import structs

from vllmjobs.environment.derive import deadlines
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.quantity import mebibytes
from vllmjobs.gpus import Card
from vllmjobs.render.arguments import arguments, listen_host, served_names, variables

LOOPBACK = "127.0.0.1"
FIRST_ENGINE_PORT = 20_000  # upwards of which vLLM's own processes look for ports, a hundred for each server
ENGINE_PORTS = 100


class BoxError(UserError):
    """Why an environment does not run on this machine: one line, with the way out."""


class Server(NamedTuple):
    """One vLLM server on this machine."""

    name: str
    """Such as chat-0: the model's key and a number."""
    model: str
    command: tuple[str, ...]
    env: dict[str, str]
    """What is laid over the environment of the supervisor."""
    host: str
    port: int
    served_name: str
    gpus: tuple[str, ...]
    """By UUID; none without a driver."""


def servers(
    environment: Environment,
    cards: Sequence[Card],
    folder: str,
    takes_all: bool = False,
) -> list[Server]:
    """The servers of every model, each with GPUs and a port of its own.

    `cards` are this machine's, none without a driver. `folder` is where the servers may write. `takes_all` is
    VLLM_GPU_COUNT=auto: as many servers, or a server as large, as there are GPUs. Secrets are not among what
    is returned: the servers have them from the supervisor's own environment. Raises `BoxError` for more GPUs
    than there are.
    """
    free = [card for card in cards if card.uuid and card.mig != "on" and card.health != "failed"]
    ports: set[int] = set()
    found: list[Server] = []
    for key, model in environment.models.items():
        count, replicas = _wanted(model, len([card for card in free if _fits(card, model)]), takes_all)
        for number in range(replicas):
            name = f"{key}-{number}"
            own = [card for card in free if _fits(card, model)][:count]
            if cards and len(own) < count:
                raise BoxError(_too_few(key, model, replicas * count, cards))
            free = [card for card in free if card not in own]
            port = next(port for port in _upwards(model.ports.base) if port not in ports)
            ports.add(port)
            sized = structs.replace(model, gpus=structs.replace(model.gpus, count=count))
            uuids = tuple(card.uuid for card in own if card.uuid)
            found.append(_server(environment, key, sized, name, port, uuids, len(found), folder))
    return found


def missing(environment: Environment, environ: Mapping[str, str]) -> list[str]:
    """The variables of secrets that have no value: there is nobody to ask for them on one box."""
    wanted = {
        name
        for model in environment.models.values()
        for name, reference in model.secrets.items()
        if reference is not None
    }
    return sorted(wanted - environ.keys())


def _server(
    environment: Environment,
    key: str,
    model: Model,
    name: str,
    port: int,
    gpus: tuple[str, ...],
    number: int,
    folder: str,
) -> Server:
    # As Nomad's raw_exec driver runs it, with what Nomad would fill in.
    bare = structs.replace(model, driver="raw_exec", supervised=False)
    times = deadlines(bare, environment.balancer)
    fills = {
        "${NOMAD_PORT_http}": str(port),
        "${NOMAD_IP_http}": LOOPBACK,
        "${NOMAD_PORT_engine}": str(FIRST_ENGINE_PORT + ENGINE_PORTS * number),
        "${NOMAD_TASK_DIR}": f"{folder}/{name}",
    }
    env = {variable: _filled(text, fills) for variable, text in variables(environment, bare, times).items()}
    if gpus:
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    words = [*(model.entrypoint or ["vllm", "serve"]), *arguments(key, bare, times)]
    host = _filled(listen_host(bare), fills)
    command = tuple(_filled(word, fills) for word in words)
    return Server(name, key, command, env, host, port, served_names(key, model)[0], gpus)


def _wanted(model: Model, fitting: int, takes_all: bool) -> tuple[int, int]:
    """GPUs of each server, and servers."""
    if not takes_all or not fitting:
        return model.gpus.count, model.replicas
    if model.strategy == "tensor_parallel":
        return fitting, 1
    return model.gpus.count, max(1, fitting // model.gpus.count)


def _fits(card: Card, model: Model) -> bool:
    gpus = model.gpus
    is_enough = gpus.memory is None or (card.memory_mib or 0) >= mebibytes(gpus.memory)
    return is_enough and (gpus.model is None or gpus.model == card.model)


def _too_few(key: str, model: Model, wanted: int, cards: Sequence[Card]) -> str:
    fitting = [card for card in cards if _fits(card, model)]
    like = f" of {model.gpus.model or 'any model'} with {model.gpus.memory}" if model.gpus.memory else ""
    there = ", ".join(f"{card.index}: {card.model}, {card.memory_mib} MiB, {card.health}" for card in cards)
    return (
        f"models.{key} asks for {wanted} GPUs{like}; this machine has {len(fitting)}, less those of the "
        f"models before it ({there}); lower replicas or gpus.count"
    )


def _upwards(port: int) -> Iterator[int]:
    yield from range(port, 65536)


def _filled(text: str, fills: Mapping[str, str]) -> str:
    for name, value in fills.items():
        text = text.replace(name, value)
    return text
