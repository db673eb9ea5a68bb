"""A look at one engine from outside, over HTTP: does it serve, and does it get on?

/health alone says neither: vLLM's only reads a flag, so a hung engine is healthy (vllm-project/vllm#45094).
Tokens that were counted, or a completion of one token, are the proof.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vllmjobs.supervisor.model import Seen

if TYPE_CHECKING:
    from ssl import SSLContext

MOST = 2 << 20  # bytes of an answer: a page of metrics has up to half a megabyte
HERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1", "[::]": "::1"}
UNSUPPORTED = (400, 404, 405, 501)  # what vLLM's versions say on a path that the model is not for

Body = dict[str, Any]
PATHS: dict[str, Body] = {
    "/v1/completions": {"prompt": "1", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1},
    "/v1/embeddings": {"input": "1"},
    "/pooling": {"input": "1"},
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a child answers."""

    child: str
    host: str
    """An IP address, which costs no thread to look up; a wildcard stands for the loopback."""
    port: int
    served_name: str | None = None
    """The first of /v1/models when None."""
    api_key: str | None = field(default=None, repr=False)
    tls: bool = False
    """It was started with --ssl-certfile; the certificate is not checked."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds, for each request."""

    health: float = 3.0
    metrics: float = 3.0
    completion: float = 3.0
    idle: float = 15.0
    """An engine without work is asked for a token so often: the gauges by which vLLM says that it has none
    are set by the engine's answers (`vllm/v1/engine/async_llm.py`), so that with an engine that hangs on the
    first request after a pause they stay at zero."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look found, and what the next one has to know."""

    health: int | None = None
    """The status of /health; None without an answer."""
    tokens: float | None = None
    """Of prompts and of answers, and the answered requests, in one sum; None where it does not say."""
    unanswered: int | None = None
    """Requests that run or wait; None where it does not say."""
    completion: Literal["answered", "refused", "silent"] | None = None
    """None when none was asked for."""
    why: str = ""
    """Why it does not serve, in a few words."""
    has_served: bool = False
    proved_at: float = 0.0
    """When it last got on, on the loop's clock."""
    model: str | None = None
    path: str | None = None
    """Which of `PATHS` it answers."""


class Answer(NamedTuple):
    """Of a request; without a status there was none, for this reason."""

    status: int | None
    body: bytes = b""
    why: str = ""


class Load(NamedTuple):
    """What a page of vLLM's metrics says, over all engines and labels; None where it does not."""

    tokens: float | None
    unanswered: int | None


async def look(target: Target, before: Sample | None, timeouts: Timeouts = Timeouts()) -> tuple[Sample, Seen]:
    """Look once; never raises.

    Takes the longer of the timeouts for health and metrics, and then up to five times that for a completion:
    /v1/models and each of `PATHS`.

    `before` is the sample of the last look at the same life of the child, None at the first.
    """
    now = asyncio.get_running_loop().time()
    health, page = await asyncio.gather(
        _ask(target, "GET", "/health", timeouts.health), _ask(target, "GET", "/metrics", timeouts.metrics)
    )
    load = read_metrics(page.body) if page.status == 200 else Load(None, None)
    last = before or Sample(model=target.served_name, proved_at=now)
    sample = replace(
        last, health=health.status, tokens=load.tokens, unanswered=load.unanswered, completion=None,
        why=health.why or ("" if health.status == 200 else f"/health answered {health.status}"),
    )  # fmt: skip
    is_reached = health.status is not None or page.status is not None
    if is_reached and _wants_proof(before, sample, now - last.proved_at >= timeouts.idle):
        sample = await _complete(target, sample, timeouts.completion)
    if sample.completion == "answered" or _grew(before, sample):
        sample = replace(sample, proved_at=now)
    serves = sample.health == 200 and sample.has_served
    return sample, Seen(target.child, serves, progressed(before, sample), sample.unanswered)


async def look_at_leaving(target: Target, seconds: float = 3.0) -> Seen:
    """Count the answers that are on their way, which is all that matters before a stop. Never raises."""
    page = await _ask(target, "GET", "/metrics", seconds)
    unanswered = read_metrics(page.body).unanswered if page.status == 200 else None
    return Seen(target.child, serves=False, progress=False, unanswered=unanswered)


async def look_at_front(target: Target, seconds: float = 3.0) -> Seen:
    """Look at a balancer: any answer shows that it is well. Never raises."""
    is_well = (await _ask(target, "GET", "/", seconds)).status is not None
    return Seen(target.child, serves=is_well, progress=is_well)


def progressed(before: Sample | None, after: Sample) -> bool:
    """Whether the engine did anything from one look to the next, or has nothing to do."""
    if after.completion == "answered" or _grew(before, after):
        return True
    return after.unanswered == 0 and after.completion != "silent" and after.health in (200, None)


def read_metrics(page: bytes) -> Load:
    """Sum the few series that count, `vllm/v1/metrics/loggers.py`; all others are left alone."""
    sums: dict[bytes, float] = {}
    for name, labels, text in _SERIES.findall(b"\n" + page):
        with suppress(ValueError):
            value = float(text)
            if math.isfinite(value) and not _NOT_ANSWERED.search(labels):
                sums[name] = sums.get(name, 0.0) + value
    running, waiting = sums.pop(b"num_requests_running", None), sums.pop(b"num_requests_waiting", 0.0)
    return Load(sum(sums.values()) if sums else None, None if running is None else round(running + waiting))


_SERIES = re.compile(
    rb"\nvllm:(generation_tokens_total|prompt_tokens_total|request_success_total"
    rb"|num_requests_running|num_requests_waiting)(\{.*\})? +(\S+)"
)
# A client that leaves is counted as well, and clients do leave an engine that hangs: this probe first of all.
_NOT_ANSWERED = re.compile(rb'finished_reason="(?:abort|error)"')


def _grew(before: Sample | None, after: Sample) -> bool:
    if before is None or before.tokens is None or after.tokens is None:
        return False
    return after.tokens > before.tokens


def _wants_proof(before: Sample | None, sample: Sample, is_due: bool) -> bool:
    """Whether a completion has to show what nothing else shows."""
    if not sample.has_served:
        return sample.health == 200
    return not _grew(before, sample) and (is_due or not progressed(before, sample))


async def _complete(target: Target, sample: Sample, seconds: float) -> Sample:
    """Ask for one token, on the path that this model answers."""
    if sample.model is None:
        models = await _ask(target, "GET", "/v1/models", seconds)
        found = _listed(models, "data")
        if not found or not isinstance(name := found[0].get("id"), str):
            said = models.why or f"answered {models.status} and names no model"
            result: Literal["refused", "silent"] = "silent" if models.status is None else "refused"
            return replace(sample, completion=result, why=f"/v1/models: {said}")
        sample = replace(sample, model=name)
    why = ""
    for path in (sample.path,) if sample.path else PATHS:
        answer = await _ask(target, "POST", path, seconds, {"model": sample.model} | PATHS[path])
        if answer.status is None:
            return replace(sample, completion="silent", why=f"{path}: {answer.why}")
        if answer.status == 200 and (_listed(answer, "choices") or _listed(answer, "data")):
            return replace(sample, completion="answered", has_served=True, path=path)
        why = why or f"{path} answered {answer.status}"
        if answer.status not in UNSUPPORTED:
            break
    return replace(sample, completion="refused", why=why)


def _listed(answer: Answer, key: str) -> list[Body]:
    """The objects that an answer lists under a key; none in anything else."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return []
    listed = body.get(key) if isinstance(body, dict) else None
    return listed if isinstance(listed, list) and all(isinstance(one, dict) for one in listed) else []


async def _ask(target: Target, method: str, path: str, seconds: float, body: Body | None = None) -> Answer:
    """One request on a connection of its own, which is closed however it ends."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            host = HERE.get(target.host, target.host)
            tls = _unchecked() if target.tls else None
            reader, writer = await asyncio.open_connection(host, target.port, ssl=tls)
            writer.write(_request(target, host, method, path, body))
            return await _answer(reader)
    except ConnectionRefusedError:
        return Answer(None, why="nothing listens there yet")
    except TimeoutError:
        return Answer(None, why=f"no answer within {seconds:g} s")
    except (OSError, EOFError, ValueError, ImportError, asyncio.LimitOverrunError) as error:
        return Answer(None, why=f"no whole answer: {error}")
    finally:
        if writer is not None:
            writer.transport.abort()


def _request(target: Target, host: str, method: str, path: str, body: Body | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {f'[{host}]' if ':' in host else host}:{target.port}",
        "User-Agent: vllmjobs-supervisor",
        "Connection: close",
    ]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    if target.api_key is not None:
        lines.append(
            f"Authorization: Bearer {target.api_key.strip()}"
        )  # a file's last newline ends no header
    return "\r\n".join([*lines, "", ""]).encode() + content


async def _answer(reader: asyncio.StreamReader) -> Answer:
    """Read one; ValueError, EOFError or LimitOverrunError where it is not HTTP or too long."""
    status = 100
    while 100 <= status < 200:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        if not (found := re.match(rb"HTTP/1\.[01] (\d{3})(?: |\Z)", first)):
            raise ValueError("not HTTP/1")
        status = int(found[1])
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (one.partition(b":") for one in lines)
    }
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return Answer(status, await _chunks(reader))
    if (length := headers.get(b"content-length")) is not None:
        return Answer(status, await reader.readexactly(_size(length, 10)))
    body = bytearray()
    while part := await reader.read(1 << 16):
        body += part
        _within(len(body))
    return Answer(status, bytes(body))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := _size((await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip(), 16):
        _within(len(body) + size)
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk without an end")
    return bytes(body)  # trailers are left to the close


def _size(text: bytes, base: int) -> int:
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise ValueError(f"a size of {text[:20]!r}")
    return _within(int(text, base))


def _within(size: int) -> int:
    if size > MOST:
        raise ValueError(f"more than {MOST} bytes")
    return size


def _unchecked() -> SSLContext:
    # Where no child has TLS, asyncio can be kept from importing it, which saves 4 MB. The certificate is for
    # others: this is the loopback.
    import ssl  # noqa: PLC0415

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
