"""What rules look at: an environment, each model of it, and what was found beside it."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vllmjobs.environment.derive import Deadlines, deadlines, vllm_version
from vllmjobs.environment.model import Environment, Model

if TYPE_CHECKING:
    from vllmjobs.vllm.shape import Shape


class Facts(NamedTuple):
    """What the world says beside the environment: gathered by `project.py`, read by rules.

    `shapes` has what is known of each model, by its key in the environment, or why nothing is.
    `files` has the permission bits of the project's files that may hold secrets, by path.
    `before` is the environment that a change is compared with, where one was named.
    """

    shapes: "dict[str, Shape | str]" = {}
    files: dict[str, int] = {}
    before: Environment | None = None


@dataclass(frozen=True)
class Subject:
    """One model; what several rules ask for is worked out once."""

    environment: Environment
    name: str
    facts: Facts

    @cached_property
    def model(self) -> Model:
        """The model itself."""
        return self.environment.models[self.name]

    @cached_property
    def deadlines(self) -> Deadlines:
        """Its deadlines, in seconds."""
        return deadlines(self.model, self.environment.balancer)

    @cached_property
    def version(self) -> str | None:
        """vLLM's version; None when neither the environment nor the image's tag tells it."""
        return vllm_version(self.environment, self.model)


@dataclass(frozen=True)
class Whole:
    """An environment with all its models."""

    environment: Environment
    facts: Facts

    @cached_property
    def subjects(self) -> list[Subject]:
        """The models, in the order of the file."""
        return [Subject(self.environment, name, self.facts) for name in self.environment.models]
