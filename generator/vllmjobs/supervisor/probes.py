"""The probes of one engine over HTTP: whether it serves, and whether it makes progress.

/health alone tells neither: vLLM's only reads a flag, so a hung engine is healthy (vllm-project/vllm#45094).
Tokens that were counted, or a completion of one token, are the proof.
"""

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from vllmjobs.supervisor.core.engines import Engine
from vllmjobs.supervisor.core.model import Probed
from vllmjobs.supervisor.core.progress import Load, ProbeResult, grew, progressed, read_metrics, wants_proof
from vllmjobs.supervisor.http_client import ServerAddress, request

UNSUPPORTED = (400, 404, 405, 501)  # what vLLM's versions answer on a path that the model is not for

Body = dict[str, Any]
PATHS: dict[str, Body] = {
    "/v1/completions": {"prompt": "1", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1},
    "/v1/embeddings": {"input": "1"},
    "/pooling": {"input": "1"},
}


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


class Answer(NamedTuple):
    """The answer to a request; without a status there was none, for this reason."""

    status: int | None
    body: bytes = b""
    reason: str = ""


async def probe(
    engine: Engine, before: ProbeResult | None, timeouts: Timeouts = Timeouts()
) -> tuple[ProbeResult, Probed]:
    """Probe an engine once; never raises.

    Takes the longer of the timeouts for health and metrics, and then up to five times that for a completion:
    /v1/models and each of `PATHS`.

    `before` is the sample of the last probe in the same life of the child, None at the first.
    """
    now = asyncio.get_running_loop().time()
    health, page = await asyncio.gather(
        _ask(engine, "GET", "/health", timeouts.health), _ask(engine, "GET", "/metrics", timeouts.metrics)
    )
    load = read_metrics(page.body) if page.status == 200 else Load(None, None)
    last = before or ProbeResult(model=engine.served_name, proved_at=now)
    sample = replace(
        last, health=health.status, tokens=load.tokens, unanswered=load.unanswered, completion=None,
        reason=health.reason or ("" if health.status == 200 else f"/health answered {health.status}"),
    )  # fmt: skip
    is_reached = health.status is not None or page.status is not None
    if is_reached and wants_proof(before, sample, now - last.proved_at >= timeouts.idle):
        sample = await _complete(engine, sample, timeouts.completion)
    if sample.completion == "answered" or grew(before, sample):
        sample = replace(sample, proved_at=now)
    serves = sample.health == 200 and sample.has_served
    return sample, Probed(engine.name, serves, progressed(before, sample), sample.unanswered)


async def probe_leaving(engine: Engine, seconds: float = 3.0) -> Probed:
    """Count the answers that are on their way, which is all that matters before a stop. Never raises."""
    page = await _ask(engine, "GET", "/metrics", seconds)
    unanswered = read_metrics(page.body).unanswered if page.status == 200 else None
    return Probed(engine.name, serves=False, progress=False, unanswered=unanswered)


async def probe_front(engine: Engine, seconds: float = 3.0) -> Probed:
    """Probe a balancer: any answer shows that it is well. Never raises."""
    is_well = (await _ask(engine, "GET", "/", seconds)).status is not None
    return Probed(engine.name, serves=is_well, progress=is_well)


async def _complete(engine: Engine, sample: ProbeResult, seconds: float) -> ProbeResult:
    """Ask for one token, on the path that this model answers."""
    if sample.model is None:
        models = await _ask(engine, "GET", "/v1/models", seconds)
        listed = _listed(models, "data")
        if not listed or not isinstance(name := listed[0].get("id"), str):
            reason = models.reason or f"answered {models.status} and names no model"
            outcome: Literal["refused", "silent"] = "silent" if models.status is None else "refused"
            return replace(sample, completion=outcome, reason=f"/v1/models: {reason}")
        sample = replace(sample, model=name)
    reason = ""
    for path in (sample.path,) if sample.path else PATHS:
        answer = await _ask(engine, "POST", path, seconds, {"model": sample.model} | PATHS[path])
        if answer.status is None:
            return replace(sample, completion="silent", reason=f"{path}: {answer.reason}")
        if answer.status == 200 and (_listed(answer, "choices") or _listed(answer, "data")):
            return replace(sample, completion="answered", has_served=True, path=path)
        reason = reason or f"{path} answered {answer.status}"
        if answer.status not in UNSUPPORTED:
            break
    return replace(sample, completion="refused", reason=reason)


def _listed(answer: Answer, key: str) -> list[Body]:
    """Return the objects that an answer lists under a key; none in anything else."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return []
    listed = body.get(key) if isinstance(body, dict) else None
    return listed if isinstance(listed, list) and all(isinstance(item, dict) for item in listed) else []


async def _ask(engine: Engine, method: str, path: str, seconds: float, body: Body | None = None) -> Answer:
    """Send one request; a failure becomes the reason."""
    address = ServerAddress(engine.host, engine.port, tls=engine.tls, token=engine.api_key)
    try:
        async with asyncio.timeout(seconds):
            response = await request(address, method, path, body)
    except ConnectionRefusedError:
        return Answer(None, reason="nothing listens there yet")
    except TimeoutError:
        return Answer(None, reason=f"no answer within {seconds:g} s")
    except (OSError, ValueError, ImportError) as error:
        return Answer(None, reason=f"no complete answer: {error}")
    return Answer(response.status, response.body)
