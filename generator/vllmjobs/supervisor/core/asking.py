"""The requests that show whether a server answers, and what its answers mean: for supervisor and `deploy`.

Each function is a generator: it yields a `ProbeRequest`, is sent the `ProbeAnswer`, and returns what came of
it. Whoever drives it brings the network. Nothing is sent to a server that sleeps, or that serves another
model than the one that was asked for.

What a server can do is asked of `/openapi.json`: vLLM has a path only where the model is for it
(vllm/entrypoints/launchers/api_server in 0.32). Where it is switched off (`--disable-fastapi-docs`), or an
older vLLM lists every path, the paths are tried in turn: one that the model is not for answers 400 or 404.
"""

import json
import re
import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

UNSUPPORTED = (400, 404, 405, 501)  # what vLLM's versions answer on a path that the model is not for
OTHER_MODEL = "serves another model"  # the words for a server whose model is not the one that was asked for
SHOWN = 200  # characters of an answer that a reason quotes
JSON = "application/json"
_BOUNDARY = "vllmjobs-probe"


class ProbeRequest(NamedTuple):
    """One request."""

    method: str
    path: str
    content: bytes | None = None
    content_type: str = JSON


class ProbeAnswer(NamedTuple):
    """The answer to a request; without a status there was none, for this reason."""

    status: int | None
    body: bytes = b""
    reason: str = ""


class AskedModel(NamedTuple):
    """The model that a server is asked for."""

    served_name: str | None = None  # its name in requests; the first that the server lists when None
    root: str | None = None  # what `vllm serve` was given: a repository or a folder; None where nobody knows


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The facts that were found out about a server in its present life."""

    name: str | None = None  # the model's name in requests
    path: str | None = None  # the path on which it answers; empty when none of ours fits
    can_sleep: bool | None = None  # False where it has no /is_sleeping


NOTHING = ServerFacts()  # is known of a server that was just started


class ProbeOutcome(NamedTuple):
    """The outcome of asking.

    `unprobed` is a server that lists the model and takes none of the requests; `refused` is any other answer
    that does not serve.
    """

    result: Literal["answered", "unprobed", "refused", "silent", "asleep"]
    facts: ServerFacts
    reason: str = ""  # it quotes the answer; empty for `answered`
    status: int | None = None  # of the answer that a reason quotes, or of the one that serves


Asking = Generator[ProbeRequest, ProbeAnswer, ProbeOutcome]
Sleep = Literal["awake", "asleep", "silent"]


def ask(wanted: AskedModel, facts: ServerFacts) -> Asking:
    """Ask whether the server sleeps, and if not, for an answer."""
    sleep, facts, reason = yield from ask_sleep(facts)
    if sleep != "awake":
        return ProbeOutcome(sleep, facts, reason)
    return (yield from ask_answer(wanted, facts))


def ask_sleep(
    facts: ServerFacts,
) -> Generator[ProbeRequest, ProbeAnswer, tuple[Sleep, ServerFacts, str]]:
    """Ask whether the server sleeps on purpose; return the reason for any state but `awake`, too.

    vLLM has the path with VLLM_SERVER_DEV_MODE=1 alone. A server that had it and is silent may be on its way
    to sleep or back, or hang: that is `silent`, and nothing may be sent to it.
    """
    if facts.can_sleep is False:
        return "awake", facts, ""
    answer = yield ProbeRequest("GET", "/is_sleeping")
    says = _object(answer).get("is_sleeping")
    if isinstance(says, bool):
        is_asleep = "/is_sleeping says that it sleeps" if says else ""
        return "asleep" if says else "awake", replace(facts, can_sleep=True), is_asleep
    if answer.status is None:
        return "silent" if facts.can_sleep else "awake", facts, f"/is_sleeping: {answer.reason}"
    return "awake", replace(facts, can_sleep=False if answer.status in (200, 404) else facts.can_sleep), ""


def ask_answer(wanted: AskedModel, facts: ServerFacts) -> Asking:
    """Ask for an answer of one token, or the like: on the path that is known, or on each that may fit."""
    if facts.path == "":
        return ProbeOutcome("unprobed", facts)
    is_listed = True
    if facts.path is None or facts.name is None:
        models = yield ProbeRequest("GET", "/v1/models")
        if models.status is None:
            return ProbeOutcome("silent", facts, f"/v1/models: {models.reason}")
        cards = _cards(models)
        is_listed = bool(cards)
        name, why = _whose(wanted, cards, models)
        if name is None:
            return ProbeOutcome("refused", facts, why)
        facts = replace(facts, name=name)
    paths: tuple[str, ...] = (facts.path,) if facts.path else ()
    if not paths:
        paths = offered((yield ProbeRequest("GET", "/openapi.json")))
    complaints: list[str] = []
    status: int | None = None
    for path in paths:
        answer = yield ProbeRequest("POST", path, *content(path, facts.name or ""))
        status = answer.status
        if status is None:
            return ProbeOutcome("silent", facts, f"{path}: {answer.reason}")
        if is_answer(path, answer):
            return ProbeOutcome("answered", replace(facts, path=path), status=status)
        complaints.append(quoted(path, answer))
        if status not in UNSUPPORTED:
            return ProbeOutcome("refused", facts, complaints[-1], status)
    if not is_listed or facts.path:
        return ProbeOutcome("refused", facts, complaints[0] if complaints else "", status)
    reason = "; ".join(complaints) or "/openapi.json lists no path that a probe knows"
    return ProbeOutcome("unprobed", replace(facts, path=""), reason, status)


def offered(page: ProbeAnswer) -> tuple[str, ...]:
    """Return the paths to try, from the answer of /openapi.json; all of them where it does not tell.

    The page is not decoded: it has some hundred kilobytes, and may be anybody's.
    """
    if page.status != 200 or b'"paths"' not in page.body:
        return tuple(_REQUESTS)
    return tuple(path for path in _REQUESTS if re.search(rb'"%s"\s*:\s*\{' % path.encode(), page.body))


def content(path: str, name: str) -> tuple[bytes, str]:
    """Return the smallest request on a path to the model of that name, and its content type."""
    fields, _ = _REQUESTS[path]
    if path == TRANSCRIPTIONS:
        return _form({"model": name, **fields}, silence()), f"multipart/form-data; boundary={_BOUNDARY}"
    return json.dumps({"model": name, **fields}).encode(), JSON


def is_answer(path: str, answer: ProbeAnswer) -> bool:
    """Tell whether this is an answer of the model to the request on that path."""
    _, key = _REQUESTS[path]
    found = _object(answer).get(key)
    return isinstance(found, str) if path == TRANSCRIPTIONS else bool(_objects(found))


def quoted(path: str, answer: ProbeAnswer) -> str:
    """Return what a server answered, on one line: the status, and the beginning of the body."""
    text = " ".join(answer.body[: 4 * SHOWN].decode(errors="replace").split())
    body = f"{text[:SHOWN]}…" if len(text) > SHOWN else text
    return f"{path} answered {answer.status}" + (f": {body}" if body else "")


def silence(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    """Return a WAV file of silence: one channel of 16 bits."""
    data = bytes(2 * int(seconds * rate))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    chunks = form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def is_of(root: str, wanted: str) -> bool:
    """Tell whether the root of a card names this model: itself, or its snapshot in a cache of the hub."""
    folder = f"/models--{wanted.replace('/', '--')}/"
    return root.rstrip("/") == wanted.rstrip("/") or folder in f"{root}/"


def started_for(command: Sequence[str]) -> str | None:
    """Return the model of `vllm serve MODEL`, also after the old program, which takes the word and drops it.

    None for any other program: nobody knows what it makes of its words.
    """
    for before, word in pairwise(command):
        if before in ("serve", "vllm.entrypoints.openai.api_server") and not word.startswith("-"):
            return word
    return None


TRANSCRIPTIONS = "/v1/audio/transcriptions"
# By path, the fields of the smallest request, and the key under which an answer has what was asked for.
_REQUESTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "/v1/completions": ({"prompt": "1", "max_tokens": 1}, "choices"),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "1"}], "max_tokens": 1}, "choices"),
    "/v1/embeddings": ({"input": "1"}, "data"),
    "/pooling": ({"input": "1"}, "data"),
    "/classify": ({"input": "1"}, "data"),
    "/score": ({"text_1": "1", "text_2": "1"}, "data"),
    TRANSCRIPTIONS: ({"temperature": "0"}, "text"),
}
PATHS = tuple(_REQUESTS)


def _whose(wanted: AskedModel, cards: list[dict[str, Any]], models: ProbeAnswer) -> tuple[str | None, str]:
    """Return the name to ask for, or None with the reason: another model, or none, is served.

    A card that names no root, as of a server that is not vLLM, is believed.
    """
    if not cards:
        return wanted.served_name, f"{quoted('/v1/models', models)} and names no model"
    card = next((one for one in cards if wanted.served_name in (None, one["id"])), None)
    if card is None:
        listed = ", ".join(one["id"] for one in cards)[:SHOWN]
        return None, f"/v1/models: it {OTHER_MODEL}: it lists {listed}, and not {wanted.served_name}"
    root = card.get("root")
    if wanted.root and isinstance(root, str) and not is_of(root, wanted.root):
        which = f"{card['id']} is {root[:SHOWN]}, but {wanted.root} was asked for"
        return None, f"/v1/models: it {OTHER_MODEL}: {which}"
    return card["id"], ""


def _cards(models: ProbeAnswer) -> list[dict[str, Any]]:
    cards = _objects(_object(models).get("data"))
    return cards if all(isinstance(card.get("id"), str) for card in cards) else []


def _object(answer: ProbeAnswer) -> dict[str, Any]:
    """Return the JSON object of a 200; an empty one for anything else, however deep or odd it is."""
    if answer.status != 200:
        return {}
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _objects(found: object) -> list[dict[str, Any]]:
    """Return a list of objects; an empty one for anything else."""
    return found if isinstance(found, list) and all(isinstance(item, dict) for item in found) else []


def _form(fields: Mapping[str, str], clip: bytes) -> bytes:
    """Return the fields and a clip as multipart/form-data (RFC 7578)."""
    begin = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    parts = [f'{begin}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head = f'{begin}"file"; filename="silence.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return "".join([*parts, head]).encode() + clip + f"\r\n--{_BOUNDARY}--\r\n".encode()
