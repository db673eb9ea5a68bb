"""Consequences of a supervisor in the image: `vllmjobs-supervise`, which restarts and drains.

It restarts what fails on this node. Nomad is given no restarts of its own, since the budgets of two levels
multiply, and places elsewhere what the supervisor gives up.

On a stop: SIGTERM to the supervisor, /ready answers 503
longest_stream        → VLLMJOBS_DRAIN_TIMEOUT, then SIGTERM to vLLM
kill_timeout, less longest_stream and 7 s, 10 s at most → VLLMJOBS_TERM_TIMEOUT, then SIGKILL to what is left
kill_timeout          → the supervisor is killed too, if it still is there
"""

from vllmjobs.environment.derive import START_MARGIN, Deadlines, image, is_bridged, whole_minutes
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.quantity import duration, seconds

PROGRAM = "vllmjobs-supervise"
IMAGE = "vllmjobs-vllm"  # what scripts/build calls it, in whichever registry
ADMIN_PORT = 8090
READY = "/ready"
TERM_S = 10.0  # the supervisor's own (its core/model.py, Limits), and more than the 7 s that vLLM takes
GONE_S = 5.0  # the same: from SIGKILL until nothing is left
LAST_WORDS_S = 2.0  # of the supervisor, for its output and Nomad's executor


def is_supervised(environment: Environment, model: Model) -> bool:
    """Tell whether the supervisor starts a server: as the model says, else by its entrypoint or image."""
    if model.supervised is not None:
        return model.supervised
    if model.entrypoint or model.driver != "docker":
        return PROGRAM in map(_last, model.entrypoint)
    return is_ours(image(environment, model))


def is_ours(image: str) -> bool:
    """Tell whether an image is of images/vllm, by its name: `acme.example:5000/ml/vllmjobs-vllm:0.24.0`."""
    return _last(image).partition("@")[0].partition(":")[0] == IMAGE


def health_path(environment: Environment, model: Model) -> str:
    """Return the path that Consul asks, of the port `admin` where a supervisor has one."""
    return model.health.path or (READY if is_supervised(environment, model) else "/health")


def load_timeout(model: Model) -> float:
    """Return the seconds from a start to the first answer, after which the supervisor restarts."""
    if model.health.grace is not None:
        return seconds(model.health.grace)
    return whole_minutes(seconds(model.load_time) * START_MARGIN)


def term_timeout(deadlines: Deadlines) -> float:
    """Return the seconds from SIGTERM to SIGKILL: what kill_timeout leaves after the longest stream."""
    left = deadlines.kill_timeout - deadlines.longest_stream - GONE_S - LAST_WORDS_S
    return max(1.0, min(TERM_S, left))


def supervisor_variables(model: Model, deadlines: Deadlines) -> dict[str, str]:
    """Return the variables for the supervisor; its port and address on the node it has from Nomad."""
    variables = {
        "VLLMJOBS_LOAD_TIMEOUT": duration(load_timeout(model)),
        "VLLMJOBS_DRAIN_TIMEOUT": duration(deadlines.longest_stream),
        "VLLMJOBS_TERM_TIMEOUT": duration(term_timeout(deadlines)),
        # Nomad has taken the instance out of the balancer before the signal: shutdown_delay.
        "VLLMJOBS_LEAVE": "0s",
    }
    if is_bridged(model):  # Nomad's own say where the node listens, which is not in the container
        variables |= {"VLLMJOBS_ADMIN_HOST": "0.0.0.0", "VLLMJOBS_ADMIN_PORT": str(ADMIN_PORT)}
    return variables


def _last(path: str) -> str:
    return path.rpartition("/")[2]
