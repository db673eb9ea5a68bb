"""The engines of a configuration, and the steps from those that run to those of one that was read again."""

import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PORT = 8000  # of `vllm serve`


@dataclass(frozen=True)
class PoolText:
    """The part of the file for one pool: the engines of one model.

    The supervisor knows nothing of the balancer's language: its texts come with the configuration, with
    `@SERVERS@` where the lines of the ready engines go, and `@COUNT@` for how many there are.
    """

    pool: str
    some: str  # the text while at least one engine of the pool is ready
    none: str  # the text while none is


@dataclass(frozen=True)
class ServerLine:
    """The line of the file for one engine of a pool."""

    pool: str
    text: str


@dataclass(frozen=True)
class Engine:
    """One child: the command that is started, and the address at which it answers."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # all of its environment
    host: str = "127.0.0.1"
    port: int = PORT
    served_name: str | None = None  # the model's name in requests; the first that the engine lists when None
    model: str | None = None  # the model that it was started for: a repository or a folder; None if unknown
    gpus: tuple[str, ...] = ()  # the GPUs by UUID or index
    tls: bool = False  # True if it was started with --ssl-certfile
    api_key: str | None = field(default=None, repr=False)
    is_front: bool = False  # True if it is a balancer before the others, which any answer shows to be well
    stop_signal: int = signal.SIGTERM
    line: ServerLine | None = None  # its line of the file which the balancer reads; None without such a file


def upstreams_text(pools: Iterable[PoolText], ready: Collection[ServerLine]) -> str:
    """Return the file that a balancer in front reads: the pools in order, with the lines of ready engines."""
    texts = []
    for pool in pools:
        lines = [line.text for line in ready if line.pool == pool.pool]
        text = pool.some.replace("@SERVERS@", "\n".join(lines)) if lines else pool.none
        texts.append(text.replace("@COUNT@", str(len(lines))))
    return "\n".join(texts)


def differences(there: Iterable[Engine], wanted: Iterable[Engine]) -> dict[str, list[str]]:
    """Return the names of the engines to be `added`, `changed` and `removed`; a balancer is none of them."""
    old = {engine.name: engine for engine in there if not engine.is_front}
    new = {engine.name: engine for engine in wanted if not engine.is_front}
    return {
        "added": [name for name in new if name not in old],
        "changed": [name for name in new if name in old and new[name] != old[name]],
        "removed": [name for name in old if name not in new],
    }


def rounds(there: Sequence[Engine], wanted: Sequence[Engine]) -> list[list[str]]:
    """Return the names of the engines that differ, in the order in which they are to be reloaded.

    One by one, so that the others serve, but for those that need each other's GPUs or ports: these together.
    Engines that are removed come last.
    """
    old = {engine.name: _place(engine) for engine in there}
    new = {engine.name: _place(engine) for engine in wanted}
    changes = differences(there, wanted)
    left = [*changes["changed"], *changes["added"], *changes["removed"]]
    result: list[list[str]] = []
    while left:
        together = left[:1]
        for name in together:  # the list grows
            needs = new.get(name, set()) - old.get(name, set())
            together += [other for other in left if other not in together and needs & old.get(other, set())]
        result.append(together)
        left = [name for name in left if name not in together]
    return result


def settled(
    there: Sequence[Engine], awaited: Mapping[str, Engine | None], over: Collection[str]
) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """Return the engines from now on, and the names of those that begin.

    `awaited` holds what an engine is to become: another, or None for nothing. It is let go of when it is
    over; the next one waits until nobody else has its GPUs or its port. The last engine stays until another
    comes, since without any the supervisor would end.
    """
    kept = {engine.name: engine for engine in there if not (engine.name in awaited and engine.name in over)}
    coming: dict[str, Engine] = {}
    for name, engine in awaited.items():
        held = {part for one in (*kept.values(), *coming.values()) for part in _place(one)}
        if engine and name not in kept and held.isdisjoint(_place(engine)):
            coming[name] = engine
    if all(engine.is_front for engine in kept.values()) and not coming:
        return tuple(there), ()
    names = dict.fromkeys([*(engine.name for engine in there), *coming])
    engines = [(kept | coming)[name] for name in names if name in kept or name in coming]
    return tuple(sorted(engines, key=lambda engine: engine.is_front)), tuple(coming)


def _place(engine: Engine) -> set[str | int]:
    """Return the GPUs and the port of an engine, which no other may have at the same time."""
    return {*engine.gpus, engine.port}
