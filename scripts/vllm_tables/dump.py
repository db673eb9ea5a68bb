"""The table of one vLLM release, from its own parser."""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import re
from collections.abc import Callable
from typing import Any

from vllm_tables.schema import Schemas, choice, plain, registered, registered_parsers

Table = dict[str, Any]
# Options that are read as JSON and become a configuration object only later: vllm/engine/arg_utils.py.
BECOMES = {
    "speculative_config": (
        "SpeculativeConfig",
        ("target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config"),
    ),
    "diffusion_config": ("DiffusionConfig", ()),
    "watermark_config": ("WatermarkConfig", ()),
}
# vllm/engine/arg_utils.py gives a single value another type than the class it ends in.
FOLDED = ("A-b", "a_b")


def cli_args() -> Any:
    """Return the module that holds `make_arg_parser`, wherever the release keeps it."""
    for room in ("common", "launchers", "openai"):
        try:
            return importlib.import_module(f"vllm.entrypoints.{room}.cli_args")
        except ModuleNotFoundError as error:
            if "vllm.entrypoints." not in str(error.name):
                raise
    raise ModuleNotFoundError("vllm.entrypoints.*.cli_args: make_arg_parser has moved again")


def parser() -> argparse.ArgumentParser:
    """Return the parser of `vllm serve`, whose help texts name the configuration field of each option."""
    arg_utils: Any = importlib.import_module("vllm.engine.arg_utils")
    original = arg_utils.get_kwargs

    def get_kwargs(cls: type) -> dict[str, dict[str, Any]]:
        result = original(cls)
        origins[cls.__name__] = cls
        return {name: {**kwargs, "help": f"{cls.__name__}.{name}"} for name, kwargs in result.items()}

    arg_utils.get_kwargs = get_kwargs
    made: argparse.ArgumentParser = cli_args().create_parser_for_docs()
    arg_utils.get_kwargs = original
    return made


origins: dict[str, type] = {}  # filled by parser()


def table(version: str) -> Table:
    """Return everything that `vllm serve` of this release accepts, always in the same order."""
    made, schemas = parser(), Schemas()
    flags = [
        _flag(action, schemas)
        for action in made._actions
        if not isinstance(action, argparse._HelpAction) and action.option_strings
    ]
    tool_parsers = importlib.import_module(cli_args().__name__).ToolParserManager
    by_dest = {flag["dest"]: flag for flag in flags}
    by_dest["tool_call_parser"]["value"] = choice(registered_parsers(tool_parsers))
    for dest, (name, given) in BECOMES.items():
        if dest in by_dest:
            cls = config_class(name)
            by_dest[dest]["value"] = {**schemas.reference(cls), "null": True}
            for key in given:
                schemas.objects[name]["keys"].pop(key, None)
    quantization = importlib.import_module("vllm.model_executor.layers.quantization")
    return {
        "version": version,
        "flags": sorted(flags, key=lambda flag: flag["dest"]),
        "objects": _reachable(flags, schemas.objects),
        "level_flag": "compilation_config" if "-O" in made._option_string_actions else "optimization_level",
        "dotted_suffixes": _accepts(made, ["--compilation-config.max_cudagraph_capture_size", "1k"]),
        "deprecated_quantization": sorted(getattr(quantization, "DEPRECATED_QUANTIZATION_METHODS", ())),
        "json_suffixes": _accepts(made, ["--compilation-config", '{"max_cudagraph_capture_size": 1k}']),
    }


def _reachable(flags: list[dict[str, Any]], objects: dict[str, Table]) -> dict[str, Table]:
    """Return the classes that some option is read into."""
    result: dict[str, Table] = {}
    waiting = [flag.get("value", {}) for flag in flags]
    while waiting:
        item = waiting.pop()
        waiting += item.get("of", [])
        name = item.get("object")
        if name and name not in result:
            result[name] = objects[name]
            waiting += objects[name]["keys"].values()
    return dict(sorted(result.items()))


def config_class(name: str) -> type:
    """Return a configuration class of the release by its name."""
    for module in ("vllm.config", "vllm.config.watermarking", "vllm.config.diffusion"):
        try:
            result = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            continue
        if isinstance(result, type):
            return result
    raise ImportError(f"vllm.config has no {name}")


def _flag(action: argparse.Action, schemas: Schemas) -> dict[str, Any]:
    flag: dict[str, Any] = {"names": list(action.option_strings), "dest": action.dest}
    off = getattr(action, "negative_option_strings", None)
    if isinstance(action, argparse.BooleanOptionalAction):
        if off is None:
            off = {name for name in action.option_strings if name.startswith("--no-")}
        # EnableDisableAction hides --no-enable-x from its own list, and the parser knows it all the same.
        hidden = sorted(off - set(action.option_strings))
        flag["names"] += hidden
        flag["off"] = sorted(off)
        flag["read"] = "switch"
    elif action.nargs == 0:
        flag["read"] = "switch"
    elif type(action).__name__ == "LoRAParserAction":
        flag["read"] = "lora"
    else:
        flag["read"], optional = _reader(action.type)
        flag |= {"optional": True} if optional else {}
    if isinstance(action, argparse._AppendAction):
        flag["appended"] = True
    if action.nargs not in (None, 0):
        flag["nargs"] = str(action.nargs)
    if action.choices is not None:
        # Older releases append "None" instead of None, which no word is then read as.
        flag["choices"] = [plain(choice) for choice in action.choices if choice not in (None, "None")]
        if None not in action.choices:
            flag.pop("optional", None)
    default = plain(action.default)
    if default not in (None, argparse.SUPPRESS):
        flag["default"] = default
    if action.const is not None and action.nargs == "?":
        flag["const"] = action.const
    cls, field = origin(action)
    if cls in origins:
        flag["origin"] = f"{cls}.{field}"
        if cls.endswith("FrontendArgs"):
            flag["value"] = registered(flag["origin"], {"kind": "any"})
        else:
            flag["value"] = schemas.field(origins[cls], field)
    dataclass = _captured(action.type, "cls")
    if isinstance(dataclass, type):
        flag["value"] = schemas.reference(dataclass)
    if flag.get("value", {}).get("kind") == "any" and len(flag["value"]) == 1:
        del flag["value"]
    return flag


def origin(action: argparse.Action) -> tuple[str, str]:
    """Return the class and the field that the values of an option end in; empty for the parser's own."""
    match = re.match(r"(\w+)\.(\w+)", action.help or "")
    if match and match[1] in origins:
        return match[1], match[2]
    parallel = dataclasses.fields(origins["ParallelConfig"])
    if action.dest.startswith("data_parallel_") and action.dest in {field.name for field in parallel}:
        return "ParallelConfig", action.dest  # written out in add_cli_args, without get_kwargs
    return "", ""


def _captured(function: Any, name: str) -> Any:
    """Return what a nested function of arg_utils.py was made with: a cell, or a default argument."""
    while function is not None:
        defaults = getattr(function, "__defaults__", None) or ()
        if name == "cls" and defaults and isinstance(defaults[0], type):
            return defaults[0]
        cells = getattr(function, "__closure__", None) or ()
        function = next((cell.cell_contents for cell in cells), None)
    return None


def _reader(read: Any) -> tuple[str, bool]:
    """Return the way the words of an option are read, and whether "" and "None" mean none."""
    if read is None:
        return "str", False
    if read in (int, float, str, bool):
        return read.__name__, False
    if read is json.loads:
        return "json", False
    name = read.__qualname__
    inner = [cell.cell_contents for cell in read.__closure__ or ()]
    if name.startswith("optional_type."):
        return _reader(inner[0])[0], True
    if name.startswith("parse_type."):
        return _reader(inner[0])
    known = {
        "human_readable_int": "size", "human_readable_int_or_auto": "size-or-auto",
        "union_dict_and_str": "json-or-str", "parse_reasoning_parser": "none-or-str",
    }  # fmt: skip
    if name in known:
        return known[name], False
    if name.endswith(".parse_dataclass"):
        return "object", False
    return _probed(read), False


def _probed(read: Callable[[str], Any]) -> str:
    """Return what a lambda does, by its answers."""
    if read(FOLDED[0]) == FOLDED[1]:
        return "folded"
    if read("0,1") == [0, 1]:
        return "comma-list"
    raise ValueError(f"scripts/vllm_tables/dump.py does not know the converter {read!r}")


def _accepts(made: argparse.ArgumentParser, words: list[str]) -> bool:
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            made.parse_args(["model", *words])
        except SystemExit:
            return False
    return True
