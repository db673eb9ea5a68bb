"""The lines of a child as JSON: vLLM's own prefix read, a traceback kept whole, a flood counted.

Values in, values out: nothing is read or written here, and the time is given. A record looks like this:

    {"time": "2026-11-24T01:02:03.004Z", "level": "INFO", "instance": "chat-0", "stream": "stdout",
     "message": "…", "source": "core.py:123", "process": "EngineCore_DP0", "pid": 17}

`source`, `logger`, `process` and `pid` where the line has them, `truncated` (bytes) where it was cut. A
line that is a JSON object itself keeps its fields. Empty lines outside a traceback are left out; of a
progress bar only the last state is kept.
"""

import json
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

from vllmjobs.supervisor.core.log_records import MOST, NGINX_LEVELS, Form, Held, first_state, merged, text_of

QUIET = 0.25  # seconds until what is unfinished is taken as it is
STANDS = 5.0  # seconds until a progress bar that does not move is a record
NOTICE = 1.0  # seconds between two records of what was dropped
PROCESSES = 64  # whose unfinished records are kept apart

Stream = Literal["stdout", "stderr"]
quoted = json.encoder.encode_basestring  # in C, 0.2 µs; leaves UTF-8 readable


class Rate(NamedTuple):
    """The lines of one stream that are let through; the others are dropped and counted."""

    burst: int = 10_000  # the most lines at once
    per_second: float = 2_000.0  # the lines a second in the long run; 0 for no limit


USUAL = Rate()


def event(name: str, level: str, at: float, instance: str | None, fields: Mapping[str, object]) -> bytes:
    """Return one of the supervisor's own events as a JSON line; `at` is in Unix seconds. Never raises."""
    record: dict[str, object] = {"time": timestamp(at), "level": level, "event": name}
    if instance is not None:
        record["instance"] = instance
    record |= {key: value for key, value in fields.items() if key not in record}
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, ValueError, RecursionError):  # NaN, or no JSON at all
        text = json.dumps({str(key): str(value) for key, value in record.items()}, ensure_ascii=False)
    return _written(text)


def _written(text: str) -> bytes:
    """Return a line of JSON as it is written: escaped is what a terminal would obey, or nobody would see."""
    if not text.isprintable():
        text = "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)
    return text.encode() + b"\n"


def timestamp(at: float) -> str:
    """Return a time as in RFC 3339, in UTC with milliseconds."""
    seconds, ms = divmod(int(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"


class Lines:
    """One stream of one instance, line by line.

    `feed` takes what was read. When `held_until` has come and nothing else did, `due` returns what was held;
    `flush` returns all that is held, at the end of the stream. Times are of a monotonic clock; `offset` is
    what to add for Unix time, and may be set anew when the wall clock was.
    """

    def __init__(
        self, instance: str, stream: Stream, limit: Rate = USUAL, offset: float = 0.0, prefix: str = ""
    ) -> None:
        """Take the lines of `stream` of `instance`; `prefix` is the child's VLLM_LOGGING_PREFIX."""
        self.dropped = 0  # the number of lines above the limit, in all
        self.offset = offset
        self._whose = f'"instance":{quoted(instance)},"stream":"{stream}","message":'
        self._instance, self._stream, self._limit = instance, stream, limit
        self._form = Form(prefix)
        self._rest, self._over, self._rest_until = b"", 0, 0.0
        self._held: dict[str, Held] = {}
        self._tokens, self._filled_at = float(limit.burst), 0.0
        self._unreported, self._notice_at = 0, 0.0
        self._progress: str | None = None
        self._now, self._time = 0.0, ""
        self._out: list[bytes] = []

    def feed(self, data: bytes, now: float) -> list[bytes]:
        """Take what was read; return the records, each a line of JSON, that are complete now."""
        self._begin(now)
        if self._held:
            self._expire(now)
        count = data.count(b"\n")
        if not count:
            self._keep(self._rest + data)
            return self._out
        allowed = self._allowed(count)
        if allowed and self._unreported and now >= self._notice_at:
            self._notice()
        lines = data.split(b"\n", allowed)
        rest = lines.pop()
        over = self._over
        if self._rest and allowed:
            if over:
                over += len(lines[0])
                lines[0] = self._rest
            else:
                lines[0] = self._rest + lines[0]
        for raw in lines:
            if over:
                self._line(raw, over)
                over = 0
            elif len(raw) > MOST or b"\r" in raw:
                self._line(*self._form.shrunk(raw))
            else:
                self._line(raw, 0)
        if allowed < count:
            self._close_all()  # what it would go on with is lost
            self._drop(count - allowed)
            rest = data[data.rfind(b"\n") + 1 :]
        self._over = 0
        self._keep(rest)
        return self._out

    def due(self, now: float) -> list[bytes]:
        """Return what has been held long enough, once `held_until` has come."""
        self._begin(now)
        if self._rest and now >= self._rest_until:
            self._take_rest()
        self._expire(now)
        if self._unreported and now >= self._notice_at:
            self._notice()
        return self._out

    def flush(self, now: float) -> list[bytes]:
        """Return all that is held, an unfinished line too: nothing more will come."""
        self._begin(now)
        self._take_rest()
        self._close_all()
        if self._unreported:
            self._notice()
        return self._out

    @property
    def held_until(self) -> float | None:
        """Return when `due` has something to return, if nothing comes before; None while nothing is held."""
        times = [held.until for held in self._held.values()]
        times += [self._rest_until] if self._rest else []
        times += [self._notice_at] if self._unreported else []
        return min(times, default=None)

    @property
    def progress(self) -> str | None:
        """Return the last progress bar, such as `Loading … shards:  50% Completed | 1/2 …`."""
        if b"\r" in self._rest:
            text, _, is_bar = self._form.standing(text_of(self._rest), is_unfinished=True)
            if is_bar:
                self._progress = text[self._form.match(text).end() :]
        return self._progress

    def _begin(self, now: float) -> None:
        self._now, self._time, self._out = now, timestamp(now + self.offset), []

    def _allowed(self, count: int) -> int:
        burst, per_second = self._limit
        if not per_second:
            return count
        self._tokens = min(burst, self._tokens + max(0.0, self._now - self._filled_at) * per_second)
        self._filled_at = self._now
        allowed = min(count, int(self._tokens))
        self._tokens -= allowed
        return allowed

    def _drop(self, count: int) -> None:
        if not self._unreported:
            self._notice_at = self._now + NOTICE
        self.dropped += count
        self._unreported += count

    def _notice(self) -> None:
        fields = {"stream": self._stream, "dropped": self._unreported}
        self._out.append(event("lines_dropped", "WARNING", self._now + self.offset, self._instance, fields))
        self._unreported = 0

    def _keep(self, rest: bytes) -> None:
        """Keep an unfinished line, with what was cut off from it before."""
        if self._over:
            self._over += len(rest) - len(self._rest)
        elif len(rest) > MOST or b"\r" in rest:
            self._rest, self._over = self._form.shrunk(rest)
        else:
            self._rest = rest
        self._rest_until = self._now + QUIET

    def _take_rest(self) -> None:
        rest, over = self._rest, self._over
        self._rest, self._over = b"", 0
        if rest:
            self._line(rest, over, is_unfinished=True)

    def _line(self, raw: bytes, over: int, is_unfinished: bool = False) -> None:
        """Take one line, cut and without its end."""
        text = text_of(raw)
        is_marked = is_bar = False
        if "\r" in text:
            text, is_marked, is_bar = self._form.standing(text, is_unfinished)
        match = self._form.match(text)
        who, process, pid, rank, level, source, plain, logger, nginx = match.groups()
        message = text[match.end() :]
        head = text[len(who) : match.end()]
        if is_bar:
            self._progress = message
        if self._held and (held := self._held.get(who)) is not None:
            was_marked = held.state == "marked"
            if held.takes(head, message, over, is_marked, is_bar):
                held.until = self._now + (STANDS if is_bar else QUIET)
                if was_marked and not is_marked:
                    self._close(who)
                return
            self._close(who)
        fields = f',"source":{quoted(source)}' if source else ""
        if plain:
            level = plain
            fields = f',"logger":{quoted(logger or "uvicorn")}'
        if nginx:
            level = NGINX_LEVELS[nginx]
        if process:
            fields += f',"process":{quoted(process)},"pid":{int(pid)}'
        elif rank:
            fields += f',"process":"{rank}"'
        if not level and not message.strip():
            return
        looks_like_json = not level and not over and message[0] == "{" and message[-1] == "}"
        if looks_like_json and self._merge(message, fields):
            return
        state = "bar" if is_bar else "marked" if is_marked else first_state(level, message)
        level = level or ("ERROR" if state in ("inside", "after") else "INFO")
        if state is None:
            self._write(self._time, level, message, fields, over)
            return
        if len(self._held) >= PROCESSES:
            self._close(next(iter(self._held)))
        until = self._now + (STANDS if is_bar else QUIET)
        self._held[who] = Held(self._time, level, fields, [message], state, head, until, over)

    def _merge(self, message: str, fields: str) -> bool:
        """Write a line that is a JSON object itself; tell whether it is one."""
        ours = {"time": self._time, "level": "INFO"}
        ours |= {"instance": self._instance, "stream": self._stream, "message": ""}
        if text := merged(message, ours, fields):
            self._out.append(_written(text))
        return bool(text)

    def _expire(self, now: float) -> None:
        for who in [who for who, held in self._held.items() if held.until <= now]:
            self._close(who)

    def _close_all(self) -> None:
        for who in list(self._held):
            self._close(who)

    def _close(self, who: str) -> None:
        held = self._held.pop(who)
        self._write(held.time, held.level, held.message, held.fields, held.truncated)

    def _write(self, time: str, level: str, message: str, fields: str, truncated: int) -> None:
        cut = f',"truncated":{truncated}' if truncated else ""
        text = f'{{"time":"{time}","level":"{level}",{self._whose}{quoted(message)}{fields}{cut}}}'
        self._out.append(_written(text))
