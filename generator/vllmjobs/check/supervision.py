"""VJ338 to VJ341: whether an image has a supervisor, and whether Nomad can ask it."""

from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.derive import image, is_bridged
from vllmjobs.environment.model import Environment, Health, Model
from vllmjobs.environment.problems import KeyPath
from vllmjobs.environment.supervision import ADMIN_PORT, PROGRAM, READY, is_ours, is_supervised

# Options of vllmjobs-supervise that the job tells it by variables, over which a command line wins.
TOLD = {
    "--config": "a file could name other servers than this one; leave it out",
    "--admin-host": "Nomad's check must find the supervisor; leave it out",
    "--admin-port": "Nomad's check must find the supervisor; leave it out",
    "--load-timeout": "it follows from load_time; use health.grace",
    "--drain-timeout": "use drain.longest_stream",
    "--term-timeout": "use drain.kill_timeout",
    "--leave": "use drain.shutdown_delay",
}


@environment_rule("VJ338", "note")
def servers_are_supervised(whole: Whole) -> Findings:
    """Find vLLM without the supervisor, and say what is lost. The note stands once for all models."""
    environment = whole.environment
    unsaid = [(name, model) for name, model in environment.models.items() if model.supervised is None]
    plain = [(name, model) for name, model in unsaid if not is_supervised(environment, model)]
    if plain:
        models = "" if len(plain) == len(environment.models) else f"{', '.join(name for name, _ in plain)}: "
        yield (
            _origin(environment, *plain[0]),
            f"{models}vLLM is not started by {PROGRAM}: its own /health stays 200 while it hangs, or drains "
            "and refuses work, a broken GPU fences no node, and logs are plain lines; use an image of "
            "images/vllm, or write supervised: false",
        )


@model_rule("VJ339", "error")
def supervisor_is_started(subject: Subject) -> Findings:
    """Find an entrypoint that does not start the supervisor as the job needs it."""
    model = subject.model
    if not is_supervised(subject.environment, model):
        return
    if (model.entrypoint or model.driver != "docker") and not _starts_it(model):
        yield (
            ("entrypoint",),
            f"does not start {PROGRAM}, but supervised is true: the check of its admin port would fail "
            f'for ever; begin with ["{PROGRAM}", "--"], or leave supervised out',
        )
        return
    words = [word.rpartition("/")[2] for word in model.entrypoint]
    if not words:
        return
    options = words[words.index(PROGRAM) + 1 :]
    if "--" not in options:
        message = f'{PROGRAM} takes its command after --; write ["{PROGRAM}", "--", "vllm", "serve"]'
        yield ("entrypoint",), message
        return
    for option in options[: options.index("--")]:
        if why := TOLD.get(option.partition("=")[0]):
            yield ("entrypoint", words.index(option)), f"{option} is set by vllmjobs: {why}"


@model_rule("VJ340", "error")
def supervisor_can_be_asked(subject: Subject) -> Findings:
    """Find a check or a port that the supervisor cannot have."""
    model = subject.model
    if not is_supervised(subject.environment, model):
        return
    if model.health.path not in (None, READY):
        yield (
            ("health", "path"),
            f"Nomad would ask the supervisor for {model.health.path}, but only its {READY} tells whether "
            "requests are welcome; leave it out, or write supervised: false",
        )
    if is_bridged(model) and model.ports.base == ADMIN_PORT:
        yield ("ports", "base"), f"{ADMIN_PORT} is the supervisor's own port in the container; use another"


@model_rule("VJ341", "warning")
def one_level_restarts(subject: Subject) -> Findings:
    """Find restarts of both Nomad and the supervisor. Their attempts multiply."""
    model, whole = subject.model, subject.environment
    if is_supervised(whole, model):
        if model.health.restart_after != Health().restart_after:
            message = "is for restarts by Nomad, but here the supervisor restarts vLLM; leave it out"
            yield ("health", "restart_after"), message
        return
    is_in_image = model.driver == "docker" and not model.entrypoint and is_ours(image(whole, model))
    if is_in_image or _starts_it(model):
        yield (
            ("supervised",),
            f"is false, but {PROGRAM} is started: it restarts vLLM, and Nomad restarts it, so that their "
            "attempts multiply; leave it out",
        )


def _starts_it(model: Model) -> bool:
    return PROGRAM in (word.rpartition("/")[2] for word in model.entrypoint)


def _origin(environment: Environment, name: str, model: Model) -> KeyPath:
    """Return the key that an image or program comes from."""
    if model.driver != "docker":
        return ("models", name, "entrypoint")
    return ("models", name, "image") if model.image else ("images", model.install)
