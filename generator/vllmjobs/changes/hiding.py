"""Values of a job that may be secrets, what is shown of them, and reports less all that looks like one."""

from typing import Any

import msgspec
from msgspec.structs import replace

from vllmjobs.changes.model import Field, JobChange, Report
from vllmjobs.environment.secret_names import holds_secret
from vllmjobs.environment.secrets import follows_option, hidden, without_secrets

HIDDEN = "(hidden)"
# Where a person names the keys. Elsewhere the words are Nomad's own, such as error_on_missing_key.
_FREE = {"env", "meta", "canary_meta", "config", "auth", "header", "headers", "options", "args", "labels"}


def shown(path: tuple[str, ...], value: str, previous: str | None = None) -> tuple[str, bool]:
    """Return a value as it may be shown, and whether anything of it is hidden.

    `path` is where it stands, in the jobspec's words. Of a list, `value` is one item and `previous` the one
    before it. A value of which nothing is known but its name is hidden whole; of one that holds a secret
    among other words, such as a URL or a template, only the secret.
    """
    if follows_option(previous, value) or _is_named(path, value):
        return HIDDEN, True
    kept = hidden(value, HIDDEN)
    return kept, kept != value


def named(word: str) -> str:
    """Return a word of a path, less what is secret in it: an artifact goes by its URL."""
    return hidden(word, HIDDEN)


def _is_named(path: tuple[str, ...], value: str) -> bool:
    if path[-1:] in (("vault_token",), ("consul_token",)):
        return holds_secret("token", value)
    return bool(path) and not _FREE.isdisjoint(path[:-1]) and holds_secret(path[-1], value)


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
