"""The checks of pydantic in vLLM's configuration classes, as plain values."""

import ast
import dataclasses
import enum
import importlib
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

Type = dict[str, Any]

BOUNDS = ("ge", "gt", "le", "lt", "multiple_of")
LENGTHS = ("min_length", "max_length")
SCALARS = {"none": "null", "nullable": "null", "bool": "bool", "int": "int", "float": "float", "str": "str"}
OPAQUE = {"is-instance", "is-subclass", "callable", "custom-error"}  # nothing that can be written down
# Validators that only check, or fill in, what already has the right shape.
SAME_TYPE = {"validate_pass_config_before", "_reject_bool_histogram_bounds", "_validate_targets"}


class Names(NamedTuple):
    """Names that vLLM looks up only after pydantic: where they are, and what they are of."""

    modules: str
    names: Callable[[Any], Iterable[str]]
    fold: str = ""
    """The folding of a string before vLLM compares it."""
    of: Literal["value", "keys", "items", "also"] = "value"
    """The value itself, a map's keys, a map's items, or another way to write an object."""


REGISTERED = {
    "ECTransferConfig.ec_connector": Names(
        "vllm.distributed.ec_transfer.ec_connector.factory",
        lambda module: module.ECConnectorFactory._registry,
    ),
    "FrontendArgs.reasoning_effort_map": Names(
        "vllm.renderers", lambda module: typing.get_args(module.ReasoningEffort), of="keys"
    ),
    "KVTransferConfig.kv_connector": Names(
        "vllm.distributed.kv_transfer.kv_connector.factory",
        lambda module: module.KVConnectorFactory._registry,
    ),
    "LoadConfig.load_format": Names(
        "vllm",
        lambda package: _written(package, "model_executor/model_loader", "_LOAD_FORMAT_TO_MODEL_LOADER"),
        "lower",
    ),
    "ModelConfig.config_format": Names(
        "vllm.transformers_utils.config",
        lambda module: [*module._CONFIG_FORMAT_TO_CONFIG_PARSER, "auto"],
    ),
    "ModelConfig.quantization": Names(
        "vllm.model_executor.layers.quantization", lambda module: module.QUANTIZATION_METHODS, "lower"
    ),
    "ModelConfig.tokenizer_mode": Names(
        "vllm.tokenizers.registry vllm.transformers_utils.tokenizer_base",
        lambda module: [*module.TokenizerRegistry.tokenizers] if hasattr(module, "_VLLM_TOKENIZERS") else [],
        "lower",
    ),
    "MultiModalConfig.mm_encoder_attn_backend": Names(
        "vllm.v1.attention.backends.registry vllm.attention.backends.registry",
        lambda module: module.AttentionBackendEnum.__members__,
        "upper",
    ),
    "ObservabilityConfig.custom_histogram_buckets": Names(
        "vllm.v1.metrics.buckets", lambda module: module.BUCKET_FAMILY_KEYS, of="keys"
    ),
    "QuantSpec.activation": Names("vllm.config.quantization", lambda module: module.QUANT_KEY_NAMES),
    "QuantSpec.weight": Names("vllm.config.quantization", lambda module: module.QUANT_KEY_NAMES),
    "QuantizationConfigArgs.linear": Names(
        "vllm.config.quantization", lambda module: _quantization_names(module, "linear"), of="also"
    ),
    "QuantizationConfigArgs.moe": Names(
        "vllm.config.quantization", lambda module: _quantization_names(module, "moe"), of="also"
    ),
    "QuantizationConfigArgs.targets": Names(
        "vllm.config.quantization", lambda module: module._ONLINE_SHORTHANDS, of="items"
    ),
    "StructuredOutputsConfig.reasoning_parser": Names(
        "vllm.reasoning", lambda module: registered_parsers(module.ReasoningParserManager)
    ),
}
# Where a class can be named by its path.
BY_PATH = {"ParallelConfig.distributed_executor_backend"}


def _quantization_names(module: Any, field: str) -> list[str]:
    if not hasattr(module, "QUANT_KEY_NAMES"):
        return []
    shorthands = module._ONLINE_SHORTHANDS.items()
    return [*module.QUANT_KEY_NAMES, *(name for name, spec in shorthands if getattr(spec, field) is not None)]


def _written(package: Any, room: str, name: str) -> Iterator[str]:
    """Yield the keys of a dict in a module that cannot be imported without torch."""
    source = Path(package.__file__).parent / room / "__init__.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Dict):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == [name]:
                yield from (ast.literal_eval(key) for key in node.value.keys if key)


def registered_parsers(manager: Any) -> list[str]:
    """Return the names that a manager of tool or reasoning parsers knows."""
    if hasattr(manager, "list_registered"):
        return sorted(manager.list_registered())
    return sorted(next(value for value in vars(manager).values() if isinstance(value, dict)))


def registered(origin: str, written: Type) -> Type:
    """Return the type of a field `Class.field`, with the names that vLLM knows for it."""
    if origin in BY_PATH:
        return {**written, "by_path": True}
    if origin not in REGISTERED:
        return written
    known = REGISTERED[origin]
    names = sorted({*_names(known)})
    if not names:
        return written
    if written["kind"] == "any":  # a validator that pydantic knows nothing of, and that lets null through
        written = {"kind": "map", "of": [{"kind": "str"}], "null": True}
    if known.of == "keys":
        return {**written, "keys": names}
    if known.of == "items":
        return {**written, "of": [choice(names)]}
    kept: Type = {key: written[key] for key in ("null", "required") if key in written}
    if known.of == "also":
        return {"kind": "union", "of": [{"kind": "object", "object": "QuantSpec"}, choice(names)], **kept}
    choices = sorted({*names, *written.get("choices", ())})
    return choice(choices, **({"fold": known.fold} if known.fold else {}), **kept)


def _names(known: Names) -> Iterable[str]:
    for module in known.modules.split():
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise
            continue
        try:
            return known.names(loaded)
        except AttributeError:  # the release does not know this yet
            continue
    return ()


def choice(choices: list[Any], **more: Any) -> Type:
    """Return the type of one of these values."""
    return {"kind": "choice", "choices": choices, **more}


class Schemas:
    """Collects the classes that types refer to, each as its fields."""

    def __init__(self) -> None:
        self.objects: dict[str, Type] = {}
        self._definitions: dict[str, Any] = {}
        self._fields: dict[type, dict[str, Type]] = {}

    def field(self, cls: type, name: str) -> Type:
        """Return the type of one field of a configuration class."""
        if cls not in self._fields:
            self._fields[cls] = self._keys(self._core(cls))
        return self._fields[cls].get(name, {"kind": "any"})

    def reference(self, cls: type) -> Type:
        """Return the type of a whole class."""
        return self._type(self._core(cls))

    def _core(self, cls: type) -> Any:
        schema = TypeAdapter(cls).core_schema
        if schema["type"] == "definitions":
            self._definitions |= {item["ref"]: item for item in schema["definitions"]}
            schema = schema["schema"]
        return schema

    def _keys(self, schema: Any) -> dict[str, Type]:
        """Return the fields of a dataclass that can be given."""
        name = ""
        while schema["type"] != "dataclass-args":
            if schema["type"] == "definition-ref":
                schema = self._definitions[schema["schema_ref"]]
                continue
            if schema["type"] == "dataclass":
                name = schema["cls"].__name__
            schema = schema["schema"]
        keys = {}
        for item in schema["fields"]:
            if item.get("init") is False:
                continue
            key = self._type(item["schema"])
            key = registered(f"{name}.{item['name']}", key)
            if item["schema"]["type"] != "default":
                key = {**key, "required": True}
            keys[item["name"]] = key
        return keys

    def _object(self, schema: Any) -> Type:
        cls = schema["cls"]
        if cls.__name__ not in self.objects:
            self.objects[cls.__name__] = {}  # itself among its own fields
            closed = getattr(cls, "__pydantic_config__", {}).get("extra") == "forbid"
            self.objects[cls.__name__] = {"keys": dict(sorted(self._keys(schema).items())), "closed": closed}
        return {"kind": "object", "object": cls.__name__}

    def _type(self, schema: Any) -> Type:
        kind = schema["type"]
        if kind == "definition-ref":
            return self._type(self._definitions[schema["schema_ref"]])
        if kind == "default":
            return self._type(schema["schema"])
        if kind == "nullable":
            return {**self._type(schema["schema"]), "null": True}
        if kind in ("function-before", "function-wrap"):
            return self._converted(schema["schema"], schema["function"]["function"])
        if kind == "function-plain":
            return {"kind": "any"}
        if kind == "function-after":
            return self._type(schema["schema"])
        if kind == "json-or-python":
            return self._type(schema["json_schema"])
        if kind == "lax-or-strict":
            return self._type(schema["lax_schema"])
        if kind == "dataclass":
            return self._object(schema)
        if kind in OPAQUE:
            return {"kind": "opaque"}
        return self._plain(kind, schema)

    def _converted(self, schema: Any, convert: Callable[..., Any]) -> Type:
        """Return a type behind a function that sees the value first, by what that function does."""
        name, inner = convert.__name__, self._type(schema)
        if name == "_skip_none_validation":
            return {**inner, "null": True}
        if name in SAME_TYPE or inner["kind"] == "object":
            return inner
        if name == "_validate_limit_per_prompt":
            count = {"kind": "int", "ge": 0}  # of BaseDummyOptions, for which the bare number stands
            return {
                "kind": "map",
                "of": [{"kind": "union", "of": [count, {"kind": "map", "of": [{"kind": "any"}]}]}],
            }
        if name == "_to_list_str":
            return {"kind": "union", "of": [inner, {"kind": "str"}]}
        members, null = _members(schema), {"null": True} if inner.get("null") else {}
        if members:
            numbers = [item.value for item in members if isinstance(item.value, int)]
            names = [item.name for item in members]
            names += ["AUTO"] if _answers(convert, "auto", None) else []
            return choice(names + numbers, fold="upper", **null)
        if _answers(convert, "A-b", "a_b"):
            return {**inner, "fold": "snake"}
        if inner["kind"] == "map":
            return {"kind": "map", "of": [{"kind": "any"}], **null}
        return {"kind": "any"}

    def _plain(self, kind: str, schema: Any) -> Type:
        limits = {key: schema[key] for key in (*BOUNDS, *LENGTHS) if schema.get(key) is not None}
        if kind in SCALARS:
            return {"kind": SCALARS[kind], **limits}
        if kind == "literal":
            return choice([_scalar(value) for value in schema["expected"]])
        if kind == "enum":
            fold = {"fold": "number"} if schema.get("sub_type") == "int" else {}
            return choice([_scalar(item.value) for item in schema["members"]], **fold)
        if kind in ("list", "set", "frozenset"):
            return {"kind": "list", "of": [self._type(schema.get("items_schema", {"type": "any"}))], **limits}
        if kind == "tuple":
            items = [self._type(item) for item in schema["items_schema"]]
            return {"kind": "list" if "variadic_item_index" in schema else "tuple", "of": items}
        if kind == "dict":
            return {"kind": "map", "of": [self._type(schema.get("values_schema", {"type": "any"}))], **limits}
        if kind in ("union", "tagged-union"):
            choices = schema["choices"]
            members = choices.values() if isinstance(choices, dict) else choices
            types = [self._type(item[0] if isinstance(item, tuple) else item) for item in members]
            return _union(types)
        if kind in ("typed-dict", "model"):
            return {"kind": "map", "of": [{"kind": "any"}]}
        if kind in ("any", "bytes", "url"):
            return {"kind": "any" if kind == "any" else "str"}
        raise ValueError(f"scripts/vllm_tables/schema.py does not know pydantic's {kind!r}")


def _members(schema: Any) -> list[enum.Enum]:
    while schema["type"] in ("nullable", "default"):
        schema = schema["schema"]
    return list(schema["members"]) if schema["type"] == "enum" else []


def _answers(convert: Callable[..., Any], value: str, answer: object) -> bool:
    try:
        return bool(convert(value) == answer)
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError):
        return False


def _union(types: list[Type]) -> Type:
    null = any(item["kind"] == "null" or item.get("null") for item in types)
    rest = [{key: value for key, value in item.items() if key != "null"} for item in types]
    rest = [item for item in rest if item["kind"] not in ("null", "opaque")]
    if not rest:
        return {"kind": "null" if null else "opaque"}
    rest = [item for number, item in enumerate(rest) if item not in rest[:number]]
    choices = [value for item in rest for value in item.get("choices", ())]
    if {"kind": "any"} in rest:
        return {"kind": "any"}
    if choices and all(item["kind"] in ("choice", "str") for item in rest):
        union = choice(choices)
    else:
        union = rest[0] if len(rest) == 1 else {"kind": "union", "of": rest}
    return {**union, "null": True} if null else union


def _scalar(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return _scalar(value.value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def plain(value: Any) -> Any:
    """Return a default as JSON can hold it; a configuration object as the object without its keys."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value):
        return {}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in (sorted(value) if isinstance(value, set) else value)]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return None
