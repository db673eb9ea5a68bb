"""An HTTP server on loopback for as long as a test needs it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def listening(handler: Callable[..., BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """Answer with a handler, on a port that is free where none is named; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def saying(say: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """Let `say` answer each connection with whatever bytes, given the request; yield the address."""
    held: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            say(connection, connection.recv(1 << 16))

    def accept() -> None:
        with suppress(OSError):
            while True:
                held.append(listener.accept()[0])
                Thread(target=serve, args=(held[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # which wakes `accept`
            for connection in held:
                connection.close()
