"""The JSON Schema of an environment, from the types; and what its errors mean to a person."""

from collections.abc import Iterator
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, validators

from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import KeyPath, Problem
from vllmjobs.environment.secrets import looks_secret
from vllmjobs.environment.tree import YamlNode, locate, plain
from vllmjobs.text.english import nearest
from vllmjobs.vllm.releases import NEWEST

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a map",
    "null": "null",
}
_EXAMPLES = {
    "duration": 'such as "90s", "10m" or "1h30m"',
    "size": 'with a unit, such as "16 GiB" or "500 MB"',
    "name": "of lower-case letters, digits and dashes, 63 characters at most",
    "variable name": "of letters, digits and underscores",
    "argument name": "such as max-num-seqs",
    "absolute path": "that begins with /",
    "URL path": "that begins with /, such as /v1/",
    "route": "of letters, digits and . _ ~ - between slashes, such as /chat/v1/",
    "version": f'in quotes, such as "{NEWEST}"',
    "interval": 'from 1s to 1m, such as "15s"',
    "address": "of a host and a port, such as alertmanager.example.com:9093",
    "link": "such as https://git.example.com/llm/docs/runbooks",
    "directory or bucket": "such as /mnt/backup/models or s3://acme/models",
    "host name": "in lower case, such as chat.example.com",
    "secret reference": "such as nomad/jobs/vllm-prod#hf_token or vault:kv/data/vllm#hf_token",
}
_UNSHOWN = {"env", "secrets"}  # what stands below these may be a secret


def json_schema(*, whole: bool = False) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an environment file, for editors and for error messages.

    A file that extends another needs no models, and its models no `model`: both are required only of a
    `whole` environment.
    """
    schema = msgspec.json.schema(Environment)
    if not whole:
        for block in ("Environment", "Model"):
            schema["$defs"][block]["required"] = []
    return {"$schema": _DIALECT, "title": "vllmjobs environment", **schema}


def explain(tree: YamlNode) -> list[Problem]:
    """Return everything in the tree that the schema does not allow, with place, rule and way out."""
    errors = _Validator(json_schema(whole=True)).iter_errors(plain(tree))
    return [Problem(locate(tree, path), path, text) for error in errors for path, text in _explained(error)]


# JSON Schema takes 2.0 for an integer; msgspec and Nomad do not.
_Validator = validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


def _explained(error: Any) -> Iterator[tuple[KeyPath, str]]:
    path: KeyPath = tuple(error.absolute_path)
    value, rule, limit = error.instance, error.validator, error.validator_value
    got = "" if _UNSHOWN & set(path) else f" (got {_shown(value)})"
    kind = error.schema.get("title", "")
    if rule == "additionalProperties":
        known = list(error.schema["properties"])
        for key in value.keys() - set(known):
            yield (*path, key), "unknown key; " + (_nearest(key, known) or f"known: {', '.join(known)}")
    elif rule == "required":
        for key in set(limit) - value.keys():
            yield path, f"missing required key {key!r}"
    elif rule == "anyOf":
        yield from _narrowed(error, path, got)
    elif "propertyNames" in error.absolute_schema_path:
        yield (*path, value), f"must be {_kind(kind)}"
    elif kind in _EXAMPLES:
        yield path, f"must be {_kind(kind)}{got}"
    elif rule == "type":
        yield path, f"must be {_TYPES[limit]}{got}"
    elif rule == "enum":
        hint = _nearest(value, limit)
        yield path, f"must be one of {', '.join(limit)}{got}{hint and f'; {hint}'}"
    elif rule == "exclusiveMinimum":
        yield path, f"must be above {limit}{got}"
    elif rule in ("minimum", "maximum"):
        yield path, f"must be at {'least' if rule == 'minimum' else 'most'} {limit}{got}"
    else:  # minLength, minItems, minProperties
        yield path, "must not be empty"


def _narrowed(error: Any, path: KeyPath, got: str) -> Iterator[tuple[KeyPath, str]]:
    """Yield the errors of a value that may be one of several types (most often: or null)."""
    nearer = [inner for inner in error.context if inner.validator not in ("type", "enum")]
    words = [word for inner in error.context if inner.validator == "enum" for word in inner.validator_value]
    if nearer:
        yield from _explained(nearer[0])
        return
    kinds = [inner.schema.get("title") for inner in error.context if inner.schema.get("title") in _EXAMPLES]
    if kinds:
        yield path, f"must be {_kind(kinds[0])}{got}"
    else:
        kinds = [inner.validator_value for inner in error.context if inner.validator == "type"]
        kinds = [kind for kind in kinds if kind != "null" and not (kind == "string" and words)]
        names = [*(_TYPES[kind] for kind in kinds), *words]
        quoted = "; quote it" if "a string" in names and isinstance(error.instance, bool | float) else ""
        yield path, f"must be {' or '.join(names)}{got}{quoted}"


def _kind(kind: str) -> str:
    article = "an" if kind[0] in "aeio" else "a"
    return f"{article} {kind} {_EXAMPLES[kind]}"


def _shown(value: object) -> str:
    names = {dict: "a map", list: "a list", type(None): "nothing", bool: str(value).lower()}
    text = names.get(type(value), repr(value))
    if looks_secret(text):
        return "what looks like a secret"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(word: object, known: list[str]) -> str:
    close = nearest(str(word), known, 0.6)
    return f"did you mean {close!r}?" if close else ""
