"""The plugin itself: it answers Nomad's calls, follows the health file, and leaves when it should."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import grpc
import msgspec
from google.protobuf.message import Message

from vllmjobs_sandbox.gpus.plugin import answers
from vllmjobs_sandbox.gpus.plugin.config import Config, ConfigError, read_config
from vllmjobs_sandbox.gpus.plugin.devices import (
    Group,
    UnknownDevicesError,
    device_groups,
    device_ids,
    reservation,
)
from vllmjobs_sandbox.gpus.plugin.health import HealthFile
from vllmjobs_sandbox.gpus.plugin.messages import METHODS, Method, message

POLL_SECONDS = 0.5
"""The pause between two looks at the health file and the parent."""

# Messages made at run time have no attributes that a type checker could know.
Request = Any
Context = Any
Call = Callable[[Request, Context], Any]


class Plugin:
    """The state of one plugin process, and a method for each call of Nomad's."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._config = Config(node="", gpus=())
        self._health = HealthFile("", ())

    def calls(self) -> dict[str, Call]:
        """Say which method answers which call."""
        return {
            "Check": self.check,
            "Shutdown": self.shutdown,
            "PluginInfo": self.plugin_info,
            "ConfigSchema": self.config_schema,
            "SetConfig": self.set_config,
            "Fingerprint": self.fingerprint,
            "Reserve": self.reserve,
            "Stats": self.stats,
        }

    async def check(self, request: Request, context: Context) -> Message:
        """Answer the health check of go-plugin."""
        return answers.serving()

    async def shutdown(self, request: Request, context: Context) -> Message:
        """Stop when Nomad says so."""
        self.stop()
        return message("Empty")

    async def plugin_info(self, request: Request, context: Context) -> Message:
        """Answer what kind of plugin this is."""
        return answers.plugin_info()

    async def config_schema(self, request: Request, context: Context) -> Message:
        """Answer what its block may hold."""
        return answers.config_schema()

    async def set_config(self, request: Request, context: Context) -> Message:
        """Take the block as Nomad has read it; refused, Nomad prints the reason and does not start."""
        try:
            config = read_config(msgspec.msgpack.decode(request.msgpack_config))
        except (ConfigError, msgspec.DecodeError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"simgpu: {error}")
            raise
        self._config = config
        self._health = HealthFile(config.health_file, device_ids(config.node, config.gpus))
        self._health.read()
        self._tell()
        return message("SetConfigResponse")

    async def fingerprint(self, request: Request, context: Context) -> AsyncIterator[Message]:
        """Send the devices, and again when they differ.

        Ends only with the plugin: Nomad drops a plugin whose stream has ended, and for good.
        """
        sent: list[Group] | None = None
        while not self.stopping.is_set():
            changed = self._changed
            groups = self._groups()
            if groups != sent:
                yield answers.fingerprint(groups)
                sent = groups
            await changed.wait()

    async def reserve(self, request: Request, context: Context) -> Message:
        """Hand out devices. Nomad keeps the books of who has which: nothing is remembered here."""
        try:
            return answers.reserved(reservation(self._groups(), list(request.device_ids)))
        except UnknownDevicesError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            raise

    async def stats(self, request: Request, context: Context) -> AsyncIterator[Message]:
        """Send numbers at the pace that Nomad asks for."""
        interval = max(request.collection_interval.ToMilliseconds() / 1000, POLL_SECONDS)
        while not self.stopping.is_set():
            yield answers.stats(self._groups(), datetime.now(UTC))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), interval)

    async def follow(self) -> None:
        """Look at the health file for as long as the plugin runs."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._health.read():
                self._tell()

    def stop(self) -> None:
        """Let the streams end by themselves: grpc prints a traceback for each that it has to cut."""
        self.stopping.set()
        self._tell()

    def _tell(self) -> None:
        """Wake every fingerprint stream; each of them waits on the event that was there when it looked."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _groups(self) -> list[Group]:
        return device_groups(self._config, self._health.health)


async def serve(parent: int) -> None:
    """Run until Nomad says so, or until the process that started the plugin is no longer there."""
    plugin = Plugin()
    calls = plugin.calls()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_handler(method, calls[name]) for name, method in METHODS.items()])
    # Abstract sockets leave no file behind. Nomad starts the plugin several times over: one for each.
    socket = f"simgpu-{os.getpid()}-{secrets.token_hex(4)}"
    server.add_insecure_port(f"unix-abstract:{socket}")
    await server.start()
    try:
        # go-plugin's protocol 1, Nomad's protocol 2 (plugins/base/plugin.go); "@" is Go's word for abstract.
        os.write(sys.stdout.fileno(), f"1|2|unix|@{socket}|grpc\n".encode())
        ends = (plugin.stopping.wait(), plugin.follow(), _orphaned(parent))
        tasks = [asyncio.create_task(end) for end in ends]
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        plugin.stop()
        # The answer to Shutdown has to get out first.
        await server.stop(grace=0.5)


def _handler(method: Method, call: Call) -> grpc.GenericRpcHandler:
    service, name = method.path.strip("/").split("/")
    kind = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
    answer = kind(
        call,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(service, {name: answer})


async def _orphaned(parent: int) -> None:
    """Wait for the parent to go. PR_SET_PDEATHSIG would fire when the Go *thread* that forked us ends."""
    while os.getppid() == parent:
        await asyncio.sleep(POLL_SECONDS)
