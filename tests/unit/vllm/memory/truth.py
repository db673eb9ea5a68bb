"""The truth table of memory: read, estimated, and written down for docs/memory.md."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import yaml

from vllmjobs.vllm.memory.data import data
from vllmjobs.vllm.memory.estimate import Estimate, estimate
from vllmjobs.vllm.memory.gpus import gpu
from vllmjobs.vllm.memory.models import known
from vllmjobs.vllm.memory.serving import Serving

GIB = 2**30
NAMES = list(msgspec.json.decode(data("models.json")))  # of all models that are known
TABLE = Path(__file__).parent / "truth.yaml"
ALLOWED = {"weights": 0.02, "kv_tokens": 0.05, "needed": 0.01, "longest": 0.05}


class Truth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    gpu: str
    serving: Serving
    source: str
    weights: float | None = None
    kv_cache: float | None = None
    kv_tokens: int | None = None
    needed: float | None = None
    longest: int | None = None
    fits: bool | None = None
    given: float | None = None
    misses: dict[str, str] = {}
    note: str = ""

    @property
    def settings(self) -> str:
        said = msgspec.structs.asdict(self.serving)
        default = msgspec.structs.asdict(Serving())
        parts = [f"{key} {value}" for key, value in said.items() if value != default[key]]
        if self.given is not None:
            parts.append(f"a KV cache of {self.given} GiB")
        return ", ".join(parts) or "defaults"


class Figure(msgspec.Struct, frozen=True):
    """One published figure beside the estimated one; `miss` says why they are known to differ."""

    name: str
    published: float
    estimated: float
    miss: str = ""

    @property
    def off(self) -> float:
        return self.estimated / self.published - 1

    @property
    def agrees(self) -> bool:
        return abs(self.off) <= ALLOWED[self.name]


@cache
def table() -> list[Truth]:
    return msgspec.convert(yaml.safe_load(TABLE.read_text()), list[Truth])


@cache
def estimated(index: int) -> Estimate:
    truth = table()[index]
    shape, on = known(truth.model), gpu(truth.gpu)
    assert shape is not None, truth.model
    assert on is not None, truth.gpu
    serving = truth.serving
    if truth.given is not None:
        serving = msgspec.structs.replace(serving, kv_cache_memory_bytes=int(truth.given * GIB))
    return estimate(shape, on, serving)


def figures(index: int) -> Iterator[Figure]:
    truth, found = table()[index], estimated(index)
    pairs = {
        "weights": (truth.weights, found.weights / GIB),
        "kv_tokens": (truth.kv_tokens, found.kv_tokens),
        "needed": (truth.needed, found.needed / GIB),
        "longest": (truth.longest, found.longest_context),
    }
    for name, (published, computed) in pairs.items():
        if published is not None:
            yield Figure(name, published, computed, truth.misses.get(name, ""))


def markdown() -> str:
    """The table of docs/memory.md: a row per figure."""
    rows = [
        "| model | on | with | figure | vLLM said | estimated | off | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for index, truth in enumerate(table()):
        start = f"| {truth.model} | {truth.gpu} | {truth.settings} "
        for figure in figures(index):
            number = "{:,.0f}" if figure.name in {"kv_tokens", "longest"} else "{:.2f} GiB"
            off = f"{figure.off:+.1%}" + (f", known: {figure.miss}" if figure.miss else "")
            rows.append(
                f"{start}| {figure.name} | {number.format(figure.published)} | "
                f"{number.format(figure.estimated)} | {off} | {truth.source} |"
            )
        if truth.fits is not None:
            says = ["no", "yes"]
            found = estimated(index).fits
            rows.append(f"{start}| fits | {says[truth.fits]} | {says[found]} | | {truth.source} |")
    return "\n".join(rows) + "\n"
