"""Conflicts between arguments that are each right: rules that need neither a GPU nor the model.

Each rule names its place in vLLM's source, as of 0.33.0.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any

from vllmjobs.vllm.arguments.option_conflicts import OPTION_RULES
from vllmjobs.vllm.arguments.parser import Arguments, ConflictRule, Mistake, conflict
from vllmjobs.vllm.arguments.tables import Table
from vllmjobs.vllm.arguments.values import shown
from vllmjobs.vllm.releases import is_version, precedes

BALANCING = ("data_parallel_multi_port_external_lb", "data_parallel_external_lb", "data_parallel_hybrid_lb")
FP8_SCALES = ("mm_encoder_fp8_scale_path", "mm_encoder_fp8_scale_save_path")
SPECULATION = {"spec_method": "method", "spec_model": "model", "spec_tokens": "num_speculative_tokens"}
DRAFTLESS = ("ngram", "ngram_gpu")
DRAFTED = ("draft_model", "eagle", "eagle3", "medusa", "mlp_speculator")


def conflicts(table: Table, values: dict[str, Any]) -> list[Mistake]:
    """Return the conflicts between arguments; `values` are those of a Reading without mistakes."""
    arguments = Arguments(table, values)
    return [mistake for rule in RULES for mistake in rule(arguments)]


def _bounded(value: object, bound: str, limit: object) -> str:
    return f"must be {bound} ({limit}), not {value}"


def serve_args(given: Arguments) -> Iterator[Mistake]:
    """Check as validate_parsed_serve_args does, vllm/entrypoints/common/cli_args.py."""
    if given["enable_auto_tool_choice"] and not given["tool_call_parser"]:
        yield conflict("enable-auto-tool-choice", "needs tool-call-parser, such as hermes")
    if given["enable_log_outputs"] and not given["enable_log_requests"]:
        yield conflict("enable-log-outputs", "needs enable-log-requests")
    if given["enable_per_request_metrics"] and given["disable_log_stats"]:
        yield conflict("enable-per-request-metrics", "needs the statistics that disable-log-stats turns off")
    if (given["sse_keep_alive_interval"] or 0) < 0:
        yield Mistake("sse-keep-alive-interval", "range", "must be 0 (off) or more")


def max_model_len(given: Arguments) -> Iterator[Mistake]:
    """Check as ModelConfig.validate_model_config_after does, vllm/config/model.py."""
    length = given.values.get("max_model_len")
    if length is None or length > 0:
        return
    automatic = given.table.by_dest["max_model_len"].read == "size-or-auto"
    if length != -1 or not automatic:
        yield Mistake("max-model-len", "range", "must be at least 1" + (", or auto" if automatic else ""))


def batch(given: Arguments) -> Iterator[Mistake]:
    """Check as SchedulerConfig.verify_max_model_len does, vllm/config/scheduler.py."""
    tokens, sequences = given.values.get("max_num_batched_tokens"), given.values.get("max_num_seqs")
    length = given.values.get("max_model_len")
    if tokens and sequences and tokens < sequences:
        yield conflict("max-num-batched-tokens", _bounded(tokens, "at least max-num-seqs", sequences))
    if tokens and length and tokens < length and given.values.get("enable_chunked_prefill") is False:
        yield conflict(
            "max-num-batched-tokens",
            f"must be at least max-model-len ({length}) without chunked prefill, not {tokens}",
        )
    active = given.values.get("max_num_active_seqs")
    if active and sequences and active > sequences:
        yield conflict("max-num-active-seqs", _bounded(active, "at most max-num-seqs", sequences))
    partial, long = given["max_num_partial_prefills"], given["max_long_partial_prefills"]
    if partial and long and long > partial:
        message = _bounded(long, "at most max-num-partial-prefills", partial)
        yield conflict("max-long-partial-prefills", message)


def adapters(given: Arguments) -> Iterator[Mistake]:
    """Check as LoRAConfig._validate_lora_config does, vllm/config/lora.py; made only with enable-lora."""
    cpu, gpu = given["max_cpu_loras"], given["max_loras"]
    if given["enable_lora"] and cpu and gpu and cpu < gpu:
        yield conflict("max-cpu-loras", _bounded(cpu, "at least max-loras", gpu))


def quantization(given: Arguments) -> Iterator[Mistake]:
    """Check as ModelConfig._verify_quantization does, vllm/config/model.py."""
    method = given.values.get("quantization")
    deprecated = given.table.deprecated_quantization
    if method in deprecated and not given["allow_deprecated_quantization"]:
        yield conflict("quantization", f"{method} is deprecated, and needs allow-deprecated-quantization")


def headless(given: Arguments) -> Iterator[Mistake]:
    """Check as ServeSubcommand.cmd and run_headless do, vllm/entrypoints/cli/serve.py."""
    if not given["headless"]:
        return
    # Up to 0.11 one server was the default, and only more of them an error.
    if (given.values.get("api_server_count") or 0) > (1 if precedes(given.table.version, "0.17") else 0):
        yield conflict("api-server-count", "makes no sense with headless, which starts no API server")
    if given["data_parallel_hybrid_lb"]:
        yield conflict("data-parallel-hybrid-lb", "cannot be used with headless")


def balancing(given: Arguments) -> Iterator[Mistake]:
    """Check as ServeSubcommand.cmd does, vllm/entrypoints/cli/serve.py."""
    modes = {dest.replace("_", "-") for dest in BALANCING if given[dest]}
    if given["data_parallel_rank"] is not None:
        modes.add("data-parallel-external-lb")
    if len(modes) > 1:
        first, *others = sorted(modes)
        ranked = "is implied by data-parallel-rank, and " if given["data_parallel_rank"] is not None else ""
        yield conflict(first, f"{ranked}cannot be used with {' and '.join(others)}")


def data_parallel(given: Arguments) -> Iterator[Mistake]:
    """Check as _validate_parallel_config and create_engine_config do, vllm/engine/arg_utils.py."""
    size, local, rank = (given[f"data_parallel_{part}"] for part in ("size", "size_local", "rank"))
    if local is not None and local > size:
        yield conflict("data-parallel-size-local", _bounded(local, "at most data-parallel-size", size))
    if rank is not None and not 0 <= rank < max(size, 1):
        yield conflict("data-parallel-rank", _bounded(rank, "less than data-parallel-size", size))
    if given["data_parallel_external_lb"] and size <= 1:
        yield conflict("data-parallel-external-lb", "needs data-parallel-size of 2 or more")
    elif given["data_parallel_external_lb"] and rank is None and (given["nnodes"] or 1) <= 1:
        yield conflict("data-parallel-external-lb", "needs data-parallel-rank")
    if rank is not None and local not in (None, 1):
        yield conflict("data-parallel-size-local", "must be 1 with data-parallel-rank")


def multi_port(given: Arguments) -> Iterator[Mistake]:
    """Check as validate_multi_port_external_lb_args does, vllm/entrypoints/launchers/dp_supervisor.py."""
    if not given["data_parallel_multi_port_external_lb"]:
        return
    flag = "data-parallel-multi-port-external-lb"
    size, local = given["data_parallel_size"], given["data_parallel_size_local"]
    if size < 2:
        yield conflict(flag, "needs data-parallel-size of 2 or more")
    elif local is None or local < 2:
        yield conflict(flag, "needs data-parallel-size-local of 2 or more")
    elif size % local:
        yield conflict("data-parallel-size", _bounded(size, "a multiple of data-parallel-size-local", local))
    if given["api_server_count"] not in (None, 1):
        yield conflict("api-server-count", f"must be 1 with {flag}")
    if given["uds"] is not None:
        yield conflict("uds", f"cannot be used with {flag}")
    if bool(given["ssl_keyfile"]) != bool(given["ssl_certfile"]):
        yield conflict("ssl-keyfile", "must be given together with ssl-certfile")


def experts(given: Arguments) -> Iterator[Mistake]:
    """Check as ParallelConfig._validate_parallel_config and __post_init__ do, vllm/config/parallel.py."""
    kinds = ("tensor", "data", "prefill_context")
    ranks = prod(given[f"{kind}_parallel_size"] or 1 for kind in kinds)
    if given["enable_eplb"] and not given["enable_expert_parallel"]:
        yield conflict("enable-eplb", "needs enable-expert-parallel")
    elif given["enable_eplb"] and ranks <= 1:
        yield conflict("enable-eplb", "needs tensor-parallel-size or data-parallel-size of 2 or more")
    elif not given["enable_eplb"] and given.key("eplb_config", "num_redundant_experts"):
        yield conflict("eplb-config.num_redundant_experts", "needs enable-eplb")
    if given["enable_elastic_ep"]:
        if not given["enable_eplb"]:
            yield conflict("enable-elastic-ep", "needs enable-eplb")
        if given["pipeline_parallel_size"] > 1:
            yield conflict("enable-elastic-ep", "cannot be used with pipeline-parallel-size above 1")


def context_parallel(given: Arguments) -> Iterator[Mistake]:
    """Check as ParallelConfig._validate_parallel_config does, vllm/config/parallel.py."""
    tensor, context = given["tensor_parallel_size"], given["decode_context_parallel_size"]
    if context is None:
        return
    if context < 1:
        yield Mistake("decode-context-parallel-size", "range", f"must be at least 1, not {context}")
    elif context == 1 and given["dcp_comm_backend"] == "a2a" and precedes(given.table.version, "0.32"):
        yield conflict("dcp-comm-backend", "needs decode-context-parallel-size of 2 or more for a2a")
    elif (given["prefill_context_parallel_size"] or 1) == 1 and tensor % context:
        message = _bounded(context, "a divisor of tensor-parallel-size", tensor)
        yield conflict("decode-context-parallel-size", message)


def nodes(given: Arguments) -> Iterator[Mistake]:
    """Check as create_engine_config, vllm/engine/arg_utils.py, and vllm/config/parallel.py do."""
    count, rank = given["nnodes"] or 1, given["node_rank"] or 0
    backend = given["distributed_executor_backend"]
    if count > 1 and not 0 <= rank < count:
        yield conflict("node-rank", _bounded(rank, "less than nnodes", count))
    if count > 1 and backend == "ray":
        yield conflict("nnodes", "above 1 cannot be used with distributed-executor-backend ray")
    elif count > 1 and backend != "mp" and precedes(given.table.version, "0.17"):
        yield conflict("nnodes", "above 1 needs distributed-executor-backend mp")
    if given["pipeline_parallel_size"] > 1 and backend == "uni":
        yield conflict("pipeline-parallel-size", "above 1 needs distributed-executor-backend mp or ray")
    if given["ray_workers_use_nsight"] and backend in (None, "mp", "uni", "external_launcher"):
        yield conflict("ray-workers-use-nsight", "needs distributed-executor-backend ray")
    if (given["numa_bind_nodes"] or given["numa_bind_cpus"]) and not given["numa_bind"]:
        yield conflict("numa-bind-nodes" if given["numa_bind_nodes"] else "numa-bind-cpus", "needs numa-bind")


def speculation(given: Arguments) -> Iterator[Mistake]:
    """Check as create_speculative_config (vllm/engine/arg_utils.py) and vllm/config/speculative.py do."""
    own = given.values.get("speculative_config") or {}
    for dest, key in SPECULATION.items():
        if given.values.get(dest) is not None and key in own:
            yield conflict(dest.replace("_", "-"), f"is given as speculative-config.{key}, too; keep one")
    if own.get("tensor_parallel_size") is not None:
        message = "is refused; write draft_tensor_parallel_size"
        yield conflict("speculative-config.tensor_parallel_size", message)
    tokens = own.get("num_speculative_tokens", given.values.get("spec_tokens"))
    method = own.get("method", given.values.get("spec_method"))
    if method in DRAFTLESS and tokens is None:
        message = f"is needed with method {method}"
        yield Mistake("speculative-config.num_speculative_tokens", "missing-value", message)
    if method in DRAFTED and own.get("model", given.values.get("spec_model")) is None:
        message = f"is needed with method {method}: the draft model's name"
        yield Mistake("speculative-config.model", "missing-value", message)
    least, most = own.get("prompt_lookup_min"), own.get("prompt_lookup_max")
    if least is not None and most is not None and least > most:
        message = _bounded(least, "at most prompt_lookup_max", most)
        yield conflict("speculative-config.prompt_lookup_min", message)


TWICE = [  # an option, and the JSON option and key that it excludes
    ("attention_backend", "attention_config", "backend"),
    ("cudagraph_capture_sizes", "compilation_config", "cudagraph_capture_sizes"),
    ("max_cudagraph_capture_size", "compilation_config", "max_cudagraph_capture_size"),
    ("enable_flashinfer_autotune", "kernel_config", "enable_flashinfer_autotune"),
]


def given_twice(given: Arguments) -> Iterator[Mistake]:
    """Check as create_engine_config does, vllm/engine/arg_utils.py."""
    for dest, config, key in TWICE:
        if given.values.get(dest) is not None and given.key(config, key) is not None:
            name = config.replace("_", "-")
            yield conflict(dest.replace("_", "-"), f"is given as {name}.{key}, too; keep one")


def tracing(given: Arguments) -> Iterator[Mistake]:
    """Check as ObservabilityConfig._validate_tracing_config does, vllm/config/observability.py."""
    if given["collect_detailed_traces"] and not given["otlp_traces_endpoint"]:
        yield conflict("collect-detailed-traces", "needs otlp-traces-endpoint")
    release = given["show_hidden_metrics_for_version"]
    if release is not None and not is_version(release):
        message = f"must be a release such as 0.32, not {shown(release)}"
        yield Mistake("show-hidden-metrics-for-version", "type", message)
    for family, bounds in (given["custom_histogram_buckets"] or {}).items():
        if not bounds or min(bounds) <= 0 or any(one >= next_ for one, next_ in pairwise(bounds)):
            message = "must be numbers above 0, each more than the last"
            yield Mistake(f"custom-histogram-buckets.{family}", "range", message)


def multimodal(given: Arguments) -> Iterator[Mistake]:
    """Check as MultiModalConfig._validate_multimodal_config does, vllm/config/multimodal.py."""
    flag = given.table.by_dest.get("mm_shm_cache_max_object_size_mb")
    size = given.values.get("mm_shm_cache_max_object_size_mb")
    if flag and size not in (None, flag.default) and given["mm_processor_cache_type"] != "shm":
        yield conflict("mm-shm-cache-max-object-size-mb", "needs mm-processor-cache-type shm")
    scales = [dest for dest in FP8_SCALES if given[dest] is not None]
    if scales and given["mm_encoder_attn_dtype"] != "fp8":
        yield conflict(scales[0].replace("_", "-"), "needs mm-encoder-attn-dtype fp8")
    elif len(scales) > 1:
        yield conflict("mm-encoder-fp8-scale-path", "cannot be used with mm-encoder-fp8-scale-save-path")


def mamba(given: Arguments) -> Iterator[Mistake]:
    """Check as MambaConfig.validate_ssu_algorithm does, vllm/config/mamba.py."""
    if given["mamba_ssu_algorithm"] is not None and (given["mamba_backend"] or "").lower() != "flashinfer":
        yield conflict("mamba-ssu-algorithm", "needs mamba-backend flashinfer")


RULES: list[ConflictRule] = [
    serve_args, max_model_len, batch, adapters, quantization, headless, balancing, data_parallel, multi_port,
    experts, context_parallel, nodes, speculation, given_twice, tracing, multimodal, mamba, *OPTION_RULES,
]  # fmt: skip
