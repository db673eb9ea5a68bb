"""VJ100 to VJ114: the command line of vLLM, as its own parser would read it."""

from functools import partial

from vllmjobs.check.rule import Findings, model_rule
from vllmjobs.check.subject import Subject
from vllmjobs.environment.derive import argument_name
from vllmjobs.environment.problems import KeyPath
from vllmjobs.vllm.releases import NEWEST

# Set by vllmjobs from other keys of the environment.
OWN_ARGUMENTS = {
    "model": "model",
    "served-model-name": "served_name",
    "host": "ports.host",
    "port": "ports",
    "tensor-parallel-size": "strategy and gpus.count",
    "tp": "strategy and gpus.count",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "max-model-len": "max_model_len",
    "shutdown-timeout": "drain.longest_stream",
}
SECRET_ARGUMENTS = {"api-key": "VLLM_API_KEY", "hf-token": "HF_TOKEN"}
OWN_VARIABLES = {
    "VLLM_PORT": "vllmjobs sets it, so that engines on one node do not race for ports",
    "VLLM_ENGINE_READY_TIMEOUT_S": "vllmjobs sets it from load_time",
    "VLLMJOBS_LOAD_TIMEOUT": "vllmjobs sets it from health.grace, or else from load_time",
    "VLLMJOBS_DRAIN_TIMEOUT": "vllmjobs sets it to drain.longest_stream",
    "VLLMJOBS_TERM_TIMEOUT": "vllmjobs sets it to what drain.kill_timeout leaves after drain.longest_stream",
    "VLLMJOBS_LEAVE": "Nomad itself waits for the balancer, for drain.shutdown_delay",
    "VLLMJOBS_ADMIN_HOST": "vllmjobs sets it, so that Nomad's check finds the supervisor",
    "VLLMJOBS_ADMIN_PORT": "vllmjobs sets it, so that Nomad's check finds the supervisor",
    "NVIDIA_VISIBLE_DEVICES": "Nomad sets it to the GPUs that it reserved",
    "CUDA_VISIBLE_DEVICES": "vLLM gets the GPUs that Nomad reserved",
}
UNREACHABLE = {
    "uds": "leaves vLLM without a port, and its check fails for ever; leave it out",
    "headless": "leaves vLLM without a server, and its check fails for ever; leave it out",
    "ssl-keyfile": "makes vLLM speak TLS, but its check and the balancer speak HTTP; leave it out",
    "ssl-certfile": "makes vLLM speak TLS, but its check and the balancer speak HTTP; leave it out",
    "nnodes": "waits for servers on other nodes, but each allocation is a server of its own; leave it out",
}
_OWN_PATHS: dict[str, KeyPath] = {
    "served-model-name": ("model",),
    "max-model-len": ("max_model_len",),
    "gpu-memory-utilization": ("gpu_memory_utilization",),
    "tensor-parallel-size": ("gpus", "count"),
    "shutdown-timeout": ("drain", "longest_stream"),
}

# The kinds of mistake (`vllm/arguments/parser.py`) that each rule is about.
KINDS = {
    "VJ103": ("repeated",),
    "VJ104": ("unknown",),
    "VJ105": ("unknown", "type", "missing-value", "choice", "range", "json", "key"),
    "VJ106": ("type", "missing-value"),
    "VJ107": ("choice",),
    "VJ108": ("range",),
    "VJ109": ("json", "key"),
    "VJ110": ("conflict",),
    "VJ111": ("abbreviation",),
}


@model_rule("VJ100", "note")
def version_is_known(subject: Subject) -> Findings:
    """Find an image whose tag does not tell vLLM's version: arguments are not checked."""
    if subject.version is None:
        place = "image" if subject.model.image else "driver"
        message = f'names no version of vLLM: arguments are not checked; add one, such as vllm: "{NEWEST}"'
        yield (place,), message


@model_rule("VJ101", "note")
def version_has_a_table(subject: Subject) -> Findings:
    """Find a version of vLLM that has no table of its own and is checked as its nearest neighbour."""
    if subject.table and not subject.table.exact and not list(_mistakes(subject, "VJ105")):
        yield ("image" if subject.model.image else "args",), subject.table.note


@model_rule("VJ102", "error")
def arguments_are_free(subject: Subject) -> Findings:
    """Find an argument that vllmjobs sets from a key of its own."""
    for name, value in subject.model.args.items():
        plain_name = argument_name(name)
        left_out = plain_name == "shutdown-timeout" and value is None  # for vLLM before 0.18
        if plain_name in OWN_ARGUMENTS and not left_out:
            yield ("args", name), f"is set by vllmjobs; use {OWN_ARGUMENTS[plain_name]}"


@model_rule("VJ103", "error")
def arguments_are_given_once(subject: Subject) -> Findings:
    """Find one argument in two spellings. `max_num_seqs` and `max-num-seqs` are one; the last would win."""
    spellings: dict[str, str] = {}
    for name in subject.model.args:
        other = spellings.setdefault(argument_name(name), name)
        if other != name:
            yield ("args", name), f"is the same argument as {other!r}; keep one"
    yield from _mistakes(subject, "VJ103")


@model_rule("VJ105", "warning")
def arguments_are_known_nearby(subject: Subject) -> Findings:
    """Find what would be VJ104, VJ106, VJ107, VJ108 or VJ109 by the table of a version nearby."""
    if subject.table:
        known, asked = subject.table.table.version, subject.table.asked
        for path, message in _mistakes(subject, "VJ105"):
            yield path, f"{message} (in vLLM {known}, the known release nearest to {asked})"


@model_rule("VJ112", "error")
def variables_are_free(subject: Subject) -> Findings:
    """Find a variable that vllmjobs or Nomad sets, or that stands under `secrets` too."""
    model = subject.model
    for block, names in (("env", model.env), ("secrets", model.secrets)):
        for name, reason in OWN_VARIABLES.items():
            if names.get(name) is not None:
                yield (block, name), f"must be left out: {reason}"
    for name, value in model.env.items():
        if value is not None and model.secrets.get(name):
            yield ("env", name), "stands under secrets too; keep one"


@model_rule("VJ113", "error")
def arguments_hold_no_secrets(subject: Subject) -> Findings:
    """Find an API key or token as an argument. All on the node can read a command line, and every plan."""
    for name, value in subject.model.args.items():
        variable = SECRET_ARGUMENTS.get(argument_name(name))
        if variable and value is not None and value is not True:  # `--hf-token` alone reads the variable
            yield ("args", name), f"holds a secret; use secrets.{variable}"
    for index, word in enumerate(subject.model.entrypoint):
        if variable := SECRET_ARGUMENTS.get(argument_name(word.partition("=")[0].removeprefix("--"))):
            yield ("entrypoint", index), f"gives vLLM a secret; use secrets.{variable}"


@model_rule("VJ114", "error")
def servers_can_be_reached(subject: Subject) -> Findings:
    """Find arguments with which no check can succeed. Nothing answers on the port that it asks."""
    for name, value in subject.model.args.items():
        reason = UNREACHABLE.get(argument_name(name))
        is_off = value in (None, False, "") or (value == 1 and value is not True)  # `nnodes: 1`
        if reason and not is_off:
            yield ("args", name), reason


def _mistakes(subject: Subject, rule: str) -> Findings:
    """Yield the mistakes that a rule is about; those in vllmjobs' own arguments stand at their own keys."""
    if subject.table is None:
        return
    # What differs between versions is an error only where the table is of this very one.
    differs, exact = KINDS[rule][0] in KINDS["VJ105"], subject.table.exact
    if differs and exact == (rule == "VJ105"):
        return
    given = subject.model.args
    names = subject.written
    if short := next((name for name in given if name.partition(".")[0] == "O"), None):
        names = {"optimization-level": short, "compilation-config": short} | names  # by release
    for mistake in subject.reading.mistakes:
        flag, _, key = mistake.flag.partition(".")
        # What vllmjobs sets is not for `args` at all (VJ102).
        if mistake.kind not in KINDS[rule] or (flag in OWN_ARGUMENTS and flag in names):
            continue
        written = names.get(mistake.flag) or names.get(flag) or names.get(flag.removeprefix("no-"))
        if written is None:
            message = f"{mistake.flag}: {mistake.message}"
            if flag == "shutdown-timeout":  # vLLM has it since 0.18
                message += "; leave it out with args: {shutdown-timeout: null}"
            yield _OWN_PATHS.get(flag, ("args",)), message
        elif "${" not in str(given[written]):  # what Nomad fills in when the task starts cannot be judged
            long = subject.table.table.by_name.get(f"-{flag}")
            message = f"is the short option -{flag}; write {long.name}" if long else mistake.message
            if given[written] is False and flag == f"no-{argument_name(written)}":
                message = "cannot be turned off by false; give it a value, or null to leave it out"
            elif "is a switch" in message:
                message = "is a switch; write true or false, without quotes"
            inside = [] if "." in written else [part for part in key.split(".") if part]
            yield ("args", written, *inside), message


# The rules that pass on the mistakes of some kinds, and nothing else.
for _rule, _name, _finds in (
    ("VJ104", "arguments-are-known", "An argument that this version of vLLM does not have."),
    ("VJ106", "arguments-have-their-type", "A value that vLLM cannot read."),
    ("VJ107", "arguments-are-among-the-choices", "A word that is none of vLLM's choices."),
    ("VJ108", "arguments-are-within-bounds", "A number outside vLLM's bounds."),
    ("VJ109", "json-options-are-well-formed", "A key that a JSON argument does not have."),
    ("VJ110", "arguments-go-together", "Arguments that vLLM refuses together."),
    ("VJ111", "arguments-are-written-out", "An abbreviated argument."),
):
    model_rule(_rule, "error", _name, _finds)(partial(_mistakes, rule=_rule))
