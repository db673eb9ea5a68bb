"""What both servers are asked in `test_contract.py`, and an answer written down so that two compare."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LENGTH = 4096  # of the context
HELLO = [{"role": "user", "content": "hello"}]
TO_THE_END = {"max_tokens": 3, "ignore_eos": True, "temperature": 0}
STREAM = {**TO_THE_END, "stream": True}
USAGE = {"stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Case:
    """One request, and whether the words of its error are vLLM's own or pydantic's, which nobody repeats."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    own_words: bool = True

    def ask(self, url: str) -> httpx.Response:
        content = self.body if isinstance(self.body, str) else json.dumps(self.body)
        given = content if self.method == "POST" else None
        headers = {"content-type": "application/json"} | self.headers
        return httpx.request(self.method, url + self.path, content=given, headers=headers, timeout=180)


def completion(body: Any, *, own_words: bool = True, headers: dict[str, str] | None = None) -> Case:
    return Case("POST", COMPLETIONS, body, headers or {}, own_words)


def chat(body: Any, *, own_words: bool = True) -> Case:
    return Case("POST", CHAT, body, own_words=own_words)


# Prompts are token ids where tokens are counted, since a word is a token to the stand-in alone.
CASES = {
    "health": Case("GET", "/health"),
    "ping": Case("GET", "/ping"),
    "ping, posted": Case("POST", "/ping"),
    "version": Case("GET", "/version"),
    "models": Case("GET", "/v1/models"),
    "a path that is not there": Case("GET", "/nothing"),
    "HEAD of health": Case("HEAD", "/health"),
    "POST to health": Case("POST", "/health"),
    "GET of completions": Case("GET", COMPLETIONS),
    "a completion": completion({"model": "chat", "prompt": [5, 6, 7], **TO_THE_END}),
    "no model named": completion({"prompt": [5, 6, 7], **TO_THE_END}),
    "no max_tokens": completion({"prompt": [5, 6, 7], "ignore_eos": True}),
    "two prompts, two choices": completion(
        {"prompt": [[5], [6, 7]], "n": 2, "max_tokens": 3, "ignore_eos": True}
    ),
    "an id of the client's": completion({"prompt": [5], **TO_THE_END}, headers={"x-request-id": "abc"}),
    "a chat": chat({"model": "chat", "messages": HELLO, **TO_THE_END}),
    "max_completion_tokens": chat({"messages": HELLO, "max_completion_tokens": 2, "ignore_eos": True}),
    "a stream": completion({"prompt": [5, 6, 7], **STREAM}),
    "a stream with usage": completion({"prompt": [5, 6, 7], **STREAM, **USAGE}),
    "a stream of two choices": completion({"prompt": [5, 6, 7], "n": 2, **STREAM, **USAGE, "temperature": 1}),
    "a chat's stream": chat({"messages": HELLO, **STREAM}),
    "a chat's stream with usage": chat({"messages": HELLO, **STREAM, **USAGE}),
    "stream_options without stream": completion({"prompt": [5], **USAGE}),
    "a wrong model": completion({"model": "gpt", "prompt": [5]}),
    "a wrong model, chatting": chat({"model": "gpt", "messages": HELLO}),
    "a wrong model, streaming": completion({"model": "gpt", "prompt": [5], "stream": True}),
    "an answer shortened to the context": completion(
        {"prompt": [5] * (LENGTH - 2), "max_tokens": 20, "ignore_eos": True}
    ),
    "a prompt that fills the context": completion({"prompt": [5] * LENGTH, "max_tokens": 1}),
    "a prompt one longer": completion({"prompt": [5] * (LENGTH + 1), "max_tokens": 1}),
    "a prompt much longer": completion({"prompt": [5] * (LENGTH + 100)}),
    "more tokens than the context": completion({"prompt": [5], "max_tokens": LENGTH + 1}),
    "more tokens than the context, chatting": chat({"messages": HELLO, "max_tokens": LENGTH + 1}),
    "no prompt": completion({}),
    "an empty prompt": completion({"prompt": ""}),
    "max_tokens of 0": completion({"prompt": [5], "max_tokens": 0}),
    "max_tokens below 0": completion({"prompt": [5], "max_tokens": -1}),
    "n of 0": completion({"prompt": [5], "n": 0}),
    "no messages": chat({"messages": []}),
    "messages left out": chat({}, own_words=False),
    "a message without a role": chat({"messages": [{"content": "x"}]}, own_words=False),
    "n that is no number": completion({"prompt": [5], "n": "many"}, own_words=False),
    "broken JSON": completion("{", own_words=False),
    "JSON that is no object": completion("[]", own_words=False),
    "another media type": completion("{}", headers={"content-type": "text/plain"}),
}

MADE_UP = "(made up)"
ANY = {"created", "text", "content", "system_fingerprint", "root"}


def written_down(case: Case, answer: httpx.Response) -> dict[str, Any]:
    """Everything about an answer that does not depend on the model's words, the clock or chance."""
    kind = answer.headers.get("content-type", "").partition(";")[0]
    found = {"status": answer.status_code, "kind": kind, "allow": answer.headers.get("allow")}
    if kind == "text/event-stream":
        return found | {"events": events(answer.text, case)}
    if kind == "application/json" and answer.content:
        body = answer.json()
        if "error" in body and not case.own_words:
            body["error"]["message"] = MADE_UP
        return found | {"body": plain(body, case)}
    return found | {"body": answer.text}


def events(text: str, case: Case) -> list[Any]:
    """The events of a stream, each once: tokens may share one, and choices take turns as chance has it."""
    found: list[Any] = []
    assert text.endswith("\n\n"), "the last event is not closed"
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, _, data = event.partition(": ")
        assert name == "data", event
        assert "\n" not in data, event
        one = "[DONE]" if data == "[DONE]" else plain(json.loads(data), case)
        if isinstance(one, dict):
            one.pop("system_fingerprint", None)  # the stand-in gives it with each chunk, vLLM with the last
            one["choices"].sort(key=lambda choice: choice["index"])
        if one not in found:
            found.append(one)
    # Which choice is ahead differs from run to run.
    return sorted(found, key=_order)


def _order(event: Any) -> tuple[int, str]:
    if event == "[DONE]":
        return 3, ""
    if not event["choices"]:
        return 2, ""
    choice = event["choices"][0]
    return ("finish_reason" in choice) + 0, f"{choice['index']}{'role' not in choice.get('delta', {})}"


def plain(value: Any, case: Case) -> Any:
    """JSON without what is null, which the stand-in leaves out, and without what chance decides."""
    if isinstance(value, list):
        return [plain(item, case) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: plain(item, case) for key, item in value.items() if item is not None}
    found |= {key: type(found[key]).__name__ for key in ANY & found.keys()}
    if "id" in found:
        start, _, rest = found["id"].partition("-")
        found["id"] = f"{start}-{rest if rest in case.headers.values() else MADE_UP}"
    if "total_tokens" in found:
        prompt, completion = found["prompt_tokens"], found["completion_tokens"]
        assert found["total_tokens"] == prompt + completion
        if case.path == CHAT:  # a token is a word to the stand-in, and a byte or two to the tiny model
            del found["prompt_tokens"], found["total_tokens"]
    return found
