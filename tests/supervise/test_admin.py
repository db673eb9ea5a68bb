"""The admin port: what it answers, what it refuses, and that nobody can hold it up."""

import asyncio
import json
import os
import resource
import signal
import socket
import stat
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from vllmjobs.supervisor import admin
from vllmjobs.supervisor.admin import Admin, AdminError, Reply, Routes
from vllmjobs_sandbox.engine.supervised import Supervise

ROUTES: Routes = {
    "GET /live": lambda _: (200, {"live": True}),
    "GET /ready": lambda _: (503, {"ready": False}),
    "GET /ready/": lambda name: (200, {"instance": name}),
    "GET /metrics": lambda _: (200, "up 1\n"),
    "GET /broken": lambda name: (200, {"instance": int(name)}),
}
GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = 0.2  # seconds, for what is to run out

Work = Callable[[Admin], Awaitable[None]]


def with_admin(work: Work, routes: Routes = ROUTES, host: str = "127.0.0.1", path: str | None = None) -> None:
    """Serve while the work is done, which has ten seconds."""

    async def run() -> None:
        served = Admin(routes, host=host, path=path)
        await served.start()
        try:
            async with asyncio.timeout(10):
                await work(served)
        finally:
            await served.close()

    asyncio.run(run())


async def raw(port: int, *parts: bytes, host: str = "127.0.0.1") -> bytes:
    """All that comes back for these bytes until the server closes."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for part in parts:
            writer.write(part)
        return await reader.read()
    finally:
        writer.close()


def answered(request: bytes, routes: Routes = ROUTES) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to one request."""
    found: list[bytes] = []

    async def work(served: Admin) -> None:
        found.append(await raw(served.port, request))

    with_admin(work, routes)
    head, _, body = found[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def request(path: str, method: str = "GET", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


# What it answers


def test_an_answer_is_json_with_the_status_of_its_route() -> None:
    status, headers, body = answered(request("/ready"))
    assert (status, json.loads(body)) == (503, {"ready": False})
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert int(headers["Content-Length"]) == len(body)


def test_metrics_are_prometheus_text() -> None:
    status, headers, body = answered(request("/metrics?name[]=up"))
    assert (status, body) == (200, b"up 1\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_route_that_ends_in_a_slash_gets_the_name() -> None:
    assert json.loads(answered(request("/ready/chat-0"))[2]) == {"instance": "chat-0"}


@pytest.mark.parametrize("path", ["/", "/nothing", "/ready/", "/ready/a/b", "/live/x"])
def test_an_unknown_path_is_404_and_names_those_there_are(path: str) -> None:
    status, _, body = answered(request(path))
    assert status == 404
    assert "GET /ready/" in json.loads(body)["paths"]


def test_head_has_the_same_head_and_no_body() -> None:
    status, headers, body = answered(request("/metrics", "HEAD"))
    assert (status, headers["Content-Length"], body) == (200, "5", b"")


def test_a_wrong_method_is_405_and_told_which_are_right() -> None:
    status, headers, _ = answered(request("/live", "DELETE"))
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_without_a_route_nothing_can_be_asked_to_stop() -> None:
    assert answered(request("/stop", "POST"))[0] == 404
    assert answered(request("/ready", "POST"))[0] == 405


def test_a_post_reaches_its_route_unless_a_web_page_sent_it() -> None:
    asked: list[str] = []

    def restart(name: str) -> Reply:
        asked.append(name)
        return 202, {"asked": True}

    routes = {"POST /restart/": restart}
    assert answered(request("/restart/chat-0", "POST", "Origin: http://evil.example"), routes)[0] == 403
    assert answered(request("/restart/chat-0"), routes)[0] == 405
    assert answered(request("/restart/chat-0", "POST", "Content-Length: 2") + b"{}", routes)[0] == 202
    assert asked == ["chat-0"]


def test_a_route_that_fails_is_500_and_the_port_answers_on() -> None:
    async def work(served: Admin) -> None:
        assert b" 500 " in await raw(served.port, request("/broken"))
        assert b" 200 " in await raw(served.port, GET)

    with_admin(work)


# What it refuses


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n", 400),
        (b"GET  /live HTTP/1.1\r\n", 400),
        (b"GET live HTTP/1.1\r\n", 400),
        (b"GET http://x/live HTTP/1.1\r\n", 400),
        (b"GET /l\xc3\xa4ve HTTP/1.1\r\n", 400),
        (b"GET /live\r\n", 400),
        (b"GET /live HTTP/2.0\r\n", 505),
        (b"GET /live HTTP/1.1\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n", 413),
        (b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 300_000 + b"\r\n\r\n", 431),
        (b"GET /live HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 2000 + b"\r\n", 431),
    ],
)
def test_what_is_not_a_small_http_request_is_refused_with_the_reason(sent: bytes, status: int) -> None:
    found, headers, body = answered(sent)
    assert found == status
    assert headers["Connection"] == "close"
    assert json.loads(body)["error"]


# Connections


def test_a_connection_takes_one_request() -> None:
    async def work(served: Admin) -> None:
        answer = await raw(served.port, GET + GET)
        assert answer.count(b'{"live": true}') == 1
        assert b"\r\nConnection: close\r\n" in answer

    with_admin(work)


def test_a_client_of_http_1_0_gets_one_answer() -> None:
    async def work(served: Admin) -> None:
        assert b" 200 OK" in await raw(served.port, b"GET /live HTTP/1.0\r\n\r\n")

    with_admin(work)


def test_a_client_that_is_slow_with_its_request_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SECONDS", SHORT)

    async def work(served: Admin) -> None:
        assert b" 408 " in await raw(served.port, b"GET /live HTTP/1.1\r\nHo")
        assert await raw(served.port) == b""

    with_admin(work)


def test_a_client_that_takes_no_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SECONDS", SHORT)

    async def work(served: Admin) -> None:
        with socket.socket() as deaf:
            deaf.setblocking(False)
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", served.port))
            await asyncio.get_running_loop().sock_sendall(deaf, request("/big"))
            await until(lambda: len(served.connections) == 1)
            await until(lambda: not served.connections)

    with_admin(work, {"GET /big": lambda _: (200, "a" * 50_000_000)})


def test_the_oldest_connection_makes_room_for_a_new_one() -> None:
    async def work(served: Admin) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(admin.MOST)]
        await until(lambda: len(served.connections) == admin.MOST)
        assert b" 200 " in await raw(served.port, GET)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await silent[0][0].readexactly(1)
        silent[1][1].write(GET)
        assert b" 200 " in await silent[1][0].readuntil(b"}\n")
        for _, writer in silent:
            writer.close()

    with_admin(work)


def test_a_storm_of_connections_cuts_off_nobody_who_asks() -> None:
    """Consul's requests come between thousands of connections that say nothing."""

    def storm(port: int, is_over: threading.Event) -> int:
        opened: deque[socket.socket] = deque(maxlen=200)
        count = 0
        while not is_over.is_set():
            with suppress(OSError):
                opened.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                count += 1
        return count

    async def work(served: Admin) -> None:
        is_over = threading.Event()
        stormed = asyncio.create_task(asyncio.to_thread(storm, served.port, is_over))
        try:
            for _ in range(100):
                assert b" 200 " in await asyncio.to_thread(asked, served.port)
        finally:
            is_over.set()
        assert await stormed > admin.MOST

    def asked(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
            one.sendall(GET)
            return one.recv(1 << 16)

    with_admin(work)


def test_without_file_descriptors_the_port_answers_on_and_leaves_some_to_others(
    supervise: Supervise,
) -> None:
    one = supervise()
    one.wait_until_ready()
    hard = resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (40, hard))
    address = ("127.0.0.1", int(one.admin.rpartition(":")[2]))
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(address))
        assert one.get("/live")[0] == 200
        os.kill(one.pid(), signal.SIGKILL)  # a start needs file descriptors, too
        one.wait_for("instance_ready", count=2)
    assert one.errors == ""
    assert {said["reason"] for said in one.said("internal_error")} <= {"OSError(24, 'Too many open files')"}
    assert len(one.said("internal_error")) <= 2


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_close_cuts_the_connections_and_frees_the_port() -> None:
    async def run() -> None:
        served = Admin(ROUTES, host="127.0.0.1")
        await served.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        await until(lambda: len(served.connections) == 1)
        async with asyncio.timeout(10):
            await served.close()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        writer.close()
        again = Admin(ROUTES, host="127.0.0.1", port=served.port)
        await again.start()
        await again.close()

    asyncio.run(run())


# Addresses


@pytest.mark.parametrize(
    ("host", "clients"),
    [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"]), ("::1", ["::1"]), ("", ["127.0.0.1", "::1"])],
)
def test_it_listens_on_ipv4_on_ipv6_or_on_both(host: str, clients: list[str]) -> None:
    async def work(served: Admin) -> None:
        for client in clients:
            assert b" 200 " in await raw(served.port, GET, host=client)

    with_admin(work, host=host)


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AdminError) as error:
            asyncio.run(Admin(ROUTES, "127.0.0.1", port).start())
    assert str(error.value) == (
        f"the admin address 127.0.0.1:{port} is taken by another program; "
        "end that program, or choose another with --admin-host and --admin-port"
    )


def test_an_address_of_another_machine_is_named_with_the_way_out() -> None:
    with pytest.raises(AdminError, match=r"192\.0\.2\.1:0 is no address of this machine"):
        asyncio.run(Admin(ROUTES, "192.0.2.1").start())


# On a unix socket


async def over(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(GET)
    answer = await reader.read()
    writer.close()
    return answer


def test_a_unix_socket_is_for_this_user_only_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    async def work(_: Admin) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b" 200 " in await over(path)

    before = os.umask(0o022)
    with_admin(work, path=str(path))
    assert os.umask(before) == 0o022
    assert not path.exists()


def test_a_unix_socket_that_a_killed_supervisor_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))

    async def work(_: Admin) -> None:
        assert b" 200 " in await over(path)

    with_admin(work, path=str(path))


def test_a_unix_socket_in_use_and_a_file_are_left_alone(tmp_path: Path) -> None:
    async def work(_: Admin) -> None:
        with pytest.raises(AdminError, match=r"admin\.sock is taken by another program"):
            await Admin(ROUTES, path=str(tmp_path / "admin.sock")).start()
        assert b" 200 " in await over(tmp_path / "admin.sock")

    with_admin(work, path=str(tmp_path / "admin.sock"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AdminError, match="is taken"):
        asyncio.run(Admin(ROUTES, path=str(tmp_path / "file")).start())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_too_long_for_a_unix_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="too long"):
        asyncio.run(Admin(ROUTES, path=str(tmp_path / ("a" * 200))).start())
