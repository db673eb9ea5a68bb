"""The subjects of rules: an environment, each model of it, and what was found beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from vllmjobs.balancers import balancer_of
from vllmjobs.balancers.balancer import LoadBalancer
from vllmjobs.environment.derive import Deadlines, argument_name, vllm_version
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.quantity import size_bytes
from vllmjobs.render.arguments import arguments
from vllmjobs.vllm.arguments.command_line import Reading, read
from vllmjobs.vllm.arguments.tables import Nearest, table
from vllmjobs.vllm.memory import models
from vllmjobs.vllm.memory.estimate import Estimate, estimate, fits
from vllmjobs.vllm.memory.gpus import Gpu, gpu, gpus
from vllmjobs.vllm.memory.limits import Obstacle
from vllmjobs.vllm.memory.obstacles import obstacles
from vllmjobs.vllm.memory.serving import Serving
from vllmjobs.vllm.memory.shape import Shape, UnknownShapeError, shape
from vllmjobs.vllm.releases import NEWEST

if TYPE_CHECKING:  # for a change only: most checks are of one environment
    from vllmjobs.changes.model import GroupChange


class Before(NamedTuple):
    """The environment that a change is compared with, and what becomes of the groups, by their names."""

    environment: Environment
    groups: dict[str, "GroupChange"]


class Facts(NamedTuple):
    """Facts of the world beside the environment: `project/` gathers them, rules read them.

    `configs` has the config.json of models by their key in the environment, or why it cannot be read.
    `files` has the permission bits of the project's files that may hold secrets, by path.
    `before` is what a change is compared with, where something was named.
    """

    configs: dict[str, dict[str, Any] | str] = {}
    files: dict[str, int] = {}
    before: Before | None = None


@dataclass(frozen=True)
class Subject:
    """One model; what several rules ask for is worked out once."""

    environment: Environment
    name: str
    facts: Facts

    @cached_property
    def model(self) -> Model:
        """The keys of the model."""
        return self.environment.models[self.name]

    @cached_property
    def balancer(self) -> LoadBalancer:
        """The balancer in front of it."""
        return balancer_of(self.environment)

    @cached_property
    def written(self) -> dict[str, str]:
        """The spelling of each argument in the environment, by the name that they are compared by."""
        return {argument_name(name): name for name in self.model.args}

    @cached_property
    def deadlines(self) -> Deadlines:
        """The deadlines of the model, in seconds."""
        return self.balancer.deadlines(self.model)

    @cached_property
    def version(self) -> str | None:
        """vLLM's version; None when neither the environment nor the image's tag tells it."""
        return vllm_version(self.environment, self.model)

    @cached_property
    def table(self) -> Nearest | None:
        """The table of that version, or of the nearest one below; None when the version is not known."""
        return table(self.version) if self.version else None

    @cached_property
    def reading(self) -> Reading:
        """The command line as vLLM reads it; the newest one where the version is not known."""
        words = arguments(self.name, self.model, self.deadlines)
        return _reading((self.table or table(NEWEST)).table.version, tuple(_without_name(words)))

    @cached_property
    def config(self) -> dict[str, Any] | str:
        """The model's config.json with `hf-overrides` laid over it, or why there is none."""
        config = self.facts.configs.get(self.name)
        if config is None:
            config = models.config(self.model.model)
        if config is None:
            return f"{self.model.model} is not in the table of known models"
        return _over(config, self.overrides) if isinstance(config, dict) else config

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """The changes of the config.json that `hf-overrides` names."""
        overrides = self.reading.values.get("hf_overrides")
        return overrides if isinstance(overrides, dict) else {}

    @cached_property
    def shape(self) -> Shape | str | None:
        """The model's shape, or why it has none; None without its config.json."""
        if isinstance(self.config, str):
            return None
        try:
            is_of_the_table = self.name not in self.facts.configs and not self.overrides
            # The same for all models of one name, and worth a millisecond each.
            return models.known(self.model.model) if is_of_the_table else shape(self.config)
        except UnknownShapeError as error:
            return f"{self.model.model}: {error}"

    @cached_property
    def gpu(self) -> Gpu | None:
        """The GPU that it runs on: the one named, else the smallest that has the memory asked for."""
        wanted = self.model.gpus
        if (wanted.vendor, wanted.type) != ("nvidia", "gpu"):
            return None
        if wanted.model and (named := gpu(wanted.model)):
            return named
        if not wanted.memory:
            return None
        least = size_bytes(wanted.memory) / 2**20
        large = (each for each in gpus() if each.memory_mib >= least)
        return min(large, key=lambda each: each.usable, default=None)

    @cached_property
    def serving(self) -> Serving:
        """The way the model is served, in the words of the memory estimate."""
        values = self.reading.values
        named = {key: value for key in _SAME if (value := values.get(key)) is not None}
        length = values.get("max_model_len")
        return Serving(
            tensor_parallel=values.get("tensor_parallel_size") or 1,
            pipeline_parallel=values.get("pipeline_parallel_size") or 1,
            data_parallel=values.get("data_parallel_size") or 1,
            expert_parallel=bool(values.get("enable_expert_parallel")),
            prefix_caching=values.get("enable_prefix_caching") is not False,
            max_model_len="auto" if length in (-1, "auto") else length,
            vllm_version=self.version or NEWEST,
            **named,
        )

    @cached_property
    def obstacles(self) -> list[Obstacle]:
        """The obstacles that keep the model from running; none where too little is known.

        Kernels are spoken of for a GPU that is named, memory also for the smallest that was asked for.
        """
        if not isinstance(self.shape, Shape):
            return []
        may_be_longer = str(self.model.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")).lower() in ("1", "true")
        is_named = bool(self.model.gpus.model)
        return obstacles(self.shape, self.serving, self.gpu, is_named=is_named, may_be_longer=may_be_longer)

    def on(self, gpu: Gpu) -> Estimate | str:
        """Return the memory that the model takes on such a GPU, or why no estimate can be made."""
        if not isinstance(self.shape, Shape):
            return self.shape or str(self.config)
        try:
            return estimate(self.shape, gpu, self.serving)
        except UnknownShapeError as error:
            return str(error)

    def fits(self, gpu: Gpu) -> bool | None:
        """Tell whether the model fits such a GPU; None where no estimate can be made."""
        try:
            return fits(self.shape, gpu, self.serving) if isinstance(self.shape, Shape) else None
        except UnknownShapeError:
            return None


# Arguments that the estimate calls as vLLM does.
_SAME = (
    "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "dtype", "quantization",
    "kv_cache_dtype", "kv_cache_memory_bytes", "block_size", "enforce_eager", "cpu_offload_gb",
)  # fmt: skip
# What Nomad fills in when the task starts.
_NOMADS = re.compile(r"\$\{NOMAD_PORT_\w+\}")
_SERVED_NAME = "--served-model-name="


def _without_name(words: list[str]) -> Iterator[str]:
    """Yield a command line that reads the same, and is equal for models that differ only in their names."""
    for word in words:
        yield f"{_SERVED_NAME}any" if word.startswith(_SERVED_NAME) else _NOMADS.sub("8000", word)


@lru_cache  # many models of one environment are served alike, but for their names
def _reading(version: str, words: tuple[str, ...]) -> Reading:
    return read(table(version).table, words)


def _over(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with other values; inner maps are laid over each other, as vLLM does it."""
    return config | {
        key: _over(config[key], value)
        if isinstance(value, dict) and isinstance(config.get(key), dict)
        else value
        for key, value in overrides.items()
    }


@dataclass(frozen=True)
class Whole:
    """An environment with all its models."""

    environment: Environment
    facts: Facts

    @cached_property
    def subjects(self) -> list[Subject]:
        """The models, in the order of the file."""
        return [Subject(self.environment, name, self.facts) for name in self.environment.models]
