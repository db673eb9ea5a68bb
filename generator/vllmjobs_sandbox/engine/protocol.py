"""The OpenAI protocol as vLLM speaks it: what a request asks for, and what the answers look like."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from vllmjobs_sandbox.engine.flags import Flags

# vLLM's default of /v1/completions, from OpenAI's; a chat may fill the context.
COMPLETION_TOKENS = 16

# Of a message that matches no kind of message, pydantic names the first that it tried.
NO_ROLE = "body.messages.0.ChatCompletionDeveloperMessageParam.role"

Json = dict[str, Any]


class RefusedError(Exception):
    """A request that is answered with an error, in OpenAI's form as vLLM fills it in."""

    def __init__(
        self, status: int, kind: str, message: str, param: str | None = None, value: object = None
    ) -> None:
        super().__init__(message)
        if value is not None:  # vLLM's own validation names both
            message += f" (parameter={param}, value={value})"
        self.status = status
        self.body = error(status, kind, message, param)


def error(status: int, kind: str, message: str, param: str | None = None) -> Json:
    """Return vLLM's error body (`create_error_response`)."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True)
class Ask:
    """One checked request."""

    chat: bool
    model: str
    prompts: list[list[str]]
    max_tokens: int
    n: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    id: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


def read(body: bytes, headers: Mapping[str, str], chat: bool, flags: Flags) -> Ask:
    """Check a request's body; RefusedError where vLLM would refuse it."""
    if not headers.get("content-type", "").startswith("application/json"):
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed", None)
    try:
        given = json.loads(body)
    except ValueError as bad:
        raise _invalid(f"JSON decode error: {bad}", f"body.{getattr(bad, 'pos', 0)}") from None
    if not isinstance(given, dict):
        raise _invalid("Input should be a valid dictionary", "body")
    model = given.get("model") or flags.served_model_name[0]
    if model not in flags.served_model_name:
        known = ", ".join(flags.served_model_name)
        message = f"The model `{model}` does not exist. Valid aliases: {known}."
        raise RefusedError(404, "NotFoundError", message, "model")
    options = given.get("stream_options")
    if options and not given.get("stream"):
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise RefusedError(400, "BadRequestError", message, "stream_options")
    prompts = [_chat_prompt(given)] if chat else _prompts(given)
    longest = max(len(prompt) for prompt in prompts)
    max_tokens = _whole(given, "max_completion_tokens") if chat else None
    max_tokens = _whole(given, "max_tokens") if max_tokens is None else max_tokens
    if max_tokens is None:
        room = flags.max_model_len - longest
        max_tokens = max(1, room if chat else min(COMPLETION_TOKENS, room))
    max_tokens = _fitting(longest, max_tokens, flags.max_model_len)
    return Ask(
        chat=chat,
        model=model,
        prompts=prompts,
        max_tokens=max_tokens,
        n=_whole(given, "n") or 1,
        ignore_eos=bool(given.get("ignore_eos")),
        stream=bool(given.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        id=("chatcmpl-" if chat else "cmpl-") + (headers.get("x-request-id") or uuid4().hex),
        fingerprint=f"stand-in max_model_len={flags.max_model_len}",
    )


def whole_answer(ask: Ask, choices: Iterable[tuple[str, str]], generated: int) -> Json:
    """Return the answer to a request without `stream`; choices are texts with their finish reasons."""
    shaped: list[Json] = []
    for index, (text, reason) in enumerate(choices):
        content = {"message": {"role": "assistant", "content": text}} if ask.chat else {"text": text}
        shaped.append(_choice(index, content, reason))
    return _answer(ask, "chat.completion", shaped) | {"usage": usage(ask, generated)}


def opening(ask: Ask) -> list[Json]:
    """Return the chunks that vLLM sends before the first token: the role of each chat choice."""
    delta = {"delta": {"role": "assistant", "content": ""}}
    count = len(ask.prompts) * ask.n if ask.chat else 0
    return [_answer(ask, "chat.completion.chunk", [_choice(i, delta, None)]) for i in range(count)]


def chunk(ask: Ask, index: int, text: str, reason: str | None) -> Json:
    """Return one streamed piece of one choice."""
    content = {"delta": {"content": text}} if ask.chat else {"text": text}
    return _answer(ask, "chat.completion.chunk", [_choice(index, content, reason)])


def usage_chunk(ask: Ask, generated: int) -> Json:
    """Return the last chunk of a stream with `stream_options.include_usage`."""
    return _answer(ask, "chat.completion.chunk", []) | {"usage": usage(ask, generated)}


def usage(ask: Ask, generated: int) -> Json:
    """Return the token counts; n choices share one prompt."""
    prompt = sum(map(len, ask.prompts))
    return {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}


def models(flags: Flags, started: int) -> Json:
    """Return the body of /v1/models: one card for each served name, all of the same root."""
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": started,
                "owned_by": "vllm",
                "root": flags.model,
                "parent": None,
                "max_model_len": flags.max_model_len,
                "permission": [_permission(started)],
            }
            for name in flags.served_model_name
        ],
    }


def _permission(started: int) -> Json:
    allowed = dict.fromkeys(("allow_sampling", "allow_logprobs", "allow_view"), True)
    refused = ("allow_create_engine", "allow_search_indices", "allow_fine_tuning", "is_blocking")
    return {
        "id": f"modelperm-{uuid4().hex[:16]}",
        "object": "model_permission",
        "created": started,
        "organization": "*",
        "group": None,
        **allowed,
        **dict.fromkeys(refused, False),
    }


def _answer(ask: Ask, chat_object: str, choices: list[Json]) -> Json:
    return {
        "id": ask.id,
        "object": chat_object if ask.chat else "text_completion",
        "created": ask.created,
        "model": ask.model,
        "system_fingerprint": ask.fingerprint,
        "choices": choices,
    }


def _choice(index: int, content: Json, reason: str | None) -> Json:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason, "stop_reason": None}


def _fitting(prompt: int, max_tokens: int, longest: int) -> int:
    """Return how many tokens there is room for; vLLM shortens an answer, unless it could never have been."""
    if max_tokens > longest:
        message = (
            f"max_tokens={max_tokens} cannot be greater than max_model_len={longest}. "
            "Please request fewer output tokens."
        )
        raise RefusedError(400, "BadRequestError", message, "max_tokens", max_tokens)
    if prompt > longest:
        message = (
            f"This model's maximum context length is {longest} tokens. However, your prompt contains "
            f"{'at least ' if prompt == longest + 1 else ''}{prompt} input tokens, which exceeds this limit "
            "even without any output tokens. Please reduce the length of the input prompt."
        )
        raise RefusedError(400, "BadRequestError", message, "input_tokens", prompt)
    if prompt == longest:
        raise RefusedError(400, "BadRequestError", "max_tokens must be at least 1, got 0.", "max_tokens", 0)
    return min(max_tokens, longest - prompt)


def _chat_prompt(given: Json) -> list[str]:
    messages = given.get("messages")
    if not isinstance(messages, list):
        raise _invalid("messages: a list is required", "body.messages")
    if not messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise RefusedError(400, "BadRequestError", message)
    words: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _invalid("messages: each needs a role", NO_ROLE)
        content = message.get("content") or ""
        parts = content if isinstance(content, list) else [{"text": content}]
        text = " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        words += [message["role"], *text.split()]
    return words


def _prompts(given: Json) -> list[list[str]]:
    """Return the words of a text, a list of texts, a list of token ids or a list of such lists."""
    prompt = given.get("prompt")
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts: list[list[str]] = []
    for one in prompt if isinstance(prompt, list) and several else [prompt]:
        ids = one if isinstance(one, list) else []
        prompts.append(one.split() if isinstance(one, str) else [str(token) for token in ids])
    if not all(prompts):
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise RefusedError(400, "BadRequestError", message, "prompt")
    return prompts


def _whole(given: Json, name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int):
        raise _invalid(f"{name}: Input should be a valid integer", f"body.{name}")
    if value < 1:
        message = f"{name} must be at least 1, got {value}."
        raise RefusedError(400, "BadRequestError", message, *(() if name == "n" else (name, value)))
    return value


def _invalid(message: str, param: str | None) -> RefusedError:
    return RefusedError(400, "Bad Request", f"1 validation error:\n  {message}", param)
