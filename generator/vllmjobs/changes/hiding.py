"""Which values of a job may be secrets, and what is shown of them."""

import re

from vllmjobs.environment.values import SECRET_VARIABLES, looks_secret, without_secrets

HIDDEN = "(hidden)"
# Where a person names the keys. Elsewhere the words are Nomad's own, such as error_on_missing_key.
_FREE = {"env", "meta", "canary_meta", "config", "auth", "header", "headers", "options", "args", "labels"}
_OTHER_NAMES = re.compile(r"(authorization|cookie|sshkey|^auth)$", re.IGNORECASE)
# `--api-key=…`, `--hf-token …`, and HF_TOKEN=… of a template that is a file of variables.
_ASSIGNED = re.compile(
    r"^(?P<name>\s*(?:export\s+)?-{0,2}[\w.-]*?(?:token|key|secret|password|passwd|credentials?|auth)"
    r"\s*[=:]\s*)(?!\s*$)(?!.*\{\{)(?!\s*\$\{)(?P<value>.+)$",
    re.IGNORECASE | re.MULTILINE,
)
_OPTION = re.compile(r"^-{1,2}[\w.-]*(?:token|api-key|secret|password)$", re.IGNORECASE)


def shown(path: tuple[str, ...], value: str, previous: str | None = None) -> tuple[str, bool]:
    """A value as it may be shown, and whether anything of it is hidden.

    `path` is where it stands, in the jobspec's words. Of a list, `value` is one item and `previous` the one
    before it. A value of which nothing is known but its name is hidden whole; of one that holds a secret
    among other words, such as a URL or a template, only the secret.
    """
    if _is_secret(path, previous) and value and not _is_reference(value):
        return HIDDEN, True
    kept = _ASSIGNED.sub(lambda found: found["name"] + HIDDEN, value) if _may_assign(path) else value
    if looks_secret(kept):
        kept = without_secrets(kept)
    return kept, kept != value


def _is_secret(path: tuple[str, ...], previous: str | None) -> bool:
    if previous is not None and _OPTION.search(previous):
        return True
    return bool(path) and not _FREE.isdisjoint(path[:-1]) and _has_secret_name(path[-1])


def _has_secret_name(name: str) -> bool:
    plain = name.replace("-", "_").replace(".", "_")
    return bool(SECRET_VARIABLES.search(plain) or _OTHER_NAMES.search(plain))


def _is_reference(value: str) -> bool:
    """Only names where it is kept: `${NOMAD_SECRETS_DIR}/key`."""
    return value.startswith("${") and value.count("${") == value.count("}")


def _may_assign(path: tuple[str, ...]) -> bool:
    return bool(path) and path[-1] in ("args", "data", "command", "entrypoint", "body", "script")
