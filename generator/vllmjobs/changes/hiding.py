"""Values of a job that may be secrets, what is shown of them, and reports less all that looks like one."""

import re
from typing import Any

import msgspec
from msgspec.structs import replace

from vllmjobs.changes.model import Field, JobChange, Report
from vllmjobs.environment.secrets import SECRET_VARIABLES, looks_secret, without_secrets

HIDDEN = "(hidden)"
# Where a person names the keys. Elsewhere the words are Nomad's own, such as error_on_missing_key.
_FREE = {"env", "meta", "canary_meta", "config", "auth", "header", "headers", "options", "args", "labels"}
_OTHER_NAMES = re.compile(r"(authorization|cookie|sshkey|^auth)$", re.IGNORECASE)
_ENDING = r"(?:token|api[_-]?key|secret(?:[_-]\w*key)?|password|passwd|(?<!allow-)credentials?)"
# HF_TOKEN=… of a template that is a file of variables, `api_key: …` of one that is YAML: to the line's end.
_LINE = re.compile(
    rf"^(?P<name>[ \t]*(?:export[ \t]+)?-{{0,2}}[\w.-]*?(?:{_ENDING}|key|auth)[ \t]*[=:][ \t]*)"
    r"(?P<value>[^\s{].*|\{[^{].*)$",
    re.IGNORECASE | re.MULTILINE,
)
# `vllm serve --api-key … --port 1`, `HF_TOKEN=… vllm serve`, {"api_key": …}, and a header, of nginx or curl.
_WORD = re.compile(
    rf"(?P<name>(?<![\w-])--?[\w.-]*{_ENDING}(?:=|[ \t]+)|\b\w*{_ENDING}="
    rf"|[\"'][\w.-]*{_ENDING}[\"'][ \t]*:[ \t]*|\bauthorization[\"']?[ \t:=]+[\"']?(?:\w+[ \t]+)?)"
    r"(?P<value>\"[^\"{]*\"|'[^'{]*'|(?!-)(?:\$\{[^{}]*\}|[^\s&;|,{}\"'])+)",
    re.IGNORECASE,
)
_QUERY = re.compile(
    rf"(?P<name>[?&][\w.-]*(?:{_ENDING}|key|key_id|sig|signature)=)(?P<value>[^&#\s]+)", re.IGNORECASE
)
_OPTION = re.compile(rf"^-{{1,2}}[\w.-]*{_ENDING}$", re.IGNORECASE)
# Names that only may be a secret's: OPENAI_KEY2, MY_SECRET_VALUE, PGPASS; in small letters, with `_` for `-`
# and `.`. What they hold is shown where it is plain: MAX_TOKENS=4096, KEY_FILE=/etc/key.
_NAME = re.compile(
    r"(^|_)(tokens?|secrets?|passwords?|passwd|passphrase|credentials?|api_?keys?|access_?keys?|art_api"
    r"|private_?keys?|webhook|jwt|bearer|hmac|salt|pat|dsn|pwd|connection_string)\d*(_|$)"
    r"|(^|_|[a-z])(pass|pwd|pw)\d*$|(^|_)auth(_header|_string)?$|(^|_|account)keys?(_?v?\d+|_b64|_base64)*$"
)
_PLAIN = re.compile(r"(?i)true|false|yes|no|on|off|none|null|auto|[./].*|(local|secrets|alloc)/.*|\$.*")
_ASSIGNMENT = re.compile(
    r"(?P<name>(?<![\w.-])(?:-{1,2})?(?P<key>[A-Za-z_][\w.-]*)(?:[ \t]*=[ \t]*|[\"']?:[ \t]+|[\"']:))"
    r"(?P<value>\"[^\"{]+\"|'[^'{]+'|(?![-=])(?:\$\{[^{}]*\}|[^\s&;|,{}\"'])+)"
)
_FLAG = re.compile(r"(?P<name>(?<![\w-])--(?P<key>[A-Za-z][\w.-]*)[ \t]+)(?P<value>(?!-)[^\s\"']+)")
_BLOCK = re.compile(  # of YAML, `password: |` and the lines below
    r"^(?P<name>(?P<in>[ \t]*)(?P<key>[\w.-]+):[ \t]*[|>][+-]?\d?[ \t]*\n)"
    r"(?P<value>(?:(?P=in)[ \t]+\S.*\n)*(?P=in)[ \t]+\S.*)",
    re.MULTILINE,
)
_ELEMENT = re.compile(r"(?P<name><(?P<key>[\w.:-]+)>)(?P<value>[^<{]+)(?=</)")
_ALWAYS = (
    re.compile(r"(?P<name>-----BEGIN [A-Z ]*PRIVATE KEY-----\s*)(?P<value>.*?)(?=-----END|\Z)", re.DOTALL),
    re.compile(r"(?P<name>\b(?i:bearer)[ \t]+|\bBasic[ \t]+(?=\S*[\d=]))(?P<value>[\w.~+/=-]{8,})"),
    re.compile(
        r"(?P<name>\bhooks\.slack\.com/services/|\bdiscord(?:app)?\.com/api/webhooks/)(?P<value>[^\s\"']+)"
    ),
    re.compile(r"(?P<name>\$(?:apr1|2[aby]?|[156y])\$)(?P<value>[\w./$]+)"),  # of crypt(5)
    # A password without a user, and a token as the user: redis://:…@host, https://…@sentry.example.com.
    re.compile(r"(?P<name>://)(?P<value>:[^/\s@'\"$]+|[^/\s:@'\"$]{16,})(?=@(?!sha\d))"),
    re.compile(r"(?P<name>(?<!\S)(?:-u|--user)[ \t=]+[\w.-]+:)(?P<value>(?!\d+(?:\s|$))[^\s\"']+)"),
)
# redis.conf, .netrc
_SPACED = re.compile(
    r"(?P<name>(?<![\w.-])(?:requirepass|masterauth|password|passwd)[ \t]+)(?P<value>[\w\"'][^\s=:{};]+)"
)
_REFERENCE = re.compile(r"\$\{[^{}\"]*\}(/([\w.-]+|\$\{[^{}\"]*\}))*")


def shown(path: tuple[str, ...], value: str, previous: str | None = None) -> tuple[str, bool]:
    """Return a value as it may be shown, and whether anything of it is hidden.

    `path` is where it stands, in the jobspec's words. Of a list, `value` is one item and `previous` the one
    before it. A value of which nothing is known but its name is hidden whole; of one that holds a secret
    among other words, such as a URL or a template, only the secret.
    """
    if _is_secret(path, value, previous) and value and not _is_reference(value):
        return HIDDEN, True
    may_assign = bool(path) and path[-1] in ("args", "data", "command", "entrypoint", "body", "script")
    kept = _BLOCK.sub(_hidden_by_name, value)
    for pattern in (*_ALWAYS, *((_LINE, _WORD, _SPACED) if may_assign else ())):
        kept = pattern.sub(_hidden, kept)
    for pattern in (_ELEMENT, _FLAG, _ASSIGNMENT):
        kept = pattern.sub(_hidden_by_name, kept)
    kept = named(kept)
    return kept, kept != value


def named(word: str) -> str:
    """Return a word of a path, less what is secret in it: an artifact goes by its URL."""
    kept = _QUERY.sub(_hidden, word)
    return without_secrets(kept) if looks_secret(kept) else kept


def _hidden(match: re.Match[str]) -> str:
    return match[0] if _is_reference(match["value"]) else match["name"] + HIDDEN


def _hidden_by_name(match: re.Match[str]) -> str:
    return _hidden(match) if _may_be_secret(match["key"], match["value"].strip("\"'")) else match[0]


def _is_secret(path: tuple[str, ...], value: str, previous: str | None) -> bool:
    if previous is not None and previous.startswith("-"):
        name = previous.lstrip("-")
        if _OPTION.search(previous) or (not value.startswith("-") and _may_be_secret(name, value)):
            return True
        if previous in ("-u", "--user") and re.fullmatch(r"[\w.-]+:(?!\d+$).+", value):
            return True
    if path[-1:] in (("vault_token",), ("consul_token",)):
        return True
    if not path or _FREE.isdisjoint(path[:-1]):
        return False
    plain = path[-1].replace("-", "_").replace(".", "_")
    if SECRET_VARIABLES.search(plain) or _OTHER_NAMES.search(plain):
        return True
    return _may_be_secret(path[-1], value)


def _may_be_secret(name: str, value: str) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_").lower()
    if not _NAME.search(words) or words.endswith("allow_credentials") or _PLAIN.fullmatch(value):
        return False
    return not (value.isdigit() and ("token" in words or "key" in words))


def _is_reference(value: str) -> bool:
    """Tell whether a value only names the place of a secret: `${NOMAD_SECRETS_DIR}/key`."""
    return bool(_REFERENCE.fullmatch(value))


def for_people(report: Report) -> Report:
    """Return the report without tokens, and with a job that is gone as it runs on: nobody stops it."""
    report = without_tokens(report)
    environments = (
        replace(environment, jobs=tuple(map(_running_on, environment.jobs)))
        for environment in report.environments
    )
    return replace(report, environments=tuple(environments))


def without_tokens(report: Report) -> Report:
    """Return the report, less what looks like a token in any of its texts.

    This comes before anything is cut or escaped: half a token is not known for one. A value that differs in
    nothing else is marked hidden, so that it does not look equal.
    """
    return msgspec.convert(_redacted(msgspec.to_builtins(report)), Report)


def _running_on(job: JobChange) -> JobChange:
    if job.action != "gone":
        return job
    groups = (replace(one, count_after=one.count_before, gpus_after=one.gpus_before) for one in job.groups)
    return replace(job, groups=tuple(groups))


def _redacted(item: Any) -> Any:
    if isinstance(item, str):
        return without_secrets(item)
    if isinstance(item, list | tuple):
        return [_redacted(each) for each in item]
    if not isinstance(item, dict):
        return item
    redacted = {key: _redacted(each) for key, each in item.items()}
    if item.keys() == set(Field.__struct_fields__):
        before, after = redacted["before"], redacted["after"]
        is_redacted = (before, after) != (item["before"], item["after"])
        redacted["hidden"] |= is_redacted and before == after
    return redacted
