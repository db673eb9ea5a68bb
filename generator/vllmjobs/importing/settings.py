"""The variables of a balanced-vllm-docker `.env` file, to the keys of an environment.

Names, defaults and ranges: that project's docker-compose.yml, README.md and scripts/vllm_launcher.py.
"""

import re
import unicodedata
from collections.abc import Callable

from vllmjobs.check.arguments import OWN_VARIABLES
from vllmjobs.environment.problems import Mark, Problem
from vllmjobs.importing.dotenv import DotEnv, Note, shown
from vllmjobs.importing.text import Commented, YamlBlock, balancer, group_name
from vllmjobs.text.english import nearest
from vllmjobs.vllm.memory.models import known
from vllmjobs.vllm.memory.serving import HIGHEST_UTILIZATION, LOWEST_UTILIZATION

# What Compose fills in for a variable that is not set or empty; None for nothing.
VARIABLES = {
    "VLLM_MODEL": "facebook/opt-125m",
    "VLLM_MODEL_NAME": "opt-125m",
    "VLLM_STRATEGY": "multi_instance",
    "VLLM_INSTALL_TYPE": None,  # `standard`, as here
    "VLLM_GPU_COUNT": None,
    "VLLM_HOST": None,
    "VLLM_BASE_PORT": None,
    "VLLM_MAX_MODEL_LEN": "2048",
    "VLLM_GPU_MEMORY_UTILIZATION": "0.80",
    "NGINX_PORT": "80",
    "MODEL_CACHE_PATH": None,
    "DEBUG": None,
}
TENSOR_PARALLEL = "tensor_parallel"
ALL_GPUS = ("auto", "all", "0", "-1")
MAX_GPUS, MAX_REPLICAS, MAX_PORT = 64, 50_000, 65_535  # `gpus.count`, `replicas`, `ports`
MAX_TOKENS = 10**9  # no model comes near
GPUS_OF_A_BOX = 8
LOOPBACK = re.compile(r"127\..*|localhost|::1", re.DOTALL)


def one_of(*words: str) -> Callable[[str], str]:
    """Read one of these words, in any case; else raise `ValueError` saying what it must be."""

    def convert(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be {' or '.join(words)} (got {text[:40]!r})")
        return text.lower()

    return convert


def whole(lowest: int, highest: int) -> Callable[[str], int]:
    """Read a whole number in this range; else raise `ValueError` saying what it must be."""

    def convert(text: str) -> int:
        number = int(text) if re.fullmatch("[0-9]{1,18}", text) else -1
        if not lowest <= number <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest} (got {text[:40]!r})")
        return number

    return convert


def model_name(text: str) -> str:
    """Read a model's name or path; else raise `ValueError`: vLLM takes what begins with - for an option."""
    if text.startswith("-"):
        raise ValueError(f"must be a model's name or path (got {text[:40]!r})")
    return text


def length(model: str, asked: int) -> tuple[int, str]:
    """Return the context that a model is served with, and what to say where it is less than was asked for.

    That project's own examples ask more of DialoGPT-medium than its 1024 tokens, and vLLM refuses to start.
    """
    shape = known(model)
    if shape is None or asked <= shape.stretched_positions:
        return asked, ""
    longest = shape.longest_positions
    return longest, f"{asked} is lowered to {longest}, the longest context that {model} has"


class DotEnvReader:
    """A reader of the variables of one file; it collects notes and problems as each is read."""

    def __init__(self, dotenv: DotEnv, source: str) -> None:
        self.notes = list(dotenv.notes)
        self.problems = list(dotenv.problems)
        self._variables = dotenv.variables
        self._source = source

    def environment(self, job: str) -> YamlBlock:
        """Return the environment's keys; to be used only when `problems` is empty afterwards."""
        model = self._commented("VLLM_MODEL", model_name)
        served = self._commented("VLLM_MODEL_NAME", str)
        named_after = served if self._given("VLLM_MODEL_NAME") else model
        group = group_name(str(named_after.value).rstrip("/").rpartition("/")[2] if named_after else "", job)
        strategy = self._commented("VLLM_STRATEGY", one_of("multi_instance", TENSOR_PARALLEL))
        utilization = self._commented("VLLM_GPU_MEMORY_UTILIZATION", self._utilization)
        base = self._commented("VLLM_BASE_PORT", whole(1, MAX_PORT))
        block = {
            "debug": self._debug(),
            "balancer": balancer(self._commented("NGINX_PORT", whole(1, MAX_PORT))),
            "models": {
                group: {
                    "model": model,
                    "served_name": served,
                    "strategy": strategy,
                    "install": self._commented("VLLM_INSTALL_TYPE", one_of("standard", "gptoss")),
                    **self._gpus(is_parallel=strategy is not None and strategy.value == TENSOR_PARALLEL),
                    "gpu_memory_utilization": utilization,
                    "max_model_len": self._length(model),
                    "ports": {"host": self._host(), "base": base},
                    "cache": {"bind": self._cache(group)},
                    "secrets": self._secrets(job),
                }
            },
        }
        self._name_the_rest(group)
        if not self.problems and not any(self._given(name) for name in VARIABLES):
            message = f"sets no variable of balanced-vllm-docker, such as {', '.join([*VARIABLES][:3])}"
            self.problems.append(Problem(Mark(self._source), (), message))
        return block

    def _given(self, name: str) -> str:
        variable = self._variables.get(name)
        return variable.value.strip() if variable else ""

    def _note(self, name: str, message: str, is_of_a_fleet: bool = False) -> None:
        mark = self._variables[name].mark if name in self._variables else Mark(self._source)
        self.notes.append(Note(mark, f"{shown(name)} {message}", is_of_a_fleet))

    def _commented(self, name: str, convert: Callable[[str], str | int | float]) -> Commented | None:
        """Return a variable's value, or its default; None where there is neither, or a problem."""
        text = self._given(name)
        if not text:
            default = VARIABLES[name]
            return None if default is None else Commented(convert(default), f"the default of {name}")
        try:
            if self._variables[name].secret:
                raise ValueError("looks like a secret (value not shown); an environment has only references")
            if not unicodedata.is_normalized("NFC", text):
                raise ValueError("is not in Unicode's normal form NFC; type it anew")
            return Commented(convert(text), name)
        except ValueError as error:
            self.problems.append(Problem(self._variables[name].mark, (), f"{name} {error}"))
            return None

    def _gpus(self, *, is_parallel: bool) -> YamlBlock:
        name, text = "VLLM_GPU_COUNT", self._given("VLLM_GPU_COUNT").lower()
        if not text or text in ALL_GPUS:
            all_gpus = "asks for every GPU of the box" if text else "is not set, which meant every GPU"
            key, count = ("gpus.count", "GPUs of a server") if is_parallel else ("replicas", "servers")
            self._note(name, f"{all_gpus}; 1 is written instead: set {key} to the number of {count}", True)
            counted = Commented(1, f"{name} was every GPU of the box")
        else:
            most = MAX_GPUS if is_parallel else MAX_REPLICAS
            counted = self._commented(name, whole(1, most)) or Commented(1)
        if not is_parallel:
            return {"replicas": counted, "gpus": {"count": Commented(1)}}
        if isinstance(counted.value, int) and counted.value > GPUS_OF_A_BOX:
            self._note(name, f"is {counted.value}, all on one node: a server cannot span nodes here")
        return {"replicas": Commented(1), "gpus": {"count": counted}}

    def _utilization(self, text: str) -> float:
        number = float(text) if re.fullmatch(r"[0-9]{0,9}(\.[0-9]{1,30})?|[0-9]{1,9}\.", text) else 0.0
        if not 0 < number <= 1:
            raise ValueError(f"must be a share of the GPU's memory from 0.1 to 0.95 (got {text[:40]!r})")
        allowed = min(max(number, LOWEST_UTILIZATION), HIGHEST_UTILIZATION)
        if allowed != number:
            change = f"{'lowered' if allowed < number else 'raised'} to {allowed}"
            self._note("VLLM_GPU_MEMORY_UTILIZATION", f"{number} is {change}; 0.1 to 0.95 is valid")
        return allowed

    def _length(self, model: Commented | None) -> Commented | None:
        asked = self._commented("VLLM_MAX_MODEL_LEN", whole(1, MAX_TOKENS))
        if asked is None or model is None:
            return asked
        allowed, reason = length(str(model.value), int(asked.value))
        if reason:
            self._note("VLLM_MAX_MODEL_LEN", reason)
        return Commented(allowed, asked.comment)

    def _host(self) -> Commented | None:
        host = self._commented("VLLM_HOST", str)
        if host and LOOPBACK.fullmatch(str(host.value)):
            why = "is left out: nothing outside the container would reach the server there"
            self._note("VLLM_HOST", why, True)
            return None
        return host

    def _cache(self, group: str) -> Commented | None:
        path = self._commented("MODEL_CACHE_PATH", str)
        if not path:
            return None
        if not re.fullmatch(r"/[^\x00-\x1f]*", str(path.value)):
            message = "is left out, as it is no absolute path; write one that exists on every node as "
            self._note("MODEL_CACHE_PATH", f"{message}models.{group}.cache.bind", True)
            return None
        self._note(
            "MODEL_CACHE_PATH",
            "must exist on every node, writable for user 65534; its hub/ is now huggingface/hub/: move it, "
            "or models are downloaded again",
            True,
        )
        return path

    def _debug(self) -> Commented | None:
        word = self._given("DEBUG").lower()
        if word in ("1", "true", "yes", "on"):
            return Commented(True, "DEBUG")
        if word not in ("", "0", "false", "no", "off"):
            self._note("DEBUG", "is neither true nor false, and is left out")
        return None

    def _secrets(self, job: str) -> YamlBlock:
        """Return the references to the secrets, and a note with the one command that stores them all."""
        names = [
            name
            for name, variable in self._variables.items()
            if variable.secret and variable.value and name not in (*VARIABLES, *OWN_VARIABLES)
        ]
        for name in names:
            if shown(name) != name:
                self._note(name, "looks like a secret, and is left out")
        names = [name for name in names if shown(name) == name]
        lowered = [name.lower() for name in names]
        fields = {name: name if lowered.count(name.lower()) > 1 else name.lower() for name in names}
        if fields:
            mark = self._variables[names[0]].mark
            who = "is not copied; type its value" if len(names) == 1 else "are not copied; type their values"
            command = _store(job, [*fields.values()])
            self.notes.append(Note(mark, f"{', '.join(names)} {who} into: {command}", True))
        kept = "where it is kept, never what it is"
        return {name: Commented(f"nomad/jobs/{job}#{field}", kept) for name, field in fields.items()}

    def _name_the_rest(self, group: str) -> None:
        for name, variable in self._variables.items():
            if name in VARIABLES or (variable.secret and name not in OWN_VARIABLES):
                continue
            if name in OWN_VARIABLES:
                self._note(name, f"is not carried over: {OWN_VARIABLES[name]}", True)
            elif name.startswith(("COMPOSE_", "DOCKER_", "BUILDKIT_")):
                self._note(name, "is not carried over: it is for Docker, and Nomad runs the containers")
            else:
                near = nearest(name, VARIABLES, 0.8)
                meant = f" (did you mean {near}?)" if near and shown(name) == name else ""
                self._note(
                    name,
                    f"is no variable of balanced-vllm-docker{meant}; if the server reads it, write it under "
                    f"models.{group}.env",
                )


def _store(job: str, fields: list[str]) -> str:
    """Return the command that stores what is typed, for bash; Nomad takes a value's bytes as they are."""
    path = f"nomad/jobs/{job}"
    if len(fields) == 1:
        return f'read -rs value && printf %s "$value" | nomad var put {path} {fields[0]}=-'
    reads = " && ".join(f"read -rs {field}" for field in fields)
    items = " ".join(f'{field}=@<(printf %s "${field}")' for field in fields)
    return f"{reads} && nomad var put {path} {items}"
