"""A block of free ports for each sandbox, so that several run side by side.

The block's first port is held open as a lock: it ends with the process, however that ends. Ports of the
kernel's ephemeral range are left alone, since any outgoing connection may take one at any time.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vllmjobs_sandbox.cluster.errors import SandboxError

FIRST = 10_000
SIZE = 500
AGENTS = 100  # the lock, then the agents and balancers; Nomad's clients share out the rest
PER_CLIENT = 50
MOST_CLIENTS = (SIZE - AGENTS) // PER_CLIENT
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Block:
    """The ports of one sandbox; its lock is held until `release`."""

    def __init__(self, first: int, lock: socket.socket) -> None:
        self.first = first
        self._lock = lock
        self._next = first

    def take(self) -> int:
        """Hand out the next port."""
        self._next += 1
        assert self._next < self.first + AGENTS, "more agents than ports; raise AGENTS"
        return self._next

    def dynamic(self, client: int) -> range:
        """Say which ports a Nomad client, counted from 1, may give to its tasks."""
        start = self.first + AGENTS + (client - 1) * PER_CLIENT
        return range(start, start + PER_CLIENT)

    def release(self) -> None:
        """Let others take the block."""
        self._lock.close()


def lock(first: int) -> Block | None:
    """Take the block that starts there, unless a sandbox is using it."""
    holder = socket.socket()  # without SO_REUSEADDR, with which two could be bound to it at once
    try:
        holder.bind(("127.0.0.1", first))
        holder.listen(0)
    except OSError:
        holder.close()
        return None
    return Block(first, holder)


def is_free(block: Block) -> bool:
    """Tell whether all of a block's other ports can be had; Consul's gossip needs them for UDP, too."""
    return all(_binds(port) for port in range(block.first + 1, block.first + SIZE))


def starts(ephemeral: tuple[int, int] | None = None) -> Iterator[int]:
    """Yield where blocks start."""
    low, high = ephemeral or _ephemeral()
    for first in range(FIRST, 65_536 - SIZE, SIZE):
        if first + SIZE <= low or first > high:
            yield first


def take_block() -> Block:
    """Take the first block that is free as a whole."""
    for first in starts():
        if (block := lock(first)) is None:
            continue
        if is_free(block):
            return block
        block.release()
    raise SandboxError(f"no {SIZE} free ports in a row, outside the kernel's ephemeral range")


def _binds(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as probe:
            if kind == socket.SOCK_STREAM:  # as Go does, so that closing connections are no obstacle
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def _ephemeral() -> tuple[int, int]:
    low, high = EPHEMERAL.read_text().split()
    return int(low), int(high)


def listens(port: int) -> bool:
    """Tell whether anything accepts connections on a port of loopback."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
