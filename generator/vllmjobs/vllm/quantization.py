"""How the weights of a checkpoint are stored: bits, scales, and what is left as it was."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from vllmjobs.vllm.parts import Config, UnknownShapeError


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
        """Whether the module of this name (`layers.3.mlp.down_proj`) is quantized."""
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
                patterns.append(re.compile(entry.removeprefix("re:")))
            elif "*" in entry:
                patterns.append(re.compile(_glob(_from_layers(entry))))
            elif "." in entry:
                exact.add(_from_layers(entry))
            else:
                parts.add(entry)
        return frozenset(exact), patterns, frozenset(parts)


def quantization(config: Mapping[str, Any]) -> Quantization | None:
    """The quantization that a `config.json` declares, or None.

    Raises UnknownShapeError for a method whose sizes are not known.
    """
    nested = config.get("text_config")
    given = config.get("quantization_config") or config.get("compression_config")
    if not given and isinstance(nested, Mapping):
        given = nested.get("quantization_config")
    if not isinstance(given, Mapping):
        return None
    at = Config(given)
    method = str(at.any("quant_method", default="")).lower().replace("_", "-")
    left = at.any("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", default=())
    common: dict[str, Any] = {"left_out": tuple(str(each) for each in left), "kv_cache_dtype": _kv_cache(at)}
    match method:
        case "fp8" | "fbgemm-fp8":
            block = at.any("weight_block_size")
            scale = 4 / (block[0] * block[1]) if block else 0.0
            return Quantization(method, 8, scale, block=block and block[0], **common)
        case "awq" | "awq-marlin" | "gptq" | "gptq-marlin" | "auto-round" | "intel/auto-round" | "auto-gptq":
            bits = at.whole("bits", "w_bit", default=4)
            group = at.any("group_size", "q_group_size", default=128)
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
    raise UnknownShapeError(f"the quantization method {method or 'without a name'!r} is not understood")


def online(method: str | None) -> Quantization | None:
    """What `--quantization` makes of a checkpoint that is not quantized; None when it stays as it is.

    The shorthands of `vllm/config/quantization.py`, and fp8.
    """
    name = (method or "").lower()
    if name in {"fp8", "fp8_per_tensor", "fp8_per_channel", "ptpc_fp8", "int8_per_channel_weight_only"}:
        return Quantization("int8" if name.startswith("int8") else "fp8", 8)
    return {
        "fp8_per_block": Quantization("fp8", 8, 4 / 128**2),
        "mxfp8": Quantization("mxfp8", 8, 1 / 32),
        "mxfp4": Quantization("mxfp4", 4, 1 / 32, experts_only=True),
        "nvfp4_per_token": Quantization("nvfp4", 4, 1 / 16),
        "bitsandbytes": Quantization("bitsandbytes", 4, 4 / 64),
        "experts_int8": Quantization("experts_int8", 8, experts_only=True),
    }.get(name)


def _compressed_tensors(at: Config, common: dict[str, Any]) -> Quantization:
    groups = at.any("config_groups", default={})
    weights = [Config(group["weights"]) for group in groups.values() if group.get("weights")]
    if not weights:
        raise UnknownShapeError("quantization_config in config.json has no config_groups with weights")
    if len({each.whole("num_bits") for each in weights}) > 1:
        raise UnknownShapeError("quantization_config in config.json mixes numbers of bits")
    each = weights[0]
    bits, group = each.whole("num_bits"), each.any("group_size", default=0)
    if each.any("type") == "float" and bits == 4:
        name, scale = ("nvfp4", 1 / 16) if group == 16 else ("mxfp4", 1 / 32)
        return Quantization(name, 4, scale, **common)
    block = each.any("block_structure")
    scale = 4 / (block[0] * block[1]) if block else 2 / group if group and group > 0 else 0.0
    kind = "fp8" if each.any("type") == "float" else f"int{bits}"
    return Quantization(kind, bits, scale, block=block and block[0], **common)


def _modelopt(at: Config, common: dict[str, Any]) -> Quantization:
    algorithm = str(at.any("quant_algo", default="")).upper()
    if algorithm in {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"}:
        return Quantization("modelopt", 8, **common)
    if algorithm == "MXFP8":
        return Quantization("modelopt", 8, 1 / 32, **common)
    if algorithm in {"NVFP4", "W4A16_NVFP4"}:
        return Quantization("nvfp4", 4, 1 / 16, **common)
    raise UnknownShapeError(f"the quant_algo {algorithm or 'without a name'!r} is not understood")


def _kv_cache(at: Config) -> str | None:
    scheme = at.inner("kv_cache_scheme")
    if scheme and scheme.any("type") == "float" and scheme.any("num_bits") == 8:
        return "fp8"
    return {"FP8": "fp8", "NVFP4": "nvfp4"}.get(str(at.any("kv_cache_quant_algo", default="")).upper())


def _from_layers(name: str) -> str:
    found = re.search(r"(?:^|\.)(layers\..*)", name)
    return found[1] if found else name


def _glob(entry: str) -> str:
    return re.escape(entry).replace(r"\*", ".*") + r"(?:\.|$)"
