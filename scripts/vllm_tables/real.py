"""What a release's own parser, and its configuration classes, make of a command line."""

import argparse
import contextlib
import dataclasses
import enum
import importlib
import io
from functools import cache
from typing import Any

from vllm_tables.dump import cli_args, origin, origins, parser

# Configuration classes that can be made of arguments alone: no model, no GPU.
ALONE = {
    "AttentionConfig", "CacheConfig", "KernelConfig", "LoRAConfig", "LoadConfig", "LoggingConfig",
    "MambaConfig", "MultiModalConfig", "ObservabilityConfig", "ParallelConfig", "PrefetchOffloadConfig",
    "StructuredOutputsConfig", "UVAOffloadConfig",
}  # fmt: skip


def read(words: list[str]) -> dict[str, Any]:
    """`{"values": {dest: value}}`, or `{"refused": message, "by": "parser" | "check" | "configuration"}`."""
    said = io.StringIO()
    by = "parser"
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            arguments = _serve().parse_args(["serve", *words])
            by = "check"
            cli_args().validate_parsed_serve_args(arguments)
            by = "configuration"
            _configure(arguments)
    except SystemExit:
        return {"refused": said.getvalue()[-300:], "by": by}
    except Exception as error:  # whatever vLLM raises
        return {"refused": f"{type(error).__name__}: {error}"[:300], "by": by}
    return {"values": {dest: _plain(value) for dest, value in vars(arguments).items()}}


@cache
def _serve() -> Any:
    made = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm")
    serve = made.add_subparsers(dest="subparser").add_parser("serve")
    cli_args().make_arg_parser(serve)
    return made


@cache
def _fields() -> dict[str, list[tuple[str, str]]]:
    """Of every class that can be made alone: the options that end in it, and in which field."""
    found: dict[str, list[tuple[str, str]]] = {}
    for action in parser()._actions:
        cls, field = origin(action)
        if cls in ALONE:
            found.setdefault(cls, []).append((action.dest, field))
    return found


def _configure(arguments: argparse.Namespace) -> None:
    """Make the configuration objects, each of what was given for it."""
    for name, pairs in _fields().items():
        values = {field: getattr(arguments, dest) for dest, field in pairs}
        default = {field: _serve_default(dest) for dest, field in pairs}
        given = {field: value for field, value in values.items() if value != default[field]}
        if given and (name != "LoRAConfig" or arguments.enable_lora):
            origins[name](**given)
    if getattr(arguments, "speculative_config", None):
        _keys_of("SpeculativeConfig", arguments.speculative_config)


def _serve_default(dest: str) -> Any:
    return vars(_defaults())[dest]


@cache
def _defaults() -> argparse.Namespace:
    parsed: argparse.Namespace = _serve().parse_args(["serve"])
    return parsed


def _keys_of(name: str, given: dict[str, Any]) -> None:
    """SpeculativeConfig needs the target's model: only its fields can be checked."""
    cls = getattr(importlib.import_module("vllm.config"), name)
    if unknown := set(given) - {field.name for field in dataclasses.fields(cls)}:
        raise ValueError(f"{name}: {unknown}")


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
