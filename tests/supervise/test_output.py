"""Our own output never makes anybody wait: what is not taken is dropped, counted and told of."""

import asyncio
import json
import os
import pty
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllmjobs.supervisor.log.output import Output

LINE = b'{"message": "' + b"x" * 1000 + b'"}\n'
MOST = 256 * 1024
PIPE = 64 * 1024


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [json.dumps({"n": n, "message": "x" * 1000}).encode() + b"\n" for n in range(first, first + count)]


def read(data: bytes) -> list[dict[str, Any]]:
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def told(records: list[dict[str, Any]]) -> list[int]:
    """What was said to be dropped, which was said without being lost itself."""
    return [record["dropped"] for record in records if record.get("event") == "lines_dropped"]


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def take(output: Output, reader: int) -> bytes:
    """Read until nothing more comes."""
    data = b""
    os.set_blocking(reader, False)
    while True:
        try:
            data += os.read(reader, PIPE)
        except BlockingIOError:
            if not output.wants_write:
                return data
        output.on_writable()


def test_a_reader_that_reads_gets_every_line_in_order() -> None:
    with pipe() as (reader, writer):
        output = Output(writer)
        for n in range(20):
            output.write(numbered(1, n))

        assert [record["n"] for record in read(take(output, reader))] == list(range(20))
        assert output.dropped == 0
        output.close(0)


def test_a_reader_that_does_not_read_costs_lines_and_holds_nothing_up() -> None:
    with pipe() as (reader, writer):
        output = Output(writer, most=MOST)
        for n in range(1000):
            output.write(numbered(1, n))
        assert output.wants_write

        records = read(take(output, reader))
        kept = [record["n"] for record in records if "n" in record]

        assert kept == list(range(len(kept)))  # one gap, at the end
        assert (PIPE + MOST) // 1100 < len(kept) < (PIPE + MOST) // 1000
        assert (output.dropped, told(records)) == (1000 - len(kept), [1000 - len(kept)])

        output.write(numbered(1, 1000))
        assert [record["n"] for record in read(take(output, reader))] == [1000]
        output.close(0)


def test_what_is_read_in_time_is_not_lost_though_the_pipe_was_full() -> None:
    with pipe() as (reader, writer):
        output = Output(writer, most=MOST)
        output.write(numbered(200))
        assert output.wants_write

        assert [record["n"] for record in read(take(output, reader))] == list(range(200))
        assert output.dropped == 0


def test_the_flag_of_a_shared_pipe_is_left_alone() -> None:
    with pipe() as (_, writer):
        output = Output(writer)
        output.write([LINE] * 100)

        assert output.wants_write
        assert os.get_blocking(writer)


def test_with_a_loop_it_goes_on_by_itself() -> None:
    async def main(reader: int, writer: int) -> bytes:
        output = Output(writer, asyncio.get_running_loop())
        output.write(numbered(200))
        stream = asyncio.StreamReader()
        with os.fdopen(reader, "rb", closefd=False) as file:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(stream), file
            )
            data = await stream.readexactly(sum(map(len, numbered(200))))
            transport.close()
        assert not output.wants_write
        output.close(0)
        return data

    with pipe() as (reader, writer):
        data = asyncio.run(asyncio.wait_for(main(os.dup(reader), writer), 10))

    assert data == b"".join(numbered(200))


def test_without_a_reader_it_goes_on_and_counts() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    os.close(reader)

    output.write([LINE, LINE])
    output.write([LINE])

    assert (output.dropped, output.wants_write) == (3, False)
    output.close(0)
    os.close(writer)


def test_a_reader_that_comes_back_goes_on_where_the_other_stopped_and_is_told(tmp_path: Path) -> None:
    """Nomad's log collector and its FIFO, when the agent is restarted."""
    fifo = tmp_path / "stdout.fifo"
    os.mkfifo(fifo)
    first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    output = Output(writer, most=MOST)
    output.write(numbered(200))  # more than the pipe holds: one line is cut in the middle
    os.close(first)
    output.on_writable()
    lost = output.dropped
    assert 199 - PIPE // 1000 <= lost < 200

    second = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    data = take(output, second)  # what the FIFO kept
    output.write(numbered(1, 200))
    records = read(data + take(output, second))

    assert [record["n"] for record in records if "n" in record] == [*range(200 - lost), 200]
    assert (told(records), output.dropped) == ([lost], lost)
    output.close(0)
    os.close(second)
    os.close(writer)


def test_a_fifo_without_a_reader_at_the_start_is_no_obstacle(tmp_path: Path) -> None:
    fifo = tmp_path / "stdout.fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.close(reader)
    output = Output(writer, most=MOST)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    output.write([LINE] * 500)
    assert output.wants_write
    output.close(0)

    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


def test_a_file_gets_every_line_behind_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"{}\n")
    with log.open("ab") as file:
        output = Output(file.fileno())
        output.write(numbered(10_000))
        output.close(0)

    assert log.read_bytes() == b"{}\n" + b"".join(numbered(10_000))
    assert output.dropped == 0


@pytest.mark.parametrize(
    ("room", "kept"), [(2 * len(numbered(1)[0]), 2), (2500, 3)], ids=["between two lines", "within a line"]
)
def test_a_full_disk_costs_lines_until_there_is_room_again(tmp_path: Path, room: int, kept: int) -> None:
    log = tmp_path / "log"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with log.open("wb") as file:
        output = Output(file.fileno())
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, unlimited[1]))
        try:
            output.write(numbered(5))
            output.write(numbered(5, 5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert (log.stat().st_size, output.dropped) == (room, 10 - kept)

        output.write(numbered(1, 10))

    records = read(log.read_bytes())
    assert [record["n"] for record in records if "n" in record] == [*range(kept), 10]
    assert (told(records), output.dropped) == ([10 - kept], 10 - kept)


@pytest.mark.parametrize(("device", "dropped"), [("/dev/null", 0), ("/dev/full", 5)])
def test_devices(device: str, dropped: int) -> None:
    with Path(device).open("wb") as file:
        output = Output(file.fileno())
        output.write([LINE] * 2)
        output.write([LINE] * 3)

        assert (output.dropped, output.wants_write) == (dropped, False)
        output.close(0)


def test_a_socket_that_nobody_reads() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        output = Output(writer.fileno(), most=MOST)
        output.write(numbered(2000))
        assert output.wants_write
        assert os.get_blocking(writer.fileno())

        records = read(take(output, reader.fileno()))

        assert told(records) == [output.dropped]
        assert len(records) == 2000 - output.dropped + 1
        output.close(0)


def test_a_terminal_that_nobody_reads() -> None:
    reader, terminal = pty.openpty()
    output = Output(terminal, most=MOST)
    output.write(numbered(1000))

    assert output.wants_write
    assert output.dropped > 0
    assert os.get_blocking(terminal)
    output.close(0)
    os.close(reader)
    os.close(terminal)


def test_an_output_that_is_closed_counts() -> None:
    with pipe() as (_, writer):
        closed = os.dup(writer)
        os.close(closed)
        output = Output(closed)
        output.write([LINE])

        assert output.dropped == 1


def test_close_waits_for_a_slow_reader_and_no_longer_than_it_may() -> None:
    data: list[bytes] = []
    with pipe() as (reader, writer):
        output = Output(writer)
        output.write(numbered(200))
        slow = threading.Thread(target=lambda: data.extend(iter(lambda: os.read(reader, 4096), b"")))
        slow.start()
        output.close(10)
        assert output.dropped == 0
        last = os.dup(writer)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
        os.close(last)
        slow.join(10)
        assert b"".join(data) == b"".join(numbered(200))

    with pipe() as (_, writer):
        output = Output(writer)
        output.write(numbered(200))
        began = time.monotonic()
        output.close(0.1)

        assert time.monotonic() - began >= 0.1
        assert output.dropped >= 200 - PIPE // 1000
