"""What vLLM says of its memory when it starts, in the words of its versions.

Logs without a link were found by a full-text search over public repositories that does not name them.
"""

from collections.abc import Callable

import pytest

from vllmjobs.box.overview import log_line
from vllmjobs.cluster.logs import Source
from vllmjobs.supervisor.log.lines import Lines
from vllmjobs.vllm.memory.startup_log import StartupLog, startup_log

GIB = 2**30


def gib(amount: float) -> int:
    return int(amount * GIB)


LOGS = {
    "0.5.4": (
        """\
INFO 08-09 13:56:03 model_runner.py:732] Loading model weights took 14.9888 GB
INFO 08-09 13:56:04 gpu_executor.py:102] # GPU blocks: 9930, # CPU blocks: 2048
""",
        StartupLog("GPU", 9930 * 16, weights=gib(14.9888)),
    ),
    # vllm-project/vllm#13882
    "0.7, V0": (
        """\
INFO 02-26 09:54:02 model_runner.py:1115] Loading model weights took 5.2032 GB
INFO 02-26 09:54:05 worker.py:267] the current vLLM instance can use total_gpu_memory (8.00GiB) x gpu_memory_\
utilization (0.70) = 5.60GiB
INFO 02-26 09:54:05 worker.py:267] model weights take 5.20GiB; non_torch_memory takes 0.03GiB; PyTorch \
activation peak memory takes 1.42GiB; the rest of the memory reserved for KV Cache is -1.05GiB.
INFO 02-26 09:54:05 executor_base.py:111] # cuda blocks: 0, # CPU blocks: 4681
INFO 02-26 09:54:05 executor_base.py:116] Maximum concurrency for 4096 tokens per request: 0.00x
""",
        StartupLog("GPU", 0, 0.0, 4096, gib(-1.05), gib(5.2032)),
    ),
    # vllm-project/vllm#12569
    "0.7, V1": (
        """\
INFO 01-30 03:18:12 gpu_model_runner.py:848] Loading model weights took 67.7229 GB
INFO 01-30 03:19:14 kv_cache_utils.py:395] # GPU blocks: 1381
INFO 01-30 03:19:14 kv_cache_utils.py:398] Maximum concurrency for 2048 tokens per request: 10.79x
""",
        StartupLog("GPU", 1381 * 16, 10.79, 2048, weights=gib(67.7229)),
    ),
    "0.9": (
        """\
INFO 06-10 10:57:56 [default_loader.py:272] Loading weights took 2.22 seconds
INFO 06-10 10:57:57 [gpu_model_runner.py:1801] Model loading took 15.2683 GiB and 3.617503 seconds
INFO 06-10 10:58:13 [gpu_worker.py:232] Available KV cache memory: 18.69 GiB
INFO 06-10 10:58:14 [kv_cache_utils.py:716] GPU KV cache size: 136,080 tokens
INFO 06-10 10:58:14 [kv_cache_utils.py:720] Maximum concurrency for 40,960 tokens per request: 3.32x
INFO 06-10 10:58:38 [loggers.py:137] Engine 000: Running: 1 reqs, GPU KV cache usage: 0.1%
""",
        StartupLog("GPU", 136_080, 3.32, 40_960, gib(18.69), gib(15.2683)),
    ),
    "0.21, through compose": (
        """\
qwen  | (EngineCore pid=310) INFO 06-01 21:40:51 [gpu_model_runner.py:5131] Model loading took 21.93 GiB \
memory and 281.243837 seconds
qwen  | (EngineCore pid=310) INFO 06-01 21:42:18 [gpu_worker.py:469] Available KV cache memory: 73.13 GiB
qwen  | (EngineCore pid=310) INFO 06-01 21:42:18 [kv_cache_utils.py:1733] GPU KV cache size: 6,312,658 tokens
qwen  | (EngineCore pid=310) INFO 06-01 21:42:18 [kv_cache_utils.py:1734] Maximum concurrency for 262,144 \
tokens per request: 24.08x
""",
        StartupLog("GPU", 6_312_658, 24.08, 262_144, gib(73.13), gib(21.93)),
    ),
    "0.30, on the CPU": (
        """\
(Worker pid=80) INFO 09-23 06:35:11 [default_loader.py:430] Loading weights took 1.77 seconds
(Worker pid=80) INFO 09-23 06:35:12 [cpu_worker.py:271] Explicitly set (1.0/15.84) GiB for KV cache on node 0.
(EngineCore pid=56) INFO 09-23 06:35:12 [kv_cache_utils.py:2395] CPU KV cache size: 87,296 tokens, Maximum \
concurrency for 4,096 tokens per request: 21.31x
""",
        StartupLog("CPU", 87_296, 21.31, 4096, gib(1.0)),
    ),
    # As update_kv_cache_capacity of vLLM 0.32 formats it for attention_config.hisparse_config.
    "0.32, with a pool on the host": (
        "GPU + host KV cache size: 512 tokens, Maximum concurrency for 256 tokens per request: 2.00x\n",
        StartupLog("GPU", 512, 2.0, 256),
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", LOGS)
def test_a_start_is_read_in_the_words_of_its_version(version: str) -> None:
    log, expected = LOGS[version]
    assert startup_log(log.splitlines()) == expected


def test_a_log_that_says_none_of_it_says_nothing() -> None:
    assert (
        startup_log(["INFO:     Started server process [123]", "Loading weights took 2.22 seconds", ""])
        is None
    )


def test_blocks_are_as_large_as_the_environment_says() -> None:
    log = ["INFO 01-30 03:19:14 kv_cache_utils.py:395] # GPU blocks: 1381"]
    assert startup_log(log, block_size=32) == StartupLog("GPU", 1381 * 32)


# vllm-project/vllm#17242: 16 GPUs, of which vLLM 0.8.4 said this one after the other.
WORKERS = """\
INFO 04-27 02:51:57 [kv_cache_utils.py:634] GPU KV cache size: 335,360 tokens
INFO 04-27 02:51:57 [kv_cache_utils.py:637] Maximum concurrency for 138 tokens per request: 2430.14x
INFO 04-27 02:51:57 [kv_cache_utils.py:634] GPU KV cache size: 335,168 tokens
INFO 04-27 02:51:57 [kv_cache_utils.py:634] GPU KV cache size: 335,360 tokens
""".splitlines()


def test_of_several_workers_the_least_counts_and_of_weights_the_most() -> None:
    weights = [
        f"(Worker_PP{rank}) Model loading took {size} GiB memory" for rank, size in enumerate((7.5, 7.64))
    ]
    assert startup_log(weights + WORKERS) == StartupLog("GPU", 335_168, 2430.14, 138, weights=gib(7.64))


def start(tokens: str, version: str = "0.32.0") -> list[str]:
    return [
        f"(EngineCore pid=67) INFO [core.py:134] Initializing a V1 LLM engine (v{version}) with config:",
        f"(EngineCore pid=67) INFO [kv_cache_utils.py:2328] GPU KV cache size: {tokens} tokens",
    ]


def test_of_several_starts_the_last_counts() -> None:
    assert startup_log([*start("1,000"), *start("5,000")]) == StartupLog("GPU", 5000)
    older = [line.replace("a V1 LLM", "an LLM") for line in start("5,000", "0.6.4")]
    assert startup_log([*start("1,000"), *older]) == StartupLog("GPU", 5000)


def test_a_start_that_has_said_nothing_yet_leaves_the_one_before() -> None:
    assert startup_log([*start("1,000"), start("5,000")[0]]) == StartupLog("GPU", 1000)


def of_the_supervisor(group: str, line: str) -> str:
    (record,) = Lines(f"{group}-0", "stdout").feed(f"{line}\n".encode(), 0.0)
    return record.decode()


def of_a_box(group: str, line: str) -> str:
    return log_line(of_the_supervisor(group, line), [f"{group}-0"]) or ""


def of_a_cluster(group: str, line: str) -> str:
    return Source(group, "1a2b3c4d-0000-0000-0000-000000000000", "stdout").line(line.encode())


def of_a_supervisor_in_a_cluster(group: str, line: str) -> str:
    return of_a_cluster(group, of_the_supervisor("vllm", line))


PRINTED = [of_the_supervisor, of_a_box, of_a_cluster, of_a_supervisor_in_a_cluster]


@pytest.mark.parametrize("shown", PRINTED, ids=lambda shown: shown.__name__)
def test_lines_of_other_models_are_left_out(shown: Callable[[str, str], str]) -> None:
    log = [shown("chat", line) for line in start("5,000")] + [
        shown("code-2", line) for line in start("1,000")
    ]
    assert startup_log(log, ["code-2"]) == StartupLog("GPU", 5000)
    assert startup_log(log, ["chat"]) == StartupLog("GPU", 1000)


def test_instances_whose_lines_alternate_are_told_apart() -> None:
    one = [f"chat 11111111 | {line}" for line in start("1,000")]
    other = [f"chat 22222222 | {line}" for line in start("5,000")]
    assert startup_log([one[0], other[0], one[1], other[1]]) == StartupLog("GPU", 5000)


@pytest.mark.parametrize("line", ["GPU KV cache size: {} tokens", "Available KV cache memory: {} GiB"])
def test_a_number_beyond_any_machine_is_no_number(line: str) -> None:
    assert startup_log([line.format("9" * 5000)]) is None
