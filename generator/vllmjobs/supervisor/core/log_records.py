"""The form of a child's log: the parts of a line, and whether the next line continues the record.

The formats are those of `vllm/logging_utils/formatter.py`, `vllm/utils/system_utils.py` (`decorate_logs`, up
to 0.31), uvicorn's `logging.py`, torch's `[rank0]: ` and Python's own.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Literal

MOST = 64 * 1024  # of one record: bytes of a line, characters of several

NGINX_LEVELS = {
    "debug": "DEBUG", "info": "INFO", "notice": "INFO", "warn": "WARNING", "error": "ERROR",
    "crit": "CRITICAL", "alert": "CRITICAL", "emerg": "CRITICAL",
}  # fmt: skip
_LEVEL = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\r\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_BEGINS = re.compile(
    r"(?P<margin>[\s|+]*)(?:Exception Group )?Traceback \(most recent call last\):"
    r"|(?P<fault>Fatal Python error: )"
    r"|(?P<before>Process \S+:$|Exception in thread |Exception ignored in)"
)
_AFTER_TRACEBACK = re.compile(
    r"\s|$|During handling of the above exception, another exception occurred:"
    r"|The above exception was the direct cause of the following exception:"
    # faulthandler's, after "Fatal Python error"
    r"|(?:Current t|T)hread 0x|Extension modules: "
)
_THEIRS = {
    "time": ("time", "timestamp"), "level": ("level", "levelname", "severity"),
    "message": ("message", "msg"), "logger": ("logger", "name"),
}  # fmt: skip
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

LineState = Literal["marked", "before", "inside", "after", "bar"]
"""The next line: an announced one; a traceback, or not; frames; what may follow a traceback; a bar's step."""


@dataclass(slots=True)
class Held:
    """A record that may go on in the next line of the same process."""

    time: str
    level: str
    fields: str  # the fields as JSON, with a comma before each
    texts: list[str]
    state: LineState
    head: str  # the prefix of vLLM, which is before each line of a message; "" where there was none
    until: float
    truncated: int
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.texts[0])

    @property
    def message(self) -> str:
        """Return the whole message so far."""
        return "\n".join(self.texts).rstrip()

    def takes(self, head: str, text: str, over: int, is_marked: bool, is_bar: bool) -> bool:
        """Take a line in, if it is part of this record."""
        if is_bar or self.state == "bar":
            if not (is_bar and self.state == "bar" and _bar(text) == _bar(self.texts[0])):
                return False
            self.texts, self.truncated = [text], over
            return True
        if head and head != self.head:
            return False
        if self.state == "marked":
            if not head:
                return False
            self.state = "marked" if is_marked else "after"
        elif (state := _next(self.state, text)) is None:
            return False
        else:
            self.state = state
            self.level = self.level if self.head else "ERROR"
        self._add(text, over)
        return True

    def _add(self, text: str, over: int) -> None:
        if self.truncated or self.size + len(text) + 1 > MOST:
            self.truncated += len(text.encode("utf-8", "replace")) + 1 + over
            return
        self.texts.append(text)
        self.size += len(text) + 1
        self.truncated = over


class Form:
    """The beginnings of a child's lines, given its VLLM_LOGGING_PREFIX."""

    def __init__(self, prefix: str = "") -> None:
        own = f"(?:{re.escape(prefix)})?" if prefix else ""
        self._re = re.compile(
            # (EngineCore_DP0 pid=17) or [rank0]:
            rf"({own}(?:\((\S+) pid=(\d{{1,19}})[^()\r]*\) |\[(rank\d+)\]: ?)*)"
            # INFO 11-24 01:02:03 [core.py:123], or uvicorn's INFO:, or logging's own INFO:name:
            rf"(?:{own}({_LEVEL}) \d\d-\d\d \d\d:\d\d:\d\d \[([^\]\s]+:\d+)\] ?"
            rf"|({_LEVEL}):(?: +|([\w.]+):)"
            # nginx's 2026/11/28 15:20:31 [emerg] 17#17: (the processes stay)
            rf"|\d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d \[({'|'.join(NGINX_LEVELS)})\] (?=\d+#))?",
            re.ASCII,
        )

    def match(self, text: str) -> re.Match[str]:
        """Match the beginning of a line.

        The groups: whose, process, pid, rank, level, source, uvicorn's level and logger, nginx's level.
        """
        match = self._re.match(text)
        assert match  # every part of it may be missing
        return match

    def shrunk(self, raw: bytes) -> tuple[bytes, int]:
        """Return what has to be kept of a line, and how many bytes were cut off.

        A progress bar goes on for hours without an end of line. Kept of it are its first piece (it tells
        whose it is), the last that shows something, and the one that is being written. The same comes out
        for a line that is given whole and for one in parts.
        """
        first, *pieces = raw.split(b"\r")
        if not pieces or len(first) > MOST or self._is_vllms(text_of(first)):
            return raw[:MOST], max(0, len(raw) - MOST)
        over = 0
        for index, piece in enumerate(pieces):
            if len(piece) > MOST:
                over = len(b"\r".join(pieces[index:])) - MOST
                pieces = [*pieces[:index], piece[:MOST]]
                break
        shown = next((piece + b"\r" for piece in reversed(pieces[:-1]) if text_of(piece).strip()), b"")
        return first + b"\r" + shown + pieces[-1], over

    def standing(self, text: str, is_unfinished: bool = False) -> tuple[str, bool, bool]:
        r"""Return a line with `\r` as a terminal shows it, if it announces another, and if it is a bar.

        Where a message has several lines, vLLM ends each but the last with `\r\n`.
        """
        if self._is_vllms(text):
            return text.rstrip("\r"), text.endswith("\r"), False
        first, *pieces = text.split("\r")
        match = self.match(first)
        shown = [piece for piece in pieces if piece.strip()]
        is_bar = bool(shown) or (is_unfinished and bool(first[match.end() :].strip()))
        return (match[1] + shown[-1].strip() if shown else first), False, is_bar

    def _is_vllms(self, text: str) -> bool:
        return self.match(text)[6] is not None


def text_of(raw: bytes) -> str:
    """Decode a line, whatever it is, and take colours out."""
    text = raw.decode("utf-8", "replace")
    return _ANSI.sub("", text) if "\x1b" in text else text


def first_state(level: str | None, message: str) -> LineState | None:
    """Return how a record may go on after its first line; None where it is complete."""
    if level and level not in ("ERROR", "CRITICAL"):
        return None
    if match := _BEGINS.match(message):
        return "before" if match["before"] else "after" if match["margin"] or match["fault"] else "inside"
    return "before" if level else None


def _next(state: LineState, message: str) -> LineState | None:
    """Return the state of a record after one more line; None where that line is none of it."""
    if (match := _BEGINS.match(message)) and not match["before"]:
        return "after" if match["margin"] or match["fault"] else "inside"
    if state == "inside":
        return "inside" if not message.strip() or message[0] in " \t" else "after"
    return "after" if state == "after" and _AFTER_TRACEBACK.match(message) else None


def _bar(message: str) -> str:
    """Return the name of a progress bar: the text before its first figure."""
    return re.split(r"\d", message, maxsplit=1)[0].strip()


def merged(message: str, ours: dict[str, str], fields: str) -> str | None:
    """Return a line that is a JSON object itself as a record; None if it is no such object.

    `ours` are time, level, instance, stream and message; where the line has its own time, level and message,
    those stay, under these names.
    """
    try:
        theirs = json.loads(message)
        record = dict(ours)
        for key, names in _THEIRS.items():
            if name := next((name for name in names if name in theirs), None):
                record[key] = str(theirs.pop(name))
        record["level"] = record["level"].upper()
        ours_of_line = json.loads(f"{{{fields[1:]}}}") if fields else {}
        return _encode({**record, **{**ours_of_line, **theirs, **record}})
    except (ValueError, RecursionError):  # NaN too, which JSON does not have
        return None
