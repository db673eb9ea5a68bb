"""The HTTP side, on starlette as vLLM's own (FastAPI is starlette)."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllmjobs_sandbox.engine import protocol
from vllmjobs_sandbox.engine.engine import Engine, EngineDeadError, Sequence
from vllmjobs_sandbox.engine.flags import Flags
from vllmjobs_sandbox.engine.knobs import Knobs
from vllmjobs_sandbox.engine.metrics import Metrics
from vllmjobs_sandbox.engine.text import tokens

VERSION = "0.32.0"  # whose behaviour tests/acceptance/test_contract.py compares this with
# What vLLM counts by its path, if it is asked by this method, and what it does not count.
COUNTED = {"/v1/models": "GET", "/v1/completions": "POST", "/v1/chat/completions": "POST"}
UNCOUNTED = {"/health", "/ping", "/version", "/metrics"}


def build(flags: Flags, knobs: Knobs, engine: Engine, metrics: Metrics) -> ASGIApp:
    """Return the application."""
    started = int(time.time())

    async def health(_: Request) -> Response:
        # vLLM's only reads a flag: it says nothing of a hung engine (vllm-project/vllm#45094).
        await asyncio.sleep(knobs.failure.slow_health)
        return Response(status_code=503 if engine.died.is_set() else 200)

    async def version(_: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def models(_: Request) -> Response:
        return JSONResponse(protocol.models(flags, started))

    async def page(request: Request) -> Response:
        body, content_type = metrics.page(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def completions(request: Request) -> Response:
        chat = request.url.path == "/v1/chat/completions"
        ask = protocol.read(await request.body(), request.headers, chat, flags)
        await asyncio.sleep(knobs.answer_seconds)
        sequences = engine.submit(ask.prompts, ask.n, ask.max_tokens, ask.ignore_eos)
        if ask.stream:
            return StreamingResponse(_stream(engine, ask, sequences), media_type="text/event-stream")
        answer = await _while_connected(request, _whole(engine, ask, sequences))
        return JSONResponse(answer) if answer else Response(status_code=499)

    routes = [
        Route("/health", health, methods=["GET"]),
        Route("/version", version, methods=["GET"]),
        Route("/ping", health, methods=["GET", "POST"]),
        Route("/metrics", page, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", completions, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        protocol.RefusedError: _refused,
        HTTPException: _http_error,
        RuntimeError: _server_error,
    }
    for route in routes:
        (route.methods or set()).discard("HEAD")  # starlette adds it to GET, FastAPI does not
    return _Door(Starlette(routes=routes, exception_handlers=handlers), flags.api_key, metrics)


class _Door:
    """The API key, and the count of answers by status class."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], metrics: Metrics) -> None:
        self._app = app
        self._keys = [f"bearer {key}".encode() for key in keys]
        self._answers = metrics.answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            path, method = scope["path"], scope["method"]
            if message["type"] == "http.response.start" and path not in UNCOUNTED:
                handler = path if COUNTED.get(path) == method else "none"
                self._answers.labels(handler, method, f"{message['status'] // 100}xx").inc()
            await send(message)

        # vLLM guards /v1 alone; probes and /metrics stay open.
        if self._keys and scope["path"].startswith("/v1") and not self._admits(scope):
            unauthorized = JSONResponse({"error": "Unauthorized"}, status_code=401)
            return await unauthorized(scope, receive, counting)
        return await self._app(scope, receive, counting)

    def _admits(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return any(hmac.compare_digest(scheme.lower() + b" " + key, known) for known in self._keys)


async def _stream(engine: Engine, ask: protocol.Ask, sequences: list[Sequence]) -> AsyncIterator[str]:
    for chunk in protocol.opening(ask):
        yield _event(chunk)
    generated = 0
    try:
        async for output in engine.outputs(sequences):
            generated += output.added
            text = tokens(output.sequence.seed, output.start, output.added)
            yield _event(protocol.chunk(ask, output.sequence.index, text, output.finish_reason))
        if ask.include_usage:
            yield _event(protocol.usage_chunk(ask, generated))
    except EngineDeadError as dead:
        # The 200 is out already, so vLLM puts the error into the stream and ends it as usual.
        yield _event(protocol.error(500, "InternalServerError", str(dead)))
    yield "data: [DONE]\n\n"


def _event(chunk: protocol.Json) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


async def _whole(engine: Engine, ask: protocol.Ask, sequences: list[Sequence]) -> protocol.Json:
    async for _ in engine.outputs(sequences):
        pass
    choices = [(tokens(one.seed, 0, one.generated), one.finish_reason) for one in sequences]
    return protocol.whole_answer(ask, choices, sum(one.generated for one in sequences))


async def _while_connected(
    request: Request, answer: Coroutine[Any, Any, protocol.Json]
) -> protocol.Json | None:
    """Await the answer, unless the client leaves first: vLLM then aborts the request."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, leaving = asyncio.create_task(answer), asyncio.create_task(left())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        leaving.cancel()


async def _refused(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, protocol.RefusedError)
    return JSONResponse(refused.body, status_code=refused.status)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def _server_error(_: Request, error: Exception) -> Response:
    return JSONResponse(protocol.error(500, "InternalServerError", str(error)), status_code=500)
