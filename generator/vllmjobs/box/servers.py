"""The servers of an environment on one machine, from its GPUs."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from msgspec import structs

from vllmjobs.balancers import balancer_of
from vllmjobs.environment.derive import vllm_version
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.quantity import mebibytes
from vllmjobs.gpus.cards import Card
from vllmjobs.render.arguments import arguments, listen_host, served_names, variables
from vllmjobs.text.english import joined
from vllmjobs.vllm.releases import GPUS_BY_UUID_SINCE, precedes

LOOPBACK = "127.0.0.1"
EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}
FIRST_ENGINE_PORT = 20_000  # upwards of which vLLM's own processes look for ports, a hundred for each server
ENGINE_PORTS = 100


class BoxError(UserError):
    """The reason for which an environment does not run on this machine: one line, with the way out."""


class Machine(NamedTuple):
    """The machine that an environment is laid over."""

    cards: Sequence[Card]  # the GPUs, none without a driver
    folder: str  # the folder in which the servers may write
    hf_home: str  # where the environment names no cache: one for all, so a model is there once
    takes_all: bool = False  # VLLM_GPU_COUNT=auto: as many servers, or one as large, as there are GPUs


class Place(NamedTuple):
    """The ports and GPUs of a server on this machine; no other has any of them."""

    port: int
    engine_port: int  # the first port for vLLM's own processes, which try `ENGINE_PORTS` of them
    gpus: tuple[str, ...]  # the GPUs by UUID; none without a driver


class Server(NamedTuple):
    """One vLLM server on this machine."""

    name: str  # the model's key and a number, such as chat-0
    model: str
    command: tuple[str, ...]
    env: dict[str, str]  # the variables that are laid over the environment of the supervisor
    host: str  # the address on which it listens
    served_name: str
    place: Place

    @property
    def address(self) -> str:
        """Return the address at which nginx reaches it."""
        host = EVERYWHERE.get(self.host, self.host)
        return f"[{host}]:{self.place.port}" if ":" in host else f"{host}:{self.place.port}"


class _Wanted(NamedTuple):
    """A server before it has a place."""

    name: str
    key: str
    model: Model
    gpus: int


def servers(
    environment: Environment, machine: Machine, before: Mapping[str, Place] | None = None
) -> list[Server]:
    """Return the servers of every model, each with GPUs and a port of its own.

    `before` are the places of servers that run; those of the same name keep theirs where they can. Secrets
    are not among what is returned: the servers have them from the supervisor's own environment. Raises
    `BoxError` for more GPUs than there are, and for ports that nginx is to have.
    """
    before, cards = before or {}, machine.cards
    ours = {uuid for place in before.values() for uuid in place.gpus}
    wanted = [
        _Wanted(f"{key}-{number}", key, model, count)
        for key, model in environment.models.items()
        for count, replicas in [_wanted(model, len(_fitting(model, _usable(cards), ours)), machine.takes_all)]
        for number in range(replicas)
    ]
    gpus = _gpus(wanted, cards, before, ours) if cards else {}
    ports = _apart(
        {one.name: range(one.model.ports.base, one.model.ports.base + len(wanted)) for one in wanted},
        {name: place.port for name, place in before.items()},
    )
    ranges = range(FIRST_ENGINE_PORT, FIRST_ENGINE_PORT + ENGINE_PORTS * len(wanted), ENGINE_PORTS)
    engine_ports = _apart(
        {one.name: ranges for one in wanted}, {name: place.engine_port for name, place in before.items()}
    )
    _hold_ports(environment, ports)
    placed = [(one, Place(ports[one.name], engine_ports[one.name], gpus.get(one.name, ()))) for one in wanted]
    return [_server(environment, one, place, machine) for one, place in placed]


def passed_over(environment: Environment, cards: Sequence[Card], taken: Sequence[Server]) -> list[str]:
    """Return a sentence for each GPU that a model could have, were its memory not held by somebody else."""
    uuids = {uuid for server in taken for uuid in server.place.gpus}
    left = [card for card in _usable(cards) if card.uuid not in uuids]
    models = environment.models.values()
    held = [
        card for card in left if any(_is_like(model, card) and not _has_room(model, card) for model in models)
    ]
    return [f"GPU {card.index} is passed over: {_held(card)}" for card in held]


def visible(cards: Sequence[Card], listed: str | None) -> list[Card]:
    """Return the cards that CUDA_VISIBLE_DEVICES lists, by index or start of a UUID; all without it."""
    if listed is None:
        return list(cards)
    words = [word.strip() for word in listed.split(",") if word.strip()]
    return [
        card
        for card in cards
        if any(word == str(card.index) or (card.uuid or "").startswith(word) for word in words)
    ]


def secrets_of(environment: Environment) -> set[str]:
    """Return the variables of an environment's secrets."""
    return {
        name
        for model in environment.models.values()
        for name, reference in model.secrets.items()
        if reference is not None
    }


def missing(environment: Environment, environ: Mapping[str, str]) -> list[str]:
    """Return the variables of secrets that have no value: nobody can be asked for them on one box."""
    return sorted(secrets_of(environment) - environ.keys())


def _hold_ports(environment: Environment, ports: Mapping[str, int]) -> None:
    balancer = balancer_of(environment)
    names = {port: name for name, port in ports.items()}
    for key, port in (("port", balancer.port), ("admin_port", balancer.settings.admin_port)):
        if port in names:
            taken = f"the port of the server {names[port]}"
            raise BoxError(f"balancer.{key} is {port}, {taken}; change it, or ports.base")


def _server(environment: Environment, wanted: _Wanted, place: Place, machine: Machine) -> Server:
    # As Nomad's raw_exec driver runs it, with what Nomad would fill in.
    model = wanted.model
    gpus = structs.replace(model.gpus, count=wanted.gpus)
    bare = structs.replace(model, gpus=gpus, driver="raw_exec", supervised=False)
    times = balancer_of(environment).deadlines(bare)
    fills = {
        "${NOMAD_PORT_http}": str(place.port),
        "${NOMAD_IP_http}": LOOPBACK,
        "${NOMAD_PORT_engine}": str(place.engine_port),
        "${NOMAD_TASK_DIR}": f"{machine.folder}/{wanted.name}",
    }
    env = {variable: _filled(text, fills) for variable, text in variables(environment, bare, times).items()}
    env.setdefault("HF_HOME", machine.hf_home)
    if place.gpus:
        words = _words(place.gpus, machine.cards, vllm_version(environment, bare))
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(words), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    line = [*(model.entrypoint or ["vllm", "serve"]), *arguments(wanted.key, bare, times)]
    command = tuple(_filled(word, fills) for word in line)
    host = _filled(listen_host(bare), fills)
    return Server(wanted.name, wanted.key, command, env, host, served_names(wanted.key, model)[0], place)


def _wanted(model: Model, fitting: int, takes_all: bool) -> tuple[int, int]:
    """Return the number of GPUs of each server, and of servers."""
    if not takes_all or not fitting:
        return model.gpus.count, model.replicas
    if model.strategy == "tensor_parallel":
        return fitting, 1
    return model.gpus.count, max(1, fitting // model.gpus.count)


def _gpus(
    wanted: Sequence[_Wanted], cards: Sequence[Card], before: Mapping[str, Place], ours: AbstractSet[str]
) -> dict[str, tuple[str, ...]]:
    """Give each server its GPUs: first those that keep theirs, then those with the least to choose from.

    The memory of the GPUs in `ours` is held by servers of this box, which give it back. Raises `BoxError`
    when there are too few GPUs for all.
    """
    free = _usable(cards)
    wanted = sorted(wanted, key=lambda one: len(_fitting(one.model, _usable(cards), ours)))
    placed: dict[str, tuple[str, ...]] = {}

    def take(one: _Wanted, own: Sequence[Card]) -> None:
        nonlocal free
        placed[one.name] = tuple(card.uuid for card in own if card.uuid)
        free = [card for card in free if card not in own]

    for one in wanted:
        held = before[one.name].gpus if one.name in before else ()
        own = [card for card in _fitting(one.model, free, ours) if card.uuid in held]
        if len(own) == len(held) == one.gpus:
            take(one, own)
    for one in wanted:
        if one.name in placed:
            continue
        own = _fitting(one.model, free, ours)[: one.gpus]
        if len(own) < one.gpus and before:  # who keeps theirs may have what others need
            return _gpus(wanted, cards, {}, ours)
        if len(own) < one.gpus:
            asked = sum(other.gpus for other in wanted if other.key == one.key)
            raise BoxError(_too_few(one.key, one.model, asked, cards, ours))
        take(one, own)
    return placed


def _usable(cards: Sequence[Card]) -> list[Card]:
    return [card for card in cards if card.uuid and card.mig != "on" and card.health != "failed"]


def _fitting(model: Model, cards: Sequence[Card], ours: AbstractSet[str]) -> list[Card]:
    """Return the cards on which a server of a model can start now."""
    return [card for card in cards if _is_like(model, card) and (card.uuid in ours or _has_room(model, card))]


def _is_like(model: Model, card: Card) -> bool:
    """Tell whether a card is of the kind that a model asks for."""
    least = 0 if model.gpus.memory is None else mebibytes(model.gpus.memory)
    return (card.memory_mib or 0) >= least and model.gpus.model in (None, card.model)


def _has_room(model: Model, card: Card) -> bool:
    """Tell whether a card has as much free memory as a server takes of it.

    vLLM does not start with less (vllm/v1/worker/utils.py, request_memory).
    """
    memory = card.memory_mib or 0
    return memory - (card.memory_used_mib or 0) >= memory * model.gpu_memory_utilization


def _held(card: Card) -> str:
    """Return who holds a card's memory: `bash (pid 15131, 22528 MiB) holds 22528 of its 24576 MiB`."""
    who = joined([str(holder) for holder in card.holders or ()]) or "somebody who cannot be seen from here"
    holds = "hold" if len(card.holders or ()) > 1 else "holds"
    return f"{who} {holds} {card.memory_used_mib} of its {card.memory_mib} MiB"


def _words(uuids: Sequence[str], cards: Sequence[Card], version: str | None) -> list[str]:
    """Return GPUs as vLLM reads them in CUDA_VISIBLE_DEVICES: by UUID, before 0.24 by index alone.

    By index too where the release is not known. The parts of a GPU have no index of their own, and where
    there are some, CUDA may count otherwise than NVML.
    """
    if any(card.parent or card.mig == "on" for card in cards):
        return list(uuids)
    if version and not precedes(version, GPUS_BY_UUID_SINCE):
        return list(uuids)
    indexes = {card.uuid: str(card.index) for card in cards}
    return [indexes[uuid] for uuid in uuids]


def _too_few(key: str, model: Model, wanted: int, cards: Sequence[Card], ours: AbstractSet[str]) -> str:
    fitting = _fitting(model, cards, ours)
    like = f" of {model.gpus.model or 'any model'} with {model.gpus.memory}" if model.gpus.memory else ""
    there = ", ".join(f"{card.index}: {card.model}, {_state(model, card, ours)}" for card in cards)
    return (
        f"models.{key} asks for {wanted} GPUs{like}; this machine has {len(fitting)} free, and other "
        f"models may have some of them ({there}); free some, or lower replicas or gpus.count"
    )


def _state(model: Model, card: Card, ours: AbstractSet[str]) -> str:
    if card.health == "ok" and card.uuid not in ours and not _has_room(model, card):
        return _held(card)
    return f"{card.memory_mib} MiB, {card.health}"


def _apart(wanted: Mapping[str, range], before: Mapping[str, int]) -> dict[str, int]:
    """Give each its own number: the one it had if that is in its range, else the first free one."""
    numbered = {name: before[name] for name, numbers in wanted.items() if before.get(name) in numbers}
    for name, numbers in wanted.items():
        if name not in numbered:
            numbered[name] = next(number for number in numbers if number not in numbered.values())
    return numbered


def _filled(text: str, fills: Mapping[str, str]) -> str:
    for name, value in fills.items():
        text = text.replace(name, value)
    return text
