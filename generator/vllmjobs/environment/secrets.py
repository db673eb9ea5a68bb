"""The secrets of a text: they are known by a shape, by a name, or by a place in a URL or a header.

With this `check` refuses, `diff` and `plan` hide, errors and records are blotted, `import` refers, and the
scan of a repository in `docs/ci/` finds. The shapes and the names are in `secret_shapes` and `secret_names`.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote

from vllmjobs.environment.secret_names import (
    holds_secret,
    is_plain,
    is_query_secret,
    is_reference,
    is_secret_name,
    may_name_secret,
)
from vllmjobs.environment.secret_shapes import patterns

Span = tuple[int, int]
BLOT = "…"
_DEPTH = 3  # of encodings in each other: a token in JSON in base64 in JSON

# A token follows no letter and no digit, unless these are an escape of a URL.
_BEFORE = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))"
_BARE = r"(?:\$\{[^{}]*\}|\\[^\s\"']|[^\s&;|,{}\"'\\])+"
_VALUE = rf"(?:\\*\"(?P<double>[^\"\n]+?)\\*\"|\\*'(?P<single>[^'\n]+?)\\*'|(?P<bare>{_BARE}))"
_NAME = r"(?P<key>[A-Za-z_][\w.-]*)"
# `HF_TOKEN=…`, `--api-key=…`, `?token=…`, `Password=…;`.
_ASSIGNED = rf"(?<![\w.-])(?:--?(?:(?:e|env|set|build-arg)=)?)?{_NAME}\\*[\"']?=(?![=~]){_VALUE}"
# {"api_key": "…"}, as it stands and escaped in another JSON.
_JSON = r"[\"'](?P<key>[\w .-]{1,80})\\*[\"'][ \t]*:[ \t]*\\*[\"'](?P<value>[^\n\"']+?)(?=\\*[\"'])"
_HEADER = (
    r"(?i)(?<![\w.-])(?P<key>(?:proxy-)?authorization|(?:set-)?cookie|(?:[a-z]+-)+(?:auth|key|secret|sig|token))"
    r"\\*[\"']?:[ \t]*\\*[\"']?"
    rf"(?:(?:Bearer|Basic|Token|ApiKey|Digest)[ \t]+)?(?P<value>{_BARE})"
)
_QUERY = r"(?<=[?&;])(?P<key>[\w.%-]+)=(?P<value>[^?&;#\s\"'<>\\]+)"
# `--api-key sesame`, in a command and in a list of words.
_OPTION = rf"(?<![\w-])--?{_NAME}\\*[\"']?(?P<between>[ \t]+|[ \t]*,[ \t]*)(?!\\*[\"']?-){_VALUE}"
_USER = r"(?<!\S)(?:-u|--user|--proxy-user)[\"']?[ \t=,]+[\"']?[\w.-]+:(?P<value>(?!\d+(?:\s|$))[^\s\"']+)"
_USERINFO = (
    r"(?<=[A-Za-z0-9])://"
    r"(?P<value>(?:[^\s/?#\"'<>\\]|[\"'](?![,:\]}\s]))+)@(?!sha\d)"
)
_BEARER = (
    r"(?i)\bbearer[ \t]+(?!(?:auth\w*|tokens?|scheme|header|credentials?)\b)"
    r"(?P<value>(?:\$\{[^{}]*\}|[\w.~+/=-]){8,})"
)
_BASIC = r"\bBasic[ \t]+(?P<value>[A-Za-z0-9+/_-]{6,}={0,2})"
# A line of one word is no sentence: `password: sesame`, where it is all that a value of an environment says.
_LONE = rf"(?m)^[ \t-]*[\"']?{_NAME}[\"']?:[ \t]+[\"']?(?P<value>[^\s\"'{{}}|>]+)[\"']?[ \t]*$"
# Of files: `password = …` to the line's end, `password: |` and the lines below, <password>…</password>,
# redis.conf.
_LINE = (
    rf"(?m)^[ \t-]*(?:export[ \t]+)?[\"']?{_NAME}[\"']?[ \t]*[=:][ \t]*[\"']?"
    r"(?P<value>(?![|>][+-]?\d?[ \t]*$)(?!\{\{)[^\s\"'].*?)[\"']?[ \t]*$"
)
_FLOW = rf"(?<![\w.-])(?P<key>[A-Za-z_][\w-]*)[\"']?:[ \t]+[\"']?(?P<value>{_BARE})"
_BLOCK = (
    r"(?m)^(?P<in>[ \t]*)(?P<key>[\w.-]+):[ \t]*[|>][+-]?\d?[ \t]*\n"
    r"(?P<value>(?:(?P=in)[ \t]+\S.*\n)*(?P=in)[ \t]+\S.*)"
)
_ELEMENT = r"<(?P<key>[\w.:-]+)>(?P<value>[^<{]+)(?=</)"
_SPACED = (
    r"(?i)(?<![\w.-])(?:requirepass|masterauth|password|passwd)[ \t]+(?P<value>[\w\"'][^\s=:{};]+)"
    r"|\bauthorization[\"']?[ \t]+[\"']?(?:\w+[ \t]+)?(?P<bare>[\w.~+/=-]+)"
)
_RUN = r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}={0,2}"
_KEY_OF_STORAGE = r"[A-Za-z0-9+/]{86}=="  # 64 bytes, of an Azure storage account; no text
_PAIR = r"[\w.@+-]{1,64}:[!-~]{6,}"
_ESCAPED = r"[^\s\"'<>]*%[0-9A-Fa-f]{2}[^\s\"'<>]*"


def looks_secret(text: str) -> bool:
    """Tell whether a value holds what looks like a secret, and must not be shown or rendered."""
    return _looks_secret(text) if len(text) < 2000 else _any(text)


def without_secrets(text: str) -> str:
    """Return a message less its secrets, with `…` for each; its other words are left alone."""
    return _replaced(text, BLOT, _spans(text, _in_messages))


def hidden(text: str, mark: str) -> str:
    """Return a value of a job, such as a command or a file, with a mark for each of its secrets."""
    return _replaced(text, mark, _spans(text, _in_files))


def found(text: str, by_name: bool = True) -> list[str]:
    """Return the secrets of a value, in their order; in a program, a name stands before other things, too."""
    places = _spans(text, _in_values if by_name else lambda _: iter(()))
    return [text[start:end] for start, end in _merged(places)]


def blotted(data: Any) -> Any:
    """Return plain data, such as what JSON holds, with `…` for each secret in its texts."""
    if isinstance(data, str):
        return without_secrets(data)
    if isinstance(data, list | tuple):
        return [blotted(item) for item in data]
    if isinstance(data, dict):
        return {
            key: BLOT if isinstance(item, str) and holds_secret(str(key), item) else blotted(item)
            for key, item in data.items()
        }
    return data


def follows_option(previous: object, value: str) -> bool:
    """Tell whether an item of a list is the secret that the option before it takes: `--api-key`, `sesame`."""
    if not isinstance(previous, str) or not previous.startswith("-") or value.startswith("-"):
        return False
    if previous in ("-u", "--user", "--proxy-user"):
        return bool(re.fullmatch(r"[\w.-]+:(?!\d+$).+", value)) and not is_reference(value)
    return "=" not in previous and holds_secret(previous, value)


@lru_cache(4096)
def _looks_secret(text: str) -> bool:
    return _any(text)


def _any(text: str) -> bool:
    return next(_spans(text, _in_values), None) is not None


def _replaced(text: str, mark: str, spans: Iterator[Span]) -> str:
    for start, end in reversed(_merged(spans)):
        text = f"{text[:start]}{mark}{text[end:]}"
    return text


def _merged(spans: Iterator[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _spans(text: str, by_name: Callable[[str], Iterator[Span]], depth: int = _DEPTH) -> Iterator[Span]:
    """Yield the places of the secrets of a text, which may overlap; `by_name` finds those with a name."""
    # Escapes of JSON are no part of a word; what stands for them keeps the places.
    text = (
        re.sub(r"(?<!\\)\\+[nrt]", lambda escape: " " * (len(escape[0]) - 1) + "\n", text)
        if "\\" in text
        else text
    )
    shapes = patterns()
    for needle in [needle for needle in shapes if needle in text]:
        for pattern in shapes[needle]:
            yield from (match.span() for match in _matches(_BEFORE + pattern, text))
    if "://" in text and "@" in text:
        yield from _of_urls(text)
    if may_name_secret(text):
        yield from by_name(text)
    if not depth:
        return
    for match in _matches(_RUN, text):
        if any(_is_encoded(part, depth) for part in {match[0], *match[0].split("/")}):
            yield match.span()
    if "%" in text:
        for match in _matches(_ESCAPED, text):
            if (plain := unquote(match[0])) != match[0] and _holds(plain, depth):
                yield match.span()


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern when it is first needed: to compile all takes longer than to read an environment."""
    return re.compile(pattern)


def _matches(pattern: str, text: str) -> Iterator[re.Match[str]]:
    return _compiled(pattern).finditer(text)


def _holds(text: str, depth: int) -> bool:
    return next(_spans(text, _in_values, depth - 1), None) is not None


def _is_encoded(run: str, depth: int) -> bool:
    """Tell whether a run of base64 stands for a secret, or for a name and a password, or is Azure's key."""
    text = _decoded(run) if len(run) >= 16 else ""
    if not text:
        return re.fullmatch(_KEY_OF_STORAGE, run) is not None
    return re.fullmatch(_PAIR, text) is not None or _holds(text, depth)


@lru_cache(4096)
def _decoded(run: str) -> str:
    """Return the text that a run of base64 stands for; empty where it stands for none."""
    run = run.rstrip("=").translate(str.maketrans("-_", "+/"))
    if len(run) % 4 == 1:
        return ""
    try:
        text = b64decode(run + "=" * (-len(run) % 4), validate=True).decode()
    except ValueError:
        return ""
    return text if re.sub(r"[\r\n\t]", "", text).isprintable() else ""


def _of_urls(text: str) -> Iterator[Span]:
    """Yield names and passwords of URLs; a name alone is a token where it is long and has a digit."""
    for match in _matches(_USERINFO, text):
        user, colon, password = match["value"].partition(":")
        if is_reference(match["value"]):
            continue
        is_token = re.fullmatch(r"[A-Za-z0-9]{16,}|(?=\D*\d).{16,}", user) and not is_plain("token", user)
        if is_token or (colon and password and not is_plain("password", password)):
            yield match.span("value")


def _in_messages(text: str) -> Iterator[Span]:
    yield from _named(_ASSIGNED, text)
    yield from _named(_JSON, text)
    yield from _named(_HEADER, text)
    for match in _matches(_QUERY, text):
        if is_query_secret(match["key"]):
            yield from _unless_plain(match)
    for match in _matches(_OPTION, text):
        start, end = _place(match)
        # A sentence may go on behind an option: `give --api-key to one`.
        if not re.fullmatch(r"[a-z]+[.,;:]?|[(…].*", text[start:end]) and "," not in match["between"]:
            yield from _if_secret(match)
    for match in _matches(_BEARER, text):
        yield from _unless_plain(match)
    for match in _matches(_BASIC, text):
        if ":" in _decoded(match["value"]):
            yield match.span("value")


def _in_values(text: str) -> Iterator[Span]:
    yield from _in_messages(text)
    yield from _named(_OPTION, text)
    yield from _named(_LONE, text)
    for match in _matches(_USER, text):
        yield from _unless_plain(match)


def _in_files(text: str) -> Iterator[Span]:
    yield from _in_values(text)
    for pattern in (_LINE, _FLOW, _BLOCK, _ELEMENT):
        yield from _named(pattern, text)
    for match in _matches(_SPACED, text):
        yield from _unless_plain(match)


def _named(pattern: str, text: str) -> Iterator[Span]:
    for match in _matches(pattern, text):
        yield from _if_secret(match)


def _if_secret(match: re.Match[str]) -> Iterator[Span]:
    if is_secret_name(match["key"]):
        yield from _unless_plain(match)


def _unless_plain(match: re.Match[str]) -> Iterator[Span]:
    start, end = _place(match)
    if not is_plain(match.groupdict().get("key") or "password", match.string[start:end].strip("`")):
        yield start, end


def _place(match: re.Match[str]) -> Span:
    """Return the place of the value, in whichever quotes it stands."""
    groups = match.groupdict()
    return next(match.span(name) for name in ("value", "double", "single", "bare") if groups.get(name))
