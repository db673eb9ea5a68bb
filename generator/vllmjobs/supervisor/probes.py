"""The probes of one engine over HTTP: whether it serves, and whether it makes progress.

/health alone tells neither: vLLM's only reads a flag, so a hung engine is healthy (vllm-project/vllm#45094).
Tokens that were counted, or a completion of one token, are the proof.
"""

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeVar

from vllmjobs.supervisor.core.asking import AskedModel, ProbeAnswer, ProbeRequest, ask_answer, ask_sleep
from vllmjobs.supervisor.core.engines import Engine
from vllmjobs.supervisor.core.model import Probed
from vllmjobs.supervisor.core.progress import Load, ProbeResult, grew, progressed, read_metrics, wants_proof
from vllmjobs.supervisor.http_client import ServerAddress, request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The timeouts in seconds, for each request."""

    health: float = 3.0
    metrics: float = 3.0
    completion: float = 3.0
    idle: float = 15.0
    """The time after which an engine without work is asked for a token again: the gauges by which vLLM tells
    that it has none are set by the engine's answers (`vllm/v1/engine/async_llm.py`), so that with an engine
    that hangs on the first request after a pause they stay at zero."""


async def probe(
    engine: Engine, before: ProbeResult | None, timeouts: Timeouts = Timeouts()
) -> tuple[ProbeResult, Probed]:
    """Probe an engine once; whatever it answers, this does not raise.

    Takes the longer of the timeouts for health and metrics, and then the one for a completion for each
    request of `core/asking.py`: ten in the first probe, and two later.

    `before` is the sample of the last probe in the same life of the child, None at the first.
    """
    now = asyncio.get_running_loop().time()
    health, page = await asyncio.gather(
        _ask(engine, ProbeRequest("GET", "/health"), timeouts.health),
        _ask(engine, ProbeRequest("GET", "/metrics"), timeouts.metrics),
    )
    load = read_metrics(page.body) if page.status == 200 else Load(None, None)
    last = before or ProbeResult(proved_at=now)
    sample = replace(
        last, health=health.status, tokens=load.tokens, unanswered=load.unanswered, completion=None,
        reason=health.reason or ("" if health.status == 200 else f"/health answered {health.status}"),
    )  # fmt: skip
    is_reached = health.status is not None or page.status is not None
    if not is_reached:
        return sample, Probed(engine.name, serves=False, progress=False, sleeps=sample.is_asleep)
    sleep, facts, reason = await _drive(engine, ask_sleep(sample.facts), timeouts.completion)
    sample = replace(sample, facts=facts)
    if sleep == "asleep" or (sleep == "silent" and last.is_asleep):
        is_sure = sleep == "asleep"
        sample = replace(
            sample,
            is_asleep=True,
            has_served=False,
            reason=reason,
            proved_at=now if is_sure else last.proved_at,
        )
        seen = Probed(engine.name, serves=False, progress=is_sure, unanswered=sample.unanswered)
        return sample, replace(seen, sleeps=True, reason=reason)
    sample = replace(sample, is_asleep=False)
    if sleep == "silent":
        sample = replace(sample, completion="silent", reason=reason)
    elif wants_proof(before, sample, now - last.proved_at >= timeouts.idle):
        sample = await _complete(engine, sample, timeouts.completion)
    if sample.completion == "answered" or grew(before, sample):
        sample = replace(sample, proved_at=now)
    serves = sample.health == 200 and sample.has_served
    reason = sample.reason if sample.health is not None else ""
    return sample, Probed(
        engine.name, serves, progressed(before, sample), sample.unanswered, reason=reason,
        is_unprobed=sample.completion == "unprobed",
    )  # fmt: skip


async def probe_leaving(engine: Engine, seconds: float = 3.0) -> Probed:
    """Count the answers that are on their way, which is all that matters before a stop. Never raises."""
    page = await _ask(engine, ProbeRequest("GET", "/metrics"), seconds)
    unanswered = read_metrics(page.body).unanswered if page.status == 200 else None
    return Probed(engine.name, serves=False, progress=False, unanswered=unanswered)


async def probe_front(engine: Engine, seconds: float = 3.0) -> Probed:
    """Probe a balancer: any answer shows that it is well. Never raises."""
    is_well = (await _ask(engine, ProbeRequest("GET", "/"), seconds)).status is not None
    return Probed(engine.name, serves=is_well, progress=is_well)


async def _complete(engine: Engine, sample: ProbeResult, seconds: float) -> ProbeResult:
    """Ask for one token, or whatever else this model answers."""
    wanted = AskedModel(engine.served_name, engine.model)
    outcome = await _drive(engine, ask_answer(wanted, sample.facts), seconds)
    assert outcome.result != "asleep"
    return replace(
        sample,
        completion=outcome.result,
        has_served=sample.has_served or outcome.result in ("answered", "unprobed"),
        facts=outcome.facts,
        reason=outcome.reason,
    )


async def _drive(engine: Engine, asking: Generator[ProbeRequest, ProbeAnswer, T], seconds: float) -> T:
    """Bring the requests of a generator to an engine, with so many seconds for each."""
    try:
        wanted = next(asking)
        while True:
            wanted = asking.send(await _ask(engine, wanted, seconds))
    except StopIteration as ended:
        found: T = ended.value
        return found


async def _ask(engine: Engine, wanted: ProbeRequest, seconds: float) -> ProbeAnswer:
    """Send one request; a failure becomes the reason."""
    address = ServerAddress(engine.host, engine.port, tls=engine.tls, token=engine.api_key)
    try:
        async with asyncio.timeout(seconds):
            response = await request(address, wanted.method, wanted.path, wanted.content, wanted.content_type)
    except ConnectionRefusedError:
        return ProbeAnswer(None, reason="nothing listens there yet")
    except TimeoutError:
        return ProbeAnswer(None, reason=f"no answer within {seconds:g} s")
    except (OSError, ValueError, ImportError) as error:
        return ProbeAnswer(None, reason=f"no complete answer: {error}")
    return ProbeAnswer(response.status, response.body)
