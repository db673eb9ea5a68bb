"""The command line of vLLM, as its own parser would read it."""

from vllmjobs.check.rule import Findings, of_model
from vllmjobs.check.subject import Subject
from vllmjobs.environment.derive import argument_name

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
    "VLLM_PORT": "it is set so that engines on one node do not race for ports",
    "VLLM_ENGINE_READY_TIMEOUT_S": "it follows from load_time",
    "NVIDIA_VISIBLE_DEVICES": "Nomad sets it to the GPUs that it reserved",
    "CUDA_VISIBLE_DEVICES": "the GPUs are the ones that Nomad reserved",
}


@of_model("VJ102", "error")
def arguments_are_free(subject: Subject) -> Findings:
    """Arguments that vllmjobs sets from other keys."""
    for name, value in subject.model.args.items():
        plain_name = argument_name(name)
        left_out = plain_name == "shutdown-timeout" and value is None  # for vLLM before 0.18
        if plain_name in OWN_ARGUMENTS and not left_out:
            yield ("args", name), f"is set by vllmjobs; use {OWN_ARGUMENTS[plain_name]}"


@of_model("VJ103", "error")
def arguments_are_given_once(subject: Subject) -> Findings:
    """`max_num_seqs` and `max-num-seqs` are one argument; the last would win."""
    seen: dict[str, str] = {}
    for name in subject.model.args:
        other = seen.setdefault(argument_name(name), name)
        if other != name:
            yield ("args", name), f"is the same argument as {other!r}"


@of_model("VJ112", "error")
def variables_are_free(subject: Subject) -> Findings:
    """Variables that vllmjobs or Nomad sets, or that stand in two places."""
    model = subject.model
    for name, value in model.env.items():
        if name in OWN_VARIABLES:
            yield ("env", name), f"is not for the environment: {OWN_VARIABLES[name]}"
        if value is not None and model.secrets.get(name):
            yield ("env", name), "stands under secrets too; keep one"


@of_model("VJ113", "error")
def arguments_hold_no_secrets(subject: Subject) -> Findings:
    """A command line can be read by everyone on the node, and in every plan."""
    for name, value in subject.model.args.items():
        variable = SECRET_ARGUMENTS.get(argument_name(name))
        if variable and isinstance(value, str):  # `--hf-token` alone reads the variable
            yield ("args", name), f"holds a secret; use secrets.{variable}"
