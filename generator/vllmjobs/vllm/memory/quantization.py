"""The storage of the weights of a checkpoint: bits, scales, and what is left as it was."""

import re
from functools import cached_property
from typing import Any

import msgspec

from vllmjobs.vllm.memory.parts import Config, UnknownShapeError, shown

# Of a regular expression in a config.json: what matches the longest names in no time.
LONGEST, REPEATS = 1000, 4


class Quantization(msgspec.Struct, frozen=True, dict=True):
    """`bits` of a weight and `scale`, the bytes of scales and zero points that come with each.

    `left_out` are module names or patterns, as checkpoints write them, that keep the model's dtype.
    """

    method: str
    bits: int
    scale: float = 0.0
    left_out: tuple[str, ...] = ()
    kv_cache_dtype: str | None = None  # what `--kv-cache-dtype auto` then means
    experts_only: bool = False
    block: int | None = None  # columns that share a scale; tensor parallelism must not cut them

    @property
    def bytes_per_weight(self) -> float:
        """Bytes that one quantized weight takes, its share of the scales included."""
        return self.bits / 8 + self.scale

    def covers(self, name: str) -> bool:
        """Tell whether the module of this name (`layers.3.mlp.down_proj`) is quantized."""
        if self.experts_only and ".experts" not in name:
            return False
        exact, patterns, parts = self._left_out
        segments = name.split(".")
        prefixes = (".".join(segments[: i + 1]) for i in range(len(segments)))
        if any(prefix in exact for prefix in prefixes) or any(part in parts for part in segments):
            return False
        return not any(pattern.match(path) for pattern in patterns for path in (name, f"model.{name}"))

    @cached_property
    def _left_out(self) -> tuple[frozenset[str], list[re.Pattern[str]], frozenset[str]]:
        """Paths, patterns and single names, without what stands before `layers.`: that differs."""
        exact, patterns, parts = set(), [], set()
        for entry in self.left_out:
            if entry.startswith("re:"):
                patterns.append(_expression(entry))
            elif "*" in entry:
                patterns.append(re.compile(_glob(_from_layers(entry))))
            elif "." in entry:
                exact.add(_from_layers(entry))
            else:
                parts.add(entry)
        return frozenset(exact), patterns, frozenset(parts)


def quantization(config: Config) -> Quantization | None:
    """Return the quantization that a `config.json` declares, or None.

    Raises UnknownShapeError for a method whose sizes are not known, and for values that make no sense.
    """
    nested = config.inner("text_config") or Config({})
    places = (config, "quantization_config"), (config, "compression_config"), (nested, "quantization_config")
    at = next((inner for where, name in places if (inner := where.inner(name)) and inner.values), None)
    if at is None:
        return None
    method = at.text("quant_method", default="").lower().replace("_", "-")
    left = at.texts("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
    for entry in left:
        if entry.startswith("re:"):
            _expression(entry)
    common: dict[str, Any] = {"left_out": tuple(left), "kv_cache_dtype": _kv_cache(at)}
    match method:
        case "fp8" | "fbgemm-fp8":
            block, scale = _block(at, "weight_block_size")
            return Quantization(method, 8, scale, block=block, **common)
        case "awq" | "awq-marlin" | "gptq" | "gptq-marlin" | "auto-round" | "intel/auto-round" | "auto-gptq":
            bits = at.whole("bits", "w_bit", default=4, least=1, most=32)
            group = at.whole("group_size", "q_group_size", default=128, least=-1)
            name = "awq" if "awq" in method else "gptq"
            return Quantization(name, bits, (2 + bits / 8) / group if group > 0 else 0.0, **common)
        case "compressed-tensors":
            return _compressed_tensors(at, common)
        case "modelopt" | "modelopt-fp4" | "modelopt-mixed":
            return _modelopt(at, common)
        case "mxfp4" | "gpt-oss-mxfp4":
            return Quantization("mxfp4", 4, 1 / 32, experts_only=True, **common)
        case "bitsandbytes":
            if at.flag("load_in_8bit"):
                return Quantization(method, 8, **common)
            return Quantization(method, 4, 4 / 64, **common)
    raise UnknownShapeError(f"the quantization method {shown(method or 'without a name')} is not understood")


def online(method: str | None) -> Quantization | None:
    """Return what `--quantization` makes of a plain checkpoint, or None (`vllm/config/quantization.py`)."""
    whole = ("fp8", "fp8_per_tensor", "fp8_per_channel", "ptpc_fp8")
    return {
        **dict.fromkeys(whole, Quantization("fp8", 8)),
        "int8_per_channel_weight_only": Quantization("int8", 8),
        "fp8_per_block": Quantization("fp8", 8, 4 / 128**2),
        "mxfp8": Quantization("mxfp8", 8, 1 / 32),
        "mxfp4": Quantization("mxfp4", 4, 1 / 32, experts_only=True),
        "nvfp4_per_token": Quantization("nvfp4", 4, 1 / 16),
        "bitsandbytes": Quantization("bitsandbytes", 4, 4 / 64),
        "experts_int8": Quantization("experts_int8", 8, experts_only=True),
    }.get((method or "").lower())


def _compressed_tensors(at: Config, common: dict[str, Any]) -> Quantization:
    groups = at.inner("config_groups") or Config({})
    named = [group for name in groups.values if (group := groups.inner(name))]
    weights = [inner for group in named if (inner := group.inner("weights"))]
    if not weights:
        raise UnknownShapeError("quantization_config in config.json has no config_groups with weights")
    if len({each.whole("num_bits", least=1, most=32) for each in weights}) > 1:
        raise UnknownShapeError("quantization_config in config.json has weights of several bit widths")
    first = weights[0]
    bits, size = first.whole("num_bits"), first.whole("group_size", default=0, least=-1)
    if first.any("type") == "float" and bits == 4:
        name, scale = ("nvfp4", 1 / 16) if size == 16 else ("mxfp4", 1 / 32)
        return Quantization(name, 4, scale, **common)
    block, scale = _block(first, "block_structure")
    if block is None and size > 0:
        scale = 2 / size
    kind = "fp8" if first.any("type") == "float" else f"int{bits}"
    return Quantization(kind, bits, scale, block=block, **common)


def _modelopt(at: Config, common: dict[str, Any]) -> Quantization:
    algorithm = at.text("quant_algo", default="").upper()
    if algorithm in {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"}:
        return Quantization("modelopt", 8, **common)
    if algorithm == "MXFP8":
        return Quantization("modelopt", 8, 1 / 32, **common)
    if algorithm in {"NVFP4", "W4A16_NVFP4"}:
        return Quantization("nvfp4", 4, 1 / 16, **common)
    raise UnknownShapeError(f"the quant_algo {shown(algorithm or 'without a name')} is not understood")


def _kv_cache(at: Config) -> str | None:
    scheme = at.any("kv_cache_scheme")  # a string in old fp8 checkpoints
    if isinstance(scheme, dict) and scheme.get("type") == "float" and scheme.get("num_bits") == 8:
        return "fp8"
    return {"FP8": "fp8", "NVFP4": "nvfp4"}.get(at.text("kv_cache_quant_algo", default="").upper())


def _block(at: Config, name: str) -> tuple[int | None, float]:
    """Return the side of a block of weights that share a scale of 4 bytes, and bytes of scale per weight."""
    sides = at.items(name)
    if not sides:
        return None, 0.0
    if len(sides) != 2:
        raise UnknownShapeError(f"{name} in config.json has {len(sides)} sides, not 2")
    side, other = (Config({name: each}).whole(name, least=1) for each in sides)
    return side, 4 / (side * other)


def _expression(entry: str) -> re.Pattern[str]:
    """Return the regular expression after `re:`. One that may take longer than anyone waits is refused."""
    pattern = entry.removeprefix("re:")
    branches = re.sub(r"\\.|\(\?|(?<=[*+?}])\?", "", pattern).split("|")
    if len(pattern) > LONGEST or ")*" in pattern or ")+" in pattern or "){" in pattern:
        raise UnknownShapeError(f"the regular expression {shown(pattern)} in config.json is not understood")
    if any(len(re.findall(r"[*+?{]", branch)) > REPEATS for branch in branches):
        raise UnknownShapeError(f"the regular expression {shown(pattern)} in config.json repeats too much")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        message = f"{shown(pattern)} in config.json is no regular expression: {error}"
        raise UnknownShapeError(message) from error


def _from_layers(name: str) -> str:
    match = re.search(r"(?:^|\.)(layers\..*)", name)
    return match[1] if match else name


def _glob(entry: str) -> str:
    return re.sub(r"(?:\\\*)+", ".*", re.escape(entry)) + r"(?:\.|$)"
