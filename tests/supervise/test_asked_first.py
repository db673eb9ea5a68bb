"""Engines that are no chat models, that sleep, that serve another model, or whose pages are odd."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.engine.supervised import SECONDS, Supervise, Supervised

ODD = str(Path(__file__).parent / "programs" / "odd.py")
LOAD = "vllm:num_requests_running 0\nvllm:generation_tokens_total 5\n"
TOKEN = json.dumps({"choices": [{"text": "a"}]})
CARD = json.dumps({"data": [{"id": "chat", "root": "a/small"}]})
CHATS = {"/metrics": [200, LOAD], "/v1/models": [200, CARD], "/v1/completions": [200, TOKEN]}


def odd(pages: dict[str, Any]) -> list[list[str]]:
    """The command of one engine with these pages, which is asked for the model a/small."""
    return [[sys.executable, ODD, json.dumps(pages), "serve", "a/small"]]


def posted(one: Supervised) -> list[str]:
    """The paths that were posted to, in order."""
    lines = [str(line.get("message", "")) for line in list(one.events)]
    return [line.removeprefix("POST ") for line in lines if line.startswith("POST ")]


def post(one: Supervised, path: str) -> None:
    with httpx.Client(trust_env=False, timeout=SECONDS) as client:
        assert client.post(f"http://127.0.0.1:{one.ports[0]}{path}").status_code == 200


def uptime(one: Supervised) -> float:
    return float(one.get("/health")[1]["uptime_seconds"])


def test_an_engine_that_sleeps_is_left_asleep_and_serves_when_it_is_woken(supervise: Supervise) -> None:
    """A request would end it (vllm-project/vllm#14311), and so would a restart."""
    one = supervise(commands=odd({**CHATS, "/sleep": [200, ""], "/wake_up": [200, ""]}), limits={"hang": 2})
    one.wait_until_ready()
    pid = one.pid()
    post(one, "/sleep")
    one.wait_for("instance_sleeps")
    assert (one.get("/ready")[0], one.get("/health")[0]) == (503, 200)
    assert one.get("/health")[1]["status"] == one.instance()["phase"] == "sleeping"
    before = posted(one)
    slept = uptime(one)
    wait_until(lambda: uptime(one) > slept + 5, SECONDS, "it sleeps for longer than a hang may last")
    post(one, "/wake_up")
    one.wait_for("instance_awake")
    assert one.get("/ready")[0] == 200
    assert posted(one) == [*before, "/wake_up", "/v1/completions"]
    assert one.pid() == pid
    assert one.said("instance_failed") == []
    post(one, "/sleep")
    one.wait_for("instance_sleeps", count=2)
    one.stop()
    assert one.end() == 0


def test_a_model_that_transcribes_is_asked_to_transcribe_silence(supervise: Supervise) -> None:
    speech = {"/metrics": [200, LOAD], "/v1/models": [200, CARD]}
    heard = {"/v1/audio/transcriptions": [200, json.dumps({"text": ""})]}
    one = supervise(commands=odd(speech | heard))
    one.wait_until_ready()
    assert posted(one)[-1] == "/v1/audio/transcriptions"
    assert one.said("instance_not_probed") == []


def test_what_a_server_lists_is_all_that_it_is_asked_for(supervise: Supervise) -> None:
    """vLLM has a path only where its model is for it; a request on another might end it."""
    listed: Any = {"paths": {"/health": {}, "/score": {}}}
    rerank = {
        "/openapi.json": [200, json.dumps(listed)],
        "/score": [200, json.dumps({"data": [{"score": 1}]})],
    }
    one = supervise(commands=odd({"/metrics": [200, LOAD], "/v1/models": [200, CARD], **rerank}))
    one.wait_until_ready()
    assert posted(one) == ["/score"]


@pytest.mark.parametrize("listed", [{}, {"/openapi.json": [200, '{"paths": {"/v1/audio/speech": {}}}']}])
def test_a_server_for_which_no_probe_fits_is_ready_by_health_and_its_model(
    supervise: Supervise, listed: dict[str, Any]
) -> None:
    one = supervise(commands=odd({"/v1/models": [200, CARD], **listed}), limits={"hang": 2})
    one.wait_until_ready()
    (said,) = one.said("instance_not_probed")
    known = "/openapi.json lists no path that a probe knows" if listed else "/v1/completions answered 404: {"
    assert said["reason"].startswith(known)
    began, before = uptime(one), posted(one)
    wait_until(lambda: uptime(one) > began + 5, SECONDS, "it serves for longer than a hang may last")
    assert (posted(one), one.said("instance_failed")) == (before, [])


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (
            {"id": "chat", "root": "Qwen/Qwen3-0.6B"},
            "chat is Qwen/Qwen3-0.6B, but a/small was asked for",
        ),
        ({"id": "other", "root": "a/small"}, "it lists other, and not chat"),
    ],
)
def test_an_engine_that_serves_another_model_never_gets_ready(
    supervise: Supervise, card: dict[str, str], reason: str
) -> None:
    """As vLLM does under its old program (vllm-project/vllm#27389): all else of it is right."""
    pages = {**CHATS, "/v1/models": [200, json.dumps({"data": [card]})]}
    one = supervise(commands=odd(pages), limits={"load": 2, "restarts_never_ready": 0})
    reason = f"/v1/models: it serves another model: {reason}"
    assert one.wait_for("instance_not_ready")["reason"] == reason
    assert one.wait_for("instance_failed")["reason"] == f"not ready after 2 s: {reason}"
    assert posted(one) == []


def test_a_refusal_is_quoted(supervise: Supervise) -> None:
    refused = {"/v1/completions": [500, '{"error": {"message":\n  "no kernel image"}}']}
    one = supervise(commands=odd(CHATS | refused), limits={"load": 2, "restarts_never_ready": 0})
    said = '/v1/completions answered 500: {"error": {"message": "no kernel image"}}'
    assert one.wait_for("instance_not_ready")["reason"] == said
    wait_until(lambda: one.instance()["why"].endswith(said), SECONDS, "/health quotes it, too")
    assert one.wait_for("instance_killed")["reason"] == f"not ready after 2 s: {said}"
    assert len(one.said("instance_not_ready")) == 1


DEEP = {"repeat": ["[", 200_000]}
HUGE = 'vllm:num_requests_running 1.7e308\nvllm:num_requests_running{engine="1"} 1.7e308\n'


ODD_PAGES: dict[str, dict[str, Any]] = {
    "huge sum": {"/metrics": [200, HUGE]},
    "huge digits": {
        "/metrics": [200, f"vllm:num_requests_running {'9' * 5000}\nvllm:prompt_tokens_total -1e999\n"]
    },
    "deep metrics": {"/metrics": [200, DEEP]},
    "endless metrics": {"/metrics": [200, {"repeat": ["#", 3 << 20]}]},
    "deep models": {"/v1/models": [200, DEEP]},
    "odd models": {"/v1/models": [200, '{"data": [{"id": ["chat"], "root": 5}]}']},
    "deep paths": {"/openapi.json": [200, DEEP]},
    "endless paths": {"/openapi.json": [200, {"repeat": ["x", 3 << 20]}]},
    "deep sleep": {"/is_sleeping": [200, DEEP]},
    "odd sleep": {"/is_sleeping": [200, '{"is_sleeping": "yes"}']},
    "broken sleep": {"/is_sleeping": [500, ""]},
}


def test_an_odd_page_kills_no_engine_that_answers(supervise: Supervise) -> None:
    commands = [command for pages in ODD_PAGES.values() for command in odd(CHATS | pages)]
    one = supervise(engines=len(commands), commands=commands, limits={"hang": 2.5}, min_alive=len(commands))
    one.wait_until_ready()
    began = uptime(one)
    wait_until(lambda: uptime(one) > began + 5, SECONDS, "they serve for longer than a hang may last")
    assert one.get("/ready")[0] == 200
    assert (one.errors, one.said("instance_failed"), one.said("internal_error")) == ("", [], [])
