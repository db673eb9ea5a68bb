"""Command lines, read by a release's own parser and its configuration classes."""

import argparse
import contextlib
import dataclasses
import enum
import importlib
import inspect
import io
from functools import cache
from typing import Any

from vllm_tables.dump import BECOMES, cli_args, config_class, origin, origins, parser

# Configuration classes that can be made of arguments alone: no model, no GPU.
ALONE = {
    "AttentionConfig", "CacheConfig", "KernelConfig", "LoRAConfig", "LoadConfig", "LoggingConfig",
    "MambaConfig", "MultiModalConfig", "ObservabilityConfig", "ParallelConfig", "PrefetchOffloadConfig",
    "StructuredOutputsConfig", "UVAOffloadConfig",
}  # fmt: skip


def read(words: list[str]) -> dict[str, Any]:
    """Return `{"values": {dest: value}}` or `{"refused": message, "by": "parser"|"check"|"configuration"}`"""
    output = io.StringIO()
    by = "parser"
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            arguments = _serve().parse_args(["serve", *words])
            by = "check"
            cli_args().validate_parsed_serve_args(arguments)
            values = {dest: _plain(value) for dest, value in vars(arguments).items()}
            by = "configuration"
            _configure(arguments)
    except SystemExit:
        return {"refused": output.getvalue()[-300:], "by": by}
    except Exception as error:  # whatever vLLM raises
        return {"refused": f"{type(error).__name__}: {error}"[:300], "by": by}
    return {"values": values}


@cache
def _serve() -> Any:
    made = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm")
    serve = made.add_subparsers(dest="subparser").add_parser("serve", usage="vllm serve")
    cli_args().make_arg_parser(serve)
    return made


@cache
def _fields() -> dict[str, list[tuple[str, str]]]:
    """Return, for every configuration class, the options that end in it, and in which field."""
    options: dict[str, list[tuple[str, str]]] = {}
    for action in parser()._actions:
        cls, field = origin(action)
        if cls and not cls.endswith("FrontendArgs"):
            options.setdefault(cls, []).append((action.dest, field))
    return options


def _configure(arguments: argparse.Namespace) -> None:
    """Make the configuration objects, each of what was given for it."""
    for name, pairs in _fields().items():
        given = {
            field: value
            for dest, field in pairs
            if (value := getattr(arguments, dest, None)) is not None
            and value != getattr(_defaults(), dest, None)
            and dest not in BECOMES
        }
        if name == "SchedulerConfig" and given:
            origins[name](**_scheduled(given, arguments))
        elif name in ALONE and given and (name != "LoRAConfig" or arguments.enable_lora):
            origins[name](**given)
        else:
            _check_fields(origins[name], given)
    for dest, (name, _) in BECOMES.items():
        options = getattr(arguments, dest, None)
        if options:
            cls = config_class(name)
            if unknown := set(options) - {field.name for field in dataclasses.fields(cls)}:
                raise ValueError(f"{name}: {unknown}")
            _check_fields(cls, options)


def _scheduled(given: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the two figures that follow each other where only one is given: vllm/engine/arg_utils.py."""
    tokens, sequences = given.get("max_num_batched_tokens"), given.get("max_num_seqs")
    length = getattr(arguments, "max_model_len", None)
    own = {
        "max_num_batched_tokens": tokens or max(8192, sequences or 0),
        "max_num_seqs": sequences or min(128, tokens or 128),
        "max_model_len": length if length and length > 0 else tokens or 8192,
        "is_encoder_decoder": False,
    }
    known = {field.name for field in dataclasses.fields(origins["SchedulerConfig"])}
    known |= set(inspect.signature(origins["SchedulerConfig"]).parameters)
    return {key: value for key, value in own.items() if key in known} | given


def _check_fields(cls: type, values: dict[str, Any]) -> None:
    """Check single fields as pydantic does, where the whole needs a model."""
    for name, value in values.items():
        validator = _validator(cls, name)
        if validator:
            validator.validate_python(value)


@cache
def _validator(cls: type, name: str) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415
    from pydantic_core import SchemaValidator, core_schema  # noqa: PLC0415

    schema: Any = TypeAdapter(cls).core_schema
    definitions = schema["definitions"] if schema["type"] == "definitions" else []
    by_ref = {item["ref"]: item for item in definitions}
    while schema["type"] != "dataclass-args":
        schema = by_ref[schema["schema_ref"]] if schema["type"] == "definition-ref" else schema["schema"]
    field = next((item for item in schema["fields"] if item["name"] == name), None)
    if field is None:
        return None
    return SchemaValidator(core_schema.definitions_schema(field["schema"], definitions))


@cache
def _defaults() -> argparse.Namespace:
    parsed: argparse.Namespace = _serve().parse_args(["serve"])
    return parsed


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return {"enum": [value.name, _plain(value.value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return str(value)
