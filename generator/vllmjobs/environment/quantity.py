"""Amounts as Nomad writes them, as numbers."""

import math
import re
from functools import lru_cache

_DURATION = re.compile(r"(\d+(\.\d+)?(ms|s|m|h))+", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def is_duration(text: str) -> bool:
    """Tell whether a text is a duration: `90s`, `1h30m`."""
    return _DURATION.fullmatch(text) is not None


@lru_cache
def seconds(duration: str) -> float:
    """Return the seconds in a duration: `seconds("1m30s") == 90`."""
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", duration)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


@lru_cache
def duration(value: float) -> str:
    """Return whole seconds, rounded up, in the largest units that hold them: `duration(90) == "1m30s"`."""
    whole = math.ceil(value)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    text = "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n)
    return text or "0s"


@lru_cache
def size_bytes(size: str) -> int:
    """Return the bytes in a size: `size_bytes("1 GiB") == 1073741824`."""
    number, unit = re.fullmatch(r"([0-9.]+) ?(\w+)", size).groups()  # type: ignore[union-attr]
    return int(float(number) * BYTES[unit])


def mebibytes(size: str) -> int:
    """Return the MiB in a size, rounded up: what Nomad's `memory` and `size` count."""
    return -(-size_bytes(size) // 2**20)


def spaced(size: str) -> str:
    """Return the one spelling that is rendered: `70GiB` and `70 GiB` are both `70 GiB`."""
    return re.sub(r"([0-9]) ?([A-Z])", r"\1 \2", size, count=1)
