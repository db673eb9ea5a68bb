"""Conflicts inside one JSON option, beyond the type of each key.

Each rule names its place in vLLM's source, as of 0.33.0.
"""

from collections.abc import Iterator

from vllmjobs.vllm.arguments.parser import Arguments, ConflictRule, Mistake, conflict

TORCH_ONLY = ("torch_profiler_activities", "torch_profiler_dir", "capture_torch_profiler")
PROTON_DEFAULTS = {"proton_context": "shadow", "proton_data": "tree"}
PROTON_FORMATS = {"chrome_trace": "trace", "hatchet": "tree", "hatchet_msgpack": "tree"}
TRANSFERS = (
    ("kv-transfer-config", "kv_connector", "kv_role"),
    ("ec-transfer-config", "ec_connector", "ec_role"),
)


def structured_outputs(given: Arguments) -> Iterator[Mistake]:
    """Check as StructuredOutputsConfig does, vllm/config/structured_outputs.py."""
    options = given.values.get("structured_outputs_config") or {}
    backend = options.get("backend", "auto")
    if options.get("disable_any_whitespace") and backend not in ("xgrammar", "guidance"):
        message = "needs the backend xgrammar or guidance"
        yield conflict("structured-outputs-config.disable_any_whitespace", message)
    if options.get("disable_additional_properties") and backend != "guidance":
        flag = "structured-outputs-config.disable_additional_properties"
        yield conflict(flag, "needs the backend guidance")


def transfer(given: Arguments) -> Iterator[Mistake]:
    """Check as KVTransferConfig (vllm/config/kv_transfer.py) and ECTransferConfig (ec_transfer.py) do."""
    for flag, connector, role in TRANSFERS:
        options = given.values.get(flag.replace("-", "_")) or {}
        if options.get(connector) is not None and options.get(role) is None:
            yield Mistake(f"{flag}.{role}", "missing-value", f"is needed with {connector}")


def expert_balancing(given: Arguments) -> Iterator[Mistake]:
    """Check as EPLBConfig._validate_eplb_config does, vllm/config/parallel.py."""
    options = given.values.get("eplb_config") or {}
    flag = given.table.by_dest.get("eplb_config")
    keys = given.table.objects[flag.value.object].keys if flag and flag.value else {}
    # Asynchronous by default since there is a communicator to choose.
    asynchronous = options.get("use_async", "communicator" in keys)
    if asynchronous and options.get("communicator") in ("torch_nccl", "pynccl"):
        yield conflict("eplb-config.communicator", "cannot be NCCL with use_async; use torch_gloo or nixl")
    if options.get("log_balancedness") and options.get("log_balancedness_interval", 1) <= 0:
        yield Mistake("eplb-config.log_balancedness_interval", "range", "must be at least 1")


def profiler(given: Arguments) -> Iterator[Mistake]:
    """Check as ProfilerConfig._validate_profiler_config does, vllm/config/profiler.py."""
    options = given.values.get("profiler_config") or {}
    kind = options.get("profiler")
    proton = [
        key
        for key, value in options.items()
        if key.startswith("proton_") and value not in (None, False, "", PROTON_DEFAULTS.get(key))
    ]
    for key in TORCH_ONLY:
        if options.get(key) not in (None, False, "") and kind != "torch":
            yield conflict(f"profiler-config.{key}", "needs profiler torch")
    activities = options.get("torch_profiler_activities") or []
    if len(activities) != len(set(activities)):
        yield Mistake("profiler-config.torch_profiler_activities", "repeated", "names an activity twice")
    if kind == "torch" and not options.get("torch_profiler_dir"):
        yield Mistake("profiler-config.torch_profiler_dir", "missing-value", "is needed with profiler torch")
    if kind != "proton":
        yield from (conflict(f"profiler-config.{key}", "needs profiler proton") for key in proton)
        return
    if not options.get("proton_profiler_dir"):
        message = "is needed with profiler proton"
        yield Mistake("profiler-config.proton_profiler_dir", "missing-value", message)
    data = options.get("proton_data", "tree")
    wanted = PROTON_FORMATS.get(options.get("proton_output_format") or "", data)
    if options.get("proton_graph_attribution") and data != "tree":
        yield conflict("profiler-config.proton_graph_attribution", "needs proton_data tree")
    elif wanted != data:
        yield conflict("profiler-config.proton_output_format", f"needs proton_data {wanted}")


def engram(given: Arguments) -> Iterator[Mistake]:
    """Check as EngramConfig does, vllm/config/engram.py."""
    options = given.values.get("engram_config") or {}
    offloaded, shared = options.get("cpu_offload", True), options.get("dp_shared_memory")
    if shared and not offloaded:
        yield conflict("engram-config.dp_shared_memory", "needs cpu_offload")
    if options.get("use_thp") and (shared or not offloaded):
        yield conflict("engram-config.use_thp", "needs cpu_offload, and cannot be used with dp_shared_memory")


def compilation(given: Arguments) -> Iterator[Mistake]:
    """Check as CompilationConfig.__post_init__ does, vllm/config/compilation.py."""
    options = given.values.get("compilation_config") or {}
    compiled = options.get("mode") in (3, "VLLM_COMPILE")
    if compiled and options.get("backend", "") not in ("", "eager", "inductor"):
        yield conflict("compilation-config.backend", "must be inductor or eager with mode VLLM_COMPILE")
    names = options.get("custom_ops") or []
    flag = "compilation-config.custom_ops"
    for name in names:
        if name not in ("all", "none") and (len(name) < 2 or name[0] not in "+-"):
            yield Mistake(flag, "choice", f'must be "all", "none", "+op" or "-op", not "{name}"')
    if {"all", "none"} <= set(names):
        yield conflict(flag, "cannot have both all and none")
    on, off = ({name[1:] for name in names if name[0] == sign} for sign in "+-")
    if both := sorted(on & off):
        yield conflict(flag, f"turns {both[0]} both on and off")


def pooler(given: Arguments) -> Iterator[Mistake]:
    """Check as PoolerConfig.__post_init__ does, vllm/config/pooler.py."""
    for flag in ("pooler-config", "override-pooler-config"):
        options = given.values.get(flag.replace("-", "_")) or {}
        for key in ("seq_pooling_type", "tok_pooling_type"):
            if options.get("pooling_type") and options.get(key) is not None:
                yield conflict(f"{flag}.{key}", "cannot be used with pooling_type")
        for key in ("softmax", "activation"):  # older names of use_activation, which overwrite it
            if options.get(key) is not None and options.get("use_activation") is not None:
                yield conflict(f"{flag}.{key}", "cannot be used with use_activation")
        if options.get("logit_sigma") == 0:
            yield Mistake(f"{flag}.logit_sigma", "range", "cannot be 0: the logits are divided by it")


def quantization_targets(given: Arguments) -> Iterator[Mistake]:
    """Check as QuantizationConfigArgs._validate_targets_exclusivity does, vllm/config/quantization.py."""
    options = given.values.get("quantization_config") or {}
    if options.get("targets") is not None and (options.get("linear") or options.get("moe")):
        yield conflict("quantization-config.targets", "cannot be used with linear or moe")


OPTION_RULES: list[ConflictRule] = [
    structured_outputs, transfer, expert_balancing, profiler, engram, compilation, pooler,
    quantization_targets,
]  # fmt: skip
