"""What a server is asked, in which order, and what its answers mean: as tables, without a network."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Mapping
from email import message_from_bytes

import pytest

from vllmjobs.supervisor.core.asking import (
    NOTHING,
    PATHS,
    TRANSCRIPTIONS,
    UNSUPPORTED,
    AskedModel,
    ProbeAnswer,
    ProbeOutcome,
    ServerFacts,
    ask,
    content,
    is_of,
    silence,
)

WANTED = AskedModel("chat", "org/model")
CARDS = {"data": [{"id": "chat", "root": "org/model"}, {"id": "adapter", "root": "/adapters/a"}]}
TOKEN = {"choices": [{"text": "a"}]}
SILENT = ProbeAnswer(None, reason="no answer within 3 s")


def answer(status: int, body: object = None) -> ProbeAnswer:
    return ProbeAnswer(status, b"" if body is None else json.dumps(body).encode())


def asked(
    pages: Mapping[str, ProbeAnswer], wanted: AskedModel = WANTED, facts: ServerFacts = NOTHING
) -> tuple[list[str], ProbeOutcome]:
    """Ask a server with these pages, and 404 for the others: the paths in order, and what came of it."""
    paths: list[str] = []
    asking = ask(wanted, facts)
    try:
        request = next(asking)
        while True:
            paths.append(request.path)
            request = asking.send(pages.get(request.path, answer(404)))
    except StopIteration as ended:
        outcome: ProbeOutcome = ended.value
        return paths, outcome


MODELS = {"/v1/models": answer(200, CARDS)}
FIRST = ["/is_sleeping", "/v1/models", "/openapi.json"]


def test_a_server_is_asked_what_it_is_before_it_is_asked_for_a_token() -> None:
    paths, outcome = asked({**MODELS, "/v1/completions": answer(200, TOKEN)})
    assert paths == [*FIRST, "/v1/completions"]
    known = ServerFacts("chat", "/v1/completions", can_sleep=False)
    assert outcome == ProbeOutcome("answered", known, "", 200)
    paths, again = asked({"/v1/completions": answer(200, TOKEN)}, facts=known)
    assert (paths, again) == (["/v1/completions"], outcome)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", TOKEN), ("/v1/embeddings", {"data": [{}]}), ("/pooling", {"data": [{}]}),
        ("/classify", {"data": [{}]}), ("/score", {"data": [{}]}), (TRANSCRIPTIONS, {"text": ""}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("refusal", UNSUPPORTED)
def test_what_a_model_is_for_is_tried_or_read(path: str, body: object, refusal: int) -> None:
    tried = {one: answer(refusal) for one in PATHS} | {path: answer(200, body)}
    paths, outcome = asked({**MODELS, **tried})
    assert paths == [*FIRST, *PATHS[: PATHS.index(path) + 1]]
    assert (outcome.result, outcome.facts.path) == ("answered", path)
    listed = answer(200, {"paths": {"/health": {}, path: {"post": {}}}})
    paths, outcome = asked({**MODELS, **tried, "/openapi.json": listed})
    assert paths == [*FIRST, path]
    assert outcome.result == "answered"


@pytest.mark.parametrize(
    ("sleep", "facts", "result"),
    [
        (answer(200, {"is_sleeping": True}), ServerFacts(), "asleep"),
        (answer(200, {"is_sleeping": False}), ServerFacts(), "answered"),
        (answer(200, {"is_sleeping": "yes"}), ServerFacts(), "answered"),
        (ProbeAnswer(200, b"[" * 100_000), ServerFacts(), "answered"),
        (answer(404), ServerFacts(), "answered"),
        (answer(500), ServerFacts(can_sleep=True), "answered"),
        (SILENT, ServerFacts(), "answered"),
        (SILENT, ServerFacts(can_sleep=True), "silent"),
    ],
)
def test_nothing_is_sent_to_a_server_that_sleeps_or_may_be_on_its_way(
    sleep: ProbeAnswer, facts: ServerFacts, result: str
) -> None:
    pages = {**MODELS, "/v1/completions": answer(200, TOKEN), "/is_sleeping": sleep}
    paths, outcome = asked(pages, facts=facts)
    assert outcome.result == result
    assert (paths == ["/is_sleeping"]) is (result != "answered")


@pytest.mark.parametrize(
    ("models", "wanted", "result", "reason"),
    [
        (answer(200, CARDS), AskedModel("chat", "org/model/"), "answered", ""),
        (answer(200, CARDS), AskedModel(), "answered", ""),
        (answer(200, CARDS), AskedModel("chat"), "answered", ""),
        (answer(200, {"data": [{"id": "chat"}]}), WANTED, "answered", ""),
        (answer(404), WANTED, "answered", ""),
        (ProbeAnswer(200, b"[" * 100_000), WANTED, "answered", ""),
        (answer(200, {"data": [{"id": 5}]}), WANTED, "answered", ""),
        (
            answer(200, CARDS), AskedModel("chat", "org/other"), "refused",
            "/v1/models: it serves another model: chat is org/model, but org/other was asked for",
        ),
        (
            answer(200, CARDS), AskedModel("code"), "refused",
            "/v1/models: it serves another model: it lists chat, adapter, and not code",
        ),
        (answer(404), AskedModel(), "refused", "/v1/models answered 404 and names no model"),
        (SILENT, WANTED, "silent", "/v1/models: no answer within 3 s"),
    ],
)  # fmt: skip
def test_the_model_that_answers_is_the_one_that_was_asked_for(
    models: ProbeAnswer, wanted: AskedModel, result: str, reason: str
) -> None:
    pages = {"/v1/models": models, "/v1/completions": answer(200, TOKEN)}
    paths, outcome = asked(pages, wanted)
    assert (outcome.result, outcome.reason) == (result, reason)
    assert ("/v1/completions" in paths) is (result == "answered")


@pytest.mark.parametrize(
    ("root", "is_the_same"),
    [
        ("org/model", True),
        ("/cache/hub/models--org--model/snapshots/0123abc", True),
        ("/cache/hub/models--org--model-2/snapshots/0123abc", False),
        ("org/model-2", False),
        ("", False),
    ],
)
def test_a_model_is_known_by_its_name_and_by_its_snapshot(root: str, is_the_same: bool) -> None:
    assert is_of(root, "org/model") is is_the_same


@pytest.mark.parametrize(
    ("pages", "result", "reason"),
    [
        ({"/v1/completions": answer(401, {"error": "Unauthorized"})}, "refused",
         '/v1/completions answered 401: {"error": "Unauthorized"}'),
        ({"/v1/completions": ProbeAnswer(500, b"no\n\n  kernel\timage " + b"x" * 900)}, "refused",
         "/v1/completions answered 500: no kernel image " + "x" * 184 + "…"),
        ({"/v1/completions": answer(200, {"choices": []})}, "refused",
         '/v1/completions answered 200: {"choices": []}'),
        ({"/v1/completions": answer(404), "/v1/chat/completions": answer(503)}, "refused",
         "/v1/chat/completions answered 503"),
        ({"/v1/completions": SILENT}, "silent", "/v1/completions: no answer within 3 s"),
        ({"/openapi.json": answer(200, {"paths": {"/v1/audio/speech": {}}})}, "unprobed",
         "/openapi.json lists no path that a probe knows"),
        ({}, "unprobed", "; ".join(f"{path} answered 404" for path in PATHS)),
    ],
)  # fmt: skip
def test_a_reason_quotes_the_answer_on_one_line(
    pages: Mapping[str, ProbeAnswer], result: str, reason: str
) -> None:
    _, outcome = asked({**MODELS, **pages})
    assert (outcome.result, outcome.reason) == (result, reason)


def test_a_server_for_which_nothing_fits_is_not_asked_again() -> None:
    _, outcome = asked(MODELS)
    assert outcome.facts == ServerFacts("chat", "", can_sleep=False)
    assert asked({}, facts=outcome.facts) == ([], ProbeOutcome("unprobed", outcome.facts))


def test_a_server_that_lists_nothing_and_takes_nothing_does_not_serve() -> None:
    _, outcome = asked({})
    assert (outcome.result, outcome.reason) == ("refused", "/v1/completions answered 404")


def test_what_is_transcribed_is_half_a_second_of_silence() -> None:
    body, content_type = content(TRANSCRIPTIONS, "whisper")
    form = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}  # type: ignore[union-attr]
    assert parts["model"].get_payload() == "whisper"  # type: ignore[union-attr]
    clip = body.partition(b"audio/wav\r\n\r\n")[2].removesuffix(b"\r\n--vllmjobs-probe--\r\n")
    assert clip == silence()
    with wave.open(io.BytesIO(clip)) as heard:
        assert (heard.getnchannels(), heard.getsampwidth(), heard.getframerate()) == (1, 2, 16_000)
        assert heard.readframes(8001) == bytes(16_000)
