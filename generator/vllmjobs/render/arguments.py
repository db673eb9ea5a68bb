"""The command line and the variables of one vLLM server."""

import json
import math
from collections.abc import Iterator
from operator import itemgetter

from vllmjobs.environment import derive
from vllmjobs.environment.derive import Deadlines
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.supervision import is_supervised, supervisor_variables
from vllmjobs.environment.values import ArgValue

# vllm/entrypoints/openai/cli_args.py: given once for each value; and read by json.loads.
APPENDED = ("middleware",)
JSON_LISTS = ("allowed-origins", "allowed-methods", "allowed-headers")


def arguments(name: str, model: Model, deadlines: Deadlines) -> list[str]:
    """Return the words after `vllm serve`: the model, what vllmjobs sets, then the environment's own `args`.

    These by name, and maps among them too: whoever orders keys anew is not to restart a server.
    """
    served = served_names(name, model)
    is_parallel = model.strategy == "tensor_parallel"
    own: dict[str, ArgValue] = {
        "served-model-name": served[0] if len(served) == 1 else served,
        "host": listen_host(model),
        "port": str(model.ports.base) if derive.is_bridged(model) else "${NOMAD_PORT_http}",
        "tensor-parallel-size": derive.tensor_parallel_size(model) if is_parallel else None,
        "gpu-memory-utilization": model.gpu_memory_utilization,
        "max-model-len": model.max_model_len,
        "shutdown-timeout": math.ceil(deadlines.longest_stream),
    }
    given = ((derive.argument_name(key), value) for key, value in model.args.items())
    every = own | dict(sorted(given, key=itemgetter(0)))
    return [model.model, *(word for key, value in every.items() for word in _words(key, value))]


def variables(environment: Environment, model: Model, deadlines: Deadlines) -> dict[str, str]:
    """Return the variables of a server, without its secrets; the environment's own `env` wins."""
    own = {
        "HOME": "${NOMAD_TASK_DIR}",
        # Compiled kernels are loaded from where they were written, and Docker's tmpfs at /tmp is noexec.
        "TORCHINDUCTOR_CACHE_DIR": "${NOMAD_TASK_DIR}/torchinductor",
        **cache_variables(model),
    }
    if model.driver == "docker":
        # Else torch looks the user up, who may not be in the image: vllm-project/vllm#44548.
        own["USER"] = "vllm"
    if environment.debug:
        own["VLLM_LOGGING_LEVEL"] = "DEBUG"
    own[derive.KEEP_ALIVE] = str(derive.KEEP_ALIVE_S)
    own["VLLM_ENGINE_READY_TIMEOUT_S"] = str(int(deadlines.engine_ready))
    if not derive.is_bridged(model):
        # Engines on one node look for free ports upwards from here; each starts at a port that Nomad
        # keeps for it alone. A bridged container has all ports to itself.
        own["VLLM_PORT"] = "${NOMAD_PORT_engine}"
    if is_supervised(environment, model):
        own |= supervisor_variables(model, deadlines)
    return own | {key: str(value) for key, value in model.env.items() if value is not None}


def served_names(name: str, model: Model) -> list[str]:
    """Return the names by which clients may call the model; vLLM's answers and metrics have the first."""
    given = model.served_name or name
    return given if isinstance(given, list) else [given]


def listen_host(model: Model) -> str:
    """Return the address to listen on: everywhere inside a container, else only the allocation's own."""
    return model.ports.host or ("0.0.0.0" if derive.is_bridged(model) else "${NOMAD_IP_http}")


def cache_path(model: Model) -> str | None:
    """Return the folder in which the server finds its model cache; None without one."""
    if model.cache is None:
        return None
    return model.cache.bind if model.driver == "raw_exec" else model.cache.path


def cache_variables(model: Model) -> dict[str, str]:
    """Return the variables of the folders of models and compiled kernels; none without a cache."""
    path = cache_path(model)
    if path is None:
        return {}
    compiled = "${NOMAD_TASK_DIR}" if model.cache and model.cache.read_only else path
    return {"HF_HOME": f"{path}/huggingface", "VLLM_CACHE_ROOT": f"{compiled}/vllm"}


def _words(name: str, value: ArgValue) -> Iterator[str]:
    if value is None:
        return
    if name == "config":  # read only in two words
        yield from ("--config", str(value))
    elif name == "O" or name.startswith("O."):  # vLLM's one short option without a long name of its own
        if isinstance(value, dict):  # up to 0.11 a whole compilation config
            yield from ("-O", json.dumps(value, separators=(",", ":"), sort_keys=True))
        else:
            yield f"-O{value}" if name == "O" else f"-{name}={value}"
    elif isinstance(value, bool) and "." not in name:
        yield f"--{name}" if value else f"--no-{name}"
    elif isinstance(value, list) and name not in JSON_LISTS:
        words = [item if isinstance(item, str) else json.dumps(item, sort_keys=True) for item in value]
        if name in APPENDED:
            yield from (f"--{name}={word}" for word in words)
        elif words:
            yield from (f"--{name}", *words)
    elif isinstance(value, dict | list | bool):  # as JSON; an option inside a JSON argument has no --no- form
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
        yield f"--{name}={text}"
    else:
        yield f"--{name}={value}"
