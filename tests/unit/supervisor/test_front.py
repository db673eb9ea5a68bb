"""The file that a balancer in front reads: which engines are ready."""

import signal
from pathlib import Path

from vllmjobs.supervisor.core.engines import Engine, PoolText, ServerLine, upstreams_text
from vllmjobs.supervisor.core.model import LogEvent
from vllmjobs.supervisor.front import Front

POOLS = (
    PoolText("chat", "chat(@COUNT@):\n@SERVERS@\n", "chat: nobody\n"),
    PoolText("code", "code(@COUNT@):\n@SERVERS@\n", "code: nobody\n"),
)
A, B, C = ServerLine("chat", "server a;"), ServerLine("chat", "server b;"), ServerLine("code", "server c;")


def test_each_model_has_its_block() -> None:
    assert upstreams_text(POOLS, [A, B]) == "chat(2):\nserver a;\nserver b;\n\ncode: nobody\n"
    assert upstreams_text(POOLS, [C]) == "chat: nobody\n\ncode(1):\nserver c;\n"


def test_the_file_is_written_when_it_would_change(tmp_path: Path) -> None:
    chat = Engine("chat-0", ("vllm",), {}, line=A)
    other = Engine("other", ("vllm",), {}, line=ServerLine("nobody's", "server d;"))
    path = tmp_path / "upstreams.conf"
    front = Front(str(path), lambda *_: None, lambda _: None)
    front.follow(POOLS, [chat, other], set())
    path.unlink()
    front.follow(POOLS, [chat, other], {"other"})
    assert not path.exists()
    front.follow(POOLS, [chat, other], {"other", "chat-0"})
    assert path.read_text().startswith("chat(1):\nserver a;\n")


def test_what_could_not_be_written_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later" / "upstreams.conf"
    events: list[LogEvent] = []
    front = Front(str(path), lambda *_: None, events.append)
    front.follow(POOLS, [], set())
    assert [event.name for event in events] == ["upstreams_not_written"]
    path.parent.mkdir()
    front.follow(POOLS, [], set())
    assert path.read_text() == "chat: nobody\n\ncode: nobody\n"


def test_a_balancer_reads_what_is_new_once_it_is_ready(tmp_path: Path) -> None:
    engines = [Engine("chat-0", ("vllm",), {}, line=A), Engine("nginx", ("nginx",), {}, is_front=True)]
    sent: list[tuple[str, int]] = []
    front = Front(
        str(tmp_path / "upstreams.conf"), lambda name, number: sent.append((name, number)), lambda _: None
    )
    front.follow(POOLS, engines, {"chat-0"})
    assert sent == []
    for _ in range(2):
        front.follow(POOLS, engines, {"chat-0", "nginx"})
        assert sent == [("nginx", signal.SIGHUP)]
    front.configuration_changed()
    front.follow(POOLS, engines, {"chat-0", "nginx"})
    assert sent == [("nginx", signal.SIGHUP)] * 2


def test_a_file_that_cannot_be_written_is_logged(tmp_path: Path) -> None:
    events: list[LogEvent] = []
    front = Front(str(tmp_path / "missing" / "upstreams.conf"), lambda *_: None, events.append)
    front.follow(POOLS, [], set())
    assert [event.name for event in events] == ["upstreams_not_written"]
