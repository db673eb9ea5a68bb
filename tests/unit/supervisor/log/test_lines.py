"""What a child says becomes JSON lines: vLLM's prefix is read, tracebacks stay whole, a flood is counted."""

import json
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.supervisor.core.log_records import MOST
from vllmjobs.supervisor.log.lines import NOTICE, QUIET, STANDS, Lines, Rate, event

UNLIMITED = Rate(per_second=0)
NOW = 1_795_482_123.004  # 2026-11-24T01:02:03.004Z


def lines(limit: Rate = UNLIMITED, prefix: str = "") -> Lines:
    return Lines("chat-0", "stderr", limit, prefix=prefix)


def read(said: Iterable[bytes]) -> list[dict[str, Any]]:
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in said)
    return [json.loads(line) for line in said]


def records(text: str | bytes, prefix: str = "") -> list[dict[str, Any]]:
    """All of a child's output, without what is in each record."""
    stream = lines(prefix=prefix)
    found = read(stream.feed(text.encode() if isinstance(text, str) else text, NOW) + stream.flush(NOW))
    for record in found:
        assert record.pop("time") == "2026-11-24T01:02:03.004Z"
        assert record.pop("instance") == "chat-0"
        assert record.pop("stream") == "stderr"
    return found


def messages(text: str | bytes) -> list[str]:
    return [record["message"] for record in records(text)]


ONE_LINE = {
    "vLLM's own": (
        "INFO 11-24 01:02:03 [core.py:123] Chunked prefill is on\n",
        {"level": "INFO", "message": "Chunked prefill is on", "source": "core.py:123"},
    ),
    "of one of its processes": (
        "(EngineCore_DP0 pid=17) WARNING 11-24 01:02:03 [v1/engine/core.py:123] slow\n",
        {
            "level": "WARNING",
            "message": "slow",
            "source": "v1/engine/core.py:123",
            "process": "EngineCore_DP0",
            "pid": 17,
        },
    ),
    "nginx's": (
        "2026/11/28 15:20:31 [emerg] 17#17: bind() to 0.0.0.0:80 failed (98: Address already in use)\n",
        {"level": "CRITICAL", "message": "17#17: bind() to 0.0.0.0:80 failed (98: Address already in use)"},
    ),
    "of a process of a process": (
        "(EngineCore_DP0 pid=17) (RayWorkerWrapper pid=23, ip=10.0.0.1) INFO 11-24 01:02:03 [a.py:1] up\n",
        {"level": "INFO", "message": "up", "source": "a.py:1", "process": "RayWorkerWrapper", "pid": 23},
    ),
    "in colours": (
        "\x1b[0;36m(APIServer pid=1)\x1b[0;0m \x1b[32mINFO\x1b[0m \x1b[90m11-24 01:02:03\x1b[0m "
        "\x1b[90m[api.py:9]\x1b[0m up\n",
        {"level": "INFO", "message": "up", "source": "api.py:9", "process": "APIServer", "pid": 1},
    ),
    "printed by one of its processes": (
        "(Worker_TP1 pid=5) NCCL version 2.27.3\n",
        {"level": "INFO", "message": "NCCL version 2.27.3", "process": "Worker_TP1", "pid": 5},
    ),
    "uvicorn's": (
        'INFO:     127.0.0.1:1234 - "GET /health HTTP/1.1" 200 OK\n',
        {"level": "INFO", "message": '127.0.0.1:1234 - "GET /health HTTP/1.1" 200 OK', "logger": "uvicorn"},
    ),
    "of Python's logging as it comes": (
        "WARNING:transformers.modeling:old\n",
        {"level": "WARNING", "message": "old", "logger": "transformers.modeling"},
    ),
    "anything": ("hello\n", {"level": "INFO", "message": "hello"}),
    "without an end": ("hello", {"level": "INFO", "message": "hello"}),
    "no UTF-8": (b"caf\xe9\n", {"level": "INFO", "message": "caf\ufffd"}),
    "torch's rank": ("[rank3]: hello\n", {"level": "INFO", "message": "hello", "process": "rank3"}),
    "a JSON object": (
        '{"asctime": "2026-11-24 01:02:03,004", "levelname": "WARNING", "name": "vllm.core", "process": 17,'
        ' "message": "slow", "n": [1]}\n',
        {
            "level": "WARNING",
            "message": "slow",
            "logger": "vllm.core",
            "process": 17,
            "asctime": "2026-11-24 01:02:03,004",
            "n": [1],
        },
    ),
    "nearly a JSON object": ("{'a': 1}\n", {"level": "INFO", "message": "{'a': 1}"}),
    "a JSON object with what JSON does not have": (
        '{"a": NaN}\n',
        {"level": "INFO", "message": '{"a": NaN}'},
    ),
}


@pytest.mark.parametrize(("text", "expected"), ONE_LINE.values(), ids=ONE_LINE.keys())
def test_a_line_is_read(text: str | bytes, expected: dict[str, Any]) -> None:
    assert records(text) == [expected]


def test_a_record_has_one_order_so_that_people_can_read_it_too() -> None:
    [line] = Lines("chat-0", "stdout", offset=NOW).feed(b"INFO 11-24 01:02:03 [core.py:1] caf\xc3\xa9\n", 0.0)

    assert line.decode() == (
        '{"time":"2026-11-24T01:02:03.004Z","level":"INFO","instance":"chat-0","stream":"stdout",'
        '"message":"café","source":"core.py:1"}\n'
    )


def test_a_prefix_of_vllm_logging_prefix_is_taken_off() -> None:
    said = "[gpu 0] (EngineCore pid=1) INFO 11-24 01:02:03 [a.py:1] up\n"  # from 0.32
    said += "(EngineCore pid=1) [gpu 0] INFO 11-24 01:02:03 [a.py:1] up\n"  # before

    both = {"level": "INFO", "message": "up", "source": "a.py:1", "process": "EngineCore", "pid": 1}
    assert records(said, prefix="[gpu 0] ") == [both, both]


def test_a_message_of_several_lines_is_one_record() -> None:
    head = "(EngineCore_DP0 pid=17) INFO 11-24 01:02:03 [core.py:123] "

    assert messages(f"{head}one\r\n{head}  two\r\n{head}three\n{head}another\n") == [
        "one\n  two\nthree",
        "another",
    ]


def test_a_message_of_several_lines_does_not_wait_when_it_is_complete() -> None:
    head = b"INFO 11-24 01:02:03 [core.py:123] "
    stream = lines()

    assert stream.feed(head + b"one\r\n", NOW) == []
    assert [record["message"] for record in read(stream.feed(head + b"two\n", NOW))] == ["one\ntwo"]


def test_a_message_that_was_broken_off_takes_nothing_from_the_next() -> None:
    said = "INFO 11-24 01:02:03 [core.py:123] one\r\nWARNING 11-24 01:02:03 [core.py:9] two\n"

    assert [(record["level"], record["message"]) for record in records(said)] == [
        ("INFO", "one"),
        ("WARNING", "two"),
    ]


def test_empty_lines_are_left_out() -> None:
    assert messages("\n\none\n  \n(EngineCore pid=1) \ntwo\n\n") == ["one", "two"]


PLAIN = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    start()
    ~~~~~^^
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
  [Previous line repeated 990 more times]
ValueError: 2 validation errors
  first of them"""

GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 1, in <module>
  | ExceptionGroup: two (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "a.py", line 2, in <module>
    | ValueError: x
    +------------------------------------

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
RuntimeError"""

FAULT = """\
Fatal Python error: Segmentation fault

Current thread 0x00007f0000000000 (most recent call first):
  File "a.py", line 1 in <module>

Extension modules: numpy, torch (total: 2)"""

TRACEBACKS = {
    "with another that it led to": PLAIN,
    "of a group": GROUP,
    "of a fault in C": FAULT,
    "of a process": f"Process EngineCore_DP0:\n{PLAIN}",
    "of a thread": f"Exception in thread Thread-1 (run):\n{PLAIN}",
}


@pytest.mark.parametrize("text", TRACEBACKS.values(), ids=TRACEBACKS.keys())
def test_a_traceback_is_one_record_and_an_error(text: str) -> None:
    assert records(f"before\n{text}\n\nafter\n") == [
        {"level": "INFO", "message": "before"},
        {"level": "ERROR", "message": text},
        {"level": "INFO", "message": "after"},
    ]


def prefixed(prefix: str, text: str, end: str) -> str:
    return end.join(f"{prefix}{line}" for line in text.split("\n")) + "\n"


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_traceback_with_vllms_prefix_goes_with_the_message_that_it_belongs_to(end: str) -> None:
    head = "(EngineCore pid=17) ERROR 11-24 01:02:03 [core.py:842] "

    assert records(prefixed(head, f"EngineCore failed to start.\n{PLAIN}", end) + f"{head}next\n") == [
        {
            "level": "ERROR",
            "message": message,
            "source": "core.py:842",
            "process": "EngineCore",
            "pid": 17,
        }
        for message in (f"EngineCore failed to start.\n{PLAIN}", "next")
    ]


def test_a_traceback_goes_with_uvicorns_error() -> None:
    assert records(f"ERROR:    Exception in ASGI application\n{GROUP}\nINFO:     up\n") == [
        {"level": "ERROR", "message": f"Exception in ASGI application\n{GROUP}", "logger": "uvicorn"},
        {"level": "INFO", "message": "up", "logger": "uvicorn"},
    ]


def test_tracebacks_of_workers_that_die_together_are_kept_apart() -> None:
    one, other = (prefixed(f"(Worker_TP{n} pid={n}) ", PLAIN, "\n").splitlines(True) for n in (0, 1))
    mixed = "".join(line for pair in zip(one, other, strict=True) for line in pair)

    assert [(record["process"], record["message"]) for record in records(mixed)] == [
        ("Worker_TP0", PLAIN),
        ("Worker_TP1", PLAIN),
    ]


REAL = {
    "that led to another": "try:\n    {}['a']\nexcept KeyError:\n    raise ValueError('2 errors\\n  first')",
    "that was the cause of another": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError from e",
    "of a group": "raise ExceptionGroup('two', [ValueError(1), ExceptionGroup('of them', [KeyError(2)])])",
    "of a thread": "import threading\nt = threading.Thread(target=lambda: {}['a'])\nt.start()\nt.join()",
    "of a recursion": "def f():\n    f()\nf()",
    "of code that is none": "compile('a b', 'x.py', 'exec')",
    "of a fault in C": "import faulthandler\nfaulthandler.enable()\nfaulthandler._sigabrt()",
}


@pytest.mark.parametrize("code", REAL.values(), ids=REAL.keys())
def test_what_this_python_writes_is_one_record(code: str) -> None:
    command = [sys.executable, "-X", "no_debug_ranges", "-c", code]
    said = subprocess.run(command, capture_output=True, timeout=30, check=False, cwd="/").stderr

    assert records(said + b"next\n") == [
        {"level": "ERROR", "message": said.decode().rstrip()},
        {"level": "INFO", "message": "next"},
    ]


def test_a_traceback_waits_a_moment_for_its_next_line() -> None:
    stream = lines()
    assert stream.feed(b"Traceback (most recent call last):\n", 10.0) == []
    assert stream.held_until == 10.0 + QUIET
    assert stream.feed(b"  frame\nKeyError: 1\n", 10.2) == []

    assert stream.due(10.3) == []
    [record] = read(stream.due(10.2 + QUIET))

    assert record["time"] == "1970-01-01T00:00:10.000Z"  # of its first line
    assert record["message"].endswith("KeyError: 1")
    assert stream.held_until is None


def test_the_traceback_of_a_dead_process_does_not_wait_for_the_others_to_be_quiet() -> None:
    stream = lines()
    stream.feed(b"(EngineCore pid=2) Traceback (most recent call last):\n(EngineCore pid=2) KeyError\n", 0.0)

    said = [len(stream.feed(b"(APIServer pid=1) hello\n", now / 10)) for now in range(1, 5)]

    assert said == [1, 1, 2, 1]


def test_a_line_without_an_end_is_given_after_a_moment() -> None:
    stream = lines()
    assert stream.feed(b"Password: ", 0.0) == []

    assert [record["message"] for record in read(stream.due(stream.held_until or 0))] == ["Password: "]
    assert stream.held_until is None


def test_of_a_progress_bar_stays_what_stands_last() -> None:
    bar = "".join(f"\rLoading checkpoint shards:  {n}%|##| {n}/100" for n in range(0, 101, 5))
    shards = "".join(f"\rLoading safetensors shards: {n:3}% Completed | {n}/4\n" for n in (0, 25, 100))

    assert messages(f"{bar}\n{shards}\ndone\n") == [
        "Loading checkpoint shards:  100%|##| 100/100",
        "Loading safetensors shards: 100% Completed | 100/4",
        "done",
    ]
    assert messages("\rLoading: 50%\r            \r\n") == ["Loading: 50%"]  # taken back in the end


def test_a_progress_bar_is_to_be_seen_while_it_moves_and_a_record_when_it_stands() -> None:
    stream = lines()
    assert stream.progress is None
    for n in range(3):
        assert stream.feed(b"\r(1) Loading: %d%%" % n, float(n)) == []
        assert stream.progress == f"(1) Loading: {n}%"
        assert stream.due(stream.held_until or 0) == []

    [record] = read(stream.due(2.0 + QUIET + STANDS))

    assert record["message"] == "(1) Loading: 2%"


def test_a_progress_bar_of_hours_takes_no_room() -> None:
    stream = lines()
    for n in range(20_000):
        stream.feed(b"(Worker pid=1) " if n == 0 else b"\r%d%% of it" % n, 0.0)
    [record] = read(stream.flush(0.0))

    assert (record["message"], record["process"]) == ("19999% of it", "Worker")
    assert "truncated" not in record


@pytest.mark.parametrize("part", [1000, 10**6])
def test_a_line_is_cut_at_64_kib_and_says_how_much_is_missing(part: int) -> None:
    stream, data = lines(), b"a" * 100_300 + b"\nnext\n"
    said = [line for at in range(0, len(data), part) for line in stream.feed(data[at : at + part], 0.0)]

    cut, after = read(said)
    assert (len(cut["message"]), cut["truncated"]) == (MOST, 100_300 - MOST)
    assert (after["message"], after.get("truncated")) == ("next", None)


def test_a_traceback_is_cut_at_64_kib_too() -> None:
    frames = "".join(f"  {n:99}\n" for n in range(1000))
    [record] = records(f"Traceback (most recent call last):\n{frames}KeyError\n")

    assert len(record["message"]) <= MOST
    assert len(record["message"]) + record["truncated"] == len("Traceback (most recent call last):") + 102_009


def test_what_exceeds_the_rate_is_counted_and_told_once_a_second() -> None:
    stream = lines(Rate(burst=3, per_second=2))

    assert len(stream.feed(b"x\n" * 10 + b"unfin", 100.0)) == 3
    assert (stream.dropped, stream.held_until) == (7, 100.0 + QUIET)
    assert stream.feed(b"ished\n" + b"x\n" * 4, 100.1) == []  # the line that was begun is one of them
    assert stream.dropped == 12
    told, *after = read(stream.feed(b"x\n" * 5, 100.0 + NOTICE))

    assert (told["event"], told["level"], told["instance"], told["stream"], told["dropped"]) == (
        "lines_dropped",
        "WARNING",
        "chat-0",
        "stderr",
        12,
    )
    assert [record["message"] for record in after] == ["x", "x"]
    assert [record["dropped"] for record in read(stream.due(102.0 + NOTICE))] == [3]
    assert stream.held_until is None


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 2), st.booleans())), st.integers(0, 9))
def test_each_line_is_either_written_or_counted(feeds: list[tuple[int, float, bool]], burst: int) -> None:
    stream, now, total, is_begun = lines(Rate(burst, 1.0)), 0.0, 0, False
    said: list[bytes] = []
    for count, pause, begins in feeds:
        now += pause
        said += stream.feed(b"x\n" * count + b"y" * begins, now)
        total += count
        is_begun = begins or (is_begun and not count)
    said += stream.flush(now)

    records = read(said)
    assert sum("event" not in record for record in records) + stream.dropped == total + is_begun
    assert sum(record.get("dropped", 0) for record in records) == stream.dropped


def test_a_traceback_does_not_go_on_behind_lines_that_were_dropped() -> None:
    stream = lines(Rate(burst=2, per_second=1))

    [record] = read(stream.feed(b"Traceback (most recent call last):\n  frame\nKeyError: 1\n", NOW))

    assert record["message"].endswith("frame")
    assert stream.held_until == NOW + NOTICE


def test_an_event_of_our_own_has_the_same_form() -> None:
    line = event("instance_ready", "INFO", NOW, "chat-0", {"load_seconds": 12.5, "gpus": ["a"], "level": "x"})

    assert line.decode() == (
        '{"time": "2026-11-24T01:02:03.004Z", "level": "INFO", "event": "instance_ready", '
        '"instance": "chat-0", "load_seconds": 12.5, "gpus": ["a"]}\n'
    )
    assert b"instance" not in event("stopping", "INFO", NOW, None, {})


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), {1, 2}, object(), "\ud800", b"x", {(1,): 2}])
def test_an_event_is_json_whatever_is_in_it(odd: object) -> None:
    assert json.loads(event("x", "INFO", NOW, None, {"odd": odd}))["event"] == "x"


HEADS = (
    b"",
    b"(A pid=1) ",
    b"(B pid=2) ",
    b"INFO 11-24 01:02:03 [a.py:1] ",
    b"ERROR 11-24 01:02:03 [a.py:1] ",
)
TEXTS = (
    b"Traceback (most recent call last):",
    b"  frame",
    b"KeyError: 1",
    b'{"a": 1}',
    b"50%",
    b"\x1b[0m",
    b"(",
)
piece = st.sampled_from([*HEADS, *TEXTS, b"\r", b"\n", b"\r\n"]) | st.binary(max_size=5)
output = st.lists(piece, max_size=40).map(b"".join)


@given(output, st.lists(st.integers(0, 200)))
def test_where_the_output_is_cut_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    whole, parts = lines(), lines()
    bounds = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    said = [line for a, b in pairwise(bounds) for line in parts.feed(data[a:b], NOW)]

    assert said + parts.flush(NOW) == whole.feed(data, NOW) + whole.flush(NOW)


@given(output)
def test_each_record_is_json_with_what_every_record_has(data: bytes) -> None:
    stream = lines()

    for record in read(stream.feed(data, NOW) + stream.flush(NOW)):
        assert record.keys() >= {"time", "level", "instance", "stream", "message"}


@given(st.lists(st.sampled_from([*HEADS, *TEXTS[:3]]) | st.binary(max_size=9), max_size=30))
def test_no_line_is_lost_and_none_made_up(said: list[bytes]) -> None:
    """Each gets a number of its own; a carriage return, which takes lines back, is left out here."""
    numbered = [
        text.replace(b"\n", b"").replace(b"\r", b"").replace(b"\x1b", b"") + b"  #%d" % n
        for n, text in enumerate(said)
    ]
    found = records(b"".join(line + b"\n" for line in numbered))

    ends = [line.rpartition("#")[2] for record in found for line in record["message"].split("\n")]
    assert sorted(ends, key=int) == [str(n) for n in range(len(said))]
