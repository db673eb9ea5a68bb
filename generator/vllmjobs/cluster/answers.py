"""Answers of servers of others: each comes within a time and a size, in the shape expected, or is given up.

The timeout of a request is `(seconds to connect, seconds for the whole answer)`. A server that sends a byte a
second, headers without end, or a small page that unpacks to a large one is given up like one that is silent.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from http.client import HTTPResponse
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from vllmjobs import __version__

T = TypeVar("T")
K = TypeVar("K")
MOST = 64 << 20  # bytes of an answer: a list of 20,000 allocations with their resources has half of it
LITTLE = 8 << 20  # bytes of what is short: a page of vLLM's metrics has half a megabyte
_PIECE = 16 << 10  # bytes that are read at a time; packed, they may be a thousand times as many


class EndlessError(requests.RequestException):
    """An answer that was given up; the text says what the other side did: it follows the server's name."""


class ShapeError(ValueError):
    """An answer that is not what was asked for; the text says what was expected, and where."""


class Session(requests.Session):
    """A session whose answers have an end, and which follows no redirect: a token is for one server.

    It takes nothing from the environment, neither proxies nor a .netrc. With `stream=True`, the head has to
    come in time; `pieces` reads on.
    """

    def __init__(self, most: int = MOST) -> None:
        """Give up every answer with more bytes than `most`, unpacked."""
        super().__init__()
        self.trust_env = False
        self.headers["User-Agent"] = f"vllmjobs/{__version__}"
        for scheme in ("http://", "https://"):
            self.mount(scheme, EndingAdapter(most))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return no target; see `requests.Session.get_redirect_target`."""


class EndingAdapter(HTTPAdapter):
    """An adapter whose answers have an end; see `Session`."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """See `HTTPAdapter.init_poolmanager`."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """See `HTTPAdapter.proxy_manager_for`."""
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """Send a request, and read the answer; raises `EndlessError`, too. See `HTTPAdapter.send`."""
        end = _End(timeout[1] if isinstance(timeout, tuple) else timeout, self._most)
        token = _END.set(end)
        try:
            response = super().send(request, True, timeout, verify, cert, proxies)
            if stream:
                _STREAMED[response] = end
            else:
                _read_whole(response, end)
        except requests.RequestException as error:
            if end.why:
                raise EndlessError(end.why, request=request) from error
            raise
        finally:
            _END.reset(token)
        return response


class _End:
    """The end of one answer: the moment and the size at which it is given up, and why it was."""

    def __init__(self, seconds: float, most: int) -> None:
        self.seconds, self.most = seconds, float(most)
        self.until = time.monotonic() + seconds  # until the request is sent; see `begin`
        self.received = 0
        self.why = ""

    def begin(self) -> None:
        """Let the time begin: the request is sent, or the next piece of a stream is asked for."""
        self.until, self.received = time.monotonic() + self.seconds, 0

    def left(self) -> float:
        """Return the seconds that are left; raises `OSError` where none are."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise self.in_time()
        return left

    def count(self, size: int) -> None:
        """Count what came; raises `OSError` where it is too much."""
        self.received += size
        if self.received > self.most:
            raise self.too_large()

    def in_time(self) -> TimeoutError:
        """Return the error for an answer that takes too long."""
        if self.received:
            self.why = f"does not answer within {self.seconds:g} s: {self.received} bytes came, and no end"
        return TimeoutError("timed out")

    def too_large(self) -> OSError:
        """Return the error for an answer that is too large."""
        self.why = f"answers without end; given up after {self.most / (1 << 20):g} MiB"
        return OSError(self.why)


_END: ContextVar[_End] = ContextVar("_END")
_STREAMED: WeakKeyDictionary[requests.Response, _End] = WeakKeyDictionary()


class _Paced(io.RawIOBase):
    """The bytes of a socket, up to the end of one answer."""

    def __init__(self, pieces: Any, socket: Any, end: _End) -> None:
        self._pieces, self._socket, self._end = pieces, socket, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._end.left())
        try:
            size: int | None = self._pieces.readinto(buffer)
        except TimeoutError:
            raise self._end.in_time() from None
        self._end.count(size or 0)
        return size

    def close(self) -> None:
        self._pieces.close()
        super().close()


class _Ending(HTTPResponse):
    """An answer that is read from its first byte on with an eye on its end."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        end = _END.get()
        end.begin()
        self.fp = io.BufferedReader(_Paced(self.fp.detach(), sock, end))


class EndingConnection(HTTPConnection):
    """A connection whose answers have an end."""

    response_class = _Ending


class _TlsConnection(HTTPSConnection):
    """A connection with TLS whose answers have an end."""

    response_class = _Ending


class _Pool(HTTPConnectionPool):
    """A pool of such connections."""

    ConnectionCls = EndingConnection


class _TlsPool(HTTPSConnectionPool):
    """A pool of such connections with TLS."""

    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}


def _read_whole(response: requests.Response, end: _End) -> None:
    """Read the body of an answer, unpacked, and keep it as requests does."""
    pieces: list[bytes] = []
    left = end.most
    try:
        for piece in response.iter_content(_PIECE):
            left -= len(piece)
            if left < 0:
                raise requests.ConnectionError(end.too_large())
            end.left()
            pieces.append(piece)
    except BaseException as error:
        response.close()
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise requests.ConnectionError(error) from error
        raise
    response._content = b"".join(pieces)
    response._content_consumed = True


def pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield a streamed answer as it comes; each piece has an end, as an answer. Raises `RequestException`."""
    end, read = _STREAMED[response], response.iter_content(_PIECE)
    while True:
        end.begin()
        try:
            yield next(read)
        except StopIteration:
            return
        except OSError as error:  # RequestException is one
            raise EndlessError(end.why) if end.why else requests.ConnectionError(error) from error


def decoded(response: requests.Response, shape: Any) -> Any:
    """Return the JSON of an answer, with all that it holds, where it has a shape; raises `ShapeError`.

    `shape` is a type as msgspec takes them: a TypedDict names what is used.
    """
    try:
        value = msgspec.json.decode(response.content)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors; deep, huge, not UTF-8
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ShapeError(f"it is no JSON ({text})") from error
    return shaped(value, shape)


def shaped(value: Any, shape: Any) -> Any:
    """Return a value that has a shape, as it is; raises `ShapeError` for any other."""
    try:
        msgspec.convert(value, shape)
    except (ValueError, RecursionError) as error:
        raise ShapeError(str(error)) from error
    return value


def side_by_side(call: Callable[[K], T], wanted: Iterable[K], at_once: int) -> list[T]:
    """Return what a call returns for each, several at a time, in their order.

    The threads are daemons, which hold up no exit: an interrupt while they wait for somebody ends at once. An
    exception of the call is raised.
    """
    every = list(wanted)
    to_do: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        while (index := to_do.get()) >= 0:
            try:
                done.put((index, call(every[index]), None))
            except BaseException as error:
                done.put((index, None, error))

    threads = min(at_once, len(every))
    for index in [*range(len(every)), *[-1] * threads]:
        to_do.put(index)
    for _ in range(threads):
        Thread(target=work, daemon=True).start()
    results: dict[int, Any] = {}
    for _ in every:
        index, result, error = done.get()
        if error:
            raise error
        results[index] = result
    return [results[index] for index in range(len(every))]
