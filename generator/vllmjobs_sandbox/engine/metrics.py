"""vLLM's metrics: names, labels, types and buckets as in `vllm/v1/metrics/loggers.py` (0.33).

Only those that operators watch, and `http_requests_total` of prometheus-fastapi-instrumentator, which
vLLM mounts too and which alone knows the answers' status codes.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import REGISTRY

if TYPE_CHECKING:
    from vllmjobs_sandbox.engine.engine import Sequence

LABELS = ("model_name", "engine")

# fmt: off
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
PER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)
LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)
# fmt: on


class Metrics:
    """Every series of one engine, in prometheus-client's default registry (one engine per process)."""

    def __init__(self, model_name: str) -> None:
        of = (model_name, "0")

        def counter(name: str, about: str) -> Counter:
            return Counter(f"vllm:{name}", about, LABELS).labels(*of)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", about, LABELS, buckets=buckets).labels(*of)

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(f"vllm:{name}", about, LABELS).labels(*of)

        self._running = gauge("num_requests_running", "Number of requests in model execution batches.")
        self._waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        self._kv_usage = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")

        self.prefix_queries = counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self.prefix_hits = counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self.preemptions = counter("num_preemptions", "Preemptions: only where a failure mode says so.")

        success = Counter("vllm:request_success", "Finished requests.", (*LABELS, "finished_reason"))
        self._finished = {
            reason: success.labels(*of, reason)
            for reason in ("stop", "length", "abort", "error", "repetition")
        }
        # Counted before an engine is chosen.
        rejections = Counter("vllm:admission_rejections", "Refused: never here.", ("model_name", "reason"))
        for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
            rejections.labels(model_name, reason)

        # A histogram, although its name ends like a counter's; its _count is the heartbeat.
        self.step_tokens = histogram("iteration_tokens_total", "Tokens per engine step.", STEP_TOKENS)
        self.first_token = histogram("time_to_first_token_seconds", "Time to first token.", FIRST_TOKEN)
        self.inter_token = histogram("inter_token_latency_seconds", "Inter-token latency.", PER_TOKEN)
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "Time per output token, per request.", PER_TOKEN
        )
        self._e2e = histogram("e2e_request_latency_seconds", "End-to-end request latency.", LATENCY)
        self._queued = histogram("request_queue_time_seconds", "Time in WAITING phase.", LATENCY)

        self.answers = Counter("http_requests", "Requests by status class.", ("handler", "method", "status"))

    def watch(
        self, running: Callable[[], float], waiting: Callable[[], float], kv_usage: Callable[[], float]
    ) -> None:
        """Let the gauges ask the engine when they are read."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._kv_usage.set_function(kv_usage)

    def finished(self, sequence: "Sequence", reason: str) -> None:
        """Count a sequence that has ended."""
        now = time.monotonic()
        self._finished[reason].inc()
        self._e2e.observe(now - sequence.arrived)
        self._queued.observe((sequence.scheduled or now) - sequence.arrived)
        if sequence.generated > 1:
            self._per_token.observe((sequence.last_at - sequence.first_at) / (sequence.generated - 1))

    def failed(self) -> None:
        """Count a request that ended in an error before it reached the engine."""
        self._finished["error"].inc()

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return the body and the content type of /metrics."""
        encode, content_type = choose_encoder(accept)
        return encode(REGISTRY), content_type
