"""The life of the server, from its first signal handler to its exit code: bind, load, serve, stop.

Measured on vLLM 0.32.0 (CPU build): SIGTERM closes the port and leaves what is in flight without another
word, and the process hangs until its clients leave; with `--shutdown-timeout N` what is in flight ends whole
while /health stays 200 and new requests get 500.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TYPE_CHECKING

from vllmjobs_sandbox.engine.core import Core
from vllmjobs_sandbox.engine.flags import Flags
from vllmjobs_sandbox.engine.knobs import Knobs

if TYPE_CHECKING:
    import uvicorn

    from vllmjobs_sandbox.engine.engine import Engine

STALLED_READER = 5  # seconds that a client may take to read the end of its answer

log = logging.getLogger("standin")


async def serve(flags: Flags, knobs: Knobs) -> int:
    """Run until a signal or the engine's death; the exit code."""
    _log_like_vllm()
    stop = _on_signals(knobs.failure.ignore_term)
    log.info("stand-in for vLLM: no model is loaded and every answer is made up")
    log.info("model %s, flags: %s", flags.model, flags.listed)
    try:
        listener = _bind(flags)
    except OSError as error:
        log.error("%s:%d: %s", flags.host, flags.port, error)
        return 1
    with listener:
        async with _core(knobs.workers) as core:
            code = await _serve(flags, knobs, listener, stop, core)
    if not code:
        log.info("Shutdown complete.")
    return code


async def _serve(
    flags: Flags, knobs: Knobs, listener: socket.socket, stop: asyncio.Event, core: Core | None
) -> int:
    """Load and serve; return the exit code."""
    loading = asyncio.create_task(_load(flags, knobs, core))
    await _first(loading, stop.wait())
    if not loading.done():
        return 0
    server, engine = loading.result()
    watching = asyncio.create_task(_watch(core, engine))
    if knobs.failure.exit_1_before_ready:
        log.error("RuntimeError: Engine core initialization failed. (stand-in: exit-1-before-ready)")
        return 1
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stepping = asyncio.create_task(engine.run())
    await _first(stop.wait(), engine.died.wait(), serving, stepping)
    for broken in (task for task in (serving, stepping) if task.done()):
        broken.result()
    await _end(flags, knobs, server, engine, stepping)
    server.should_exit = True
    watching.cancel()
    await serving
    return 0


@contextlib.asynccontextmanager
async def _core(workers: int) -> AsyncIterator[Core | None]:
    """Start EngineCore and its workers, where there are to be any."""
    core = await Core.start(workers) if workers else None
    try:
        yield core
    finally:
        if core:
            await core.stop()


async def _watch(core: Core | None, engine: "Engine") -> None:
    if core:
        await core.ended()
        engine.die()


async def _end(
    flags: Flags, knobs: Knobs, server: "uvicorn.Server", engine: "Engine", stepping: "asyncio.Task[None]"
) -> None:
    """Finish what is in flight, or leave it."""
    if engine.died.is_set():
        log.error("EngineCore died")  # and yet exit 0: vllm-project/vllm#48966
        await asyncio.sleep(knobs.death_seconds)
        return
    engine.draining = True
    if not flags.shutdown_timeout:
        log.info("Shutting down: aborting requests in flight")
        stepping.cancel()
        # uvicorn closes the port, and waits so long for the connections; vLLM gives it no limit.
        server.config.timeout_graceful_shutdown = math.ceil(knobs.linger_seconds)
        return
    log.info("Draining for up to %d s", flags.shutdown_timeout)
    try:
        async with asyncio.timeout(flags.shutdown_timeout):
            while engine.busy:
                await asyncio.sleep(0.02)
    except TimeoutError:
        log.warning("Drain timed out: aborting requests in flight")
        _cut(server)
    await asyncio.sleep(knobs.exit_seconds)


def _cut(server: "uvicorn.Server") -> None:
    """Break every connection in the middle, so that no client takes half an answer for a whole one."""
    for connection in list(server.server_state.connections):
        if connection.transport is not None:
            connection.transport.abort()


async def _load(flags: Flags, knobs: Knobs, core: Core | None) -> "tuple[uvicorn.Server, Engine]":
    """Pretend to load a model; the imports that take time happen meanwhile."""
    ready_at = asyncio.get_running_loop().time() + knobs.load_seconds
    log.info("Starting to load model %s on %d GPU(s)", flags.model, flags.tensor_parallel_size)
    await asyncio.sleep(0)

    import uvicorn  # noqa: PLC0415

    from vllmjobs_sandbox.engine.app import build  # noqa: PLC0415
    from vllmjobs_sandbox.engine.engine import Engine  # noqa: PLC0415
    from vllmjobs_sandbox.engine.metrics import Metrics  # noqa: PLC0415

    class Server(uvicorn.Server):
        """A server that leaves the signals to the stand-in."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are handled here, as vLLM does it

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            log.info("Application startup complete.")

    metrics = Metrics(flags.served_model_name[0])
    engine = Engine(flags, knobs, metrics, core)
    config = uvicorn.Config(
        build(flags, knobs, engine, metrics),
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=flags.access_log,
        timeout_keep_alive=flags.keep_alive,
        timeout_graceful_shutdown=STALLED_READER,
    )
    if knobs.failure.never_ready:
        await asyncio.Event().wait()
    await asyncio.sleep(ready_at - asyncio.get_running_loop().time())
    log.info("Model loading took %.2f GiB memory and %.2f seconds", 0, knobs.load_seconds)
    log.info("GPU KV cache size: %s tokens", f"{knobs.kv_tokens:,}")
    return Server(config), engine


def _bind(flags: Flags) -> socket.socket:
    """Take the port as vLLM does: before the load, and without listening, so clients are refused."""
    family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
    # Without the protocol, asyncio sets no TCP_NODELAY, and each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((flags.host, flags.port))
    return listener


def _on_signals(ignore: bool) -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; vLLM 0.32 ignores any after it."""
    stop = asyncio.Event()

    def on(number: int) -> None:
        if ignore:
            log.warning("%s ignored (stand-in: ignore-term)", signal.Signals(number).name)
        elif stop.is_set():
            log.warning("%s again: ignored", signal.Signals(number).name)
        else:
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on, number)
    return stop


async def _first(*events: Awaitable[object]) -> None:
    """Wait until one of them has happened."""
    await asyncio.wait([asyncio.ensure_future(event) for event in events], return_when="FIRST_COMPLETED")


def _log_like_vllm() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
        datefmt="%m-%d %H:%M:%S",
    )
