"""The reader of NVML's process: whole lines become events, and a process that owes a line hangs."""

import json

from vllmjobs.supervisor.core.gpu_events import FIRST, LONGEST, GpuReader, Xid


def test_a_reader_takes_half_lines_and_leaves_out_what_is_none() -> None:
    reader = GpuReader(0.0)
    line = json.dumps({"kind": "xid", "gpu": "GPU-1", "code": 79}).encode()
    assert reader.feed(line[:9], 1.0) == []
    assert reader.feed(line[9:] + b"\nnot json\n[]\n{}\n{\"kind\": \"reading\"}\nnull\n" + line, 2.0) == [
        Xid("GPU-1", 79)
    ]  # fmt: skip
    assert reader.feed(b"\n", 3.0) == [Xid("GPU-1", 79)]


def test_a_reader_holds_no_endless_line() -> None:
    reader = GpuReader(0.0)
    for _ in range(40):
        reader.feed(b"x" * LONGEST, 1.0)
    assert len(reader._held) == LONGEST
    assert reader.feed(b'\n{"kind": "xid", "gpu": "GPU-1", "code": 79}\n', 1.0) == [Xid("GPU-1", 79)]


def test_a_process_hangs_that_owes_a_line() -> None:
    seen = b'{"kind": "xid", "gpu": "GPU-1", "code": 79}\n'
    reader = GpuReader(100.0)
    assert not reader.is_hung(100.0 + FIRST - 1)  # it may have to wait for the driver
    assert reader.is_hung(100.0 + FIRST)
    reader.feed(seen, 105.0)
    assert not reader.is_hung(114.9)
    assert reader.is_hung(115.0)
    assert reader.due == 115.0
    reader.started(115.0)
    assert not reader.is_hung(115.0)
    assert reader.is_hung(115.0 + FIRST)  # no GPU was ever read
