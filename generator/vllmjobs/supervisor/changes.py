"""From the engines that run to those of a configuration that was read again. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from vllmjobs.supervisor.settings import Engine


def differences(there: Iterable[Engine], wanted: Iterable[Engine]) -> dict[str, list[str]]:
    """The names of the engines to be `added`, `changed` and `removed`; a balancer is none of them."""
    old = {engine.name: engine for engine in there if not engine.is_front}
    new = {engine.name: engine for engine in wanted if not engine.is_front}
    return {
        "added": [name for name in new if name not in old],
        "changed": [name for name in new if name in old and new[name] != old[name]],
        "removed": [name for name in old if name not in new],
    }


def rounds(there: Sequence[Engine], wanted: Sequence[Engine]) -> list[list[str]]:
    """The names of the engines that differ, in the order in which they are to be reloaded.

    One by one, so that the others serve, but for those who need each other's GPUs or ports: these together.
    Who is to go comes last.
    """
    old = {engine.name: _place(engine) for engine in there}
    new = {engine.name: _place(engine) for engine in wanted}
    found = differences(there, wanted)
    left = [*found["changed"], *found["added"], *found["removed"]]
    result: list[list[str]] = []
    while left:
        together = left[:1]
        for name in together:  # which grows
            needs = new.get(name, set()) - old.get(name, set())
            together += [
                other
                for other in left
                if other not in together and not needs.isdisjoint(old.get(other, set()))
            ]
        result.append(together)
        left = [name for name in left if name not in together]
    return result


def settled(
    there: Sequence[Engine], awaited: Mapping[str, Engine | None], over: Collection[str]
) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """The engines that there are from now on, and the names of those that begin.

    `awaited` says what an engine is to become: another, or None for nothing. It is let go of when it is over;
    what comes waits until nobody else has its GPUs or its port. The last one stays until another comes, since
    without any all of it would end.
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
    found = [(kept | coming)[name] for name in names if name in kept or name in coming]
    return tuple(sorted(found, key=lambda engine: engine.is_front)), tuple(coming)


def _place(engine: Engine) -> set[str | int]:
    """What no other may have at the same time."""
    return {*engine.gpus, engine.port}
